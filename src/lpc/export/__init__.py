"""Trained latents for programs without this package."""
