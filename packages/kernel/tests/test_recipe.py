"""Recipes and their digests: what hashes, what is refused and in which words."""

import enum
import functools
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from stillhouse.artifact import Model
from stillhouse.digest import (
    arrays_digest,
    canonical,
    digest,
    known_digest,
    path_digest,
    text_digest,
)
from stillhouse.errors import BadData, BadRecipe, UnhashableRecipe, UnknownName
from stillhouse.objectives.objective import Composed
from stillhouse.recipe import Recipe, Row
from stillhouse.stages import Evaluate, Make, Train

from .toys import Net, toy_objective, toy_phase

STUDENT = Model(build=Net, kwargs={"width": 4})


@dataclass(frozen=True, kw_only=True)
class Frozen:
    value: Any


@dataclass
class Loose:
    value: int


class Colour(enum.Enum):
    RED = 1


def train(**changes: Any) -> Train:
    given: dict[str, Any] = {
        "name": "student", "objective": toy_objective(), "inputs": {"data": "data.train", "teacher": "teacher.teacher"},
        "fresh": {}, "steps": 5, "batch": 2,
    }  # fmt: skip
    return Train(**{**given, **changes})


def test_equal_values_have_one_digest_and_different_ones_another() -> None:
    assert digest(Frozen(value={"a": 1, "b": (2, 3)})) == digest(
        Frozen(value={"b": [2, 3], "a": 1})
    )
    different = [
        Frozen(value=v)
        for v in (1, 1.5, "1", True, None, [1], {"a": 1}, Colour.RED, Path("1"), Frozen(value=1))
    ]
    assert len({digest(v) for v in different}) == len(different)


def test_the_digest_is_that_of_sha256_over_sorted_json() -> None:
    # by hand: the canonical form of {"b": 1.5, "a": [true, null]}
    expected = '{"map":{"a":[true,null],"b":1.5}}'
    assert digest({"b": 1.5, "a": [True, None]}) == text_digest(expected)


@pytest.mark.parametrize(("value", "message"), [
    (lambda x: x, r"recipe.value: a lambda cannot be hashed; move it to a module-level function"),
    ({"k": [0, lambda: 1]}, r"recipe.value\['k'\]\[1\]: a lambda cannot be hashed"),
    (functools.partial(lambda x: x, 1), r"recipe.value: a lambda cannot be hashed"),
    (float("nan"), r"recipe.value: nan cannot be hashed; use a finite number"),
    (Loose(1), r"recipe.value: dataclass Loose must be frozen"),
    (object(), r"recipe.value: a builtins.object cannot be hashed; use a frozen dataclass"),
    ({1: 2}, r"recipe.value: mapping keys must be strings \(got 1\)"),
], ids=["lambda", "nested", "partial", "nan", "loose", "object", "key"])  # fmt: skip
def test_what_has_no_reproducible_digest_is_refused_with_its_path(value: Any, message: str) -> None:
    with pytest.raises(UnhashableRecipe, match=message):
        digest(Frozen(value=value))


def test_a_function_inside_a_function_is_refused() -> None:
    def inner() -> None: ...

    with pytest.raises(
        UnhashableRecipe, match=r"'test_a_function.*<locals>.inner', defined inside a function"
    ):
        digest(inner)


def test_a_lambda_in_a_stage_is_named_by_its_place() -> None:
    phase = toy_phase(grouping=lambda name, module: ())
    broken = Composed(phases={"main": phase}, losses=toy_objective().losses)
    inputs = {"data": "builtin:x:y", "teacher": "builtin:x:z"}
    stage = train(objective=broken, inputs=inputs, fresh={"student": STUDENT})
    place = r"recipe.stages\[0\].objective.phases\['main'\].grouping: a lambda"
    with pytest.raises(UnhashableRecipe, match=place):
        digest(Recipe(name="r", reference="", stages=[stage]))


def test_a_digest_is_the_same_in_another_process() -> None:
    code = "from stillhouse.digest import digest; import torch; print(digest({'a': torch.optim.SGD, 'b': frozenset('xy')}))"
    import torch

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest({"a": torch.optim.SGD, "b": frozenset("xy")})


def test_folders_and_arrays(tmp_path: Path) -> None:
    import numpy as np

    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    one = path_digest(tmp_path)
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    assert path_digest(tmp_path) != one
    zeros = np.zeros((2, 3), dtype=np.uint8)
    assert (
        arrays_digest({"a": zeros})
        != arrays_digest({"a": zeros.reshape(3, 2)})
        != arrays_digest({"b": zeros})
    )


def test_a_linked_folder_is_digested_with_what_it_holds(tmp_path: Path) -> None:
    store, data = tmp_path / "store", tmp_path / "data"
    for folder in (store / "cat", data / "dog"):
        folder.mkdir(parents=True)
    (data / "dog" / "1.png").write_text("dog")
    alone = path_digest(data)
    (data / "cat").symlink_to(store / "cat")
    assert path_digest(data) != alone
    before = known_digest(data)
    (store / "cat" / "1.png").write_text("cat")
    assert known_digest(data) not in (alone, before)
    # DVC links files or copies them, and a folder may be a link: the bytes decide
    (data / "cat").unlink()
    linked = known_digest(store)
    (data / "cat").mkdir()
    (data / "cat" / "1.png").symlink_to(store / "cat" / "1.png")
    copied = tmp_path / "copied"
    shutil.copytree(data, copied)
    assert path_digest(copied) == path_digest(data)
    assert known_digest(store) == linked


def test_an_empty_folder_counts_and_others_keep_their_digest(tmp_path: Path) -> None:
    for name in ("b/2", "a/1", "a.txt"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(name)
    lines = [f"{name} {text_digest(name)}" for name in ("a/1", "a.txt", "b/2")]
    assert path_digest(tmp_path) == text_digest("\n".join(lines))
    (tmp_path / "c").mkdir()
    assert path_digest(tmp_path) == text_digest("\n".join([*lines, "c/"]))


def test_links_that_lead_nowhere_or_back_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "gone.png").symlink_to("missing.png")
    message = r"a/gone.png: a link to missing.png, which was not found; remove the link"
    for read in (path_digest, known_digest):
        with pytest.raises(BadData, match=message):
            read(tmp_path)
    (tmp_path / "a" / "gone.png").unlink()
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    with pytest.raises(BadData, match=r"a/up: a link back to a folder that holds it; remove"):
        path_digest(tmp_path)


def make(name: str = "data") -> Make:
    return Make(name=name, make=canonical, inputs={"source": "builtin:a:b"}, ports=("train",))


def recipe(*stages: Any, **changes: Any) -> Recipe:
    return Recipe(**{"name": "r", "reference": "", "stages": stages, **changes})


def test_stages_must_fit_together() -> None:
    student = train(inputs={"data": "data.train"}, fresh={"student": STUDENT, "teacher": STUDENT})
    assert recipe(make(), student).upstream(student) == ("data",)
    with pytest.raises(
        UnknownName,
        match="stage 'student': port 'data': unknown output 'data.trian'. Did you mean 'data.train'",
    ):
        recipe(make(), replace(student, inputs={"data": "data.trian"}))
    with pytest.raises(BadRecipe, match="stage 'data': two stages have this name"):
        recipe(make(), make())
    with pytest.raises(BadRecipe, match="stage 'a b': a name has only letters"):
        recipe(make("a b"))
    with pytest.raises(UnknownName, match="row 'x': unknown stage 'dat'. Did you mean 'data'"):
        recipe(make(), rows={"x": Row(stages=("dat",), kind="baseline")})
    row = Row(stages=("data",))
    with pytest.raises(
        BadRecipe, match="recipe 'r': one row must be of kind \"baseline\" .found: none is"
    ):
        recipe(make(), rows={"x": row})
    row = replace(row, kind="baseline")
    assert recipe(make(), rows={"x": row}).baseline == "x"
    with pytest.raises(BadRecipe, match="found: 'x' and 'y'"):
        recipe(make(), rows={"x": row, "y": row})
    with pytest.raises(UnknownName, match="r: unknown stage 'studnet'. Did you mean 'student'"):
        recipe(make(), student).stage("studnet")


def test_a_train_stage_checks_its_roles() -> None:
    with pytest.raises(
        UnknownName, match="stage 'student': trains: unknown role 'student'. Valid: teacher"
    ):
        train()
    with pytest.raises(BadRecipe, match="stage 'student': no port 'data'"):
        train(inputs={})
    from stillhouse.cache import Cache

    with pytest.raises(BadRecipe, match="cache names 'student', which is not a frozen role"):
        train(fresh={"student": STUDENT}, cache={"student": Cache()})
    assert train(fresh={"student": STUDENT}).outputs == ("student",)


def test_an_evaluation_needs_data_and_a_metric() -> None:
    with pytest.raises(BadRecipe, match="an evaluation needs at least one metric"):
        Evaluate(name="scores", metrics=(), inputs={"data": "data.test"})
