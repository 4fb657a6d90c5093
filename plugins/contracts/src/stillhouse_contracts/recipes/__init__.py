"""The recipes of this domain."""
