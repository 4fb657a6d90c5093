"""`list`, `show` and `doctor`: what is there, what is missing, what fails and why."""

import json

from .conftest import declare

DOMAIN = """
from stillhouse.domain import Domain

domain = Domain(name="{name}", summary="For a test", recipes={recipes}, needs={needs})
"""


def write_domain(site, name: str, *, recipes: str = "{}", needs: str = "()") -> None:
    text = DOMAIN.format(name=name, recipes=recipes, needs=needs)
    (site / f"{name}_plugin.py").write_text(text)
    declare(site, name, "stillhouse.domains", {name: f"{name}_plugin:domain"})


def test_list_shows_recipes_with_their_first_line(stillhouse, project) -> None:
    code, out, _ = stillhouse("list")
    assert code == 0
    assert "spirals  Points in the plane, in three interleaved spirals\n" in out
    assert "  spirals/distill  Knowledge distillation (Hinton et al. 2015) of a two-layer" in out


def test_what_is_there_as_json(stillhouse, site, project) -> None:
    (site / "failing_plugin.py").write_text("raise RuntimeError('two\\nlines')\n")
    declare(site, "failing", "stillhouse.domains", {"failing": "failing_plugin:domain"})
    found = {each["domain"]: each for each in json.loads(stillhouse("list", "--json")[1])}
    assert set(found["spirals"]["recipes"]) == {"spirals/distill"}
    assert found["failing"]["error"] == "RuntimeError: two lines"
    shown = json.loads(stillhouse("show", "spirals/distill", "--set", "temperature=3", "--json")[1])
    assert shown["settings"]["temperature"]["value"] == 3
    assert shown["settings"]["temperature"]["takes"]
    assert shown["stages"][0]["name"] == "data"
    code, out, _ = stillhouse("doctor", "--json")
    assert code == 2
    assert [e["text"] for e in json.loads(out)["plugins"] if e["fails"]] == [
        "failing: FAILS: RuntimeError: two lines"
    ]


def test_list_says_what_is_missing_and_what_fails(stillhouse, site) -> None:
    write_domain(site, "needy", recipes='{"r": "needy_recipes:r"}', needs='("not_there_either",)')
    (site / "failing_plugin.py").write_text("raise RuntimeError('two\\nlines')\n")
    declare(site, "failing", "stillhouse.domains", {"failing": "failing_plugin:domain"})
    code, out, _ = stillhouse("list")
    assert code == 0
    assert "  missing: not_there_either. Run: uv sync --extra needy\n  needy/r\n" in out
    assert "failing  cannot be loaded: RuntimeError: two lines\n" in out
    code, _, err = stillhouse("run", "needy/r")
    assert code == 2
    assert err.startswith("error: needy/r needs `not_there_either`, which is not installed. Run: ")
    code, _, err = stillhouse("show", "failing/r")
    assert code == 2
    assert err == "error: plugin 'failing' cannot be loaded: RuntimeError: two lines\n"


def test_doctor_says_what_is_missing_and_what_fails(stillhouse, site, project) -> None:
    write_domain(site, "needy", needs='("not_there_either",)')
    code, out, _ = stillhouse("doctor")
    assert "domain        needy: missing not_there_either; run: uv sync --extra needy\n" in out
    assert "domain        spirals: ok, 1 recipes\n" in out
    assert f"project       {project} (" in out
    (site / "failing_plugin.py").write_text("raise RuntimeError('two\\nlines')\n")
    declare(site, "failing", "stillhouse.domains", {"failing": "failing_plugin:domain"})
    code, out, _ = stillhouse("doctor")
    assert code == 2
    assert "domain        failing: FAILS: RuntimeError: two lines\n" in out


def test_show_has_settings_of_every_scale_and_the_stages(stillhouse, project) -> None:
    code, out, _ = stillhouse("show", "spirals/distill", "--set", "seeds=2", "--set", "steps=7")
    assert code == 0
    assert "Hinton, Vinyals, Dean 2015" in out
    (steps,) = [line.split() for line in out.splitlines() if line.strip().startswith("steps ")]
    assert steps[:4] == ["steps", "150", "2000", "20000"]
    assert "Here: seeds=2, steps=7" in out
    assert "kd-1 " in out
    assert "student=kd-1.student" in out


def test_wrong_settings_are_one_line(stillhouse, project) -> None:
    for words, told in (
        (["spirals/distil"], "unknown recipe 'spirals/distil'. Did you mean 'spirals/distill'?"),
        (["spirals/distill", "--scale", "huge"], "unknown scale 'huge'."),
        (["spirals/distill", "--set", "seds=2"], "unknown setting 'seds'. Did you mean 'seeds'?"),
        (["spirals/distill", "--set", "seeds"], "expected key=value"),
        (["spirals/distill", "--set", "steps=none"], "steps: Input should be a valid integer"),
        (["spirals/distill@tony"], "unknown variant 'tony'. Did you mean 'tiny'?"),
        (["spirals/distill@tiny", "--scale", "tiny"], "has settings of its own"),
    ):
        code, out, err = stillhouse("show", *words)
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert told in err
        assert err.count("\n") == 1
