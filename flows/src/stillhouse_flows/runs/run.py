"""One run of a recipe in its workspace: what was requested, settled, and what of it is kept."""

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from stillhouse.errors import BadSetting
from stillhouse.inputs import check_present
from stillhouse_flows.data.pinned import bring, pin
from stillhouse_flows.processes.querying import query
from stillhouse_flows.processes.warm import Warm
from stillhouse_flows.runs.request import Prepared, Request, prepared_from
from stillhouse_flows.stages.child import StageResult
from stillhouse_flows.stages.outside import leads_out
from stillhouse_flows.workspace.git import git
from stillhouse_flows.workspace.sources import source_folders
from stillhouse_flows.workspace.worktree import RunWorkspace

# what a run commits although git ignores runs/; the rest is in DVC's cache by dvc.lock
REPORTS = ("report.json", "report.md")
# folders, beside the project, that "file:" inputs of a run may lie in
INPUTS = "STILLHOUSE_INPUTS"
FILE = "file:"


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a run leaves, for whatever comes after it."""

    workspace: Path  # the project inside the run's working tree
    project: Path  # the user's own
    run: str  # "vision-distill-tiny-70af4f7e1b2c"
    branch: str  # "runs/<run>"; empty outside git
    commit: str  # the last one of the run; empty outside git
    ref: str  # "vision/distill@tiny"
    page: Path  # report.html; report.json and report.md lie beside it


@dataclass(frozen=True, kw_only=True)
class Run:
    """A prepared run."""

    space: RunWorkspace
    request: Request
    prepared: Prepared
    env: Mapping[str, str]
    folders: tuple[str, ...]  # that the code must come from

    @property
    def folder(self) -> Path:
        """runs/<domain>/<recipe>/<variant> of the workspace."""
        return self.space.root / self.prepared.runs

    @property
    def page(self) -> Path:
        return self.folder / "report" / "report.html"

    def headline(self) -> str:
        """What runs, from what, where, on which data."""
        space, version = self.space, pin(self.space.root)
        origin = space.start.sentence() if space.branch else f"a copy of {space.project}"
        used = ", ".join(self.prepared.data) or "none of it needed"
        lines = [
            f"{self.prepared.ref} from {origin}",
            f"  workspace  {space.root}",
            *([f"  branch     {space.branch}"] if space.branch else []),
            f"  data       version {version.short if version else 'not pinned'}, {used}",
        ]
        return "\n".join(lines)

    def finished(self, commit: str) -> Finished:
        """This run at its end."""
        space = self.space
        return Finished(
            workspace=space.root,
            project=space.project,
            run=space.run,
            branch=space.branch,
            commit=commit,
            ref=self.prepared.ref,
            page=self.page,
        )

    def reports(self) -> list[Path]:
        """The report without its page, which holds images of the data."""
        return [path for name in REPORTS if (path := self.page.with_name(name)).is_file()]


def opened(space: RunWorkspace, request: Request, device: str, *, warm: Warm | None = None) -> Run:
    """Settle the request inside the workspace, with the workspace's own code."""
    env = space.environment(device)
    for ref in _files(request.settings.values()):  # before anybody looks at them
        _check_file(space.project, ref)
    words = json.dumps(asdict(request))
    printed = query("stillhouse_flows.runs.prepare", words, env=env, cwd=space.root, warm=warm)
    prepared = prepared_from(printed)
    for name in prepared.data:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise BadSetting(f"'data:{name}': leads out of data/; use file:<path> for other files")
    for name in prepared.files:
        _check_file(space.project, name)
    check_present([f"{FILE}{n}" for n in prepared.files if not _held(space, n)], space.project)
    folders = source_folders(space.project)
    return Run(space=space, request=request, prepared=prepared, env=env, folders=folders)


def check_request(project: Path, request: Request) -> None:
    """Raises StillhouseError where settings are wrong or a run may not read a file or does not find
    it, before there is a workspace.
    """
    from stillhouse.runs import outside_refs  # imports torch
    from stillhouse.settings import make_recipe
    from stillhouse_flows.runs.prepare import settings_of

    given = _files(request.settings.values())
    _check_files(project, given)  # first, for a recipe may look into its data
    _check_files(project, _files(outside_refs(make_recipe(*settings_of(project, request)))))


def _files(values: Iterable[object]) -> list[str]:
    """The paths of "file:" inputs."""
    texts = (value for value in values if isinstance(value, str))
    return [text.removeprefix(FILE) for text in texts if text.startswith(FILE)]


def _check_files(project: Path, names: Sequence[str]) -> None:
    for name in names:
        _check_file(project, name)
    check_present([f"{FILE}{name}" for name in names], project)


def _check_file(project: Path, name: str) -> None:
    """Refuse a path that leads elsewhere from a workspace, and a file outside the project unless
    whoever started this process allowed it: a run may have been asked for by somebody who may not
    read this machine's files.
    """
    if ".." in Path(name).parts:
        full = os.path.normpath(project / name)
        raise BadSetting(
            f"'file:{name}' leads elsewhere from a run's own workspace; give file:{full}"
        )
    roots = [Path(p).resolve() for p in os.environ.get(INPUTS, "").split(os.pathsep) if p]
    path = (project / Path(name).expanduser()).resolve()
    if not any(path.is_relative_to(root) for root in (project, *roots)):
        raise BadSetting(
            f"'file:{name}' lies outside {project}; copy it there, or set {INPUTS} to folders "
            "that runs may read, where the flow is served"
        )


def start(run: Run) -> None:
    """Bring in what the run reads, and freeze everything in a commit before anything runs."""
    space, prepared = run.space, run.prepared
    version = bring(space.root, space.project, space.cache, prepared.data)
    for name in prepared.files:
        _bring_file(space, name)
    message = (
        f"Start {prepared.ref}\n\nfrom: {space.start.sentence()}\n"
        f"data: {version.md5 if version else 'not pinned'}\n"
    )
    if not space.started():
        space.commit(message)


def _bring_file(space: RunWorkspace, name: str) -> None:
    """A file that git ignores is not in the snapshot; where the recipe names it, it is an input."""
    source, aim = space.project / name, space.root / name
    if leads_out(name):
        return
    for link in [*reversed(aim.relative_to(space.root).parents), Path(name)]:
        place = space.root / link
        if place.is_symlink() and not place.exists():  # relative, to a place outside the project
            place.unlink()
            place.symlink_to((space.project / link).resolve())
    if aim.exists():
        return
    if _held(space, name):  # below LEFT_OUT
        git(space.root, "checkout", "--ignore-skip-worktree-bits", "HEAD", "--", name)
        return
    aim.parent.mkdir(parents=True, exist_ok=True)
    copy = shutil.copytree if source.is_dir() else shutil.copy2
    copy(source, aim)


def _held(space: RunWorkspace, name: str) -> bool:
    """Whether the workspace has a file of its own, checked out or not."""
    if leads_out(name):
        return False
    aim = space.root / name
    if aim.exists() or aim.is_symlink() or not space.start.commit:
        return aim.exists()
    return bool(git(space.root, "ls-files", "--", name))


def results_message(run: Run, results: Sequence[StageResult]) -> str:
    """The subject and body of the run's last commit."""
    lines = [f"{result.name}: {result.status}" for result in results]
    return "\n".join([f"Results of {run.prepared.ref}", "", *lines, ""])
