"""What a recipe reads from outside: found before anything runs, named by texts that can be written."""

import os
from pathlib import Path

import pytest

from stillhouse.cli import main
from stillhouse.digest import path_digest
from stillhouse.errors import BadData, BadRecipe, MissingData
from stillhouse.inputs import check_present
from stillhouse.recipe import Recipe
from stillhouse.runs import Runs, outside_refs, run_recipe
from stillhouse.settings import make_recipe, make_settings
from stillhouse.stages.make import Make

from .toys import SITE, Shift


def make(name: str, source: str) -> Make:
    return Make(name=name, make=Shift, inputs={"source": source}, ports=("train",))


def recipe(*stages: Make) -> Recipe:
    return Recipe(name="r", reference="", stages=stages)


def test_a_missing_file_is_named_before_anything_is_read(tmp_path: Path) -> None:
    """Even where only the last stage reads it."""
    (tmp_path / "there").touch()
    for missing, message in (
        ("file:gone.pth", rf"'file:gone.pth': {tmp_path}/gone.pth not found; give an existing"),
        (
            "data:gone/x",
            r"'data:gone/x': .*/data/gone/x not found. Run: stillhouse data pull gone",
        ),
    ):
        whole = recipe(make("first", "file:there"), make("last", missing))
        assert outside_refs(whole) == ["file:there", missing]
        runs = Runs(root=tmp_path, recipe="toy/toy", variant="tiny")
        with pytest.raises(MissingData, match=message):
            run_recipe(whole, runs)
        assert not (tmp_path / "runs").exists()
    check_present(["builtin:a:b", "hub:a/b", "file:there"], tmp_path)


def test_all_missing_files_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(MissingData) as caught:
        check_present(["file:gone", "data:there", "file:lost"], tmp_path)
    named = [part.partition(": ")[0] for part in str(caught.value).split("; ") if ": " in part]
    assert named == ["'file:gone'", "'data:there'", "'file:lost'"]


def test_run_refuses_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(SITE))
    monkeypatch.setenv("STILLHOUSE_ROOT", str(tmp_path))
    assert main(["run", "toy/toy", "--set", "data=file:gone"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"error: 'file:gone': {tmp_path}/gone not found")
    assert said.out == ""
    assert main(["run", "toy/toy", "--set", f"data={tmp_path}"]) == 2
    assert (
        "data: begins with none of data:, file:, builtin:, hub:, package:; for a file or folder say "
        in (said := capsys.readouterr().err)
    )
    assert f"say file:{tmp_path}" in said
    assert not (tmp_path / "runs").exists()
    make_recipe("toy/toy", make_settings("toy/toy", "tiny"))


def test_a_path_without_its_scheme_is_said_where_a_recipe_reads_it() -> None:
    with pytest.raises(
        BadRecipe, match=r"stage 'a': port 'source': '/b/c' begins with .*; .* say file:/b/c"
    ):
        recipe(make("a", "/b/c"))


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """A message about it can be printed, and written as JSON."""
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / name).touch()
    with pytest.raises(
        BadData, match=r"the name 'caf\\udce9.png' is not UTF-8; rename it"
    ) as caught:
        path_digest(tmp_path)
    assert str(caught.value).isascii()


def test_clean_takes_finite_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["clean", "--keep-gib", "inf"]) == 2
    assert "error: --keep-gib inf: expected a finite number" in capsys.readouterr().err
    assert main(["clean", "--keep-gib", "nan"]) == 2
    assert "'--keep-gib': Input should be greater than" in capsys.readouterr().err
    assert main(["clean", "--keep-gib", "1e306"]) == 2


def test_show_lists_what_a_setting_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(SITE))
    assert main(["show", "toy/toy"]) == 0
    shown = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.split()}
    assert "whole number >= 1 <= 1000" in shown["seeds"]
    assert "students trained, each from its own seed" in shown["seeds"]
    assert "true | false" in shown["cache"]
    assert "builtin:stillhouse_toy:images" in shown["data"]
    assert "(whole number)" in shown["width"]
