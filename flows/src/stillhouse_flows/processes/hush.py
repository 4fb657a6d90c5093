"""DVC's advice to a person at a terminal, out of programs that call it."""

import logging


def hush_dvc() -> None:
    """Keep DVC's warnings and errors, drop its notes; importing it sets its own level again."""
    import dvc.logger  # pyright: ignore[reportUnusedImport] # noqa: F401

    logging.getLogger("dvc").setLevel(logging.WARNING)
