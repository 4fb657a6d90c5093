"""Promotion: the branch `promoted` holds the last promoted student of each recipe, in
models/<domain>/<recipe>/, its weights tracked by DVC.

Apart from models/, its tree is the newest of the user's own commits that a promoted run started
from. A run's tree is not merged in: it holds uncommitted files, may be of an older commit, and
merging it into the user's branch would take newer changes back there.
"""

import datetime
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from stillhouse.errors import StillhouseError
from stillhouse.files import storage
from stillhouse.report.document import parse
from stillhouse_flows.promotion.candidates import DECISION, Candidate, candidate, pinned_at
from stillhouse_flows.promotion.gate import (
    Decision,
    Gate,
    Standard,
    choose_row,
    decide,
    missing_gate,
    read_gate,
    rows_of_report,
)
from stillhouse_flows.promotion.inputs import inputs_of
from stillhouse_flows.promotion.student import RECORD, as_json, models_files
from stillhouse_flows.workspace.branches import Repository, move, repository, staging
from stillhouse_flows.workspace.git import git
from stillhouse_flows.workspace.worktree import keep_mark, shared_cache, workspaces

PROMOTED = "promoted"
NO_GATE = Gate()


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
        """The outcome, the row that was judged, and the reasons."""
        word = "promoted" if self.promoted else "refused"
        how = " by force" if self.forced else ""
        reasons = "; ".join(self.decision.reasons)
        return f"{self.run} {word}{how}, row '{self.decision.row}': {reasons}"


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
    exported, method = rows_of_report(found.report), found.report.method
    row = choose_row(NO_GATE, rows, exported, method=method, where=found.name)
    entry = found.report.row(row)
    scores = {score: each.mean for score, each in entry.scores.items()} if entry else {}
    return Decision(accepted=False, row=row, reasons=("it has no gate",), scores=scores)


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
        tree.put(path, as_json(record))
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
        for path, text in models_files(repo, found, record, push=push).items():
            tree.put(f"models/{found.name}/{path}", text)
        words = f"Run: {found.run}\nCommit: {found.commit}\nCode: {source_code(repo, source)}\n"
        commit = tree.commit(f"Promote {found.report.title}\n\n{words}", parents=parents)
    # the tag keeps the run's commits, and with --all-tags what DVC has of it, when its branch goes
    tags = {f"{PROMOTED}/{found.run}": found.commit}
    move(repo, PROMOTED, new=commit, old=before, tags=tags)
    if workspaces(repo.project).is_dir():  # its report stays, whatever is cleaned
        keep_mark(repo.project, found.run).touch()


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
