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
print(json.dumps(recipe_digests(sys.argv[1], sys.argv[2:])))
"""


def recipe_digests(name: str, assignments: Sequence[str] = ()) -> dict[str, str]:
    """Scale -> digest of "domain/recipe" with that scale's presets, and what `--set` says."""
    given = parse_assignments(assignments)
    every = {scale: make_settings(name, scale, given) for scale in SCALES}
    return {scale: digest(make_recipe(name, settings)) for scale, settings in every.items()}


def digests_elsewhere(name: str, assignments: Sequence[str] = ()) -> dict[str, str]:
    """`recipe_digests` from a new process with another order of sets and other addresses."""
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, name, *assignments],
        env={**os.environ, "PYTHONHASHSEED": "271828", "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(found.stdout)
