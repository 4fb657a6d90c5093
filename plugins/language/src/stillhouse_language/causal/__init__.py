"""Causal language models: the kernel's contract, loading, tokens, generation, scoring, export."""
