"""Digests of a recipe at every scale, here and in a new process."""

import json
import os
import subprocess
import sys

from stillhouse.digest import digest
from stillhouse.recipe import SCALES
from stillhouse.settings import make_recipe, make_settings

PROGRAM = """
import json, sys
from stillhouse.testing.digests import recipe_digests
print(json.dumps(recipe_digests(sys.argv[1])))
"""


def recipe_digests(name: str) -> dict[str, str]:
    """Scale -> digest of "domain/recipe" with that scale's presets."""
    return {scale: digest(make_recipe(name, make_settings(name, scale))) for scale in SCALES}


def digests_elsewhere(name: str) -> dict[str, str]:
    """`recipe_digests` from a new process with another order of sets and other addresses."""
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, name],
        env={**os.environ, "PYTHONHASHSEED": "271828", "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(found.stdout)
