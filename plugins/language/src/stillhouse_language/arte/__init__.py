"""ARTE (arXiv 2406.19227): a teacher aligned with what its student learns from."""
