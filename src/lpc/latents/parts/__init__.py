"""What several latents are made of. These modules import torch at their top, those of a kind do not."""
