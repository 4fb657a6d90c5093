"""The command line. Nothing heavy is imported at the top of these modules: it starts at once."""

from stillhouse.cli.app import main as main

__all__ = ["main"]
