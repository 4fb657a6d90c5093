"""Diffusion models: MSD on diffusers."""
