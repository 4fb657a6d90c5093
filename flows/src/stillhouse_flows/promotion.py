"""Promotion: the branch `promoted` holds the last promoted student of each recipe, in
models/<domain>/<recipe>/, its weights tracked by DVC.

Apart from models/, its tree is the newest of the user's own commits that a promoted run started
from. A run's tree is not merged in: it holds uncommitted files, may be of an older commit, and
merging it into the user's branch would take newer changes back there.
"""

import datetime
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from stillhouse.digest import path_digest
from stillhouse.errors import CorruptArtifact, MissingData, StillhouseError, UnknownName
from stillhouse.files import storage
from stillhouse.places import home
from stillhouse.report.document import Document, StageEntry, parse
from stillhouse_flows.branches import Repository, move, repository, staging
from stillhouse_flows.data import PIN, Pin, listing, object_file, pin_from, push_results
from stillhouse_flows.gate import (
    Decision,
    Gate,
    Standard,
    choose_row,
    decide,
    missing_gate,
    read_gate,
    rows_of_report,
)
from stillhouse_flows.git import git
from stillhouse_flows.inputs import inputs_of
from stillhouse_flows.worktree import bring_remotes, dvc_config, shared_cache

PROMOTED = "promoted"
RECORD = "promotion.json"
DECISION = "decision.json"
CARD = "README.md"
FINISHED = ("Report of ", "Decision on ")  # subjects of a finished run's last commit
NO_GATE = Gate()


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A finished run, as its branch has it."""

    run: str
    commit: str
    report: Document

    @property
    def branch(self) -> str:
        return f"runs/{self.run}"

    @property
    def name(self) -> str:
        return self.report.recipe

    @property
    def runs(self) -> str:
        return f"runs/{self.name}/{self.report.variant}"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What became of a run."""

    run: str
    recipe: str  # RECIPE@VARIANT
    decision: Decision
    forced: bool = False  # promoted although the gate refused it, or without a gate

    @property
    def promoted(self) -> bool:
        return self.decision.accepted or self.forced

    def sentence(self) -> str:
        """The outcome and its reasons."""
        word = "promoted" if self.promoted else "refused"
        how = " by force" if self.forced else ""
        return f"{self.run} {word}{how}: {'; '.join(self.decision.reasons)}"


def judge(
    project: Path, run: str, gate: Gate | None, *, force: bool = False, push: bool = False
) -> Judgement:
    """Hold a finished run against a gate and promote it where it passes, or with `force`.

    The decision is committed on the run's branch. With `push` a promoted student is in the DVC
    remote first. Raises BadSetting without a gate, RemoteLost.
    """
    repo = repository(project)
    with storage(repo.common), FileLock(repo.common / "stillhouse-promoted.lock"):
        found = candidate(repo, run)
        if gate is None and not force:
            raise missing_gate(found.name)
        before = standard(repo, found.name)
        again = before is not None and before.run == found.run
        decision = _decide(found, gate, None if again else before)
        result = Judgement(
            run=found.run,
            recipe=found.report.title,
            decision=decision,
            forced=force and not decision.accepted,
        )
        record = _record(repo, found, gate, result, before)
        if result.promoted and not again:
            _promote(repo, found, record, push=push)
        _note(repo, found, record)
        return result


def judge_now(project: Path, run: str, *, force: bool = False, push: bool = False) -> Judgement:
    """`judge` with the gate that params.yaml has now."""
    found, file = candidate(repository(project), run), project / "params.yaml"
    gate = read_gate(file.read_text(), found.name) if file.is_file() else None
    return judge(project, run, gate, force=force, push=push)


def _decide(found: Candidate, gate: Gate | None, before: Standard | None) -> Decision:
    if gate is not None:
        return decide(found.report, gate, before)
    rows = [row.name for row in found.report.rows]
    row = choose_row(NO_GATE, rows, rows_of_report(found.report), where=found.name)
    entry = found.report.row(row)
    scores = {score: each.mean for score, each in entry.scores.items()} if entry else {}
    return Decision(accepted=False, row=row, reasons=("it has no gate",), scores=scores)


@dataclass(frozen=True, kw_only=True)
class RunBranch:
    """A branch runs/*, as its last commit tells of it."""

    run: str
    when: str  # of that commit
    title: str  # RECIPE@VARIANT; empty before the run has settled its settings
    finished: bool

    def folder(self) -> str:
        """runs/<domain>/<recipe>/<variant>."""
        return f"runs/{self.title.replace('@', '/')}"


def run_branches(repo: Repository) -> list[RunBranch]:
    """Every run that has a branch, newest first."""
    shown = "--format=%(refname:lstrip=3)%09%(committerdate:iso-strict)%09%(contents:subject)"
    listing = git(repo.top, "for-each-ref", "--sort=-committerdate", shown, "refs/heads/runs")
    found: list[RunBranch] = []
    for line in listing.splitlines():
        run, when, subject = line.split("\t", 2)
        word = subject.rpartition(" ")[2]
        # what its tree holds does not tell: the user may have merged an earlier run
        finished = subject.startswith(FINISHED)
        title = word if "@" in word else ""
        found.append(RunBranch(run=run, when=when, title=title, finished=finished))
    return found


def candidate(repo: Repository, run: str) -> Candidate:
    """A finished run by name or branch; raises UnknownName, MissingData where it has no report."""
    branches = {each.run: each for each in run_branches(repo)}
    found = branches.get(run.removeprefix("runs/"))
    if found is None:
        raise UnknownName("run", run, branches)
    commit = repo.tip(f"runs/{found.run}")
    path = f"{found.folder()}/report/report.json"
    text = repo.read(commit, path) if found.finished else None
    if text is None:
        raise MissingData(
            f"run {found.run} is not finished: its branch runs/{found.run} has no report"
        )
    report = parse(text, where=f"runs/{found.run}:{path}")
    return Candidate(run=found.run, commit=commit, report=report)


def decision_on(repo: Repository, branch: RunBranch) -> Mapping[str, Any] | None:  # Any: JSON
    """What was decided on a run; None where it was not judged."""
    text = repo.read(f"refs/heads/runs/{branch.run}", f"{branch.folder()}/{DECISION}")
    record = json.loads(text) if branch.title and text else None
    return record if record and record["run"] == branch.run else None


def promotion(repo: Repository, name: str) -> Mapping[str, Any] | None:  # Any: JSON
    """The record of the promoted student of "domain/recipe"; None where there is none."""
    text = repo.read(f"refs/heads/{PROMOTED}", f"models/{name}/{RECORD}")
    return None if text is None else json.loads(text)


def standard(repo: Repository, name: str) -> Standard | None:
    """The promoted student of "domain/recipe" with its scores."""
    record, path = promotion(repo, name), f"models/{name}/report.json"
    text = repo.read(f"refs/heads/{PROMOTED}", path)
    if record is None or text is None:
        return None
    report = parse(text, where=f"{PROMOTED}:{path}")
    return Standard(run=record["run"], row=record["row"], report=report)


def pinned_at(repo: Repository, commit: str) -> Pin | None:
    """The data version that a commit pins."""
    text = repo.read(commit, PIN)
    return None if text is None else pin_from(text, where=f"{commit[:12]}:{PIN}")


def _record(
    repo: Repository,
    found: Candidate,
    gate: Gate | None,
    result: Judgement,
    before: Standard | None,
) -> dict[str, Any]:  # Any: JSON
    """What decision.json and promotion.json say."""
    pinned = pinned_at(repo, found.commit)
    inputs = inputs_of(found.report, pinned, shared_cache(repo.project))
    return {
        "recipe": found.name,
        "variant": found.report.variant,
        "run": found.run,
        "commit": found.commit,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "promoted": result.promoted,
        "forced": result.forced,
        "row": result.decision.row,
        "scores": dict(result.decision.scores),
        "reasons": list(result.decision.reasons),
        "gate": gate.model_dump(mode="json") if gate else None,
        "before": before.run if before else None,
        "inputs": asdict(inputs),
    }


def _note(repo: Repository, found: Candidate, record: Mapping[str, Any]) -> None:  # Any: JSON
    """Commit decision.json on the run's branch, and have it in the run's workspace."""
    path = f"{found.runs}/{DECISION}"
    with staging(repo) as tree:
        tree.start(found.commit)
        tree.put(path, _json(record))
        message = f"Decision on {found.report.title}\n"
        commit = tree.commit(message, parents=[found.commit])
    move(repo, found.branch, new=commit, old=found.commit)
    place = repo.worktree_of(found.branch)
    if place is not None and place.is_dir():
        # its index would take the file back with the next commit there
        git(place, "checkout", commit, "--", f"{repo.prefix}{path}")


def _promote(
    repo: Repository, found: Candidate, record: Mapping[str, Any], *, push: bool
) -> None:  # Any: JSON
    """Put the run's student in place of the promoted one.

    Its bytes are in DVC's cache before the branch moves, and the branch moves in one step.
    """
    if place := repo.worktree_of(PROMOTED):
        raise StillhouseError(
            f"branch {PROMOTED} is checked out in {place}; check out another one there"
        )
    base, before = repo.base(found.commit), repo.tip(PROMOTED)
    _check_dvc(repo, base)
    source, parents = _onto(repo, base, before)
    with staging(repo) as tree:
        tree.start(source)
        for name in _carried(repo, before, found.name):
            tree.take(f"models/{name}", before)
        tree.remove(f"models/{found.name}")
        for path, text in _files(repo, found, record, push=push).items():
            tree.put(f"models/{found.name}/{path}", text)
        words = f"Run: {found.run}\nCommit: {found.commit}\nCode: {source_code(repo, source)}\n"
        commit = tree.commit(f"Promote {found.report.title}\n\n{words}", parents=parents)
    # the tag keeps the run's commits, and with --all-tags what DVC has of it, when its branch goes
    tags = {f"{PROMOTED}/{found.run}": found.commit}
    move(repo, PROMOTED, new=commit, old=before, tags=tags)


def _onto(repo: Repository, base: str, before: str) -> tuple[str, list[str]]:
    """The commit whose tree the promotion takes over, and the promotion's parents.

    The code only goes forward: a run of an older commit, or of another branch, brings its student
    alone.
    """
    if not before:
        return base, [base]
    if repo.holds(before, base) or not repo.holds(base, source_code(repo, before)):
        return before, [before]
    return base, [before, base]


def source_code(repo: Repository, commit: str) -> str:
    """The user's commit whose tree a promotion has; of any other commit, itself."""
    words = ("-1", "--format=%(trailers:key=Code,valueonly)", commit)
    return git(repo.top, "log", *words) or commit


def _carried(repo: Repository, before: str, name: str) -> list[str]:
    """Recipes with a promoted student, but `name`."""
    if not before:
        return []
    ends = f"/{RECORD}"
    paths = [path for path in repo.names(before, "models") if path.endswith(ends)]
    names = [path.removeprefix("models/").removesuffix(ends) for path in paths]
    return [each for each in names if each != name]


def _check_dvc(repo: Repository, base: str) -> None:
    folders = [repo.prefix, *(f"{p}/" for p in Path(repo.prefix).parents if p != Path()), ""]
    if not any(git(repo.top, "ls-tree", base, f"{folder}.dvc/config") for folder in folders):
        raise StillhouseError(
            f"commit {base[:12]} of {repo.project} is no DVC repository, so nobody could get the "
            "student from it; run: dvc init, commit .dvc, and run again"
        )


def _files(
    repo: Repository, found: Candidate, record: Mapping[str, Any], *, push: bool
) -> Mapping[str, str]:  # Any: JSON
    """Texts of models/<domain>/<recipe>/; the weights they point to are in DVC's cache."""
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
        RECORD: _json(record),
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


def _json(record: Mapping[str, Any]) -> str:  # Any: JSON
    return json.dumps(record, indent=1, sort_keys=True) + "\n"
