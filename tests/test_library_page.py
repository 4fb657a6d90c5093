"""docs/library.md: its examples run, in their order, as one program."""

import re
import warnings
from pathlib import Path

import pytest

from stillhouse import Distilled

PAGE = Path(__file__).parent.parent / "docs" / "library.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall(PAGE.read_text())
    assert len(blocks) == 6
    names: dict[str, object] = {"__name__": "page"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Lightning and transformers say of workers and fp16
        for number, block in enumerate(blocks):
            exec(compile(block, f"library.md, block {number}", "exec"), names)
            if number == 0:
                found = names["found"]
                assert isinstance(found, Distilled)
                assert min(scores["accuracy"] for scores in found.scores.values()) > 0.9
