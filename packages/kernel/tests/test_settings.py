"""Settings: presets, overrides, variants, and the words of a refusal."""

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

from stillhouse.domain import Domain, domains, recipe_function
from stillhouse.errors import BadSetting, MissingExtra, PluginError, UnknownName
from stillhouse.settings import (
    Settings,
    find_settings,
    make_settings,
    parse_assignments,
    read_params,
)

from .toys import SITE


class Example(Settings):
    presets: ClassVar[Any] = {"small": {"steps": 100, "objective": ("kd", "dkd")}}
    steps: int = 10
    rate: float = 0.1
    objective: tuple[str, ...] = ("kd",)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SITE))


def test_a_preset_and_what_differs_from_it() -> None:
    small = Example.at("small", {"seeds": 3})
    assert (small.steps, small.objective, small.seeds) == (100, ("kd", "dkd"), 3)
    assert small.overrides() == {"seeds": 3}
    assert small.variant() == "small"
    changed = Example.at("small", {"steps": 5})
    assert changed.variant().startswith("small-")
    assert len(changed.variant()) == len("small-") + 8
    assert changed.variant() == Example.at("small", {"steps": 5, "seeds": 9}).variant()
    assert changed.variant() != Example.at("small", {"steps": 6}).variant()


@pytest.mark.parametrize(("scale", "given", "error", "message"), [
    ("smal", {}, UnknownName, "unknown scale 'smal'. Did you mean 'small'?"),
    ("tiny", {"stpes": 1}, UnknownName, "unknown setting 'stpes'. Did you mean 'steps'?"),
    ("tiny", {"steps": "many"}, BadSetting, r"steps: Input should be a valid integer.* \(got 'many'\)"),
    ("tiny", {"seeds": 0}, BadSetting, r"seeds: Input should be greater than or equal to 1 \(got 0\)"),
    ("tiny", {"scale": "small"}, UnknownName, "unknown setting 'scale'"),
])  # fmt: skip
def test_what_is_wrong_is_one_line(
    scale: str, given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        Example.at(scale, given)
    assert "\n" not in str(caught.value)


def test_assignments_are_values() -> None:
    pairs = ["seeds=3", "rate=1e-3", "objective=kd,dkd", "data=file:/a b", "cache=true", "teacher="]
    expected = {
        "seeds": 3,
        "rate": 0.001,
        "objective": ["kd", "dkd"],
        "data": "file:/a b",
        "cache": True,
        "teacher": "",
    }
    assert parse_assignments(pairs) == expected
    with pytest.raises(BadSetting, match="--set seeds: expected key=value"):
        parse_assignments(["seeds"])


def test_params_and_the_command_line_give_the_same_object(toy: None, tmp_path: Path) -> None:
    settings = make_settings("toy/toy", "tiny", {"width": 6})
    (tmp_path / "params.yaml").write_text(f"toy:\n  toy:\n    {settings.variant()}: {{width: 6}}\n")
    name, found = find_settings(f"toy/toy@{settings.variant()}", tmp_path, tmp_path / "runs")
    assert (name, found) == ("toy/toy", settings)
    assert list(read_params(tmp_path)) == ["toy/toy"]
    (tmp_path / "params.yaml").write_text("toy:\n  toy:\n    tiny: {width: 6}\n")
    with pytest.raises(
        BadSetting, match=f"belong to variant '{settings.variant()}', not 'tiny'; rename it"
    ):
        find_settings("toy/toy@tiny", tmp_path, tmp_path / "runs")
    (tmp_path / "params.yaml").write_text(
        "gate: {toy/toy: {minimum: {accuracy: 1}}}\ntoy: {toy: {tiny: {}}}\n"
    )
    assert read_params(tmp_path) == {"toy/toy": {"tiny": {}}}
    (tmp_path / "params.yaml").write_text("- 1\n")
    with pytest.raises(BadSetting, match="expected domain: recipe: variant: settings"):
        read_params(tmp_path)


def test_a_finished_run_remembers_its_settings(toy: None, tmp_path: Path) -> None:
    settings = make_settings("toy/toy", "tiny", {"width": 5})
    folder = tmp_path / "runs" / "toy" / "toy" / settings.variant()
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps({"settings": settings.overrides()}))
    assert (
        find_settings(f"toy/toy@{settings.variant()}", tmp_path, tmp_path / "runs")[1] == settings
    )
    with pytest.raises(UnknownName, match="toy/toy: unknown variant 'tiny-0'"):
        find_settings("toy/toy@tiny-0", tmp_path, tmp_path / "runs")


def plugin(folder: Path, name: str, code: str) -> None:
    info = folder / f"stillhouse_{name}-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: stillhouse-{name}\nVersion: 0.1\n"
    )
    (info / "entry_points.txt").write_text(
        f"[stillhouse.domains]\n{name} = stillhouse_{name}:domain\n"
    )
    (folder / f"stillhouse_{name}.py").write_text(code)


def test_a_broken_plugin_is_listed_and_stops_nothing(
    toy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin(tmp_path, "broken", "raise RuntimeError('its reason')\n")
    plugin(tmp_path, "odd", "domain = 3\n")
    needs = "Domain(name='needy', summary='', recipes={'r': 'stillhouse_needy:r'}, needs=('no_such_package',))"
    plugin(tmp_path, "needy", f"from stillhouse.domain import Domain\ndomain = {needs}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = domains()
    assert isinstance(found["toy"], Domain)
    assert str(found["broken"]) == "its reason"
    assert "is a int, not a stillhouse.Domain" in str(found["odd"])
    with pytest.raises(
        PluginError, match="plugin 'broken' cannot be loaded: RuntimeError: its reason"
    ):
        recipe_function("broken/x")
    with pytest.raises(
        MissingExtra, match="needy/r needs `no_such_package`.* Run: uv sync --extra needy"
    ):
        recipe_function("needy/r")
    with pytest.raises(UnknownName, match="unknown recipe 'toy/toi'. Did you mean 'toy/toy'"):
        recipe_function("toy/toi")
