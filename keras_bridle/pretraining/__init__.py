"""Trainers for each phase, and the plan that runs them in turn."""
