"""What models/<domain>/<recipe>/ holds of a promoted student: texts, and a pointer to its weights,
which are in DVC's cache.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from stillhouse.digest import path_digest
from stillhouse.errors import CorruptArtifact, MissingData
from stillhouse.files import storage
from stillhouse.places import home
from stillhouse.report.document import StageEntry
from stillhouse_flows.data.pinned import Pin, listing, object_file, push_results
from stillhouse_flows.promotion.candidates import Candidate
from stillhouse_flows.workspace.branches import Repository
from stillhouse_flows.workspace.worktree import bring_remotes, dvc_config, shared_cache

RECORD = "promotion.json"
CARD = "README.md"


def models_files(
    repo: Repository, found: Candidate, record: Mapping[str, Any], *, push: bool
) -> Mapping[str, str]:  # Any: JSON
    """Texts of models/<domain>/<recipe>/; the weights they point to are in DVC's cache, and with
    `push` in its remote.
    """
    place = home() / "promotion"
    with storage(place):
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place) as scratch:
            folder = Path(scratch)
            _bring_student(repo, found, shared_cache(repo.project), folder / "student")
            card = folder / "student" / CARD
            about = card.read_text() if card.is_file() else f"# {found.report.title}\n"
            _track(folder, repo, push=push)
            pointer = (folder / "student.dvc").read_text()
    report = f"{found.runs}/report/report"
    return {
        "student.dvc": pointer,
        ".gitignore": "/student\n",
        CARD: f"{about.rstrip()}\n\n{_promoted_section(found, record)}",
        "report.json": f"{repo.read(found.commit, f'{report}.json')}\n",
        "report.md": f"{repo.read(found.commit, f'{report}.md')}\n",
        RECORD: as_json(record),
    }


def _promoted_section(found: Candidate, record: Mapping[str, Any]) -> str:  # Any: JSON
    scores = [f"| {name} | {value:.6g} |" for name, value in record["scores"].items()]
    lines = [
        "## Promoted",
        "",
        f"Run `{found.run}` of `{found.report.title}`, data version "
        f"`{record['inputs']['data'] or 'none'}`, {record['time']}. "
        f'Row "{record["row"]}" of `report.md`, means over its seeds:',
        "",
        "| Score | Mean |",
        "| :-- | --: |",
        *scores,
    ]
    return "\n".join(lines) + "\n"


def _bring_student(repo: Repository, found: Candidate, cache: Path, aim: Path) -> None:
    """The exported model of a run, from DVC's cache; raises MissingData, CorruptArtifact."""
    export = _export(found)
    output = export.outputs["model"]
    known = listing(cache, _left(repo, found, export.name)) or {}
    files = {name: md5 for name, md5 in known.items() if name.startswith(f"{output.path}/")}
    absent = [name for name, md5 in files.items() if not object_file(cache, md5).is_file()]
    if absent or not files:
        raise MissingData(
            f"the student of run {found.run} is not in DVC's cache ({cache}) any more; "
            f"make it again: stillhouse flow run {found.report.title} --ref {found.branch}"
        )
    for name, md5 in files.items():
        path = aim / name.removeprefix(f"{output.path}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(object_file(cache, md5), path)
    if path_digest(aim) != output.digest:
        raise CorruptArtifact(
            f"the student of run {found.run} in DVC's cache ({cache}) differs from what the run "
            f"left; make it again: stillhouse flow run {found.report.title} --ref {found.branch}"
        )


def _left(repo: Repository, found: Candidate, stage: str) -> Pin:
    """The folder that a stage left, as the run's dvc.lock has it."""
    lock = repo.read(found.commit, f"pipelines/{found.name}/{found.report.variant}/dvc.lock")
    stages: Any = yaml.safe_load(lock or "")["stages"]  # Any: YAML
    (md5,) = [o["md5"] for o in stages[stage]["outs"] if o["path"] == f"{found.runs}/{stage}"]
    return Pin(md5=md5, size=0, files=0)


def _export(found: Candidate) -> StageEntry:
    models = [stage for stage in found.report.stages if "model" in stage.outputs]
    if not models:
        raise MissingData(f"{found.name} has no stage that leaves a model to promote")
    return models[-1]


def _track(folder: Path, repo: Repository, *, push: bool) -> None:
    """`dvc add` of student/ into the project's cache, in a repository that is only for that; with
    `push`, send it to the project's DVC remote too.
    """
    from dvc.repo import Repo

    dvc = folder / ".dvc"
    dvc.mkdir()
    (dvc / "config.local").write_text(dvc_config(dvc, shared_cache(repo.project), in_git=False))
    with Repo(str(folder), _wait_for_lock=True) as opened:
        tracked: Any = opened  # Any: DVC binds its methods in a way no checker sees
        tracked.add(str(folder / "student"))
    if push:
        bring_remotes(repo.project, folder)
        push_results(folder, "student.dvc", run_cache=False)


def as_json(record: Mapping[str, Any]) -> str:  # Any: JSON
    """A record as it is kept: the same values are the same text."""
    return json.dumps(record, indent=1, sort_keys=True) + "\n"
