"""Recipes of image and text embedding models."""
