"""Settings: presets, overrides, variants, and the words of a refusal."""

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

from stillhouse.domain import Domain, domains, recipe_function
from stillhouse.errors import BadSetting, CorruptArtifact, MissingExtra, PluginError, UnknownName
from stillhouse.report.build import argument
from stillhouse.settings import (
    Settings,
    find_settings,
    make_settings,
    parse_assignments,
    read_params,
    typed,
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


class Typed(Settings):
    names: tuple[str, ...] = ()
    depths: tuple[int, ...] = ()
    groups: tuple[tuple[int, ...], ...] = ()
    numbers: dict[str, float] = {}
    note: str = ""
    on: bool = False
    rate: float = 0.1
    logit: float | None = 2.0


@pytest.mark.parametrize("given", [
    {"names": ["a", "b"], "depths": [1, 2], "rate": 0.25, "on": True, "logit": None},
    {"names": ["a, b", "[c"], "depths": [], "note": " [two] words, "},
    {"names": ["one"], "groups": [[1, 2], [3]], "numbers": {"kd.temperature": 1e-05}},
    {"names": ["é", "\U0001f943", '"', "a: b", "#", "'"], "logit": 0.5},
    {"names": ["", "b"], "depths": [-3, 7]},
])  # fmt: skip
def test_what_a_report_prints_is_read_again(given: dict[str, Any]) -> None:
    """Values of settings.json as arguments of `--set`."""
    pairs = [f"{key}={argument(value)}" for key, value in given.items()]
    read = parse_assignments(pairs)
    fields = Typed.model_fields
    values = {k: typed(fields[k].annotation, v, where=k) for k, v in read.items()}
    found = Typed.at("tiny", values)
    assert found == Typed.at("tiny", given)
    assert found.overrides() == Typed.at("tiny", given).overrides()


def test_a_text_is_read_as_its_setting_says() -> None:
    """Never as YAML guesses: no, 0 and 1e3 are texts where a text is wanted."""
    for text, key, value in (
        ("names=no,yes", "names", ("no", "yes")),
        ("names=on, off", "names", ("on", "off")),
        ("names=0,1", "names", ("0", "1")),
        ("names=1e3", "names", ("1e3",)),
        ('names=["a,b", no]', "names", ("a,b", "no")),
        ("names=", "names", ()),
        ("names=null", "names", ("null",)),
        ("note=true", "note", "true"),
        ("note=a,b", "note", "a,b"),
        ("note=[a]", "note", "[a]"),
        ("note= x=1 ", "note", " x=1 "),
        ("data=file:/a,b", "data", "file:/a,b"),
        ("teacher=", "teacher", ""),
        ("depths=1,2", "depths", (1, 2)),
        ("depths=[3]", "depths", (3,)),
        ("groups=[[0, 1], [2]]", "groups", ((0, 1), (2,))),
        ("numbers={kd.alpha: 1e-3, b: 2}", "numbers", {"kd.alpha": 0.001, "b": 2.0}),
        ("on=true", "on", True),
        ("on=no", "on", False),
        ("rate=1e-3", "rate", 0.001),
        ("seeds=1e1", "seeds", 10),
        ("logit=none", "logit", None),
        ("logit=8.5", "logit", 8.5),
    ):
        given = parse_assignments([text])
        fields = Typed.model_fields
        values = {k: typed(fields[k].annotation, v, where=k) for k, v in given.items()}
        assert getattr(Typed.at("tiny", values), key) == value, text
    with pytest.raises(BadSetting, match="--set seeds: expected key=value"):
        parse_assignments(["seeds"])
    with pytest.raises(BadSetting, match=r"names: not a list or mapping \(while parsing") as caught:
        typed(fields["names"].annotation, "[a", where="names")
    assert "\n" not in str(caught.value)


def test_an_input_says_where_it_is() -> None:
    for key in ("data", "teacher"):
        with pytest.raises(
            BadSetting,
            match=rf"{key}: begins with none of data:, .*; for a file or folder say file:/a/b \(got",
        ):
            Typed.at("tiny", {key: "/a/b"})


def test_absurd_numbers_are_one_line() -> None:
    for values, message in (
        ({"depths": [10**30]}, "depths: a number of at most 2147483647 .got 1e.30."),
        ({"seeds": "1e30"}, "seeds: Input should be"),
        ({"rate": 1e300}, "rate: a number of at most 1e.30 .got 1e.300."),
        ({"rate": float("nan")}, "rate: a number of at most"),
        ({"numbers": {"a": 1e99}}, "numbers: a number of at most"),
        ({"names": ["x" * 10**6] * 10, "rate": "x" * 10**6}, "rate: .*x[.][.][.]x"),
        ({"numbers": {str(i): [[i] * 99] * 99 for i in range(99)}}, "numbers.0: Input should be"),
    ):
        with pytest.raises(BadSetting, match=message) as caught:
            Typed.at("tiny", values)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize(("text", "message"), [
    ("- 1\n", r"params.yaml: expected domain: recipe: variant: settings \(got \['1'\]\)"),
    ("3\n", "params.yaml: expected domain: recipe: variant: settings"),
    ("vision: {distill: 3}\n", r"params.yaml: vision.distill: expected variant: settings \(got '3'\)"),
    ("vision: [1]\n", r"params.yaml: vision: expected recipe: variant: settings \(got \['1'\]\)"),
    ("vision: {distill: {tiny: [1]}}\n", r"vision.distill.tiny: expected setting: value \(got \['1'\]\)"),
    ("vision: {distill: {tiny: {[1]: 2}}}\n", "params.yaml: not YAML .*unhashable key"),
    ("vision: {? {a: 1} : 2}\n", "params.yaml: not YAML"),
    ("vision: {distill: {tiny: " + "[" * 3000 + "]" * 3000 + "}}\n", "params.yaml: not YAML .values lie too deep"),
    ("vision: {a: b: c}\n", "params.yaml: not YAML .while parsing a flow mapping"),
    ("vision: {distill: {tiny: !!python/object/apply:os.system [a]}}\n", "params.yaml: not YAML .could not determine"),
    ("a: &a [x, x, x]\nb: &b [*a, *a, *a]\nc: &c [*b, *b, *b]\nvision: {distill: [*c, *c, *c]}\n", "params.yaml: a: expected recipe"),
])  # fmt: skip
def test_params_of_another_shape_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(BadSetting, match=message) as caught:
        read_params(tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_params_hold_texts(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(
        "1: {2: {tiny: {names: 'a,b,c', on: no}, small: }}\n"
        "toy: &all\n  r: {tiny: {names: [no, 0, 1.0]}}\nother:\n  <<: *all\n"
    )
    found = read_params(tmp_path)
    assert found["1/2"] == {"tiny": {"names": "a,b,c", "on": "no"}, "small": {}}
    assert found["toy/r"] == found["other/r"] == {"tiny": {"names": ["no", "0", "1.0"]}}
    (tmp_path / "params.yaml").write_bytes(b"vision: \xff")
    with pytest.raises(BadSetting, match="params.yaml: not YAML .*utf-8"):
        read_params(tmp_path)


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


def test_a_finished_run_remembers_its_settings(toy: None, tmp_path: Path) -> None:
    settings = make_settings("toy/toy", "tiny", {"width": 5})
    folder = tmp_path / "runs" / "toy" / "toy" / settings.variant()
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps({"settings": settings.overrides()}))
    assert (
        find_settings(f"toy/toy@{settings.variant()}", tmp_path, tmp_path / "runs")[1] == settings
    )
    for text in ("[]", "3", "null", '{"settings": 3}', "{", ""):
        (folder / "settings.json").write_text(text)
        with pytest.raises(CorruptArtifact, match="settings.json: .*; run the recipe again"):
            find_settings(f"toy/toy@{settings.variant()}", tmp_path, tmp_path / "runs")
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
