"""Wrong inputs through the command line: one line that says what and where, and exit code 2."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stillhouse.cli import main

CLASSES = ("ant", "bee", "cat", "dog")
LABELS = "".join(f"{name} {number} {name}\n" for number, name in enumerate(CLASSES))
LOOKS = "six legs\nstripes\nwhiskers\na tail\n"


@pytest.fixture
def birds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the paper's code lays data out, two known and two unseen classes, in a project of
    its own.
    """
    root = tmp_path / "birds"
    for part, names, count in (
        ("train", CLASSES[:2], 2),
        ("val-on-train", CLASSES[:2], 1),
        ("val", CLASSES[2:], 3),
    ):
        for name in names:
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.full((32, 32, 3), 60 * number, np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{number}.png")
    (root / "label2text.txt").write_text(LABELS)
    (root / "chatgpt.txt").write_text(LOOKS)
    monkeypatch.setenv("STILLHOUSE_ROOT", str(tmp_path))
    return root


def refused(capsys: pytest.CaptureFixture[str], recipe: str, *settings: str) -> str:
    """The one line that a run of these settings ends with."""
    given = [word for setting in settings for word in ("--set", setting)]
    assert main(["run", f"clip/{recipe}", "--scale", "tiny", *given]) == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
    (line,) = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert printed.err.rstrip().endswith(line)
    return line


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "label2text.txt",
            "ant 0 ant\nbee 1 bee\n",
            "chatgpt.txt: 4 lines, and label2text.txt has 2: line i describes the class of line i",
        ),
        (
            "chatgpt.txt",
            "six legs\nstripes\n",
            "chatgpt.txt: 2 lines, and label2text.txt has 4: line i describes the class of line i",
        ),
        (
            "label2text.txt",
            LABELS.replace("cat", "cow"),
            "label2text.txt: 4 classes, but not 'cat', one of the 4 that images are of; add its",
        ),
        (
            "chatgpt.txt",
            "leg " * 90 + "\nstripes\nwhiskers\na tail\n",
            "texts of the classes: 'a photo of ant . leg leg",
        ),
    ],
)
def test_class_texts_out_of_line(
    birds: Path, capsys: pytest.CaptureFixture[str], file: str, text: str, message: str
) -> None:
    (birds / file).write_text(text)
    line = refused(capsys, "vlm_ood", f"data=file:{birds}", "shots=1", "shot_rows=")
    assert message in line


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("languages=en,de",), "no text in de in the data; take it out of languages"),
        (("context=5",), "tokens, more than the 5"),
        (("templates=file:none.json",), "none.json not found"),
    ],
)
def test_texts_in_several_languages(
    birds: Path, capsys: pytest.CaptureFixture[str], settings: tuple[str, ...], message: str
) -> None:
    assert message in refused(capsys, "dc_clip", *settings)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["vlm_ood", "dc_clip"])
def test_a_hub_id_that_does_not_exist(
    birds: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    recipe: str,
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # no network is asked
    line = refused(capsys, recipe, "teacher=hub:nobody/no-such-model")
    assert "'hub:nobody/no-such-model' cannot be fetched (" in line
    assert "with the files at hand use file:<folder>" in line
