"""Latent Preference Coding (arXiv 2505.04993)."""

__version__ = "0.1.0"
