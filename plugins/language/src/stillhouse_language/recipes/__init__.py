"""Recipes of the domain."""
