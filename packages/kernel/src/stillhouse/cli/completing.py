"""Completion on TAB, in the shells that typer knows: of commands, options and recipes."""

import os
from typing import Annotated, Literal

import typer

VARIABLE = "_STILLHOUSE_COMPLETE"


def completion(
    shell: Annotated[
        Literal["bash", "zsh", "fish"],
        typer.Argument(help="The shell that is to complete."),
    ],
) -> None:
    """Print what makes a shell complete on TAB: eval "$(stillhouse completion bash)"."""
    from typer.completion import (
        get_completion_script,  # pyright: ignore[reportPrivateImportUsage]
    )

    print(get_completion_script(prog_name="stillhouse", complete_var=VARIABLE, shell=shell))


def answer_shells() -> None:
    """Have this process answer a completion request of a shell; without one it costs nothing."""
    if VARIABLE in os.environ:
        from typer.completion import completion_init  # pyright: ignore[reportPrivateImportUsage]

        completion_init()


def recipes(incomplete: str) -> list[str]:
    """Recipes that begin so, and behind an @ their variants that have run here."""
    from stillhouse.domain import Domain, domains
    from stillhouse.places import project_root

    name, at, _ = incomplete.partition("@")
    if at:
        folder = project_root() / "runs" / name
        return [f"{name}@{found.parent.name}" for found in sorted(folder.glob("*/settings.json"))]
    return [
        f"{domain.name}/{recipe}"
        for domain in domains().values()
        if isinstance(domain, Domain)
        for recipe in domain.recipes
    ]
