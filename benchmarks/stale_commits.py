"""How many of the last commits that touched the kernel made finished stages stale: a Train,
an Evaluate and a Make stage of landmarks/two_teacher, keyed by the code that each can reach,
against a key over all of the kernel and the plugin.

The trees of the commits are read as text; nothing of them is imported. A stage's roots are those of
the recipe as it is now.
"""

import argparse
import io
import json
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from stillhouse.code import code_version, stage_roots
from stillhouse.code.closure import DOORS, Code
from stillhouse.code.keys import RUNNER
from stillhouse.code.sources import read
from stillhouse.digest import text_digest
from stillhouse.environment import environment
from stillhouse.settings import make_recipe, make_settings

RECIPE = "landmarks/two_teacher"
STAGES = {"Train": "tough", "Evaluate": "tough-scores", "Make": "data"}
ROOTS = {
    "stillhouse": "packages/kernel/src/stillhouse",
    "stillhouse_landmarks": "plugins/landmarks/src/stillhouse_landmarks",
}
# it looked for the sources of code keys, as stillhouse.code does now
BEFORE = {"stillhouse.digest"}
WHOLE = "all of kernel and plugin"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commits", type=int, default=65)
    parser.add_argument("--last", default="HEAD", help="the commit to count back from")
    parser.add_argument("--out", type=Path, default=Path("docs/results/stale-commits"))
    given = parser.parse_args()
    recipe = make_recipe(RECIPE, make_settings(RECIPE, "tiny", {}))
    roots = {kind: stage_roots(recipe, recipe.stage(name)) for kind, name in STAGES.items()}
    words = ("log", f"-{given.commits}", "--format=%h %s", given.last, "--", "packages/kernel")
    commits = [line.partition(" ") for line in git(*words).decode().splitlines()]
    started = time.process_time()
    seen: dict[str, Mapping[str, str]] = {}
    rows = [
        {"commit": commit, "subject": subject, "stale": stale(commit, roots, seen)}
        for commit, _, subject in commits
    ]
    kinds = [WHOLE, *STAGES]
    counts = {kind: sum(kind in row["stale"] for row in rows) for kind in kinds}
    record = {
        "recipe": RECIPE,
        "stages": STAGES,
        "commits": len(rows),
        "made_stale": counts,
        "seconds_a_tree": round((time.process_time() - started) / max(1, len(seen)), 2),
        "rows": rows,
        "code": code_version("stillhouse_landmarks"),
        "environment": environment("cpu"),
    }
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "stale-commits.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"Of {len(rows)} commits that touched the kernel, these made a finished stage stale:")
    for kind, count in counts.items():
        print(f"  {kind:26} {count}")


def stale(
    commit: str, roots: Mapping[str, set[str]], seen: dict[str, Mapping[str, str]]
) -> list[str]:
    """The kinds of keys that differ between a commit and the one before it."""
    if not git("diff", "--name-only", f"{commit}^", commit, "--", *ROOTS.values()):
        return []
    before, after = (keys(f"{commit}{up}", roots, seen) for up in ("^", ""))
    return [kind for kind in after if before[kind] != after[kind]]


def keys(
    commit: str, roots: Mapping[str, set[str]], seen: dict[str, Mapping[str, str]]
) -> Mapping[str, str]:
    """The code key of each kind in a commit's tree; each tree is read once."""
    name = git("rev-parse", commit).decode().strip()
    if name not in seen:
        with (
            tempfile.TemporaryDirectory() as folder,
            tarfile.open(fileobj=io.BytesIO(git("archive", name, *ROOTS.values()))) as packed,
        ):
            packed.extractall(folder, filter="data")
            modules = read({package: Path(folder) / path for package, path in ROOTS.items()})
        code = Code(modules=modules, doors=DOORS | BEFORE)
        # as it was before: the bytes of every file
        files = "\n".join(f"{n} {text_digest(m.text.hex())}" for n, m in sorted(modules.items()))
        seen[name] = {WHOLE: text_digest(files)} | {
            kind: code.digest(code.reached(each) | {RUNNER}) for kind, each in roots.items()
        }
    return seen[name]


def git(*words: str) -> bytes:
    return subprocess.run(["git", *words], capture_output=True, check=True).stdout


if __name__ == "__main__":
    main()
