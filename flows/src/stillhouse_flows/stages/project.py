"""A project's stages as DVC sees them: a dvc.yaml read into frozen specs, in running order."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INPUTS = "inputs"  # the stage that notes settings and digests (outside.py): cheap, never shared


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """One DVC stage: how to call it, what it waits for, and what Prefect should know of it."""

    name: str
    address: str  # "pipelines/vision/distill/tiny/dvc.yaml:teacher"
    upstream: tuple[str, ...]  # names, in this pipeline
    outs: tuple[str, ...]  # relative to the root
    resource: str = "cpu"
    retries: int = 0
    timeout: float | None = None  # seconds


def plan(root: Path, pipeline: str) -> tuple[StageSpec, ...]:
    """The stages of the file `pipeline` (under the DVC root), each after those it waits for.

    Reads that file alone, since a project may hold dozens and DVC reads each slowly: cycles and
    overlapping outputs within it are found here, those between two files by `dvc repro`.
    """
    from dvc.repo import Repo
    from dvc.repo.index import Index
    from dvc.repo.reproduce import get_active_graph, plan_repro

    with Repo(str(root)) as repo:
        graph = get_active_graph(Index.from_file(repo, str(root / pipeline)).graph)
        ours = {s: s.name for s in plan_repro(graph)}
        return tuple(_spec(repo, s, graph.successors(s), ours) for s in ours)


# Any: DVC's and networkx's objects are untyped
def _spec(repo: Any, stage: Any, below: Any, ours: Mapping[Any, str]) -> StageSpec:
    hints: Mapping[str, Any] = (stage.meta or {}).get("prefect", {})
    root = Path(repo.root_dir)
    return StageSpec(
        name=ours[stage],
        address=f"{stage.path_in_repo}:{stage.name}",
        upstream=tuple(sorted(ours[other] for other in below if other in ours)),
        # never str(out): that is relative to the working directory
        outs=tuple(Path(out.fs_path).relative_to(root).as_posix() for out in stage.outs),
        resource=hints.get("resource", "cpu"),
        retries=hints.get("retries", 0),
        timeout=hints.get("timeout"),
    )
