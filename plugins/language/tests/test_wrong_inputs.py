"""Inputs that cannot be used: one line and exit code 2, by the command that is typed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stillhouse.artifact import save_model
from stillhouse.cli.app import main
from stillhouse_language.causal.export import add_transformers_files
from stillhouse_language.causal.samples import built as language_model

Refused = Callable[..., str]
FEW = (
    "drafts=data", "tasks=own", "pool=8", "questions=4", "question_pairs=1", "examples=1",
    "validation=2", "items=2", "test=2", "shots=0", "rows=original,arte",
)  # fmt: skip


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Refused:
    """What a command says on the error stream; asserts that it is one line, with exit code 2."""
    monkeypatch.setenv("STILLHOUSE_ROOT", str(tmp_path / "project"))
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))
    (tmp_path / "project").mkdir()

    def run(*words: str) -> str:
        capsys.readouterr()
        assert main([*words]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        return lines[0]

    return run


def sets(*assignments: str) -> list[str]:
    return [word for each in assignments for word in ("--set", each)]


def own_task(folder: Path, *, answer: str = "1") -> Path:
    """A task of one's own, one of whose answers is `answer`."""
    own = folder / "own"
    own.mkdir(parents=True)
    task = {"name": "own", "description": "Say it.", "styles": {"a": "Do a.", "b": "Do b."}}
    (own / "task.json").write_text(json.dumps(task))
    rows = [
        {"question": f"q{n}", "answer": "1", "candidates": {"a": f"x{n}", "b": f"y{n}"}}
        for n in range(13)
    ]
    rows[4]["answer"] = answer
    for part in ("train", "test"):
        lines = [json.dumps({**row, "question": f"{part} {row['question']}"}) for row in rows]
        (own / f"{part}.jsonl").write_text("\n".join(lines))
    return folder


def transformers_folder(folder: Path) -> Path:
    """A causal language model with its tokenizer, as others leave it."""
    given = language_model(folder)
    save_model(folder / "model", given)
    add_transformers_files(given, folder / "model")
    (folder / "model" / "model.json").unlink()
    return folder / "model"


def arte(model: Path, data: Path, *more: str) -> list[str]:
    given = (f"teacher=file:{model}", f"student=file:{model}", f"data=file:{data}", *FEW, *more)
    return ["run", "language/arte", "--device", "cpu", *sets(*given)]


def test_a_budget_under_the_smallest_subnet(refused: Refused) -> None:
    line = refused("run", "language/autodistil", *sets("budget={macs: 1000}"))
    assert "1,000 macs are under the smallest subnet's" in line
    assert "raise it, or add a smaller sub-space" in line


def test_a_file_that_is_no_gguf(refused: Refused, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"PK\x03\x04 something else")
    line = refused(*arte(file, own_task(tmp_path / "data")))
    assert "model.gguf: no GGUF file (it begins with b'PK" in line


def test_an_empty_answer(refused: Refused, tmp_path: Path) -> None:
    model = transformers_folder(tmp_path / "lm")
    line = refused(*arte(model, own_task(tmp_path / "data", answer=" ")))
    assert "train.jsonl, line 5" in line
    assert "answer is empty" in line


def test_a_tokenizer_of_another_language_model(refused: Refused, tmp_path: Path) -> None:
    model = transformers_folder(tmp_path / "lm")
    config = json.loads((model / "config.json").read_text())
    other = transformers_folder(tmp_path / "other")
    # the same files, of a model whose end token is another one
    config["eos_token_id"] = 7
    (model / "config.json").write_text(json.dumps(config))
    data = own_task(tmp_path / "data")
    line = refused(*arte(model, data, f"tokenizer=file:{other}"))
    assert "the tokenizer is another model's: its end token is" in line


def test_a_tokenizer_that_is_not_the_encoders(refused: Refused, tmp_path: Path) -> None:
    import transformers

    shape = {"layers": 2, "width": 32, "inner": 64, "heads": 2, "head_width": 16,
             "vocabulary": 300, "positions": 64, "types": 2}  # fmt: skip
    config = transformers.BertConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    lm = transformers_folder(tmp_path / "lm")  # its tokenizer has fewer tokens
    given = (
        f"teacher=file:{tmp_path / 'bert'}", f"tokenizer=file:{lm}",
        f"architecture={json.dumps(shape)}", "hand={layers: 1, width: 16, inner: 32, heads: 2}",
        "spaces={x: {layers: [1, 2], widths: [16], ratios: [2], heads: [1, 2]}}",
        "budget={macs: 1e9}",
    )  # fmt: skip
    line = refused("run", "language/autodistil", "--device", "cpu", *sets(*given))
    assert (
        "tokens and its embeddings 300; give the tokenizer that the model was trained with" in line
    )


def test_text_over_the_context_of_a_test_question(refused: Refused, tmp_path: Path) -> None:
    model = transformers_folder(tmp_path / "lm")
    data = own_task(tmp_path / "data")
    file = data / "own" / "test.jsonl"
    long = {"answer": "1", "candidates": {"a": "x", "b": "y"}}
    rows = [{**long, "question": f"{n} " + "the cat " * 90} for n in range(3)]
    file.write_text("\n".join(map(json.dumps, rows)))
    line = refused(*arte(model, data))
    assert "the model's context is 128" in line
