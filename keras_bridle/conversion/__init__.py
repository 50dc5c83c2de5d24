"""Weights and arithmetic of the published PyTorch code."""
