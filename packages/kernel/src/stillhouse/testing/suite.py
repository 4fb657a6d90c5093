"""The domain suite: what every recipe of every domain must do.

A domain's tests subclass it; all its tests share one finished `tiny` run of each recipe.
"""

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from filelock import FileLock

from stillhouse.artifact import Built, load_model
from stillhouse.cli.exporting import export_student
from stillhouse.cli.target import Target, make_target
from stillhouse.digest import canonical, digest
from stillhouse.domain import Domain, domains
from stillhouse.errors import StillhouseError
from stillhouse.recipe import SCALES, Event, Stage
from stillhouse.runs import Runs, run_recipe
from stillhouse.settings import make_settings, settings_class
from stillhouse.testing.digests import digests_elsewhere, recipe_digests
from stillhouse.testing.killing import kill_and_resume, take_over

MEASURED = re.compile(r"docs/results|\d ?%")


class DomainSuite:
    """Subclass it as `class TestDomain(DomainSuite): domain = "vision"`.

    `exempt` maps a recipe, or "recipe:test_name", to the reason why it is left out. `assignments`
    maps a recipe to what `--set` would say; then the suite is that of those recipes alone. Of the
    recipes in `slow`, what needs a run is marked so.
    """

    domain: ClassVar[str] = ""
    exempt: ClassVar[Mapping[str, str]] = {}
    assignments: ClassVar[Mapping[str, Sequence[str]]] = {}
    slow: ClassVar[Collection[str]] = ()

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """One set of tests a recipe; an unloadable domain is one failing set."""
        if "recipe" in metafunc.fixturenames:
            domain = domains().get(self.domain)
            chosen = self._chosen() if isinstance(domain, Domain) else ("?",)
            runs = "project" in metafunc.fixturenames
            every = [
                pytest.param(
                    f"{self.domain}/{name}",
                    marks=[pytest.mark.slow] if runs and name in self.slow else [],
                )
                for name in chosen
            ]
            metafunc.parametrize("recipe", every)

    @pytest.fixture(autouse=True)
    def exemption(self, request: pytest.FixtureRequest) -> None:
        """Skips what the domain has exempted, with its reason."""
        recipe = getattr(request.node, "callspec", None)
        name = recipe.params.get("recipe", "").partition("/")[2] if recipe else ""
        test = request.function.__name__
        for key in (name, f"{name}:{test}"):
            if key in self.exempt:
                pytest.skip(f"{key}: {self.exempt[key]}")

    @pytest.fixture
    def project(
        self, recipe: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[Path]:
        """A project folder and a home for all tests of the recipe, in all workers of a session."""
        root = _shared(tmp_path_factory) / "domain-suite" / recipe
        root.mkdir(parents=True, exist_ok=True)
        monkeypatch.setenv("STILLHOUSE_ROOT", str(root))
        monkeypatch.setenv("STILLHOUSE_HOME", str(root / "home"))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # sums in one order; workers do not fight for the cores
        yield root
        torch.set_num_threads(threads)

    @pytest.fixture
    def finished(self, recipe: str, project: Path) -> Target:
        """The recipe, run at `tiny` by the first test that needs it, up to date for the others."""
        target = make_target(recipe, assignments=self._given(recipe))
        with FileLock(project / "run.lock"):
            runs = target.runs()
            runs.note_settings(target.settings)
            run_recipe(target.recipe, runs)
        return target

    def _chosen(self) -> Sequence[str]:
        """The recipes by name that the suite is of."""
        domain = domains()[self.domain]
        assert isinstance(domain, Domain)
        return [n for n in domain.recipes if not self.assignments or n in self.assignments]

    def _elsewhere(self, recipe: str, shared: Path) -> Mapping[str, Mapping[str, str]]:
        """Digests by another process, one for all recipes of the suite: most of it are imports."""
        chosen = self._chosen() if self.domain else ()
        names = [f"{self.domain}/{name}" for name in chosen] or [recipe]
        recipes = tuple((name, tuple(self._given(name))) for name in names)
        kept = shared / f"digests-{digest(recipes)[:16]}.json"
        with FileLock(kept.with_suffix(".lock")):
            if not kept.is_file():
                kept.write_text(json.dumps(digests_elsewhere(recipes)))
        return json.loads(kept.read_text())

    def _given(self, recipe: str) -> Sequence[str]:
        return self.assignments.get(recipe.rpartition("/")[2], ())

    def test_domain_can_be_loaded(self) -> None:
        domain = domains().get(self.domain)
        assert isinstance(domain, Domain), f"domain '{self.domain}': {domain!r}"
        assert domain.name == self.domain
        assert domain.summary

    def test_builds_and_hashes_alike_everywhere(
        self, recipe: str, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        given = self._given(recipe)
        here = recipe_digests(recipe, given)
        assert recipe_digests(recipe, given) == here
        assert self._elsewhere(recipe, _shared(tmp_path_factory))[recipe] == here

    def test_every_setting_says_what_it_means(self, recipe: str) -> None:
        fields = settings_class(recipe).model_fields
        assert [name for name, field in fields.items() if not field.description] == []

    def test_notes_hold_no_measured_numbers(self, recipe: str) -> None:
        """Those come from report.json: typed ones are wrong after the next run."""
        for scale in SCALES:
            made = make_target(recipe, scale, self._given(recipe)).recipe
            typed = [text for text in (*made.notes, made.caution) if MEASURED.search(text)]
            assert typed == [], f"{recipe} at {scale}: numbers that a run measured, in a note"

    def test_refuses_bad_settings(self, recipe: str) -> None:
        field = next(name for name in settings_class(recipe).model_fields if name != "scale")
        for scale, settings, reason in (
            ("tinny", {}, "'tiny'"),
            ("tiny", {f"{field}x": 1}, f"'{field}'"),
            ("tiny", {"seeds": 0}, "seeds"),
            ("tiny", {"seeds": "many"}, "seeds"),
        ):
            with pytest.raises(StillhouseError) as error:
                make_settings(recipe, scale, settings)
            assert reason in str(error.value)
            assert "\n" not in str(error.value)

    def test_finished_run_is_not_run_again(self, finished: Target) -> None:
        events: list[Event] = []
        run_recipe(finished.recipe, finished.runs(observe=events.append))
        assert [e.text for e in events] == ["up to date"] * len(finished.recipe.stages)

    def test_run_killed_in_every_kind_of_stage_gives_the_same_bytes(
        self, finished: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A second run in another place, with no cache to serve it, dies once in each kind of
        stage: of those that hold the same classes and functions, in the first. The others are taken
        from the finished run, whose keys must be theirs.
        """
        monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))
        again, seen = replace(finished.runs(), root=tmp_path), set[frozenset[str]]()
        for stage in finished.recipe.stages:
            kind = code_names(stage)
            if kind in seen:
                take_over(finished.recipe, stage, again, finished.runs())
            else:
                kill_and_resume(finished.recipe, stage, again, finished.runs())
            seen.add(kind)
        assert records(again) == records(finished.runs())

    def test_reports_every_row(self, finished: Target) -> None:
        from stillhouse.report import report

        page = report(finished.recipe, finished.runs())
        assert page.stat().st_size > 0
        written = json.loads((page.parent / "report.json").read_text())
        rows, method = set(finished.recipe.rows), finished.recipe.method
        assert {row["name"] for row in written["rows"]} == rows
        assert len(rows) < 2 or method in rows, "the recipe names no row as its method"

    def test_exports_a_student_that_opens(self, finished: Target, tmp_path: Path) -> None:
        files = export_student(finished, "safetensors", tmp_path / "out")
        assert {f.name for f in files} >= {"model.json", "model.safetensors"}
        built = load_model(tmp_path / "out")
        assert isinstance(built, Built)
        assert sum(p.numel() for p in built.module.parameters()) > 0


def code_names(stage: Stage) -> frozenset[str]:
    """The classes and functions that a stage holds, by module and name."""
    return frozenset(_code_names(canonical(stage)))


def _code_names(value: Any) -> Iterator[str]:  # Any: JSON values
    parts: list[Any] = []
    if isinstance(value, dict):
        yield from (f"{value[key]}" for key in ("type", "name") if ":" in str(value.get(key)))
        parts = list(value.values())
    elif isinstance(value, list):
        parts = value
    for part in parts:
        yield from _code_names(part)


def records(runs: Runs) -> dict[str, str]:
    """ "stage" -> key and "stage.port" -> digest, of all that a run has left."""
    found: dict[str, str] = {}
    for file in sorted(runs.folder.glob("*/stage.json")):
        record = json.loads(file.read_text())
        found[record["stage"]] = record["key"]
        outputs = record["outputs"].items()
        found |= {f"{record['stage']}.{port}": output["digest"] for port, output in outputs}
    return found


def _shared(folders: pytest.TempPathFactory) -> Path:
    """The folder that all workers of a session have."""
    base = folders.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
