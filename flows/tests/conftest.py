"""Toy projects: real git and DVC repositories whose stages are one-line shell commands."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

TOY = """\
stages:
  first:
    cmd: mkdir -p runs && cp data/a/one.txt runs/first && echo '{"n":1}' > runs/first.scores.json
    wdir: ../..
    deps: [data/a, code.py]
    params: [lr]
    outs: [runs/first]
    metrics: [{runs/first.scores.json: {cache: false}}]
    meta: {prefect: {resource: gpu, retries: 1, timeout: 60}}
  left:
    cmd: cat runs/first code.py > runs/left
    wdir: ../..
    deps: [runs/first, code.py]
    outs: [runs/left]
  right:
    cmd: cat runs/first > runs/right
    wdir: ../..
    deps: [runs/first]
    outs: [runs/right]
  last:
    cmd: cat runs/left runs/right > runs/last
    wdir: ../..
    deps: [runs/left, runs/right]
    outs: [runs/last]
"""
FILES = {
    "pipelines/toy/dvc.yaml": TOY,
    "params.yaml": "# kept\nlr: 0.1\n",
    "code.py": "print(1)\n",
    ".gitignore": "/runs/\n/data\n*.secret\n",
    "data/a/one.txt": "one\n",
    "data/b/two.txt": "two\n",
}


# what others warn of here, at their own deprecations
WARNINGS = ("ignore:_NoneStep.value will soon raise AttributeError:DeprecationWarning",)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            for text in WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(text))


@dataclass(frozen=True)
class Project:
    """A git repository of a test."""

    root: Path

    def __truediv__(self, name: str) -> Path:
        return self.root / name

    def git(self, *words: str, at: Path | None = None) -> str:
        """What a git command that must succeed prints."""
        command = ("git", "-c", "user.name=t", "-c", "user.email=t@localhost", *words)
        done = subprocess.run(command, cwd=at or self.root, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def write(self, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).write_text(text)

    def commit(self) -> str:
        self.git("add", "--all")
        self.git("commit", "--quiet", "-m", "toy")
        return self.git("rev-parse", "HEAD")

    def state(self) -> tuple[str, ...]:
        """Everything that a run must leave as it was: index, tree, branch and commit."""
        return (
            (self.root / ".git" / "index").read_bytes().hex(),
            self.git("status", "--porcelain", "--ignored"),
            self.git("symbolic-ref", "HEAD"),
            self.git("stash", "list"),
        )


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing of a test reaches the user's home, DVC's site cache or a server of theirs."""
    home = tmp_path / "home"
    monkeypatch.setenv("STILLHOUSE_HOME", str(home))
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    for name in ("STILLHOUSE_ROOT", "STILLHOUSE_INPUTS"):  # a command in this process may set them
        monkeypatch.delenv(name, raising=False)
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    return home


@pytest.fixture
def empty(tmp_path: Path) -> Project:
    """A git repository without a commit."""
    project = Project(tmp_path / "project")
    project.root.mkdir()
    project.git("init", "--quiet", "--initial-branch=main")
    return project


@pytest.fixture
def toy(empty: Project) -> Project:
    """A committed project with pinned data and four stages; DVC's cache holds the data."""
    from dvc.repo import Repo

    empty.write(FILES)
    with Repo.init(str(empty.root)) as repo:
        repo.add(str(empty / "data"))
    empty.commit()
    return empty


@pytest.fixture
def counting(empty: Project) -> Project:
    """A committed project with pinned data and a plugin of its own, whose recipe is toy/count."""
    return with_plugin(empty)


def with_plugin(empty: Project) -> Project:
    from dvc.repo import Repo

    source = Path(__file__).with_name("toy_plugin.py").read_text()
    training = Path(__file__).with_name("toy_training.py").read_text()
    empty.write(
        {
            "src/toy_plugin/__init__.py": source,
            "src/toy_plugin/training.py": training,
            "src/toy_plugin-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: toy-plugin\nVersion: 1\n",
            "src/toy_plugin-1.dist-info/entry_points.txt": "[stillhouse.domains]\ntoy = toy_plugin:domain\n",
            "params.yaml": "# kept\ntoy:\n  count:\n    tiny: {}\n",
            ".gitignore": "/runs/\n/data\n",
            "data/a/numbers.txt": "1\n2\n3\n",
            "data/b/other.txt": "other\n",
        }
    )
    with Repo.init(str(empty.root)) as repo:
        repo.add(str(empty / "data"))
    empty.commit()
    return empty


@dataclass(frozen=True)
class Learnt:
    """A project with two finished runs of toy/learn, whose workspaces are gone."""

    project: Project
    good: str  # accuracy 0.8
    worse: str  # accuracy 0.6
    env: Mapping[str, str]

    def call(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """`stillhouse flow ...` as a user calls it."""
        command = [sys.executable, "-m", "stillhouse", "flow", *words]
        return subprocess.run(
            command, cwd=self.project.root, env=dict(self.env), capture_output=True, text=True
        )


@pytest.fixture(scope="session")
def learnt_once(tmp_path_factory: pytest.TempPathFactory) -> Learnt:
    """Made once, for `learnt` to copy."""
    place = tmp_path_factory.mktemp("learnt")
    empty = Project(place / "project")
    empty.root.mkdir()
    empty.git("init", "--quiet", "--initial-branch=main")
    project = with_plugin(empty)
    env = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    env |= {
        "PYTHONPATH": str(project / "src"),
        "STILLHOUSE_HOME": str(place / "home"),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "OMP_NUM_THREADS": "1",
        # where a command imports the plugin, its __pycache__ would count as a change
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        patch.setattr(sys, "dont_write_bytecode", True)
        patch.syspath_prepend(str(project / "src"))
        good, worse = (finish(project, settings) for settings in ({}, {"gain": 3.0}))
    for name in [name for name in sys.modules if name.partition(".")[0] == "toy_plugin"]:
        del sys.modules[name]
    shutil.rmtree(place / "home" / "workspaces")
    project.git("worktree", "prune")
    return Learnt(project=project, good=good, worse=worse, env=env)


def finish(project: Project, changed: Mapping[str, float]) -> str:
    """A finished run of toy/learn as the flow leaves it, but for Prefect and the stages' processes; its name."""
    from dvc.repo import Repo

    from stillhouse.report import report
    from stillhouse.runs import Runs, run_recipe
    from stillhouse.settings import find_settings, make_recipe
    from stillhouse_flows.runs.request import Request
    from stillhouse_flows.runs.run import opened, start
    from stillhouse_flows.stages.outside import write_notes
    from stillhouse_flows.workspace.worktree import workspace

    request = Request(recipe="toy/learn", settings=changed)
    with workspace(project.root, request.label()) as space:
        run = opened(space, request, "cpu")
        start(run)
        ref = run.prepared.ref
        name, settings = find_settings(ref, space.root, space.root / "runs")
        runs = Runs(root=space.root, recipe=name, variant=settings.variant())
        write_notes(space.root, ref)
        recipe = make_recipe(name, settings)
        run_recipe(recipe, runs)
        with contextlib.chdir(space.root), Repo(str(space.root)) as repo:
            repo.commit(str(space.root / run.prepared.pipeline), force=True)
        space.commit(f"Results of {ref}")
        report(recipe, runs)
        space.commit(f"Report of {ref}", also=run.reports())
        return space.run


@pytest.fixture
def learnt(learnt_once: Learnt, tmp_path: Path, own_home: Path) -> Learnt:
    project = Project(tmp_path / "project")
    shutil.copytree(learnt_once.project.root, project.root, symlinks=True)
    project.git("status")  # git's index knows the files' times
    env = dict(learnt_once.env) | {
        "PYTHONPATH": str(project / "src"),
        "STILLHOUSE_HOME": str(own_home),
    }
    return replace(learnt_once, project=project, env=env)


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kept between tests: Prefect takes seconds to make its database."""
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture
def env(counting: Project, own_home: Path, prefect_home: Path) -> dict[str, str]:
    """The environment of a command in the project `counting`."""
    return dict(os.environ) | {
        "PYTHONPATH": str(counting / "src"),
        "STILLHOUSE_HOME": str(own_home),
        "PREFECT_HOME": str(prefect_home),
        "OMP_NUM_THREADS": "1",
        # where a command imports the plugin, its __pycache__ would count as a change
        "PYTHONDONTWRITEBYTECODE": "1",
    }
