"""Digests of a recipe at every scale, here and in a new process."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence

from stillhouse.digest import digest
from stillhouse.recipe import SCALES
from stillhouse.settings import make_recipe, make_settings, parse_assignments

PROGRAM = """
import json, sys
from stillhouse.testing.digests import recipe_digests
found = {}
for name, words in json.loads(sys.argv[1]):
    try:
        found[name] = recipe_digests(name, words)
    except Exception as error:
        found[name] = {"error": repr(error)}
print(json.dumps(found))
"""

Named = tuple[tuple[str, tuple[str, ...]], ...]  # recipes with what `--set` says of each


def recipe_digests(name: str, assignments: Sequence[str] = ()) -> dict[str, str]:
    """Scale -> digest of "domain/recipe" with that scale's presets, and what `--set` says."""
    given = parse_assignments(assignments)
    every = {scale: make_settings(name, scale, given) for scale in SCALES}
    return {scale: digest(make_recipe(name, settings)) for scale, settings in every.items()}


def digests_elsewhere(recipes: Named) -> dict[str, dict[str, str]]:
    """`recipe_digests` of each, from a new process with another order of sets and other
    addresses.
    """
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(recipes)],
        env={**os.environ, "PYTHONHASHSEED": "271828", "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(found.stdout)
