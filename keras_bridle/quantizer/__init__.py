"""Residual quantization."""
