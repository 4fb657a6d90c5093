"""What flow runs leave on a disk, run by run: workspaces, git, DVC's cache, Prefect's database.

    uv run python benchmarks/flow_growth.py --runs 4

Works on a clone of this repository under a temporary folder. Every run but the first finds all its
stages in DVC's cache, so that the growth is the flow's own. `per_100` is a hundred times the mean
growth of those runs: an extrapolation, unless a hundred were run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from stillhouse.environment import environment
from stillhouse.work import Work

REPOSITORY = Path(__file__).resolve().parents[1]


def size(folder: Path) -> int:
    """Bytes of a folder's files but for those linked elsewhere, as from DVC's cache."""
    stats = [p.lstat() for p in folder.rglob("*") if not p.is_symlink() and p.is_file()]
    return sum(s.st_size for s in stats if s.st_nlink == 1)


def measure(project: Path, home: Path) -> dict[str, int]:
    git = ["git", "-C", str(project)]
    refs = subprocess.check_output([*git, "for-each-ref", "refs/heads/runs"], text=True)
    trees = subprocess.check_output([*git, "worktree", "list"], text=True)
    return {
        "workspaces_bytes": size(home / "workspaces"),
        "git_bytes": size(project / ".git"),
        "dvc_cache_bytes": sum(
            p.stat().st_size for p in (project / ".dvc/cache").rglob("*") if p.is_file()
        ),
        "prefect_bytes": sum(p.stat().st_size for p in (home / "prefect").glob("prefect.db*")),
        "branches": len(refs.splitlines()),
        "working_trees": len(trees.splitlines()) - 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--recipe", default="vision/distill")
    parser.add_argument("--out", type=Path, default=Path("docs/results/flow-growth"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stillhouse-growth-") as place:
        project, home = Path(place) / "project", Path(place) / "home"
        subprocess.check_call(["git", "clone", "--quiet", str(REPOSITORY), str(project)])
        env = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
        env |= {"STILLHOUSE_HOME": str(home), "STILLHOUSE_ROOT": str(project)}
        rows: list[dict[str, int]] = []
        for _ in range(args.runs):
            command = [sys.executable, "-m", "stillhouse", "flow", "run", args.recipe]
            subprocess.check_call(command, cwd=project, env=env, stdout=subprocess.DEVNULL)
            rows.append(measure(project, home, work=Work()))
            print(json.dumps(rows[-1]), flush=True)
    grown = {k: (rows[-1][k] - rows[0][k]) / (len(rows) - 1) for k in rows[0]} if rows[1:] else {}
    record = {
        "recipe": args.recipe,
        "runs": rows,
        "per_100": {k: round(100 * v) for k, v in grown.items()},
        "environment": environment("cpu"),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "flow-growth.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
