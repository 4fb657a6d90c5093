"""Options and inputs of `predict`, by what the domain's function takes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from stillhouse.cli.given import Given
from stillhouse.errors import StillhouseError

BUILT: Any = None  # no function here looks at the model
Rows = Sequence[Mapping[str, Any]]


def by_file(model: object, inputs: Sequence[Path], *, labels: tuple[str, ...] = ()) -> Rows:
    return [{"input": each, "labels": labels} for each in inputs]


def by_text(model: object, inputs: Sequence[str]) -> Rows:
    return [{"input": each} for each in inputs]


def by_either(model: object, inputs: Sequence[Path | str], *, most_tokens: int = 8) -> Rows:
    return [{"input": each, "most": most_tokens} for each in inputs]


def drawn(model: object, *, classes: tuple[int, ...], seed: int = 0) -> Rows:
    return [{"class": each, "seed": seed} for each in classes]


def call(function: Any, *words: str) -> Rows:
    return Given.of(words).call(function, BUILT, "domain 'x'")


def test_options_stand_anywhere_and_have_the_type_of_their_parameter(tmp_path: Path) -> None:
    here = str(tmp_path)
    expected = [{"input": tmp_path, "labels": ("a cat", "dogs")}]
    assert call(by_file, here, "--labels", "a cat, dogs") == expected
    assert call(by_file, "--labels=a cat, dogs", here) == expected
    assert call(by_file, here) == [{"input": tmp_path, "labels": ()}]
    assert call(by_either, "hello", "--most-tokens", "4") == [{"input": "hello", "most": 4}]
    assert call(drawn, "--classes", "3,7", "--seed=5") == [
        {"class": 3, "seed": 5},
        {"class": 7, "seed": 5},
    ]


def test_an_input_is_a_file_or_a_text_as_the_function_takes_it(tmp_path: Path) -> None:
    here = str(tmp_path)
    assert call(by_text, here) == [{"input": here}]
    assert call(by_either, here, "x" * 5000) == [
        {"input": tmp_path, "most": 8},
        {"input": "x" * 5000, "most": 8},
    ]


@pytest.mark.parametrize(
    ("function", "words", "line"),
    [
        (by_file, ["nothing.png"], "nothing.png not found; give existing files"),
        (by_file, ["x" * 5000], "x" * 5000 + " not found; give existing files"),
        (by_file, [], "domain 'x': predict has nothing to predict; name files"),
        (by_either, [], "domain 'x': predict has nothing to predict; name files or texts"),
        (by_file, ["--labels"], "--labels: needs a value behind it, as in --labels 1"),
        (drawn, [], "domain 'x': predict needs --classes"),
        (
            drawn,
            ["a.png", "--classes", "1"],
            "domain 'x': predict takes options alone, --classes, --seed (got 'a.png')",
        ),
        (
            drawn,
            ["--classes", "1,b"],
            "--classes 1,b: input should be a valid integer, unable to parse string as an integer",
        ),
    ],
)
def test_what_a_function_does_not_take_is_one_line(
    function: Any, words: Sequence[str], line: str
) -> None:
    with pytest.raises(StillhouseError) as caught:
        call(function, *words)
    assert str(caught.value) == line


def test_an_option_of_another_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(StillhouseError, match=r"--labels") as caught:
        call(by_file, ".", "--label", "a")
    assert "--label" in str(caught.value)
