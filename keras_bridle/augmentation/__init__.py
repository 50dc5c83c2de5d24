"""Augmentation layers."""
