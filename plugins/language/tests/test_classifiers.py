"""Heads, fine-tuning, what is exported for transformers, and predictions of texts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stillhouse.artifact import Built, load_model, save_model
from stillhouse.data.data import TensorData
from stillhouse.errors import BadData, MissingData
from stillhouse.recipe import Context
from stillhouse.work import Work
from stillhouse_language import Architecture
from stillhouse_language.classifier import AddHead, Classifier, Pool
from stillhouse_language.encoder import Encoder
from stillhouse_language.encoders import LoadEncoder, NewEncoder
from stillhouse_language.predict import predict
from stillhouse_language.studies import TaskTable
from stillhouse_language.texts import ReadTask
from stillhouse_language.tokenizing import ASSET, encoded, open_tokenizer
from stillhouse_language.transformers_folder import write_folder
from stillhouse_language.tuning import Lesson, Tuning, accuracy, matthews

GOOD, BAD = ["good", "fine", "great", "nice"], ["bad", "poor", "awful", "sad"]
TEXTS = [f"{word} {other}" for words in (GOOD, BAD) for word in words for other in ("film", "plot")]
LABELS = ["good"] * 8 + ["bad"] * 8
SQUARE = Architecture(
    layers=2, width=16, inner=32, heads=4, head_width=4, vocabulary=60, positions=12, full_heads=4
)
SLICED = Architecture(
    layers=2, width=16, inner=40, heads=3, head_width=8, vocabulary=60, positions=12, full_heads=4
)


def built(folder: Path, architecture: Architecture) -> Built:
    source = {"source": {"text": np.array(TEXTS)}}
    NewEncoder(architecture=architecture)(source, folder / "encoder", work=Work())
    return load_model(folder / "encoder")


def classifier(folder: Path, architecture: Architecture, pool: Pool = "mean") -> Built:
    encoder = built(folder, architecture)
    spec, module = AddHead(pool=pool).made(encoder.module, ["bad", "good"], seed=1)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return Built(spec=spec, module=module.eval(), assets=encoder.assets)


def test_a_head_leaves_the_encoder_as_it_was_and_fresh_ones_do_not(tmp_path: Path) -> None:
    encoder = built(tmp_path, SQUARE).module
    assert isinstance(encoder, Encoder)
    for seed in (1, 2):
        kept, fresh = (
            AddHead(fresh=f).made(encoder, ["a", "b"], seed=seed)[1] for f in (False, True)
        )
        same = [
            torch.equal(p, q)
            for p, q in zip(kept.bert.parameters(), encoder.parameters(), strict=True)
        ]
        assert all(same)
        assert not torch.equal(
            fresh.bert.embeddings.word_embeddings.weight, encoder.embeddings.word_embeddings.weight
        )
    one, two = (AddHead().made(encoder, ["a", "b"], seed=seed)[1] for seed in (1, 2))
    assert not torch.equal(one.classifier.weight, two.classifier.weight)


def test_the_mean_is_over_the_tokens_alone(tmp_path: Path) -> None:
    model = classifier(tmp_path, SQUARE)
    tokenizer = open_tokenizer(model.assets[ASSET])
    with torch.no_grad():
        short = model.module(encoded(tokenizer, ["good film"], length=4))["logits"]
        padded = model.module(encoded(tokenizer, ["good film"], length=9))["logits"]
    torch.testing.assert_close(short, padded, rtol=1e-4, atol=1e-5)


def test_fine_tuning_learns_what_is_there_to_learn(tmp_path: Path) -> None:
    encoder = built(tmp_path, SQUARE)
    arrays = {
        "text": np.array(TEXTS * 2),
        "label": np.array(LABELS * 2),
        "test": np.arange(32) >= 16,
    }
    made = ReadTask(name="x", length=6)({"source": arrays, "model": encoder}, work=Work())
    train, test = TensorData(made["train"]), TensorData(made["test"])
    ctx = Context(stage="x", out=tmp_path, checkpoints=tmp_path / "c", caches=tmp_path / "d")
    tuning = Tuning(steps=60, batch=8, lr=3e-3, fresh_lr=3e-3)
    lesson = Lesson(tuning=tuning, head=AddHead(dropout=0.0), labels=0)
    found = lesson.accuracy(encoder.module, train, test, Work.seeded(1, ctx=ctx))
    assert found > 0.9
    # the same numbers again, and the encoder as it was
    assert found == lesson.accuracy(encoder.module, train, test, Work.seeded(1, ctx=ctx))


class Says(nn.Module):
    """Answers with the column 'says'."""

    def forward(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"logits": nn.functional.one_hot(rows["says"], 2).float()}


def test_matthews_by_hand() -> None:
    """3 true and 1 false positive, 2 true and 2 false negatives: (6 - 2) / sqrt(4 5 3 4)."""
    says = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0])
    labels = torch.tensor([1, 1, 1, 0, 0, 0, 1, 1])
    data = TensorData({"says": says, "labels": labels})
    assert matthews(Says(), data, device="cpu", batch=3) == pytest.approx(4 / 240**0.5, abs=1e-6)
    assert accuracy(Says(), data, device="cpu", batch=3) == 5 / 8
    same = TensorData({"says": torch.ones(8, dtype=torch.long), "labels": labels})
    assert matthews(Says(), same, device="cpu") == 0
    with pytest.raises(BadData, match="hold no sample"):
        matthews(Says(), TensorData({"says": says[:0], "labels": labels[:0]}), device="cpu")


def test_the_table_names_what_a_column_is_scored_by() -> None:
    table = TaskTable(
        lines={}, lessons={}, labels={"a_9": "a", "b_9": "b, Matthews"}, matthews=("b_9",)
    )
    units = {score.name: score.unit for score in table.scores()}
    assert units == {"a_9": "%", "a_9_error": "%", "b_9": "", "b_9_error": ""}


PROGRAM = """
import sys, json, torch
from transformers import AutoModel, AutoModelForSequenceClassification
found = []
for folder in sys.argv[1:]:
    code = json.load(open(folder + "/config.json"))["model_type"] != "bert"
    batch = {"input_ids": torch.tensor([[2, 7, 9, 3, 0, 0]]),
             "attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]])}
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder, trust_remote_code=code).eval()(**batch)
        heads = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
        logits = heads.eval()(**batch).logits
    found.append([hidden.last_hidden_state[0, :4].tolist(), logits.tolist()])
assert not [name for name in sys.modules if name.startswith("stillhouse")]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_transformers_opens_what_is_exported_without_stillhouse(tmp_path: Path) -> None:
    """BERT itself where heads times their width are the width, which needs no code; else the code
    that lies in the folder.
    """
    cases: list[tuple[Architecture, Pool]] = [(SQUARE, "mean"), (SLICED, "mean")]
    models = list[Built]()
    for number, (architecture, pool) in enumerate(cases):
        models.append(classifier(tmp_path / f"c{number}", architecture, pool))
        out = tmp_path / f"out{number}"
        save_model(out, models[-1])
        module = models[-1].module
        assert isinstance(module, Classifier)
        write_folder(models[-1], module, out)
    folders = [str(tmp_path / f"out{n}") for n in range(len(cases))]
    env = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, *folders],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-2000:]
    batch = {
        "tokens": torch.tensor([[2, 7, 9, 3, 0, 0]]),
        "mask": torch.tensor([[1, 1, 1, 1, 0, 0]]),
    }
    for model, (hidden, logits) in zip(models, json.loads(found.stdout), strict=True):
        module = model.module
        assert isinstance(module, Classifier)
        with torch.no_grad():
            ours = module.bert(batch)["hidden"][0, :4], module(batch)["logits"]
        torch.testing.assert_close(torch.tensor(hidden), ours[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.tensor(logits), ours[1], rtol=1e-4, atol=1e-5)


def test_a_folder_of_transformers_comes_back_as_the_encoder_it_was(tmp_path: Path) -> None:
    model = classifier(tmp_path, SQUARE)
    save_model(tmp_path / "out", model)
    assert isinstance(model.module, Classifier)
    write_folder(model, model.module, tmp_path / "out")
    (tmp_path / "out" / "model.json").unlink()  # as others' folders are
    expected = Architecture.of({**SQUARE.record(), "pooler": False})
    load = LoadEncoder(expected=expected)
    load({"checkpoint": tmp_path / "out"}, tmp_path / "back", work=Work())
    back = load_model(tmp_path / "back")
    assert isinstance(back.module, Encoder)
    for name, value in back.module.state_dict().items():
        assert torch.equal(value, model.module.bert.state_dict()[name])
    other = LoadEncoder(expected=Architecture.of({**SQUARE.record(), "layers": 3}))
    with pytest.raises(BadData, match="of another architecture than the settings' .layers 3"):
        other({"checkpoint": tmp_path / "out"}, tmp_path / "no", work=Work())
    # a tokenizer of other words
    big = built(tmp_path / "other", Architecture.of({**SQUARE.record(), "vocabulary": 400}))
    tokenizer = json.loads((big.assets[ASSET] / "tokenizer.json").read_text())
    more = {f"word{i}": len(tokenizer["model"]["vocab"]) + i for i in range(300)}
    tokenizer["model"]["vocab"] |= more
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "tokenizer.json").write_text(json.dumps(tokenizer))
    given = {"checkpoint": tmp_path / "out", "tokenizer": tmp_path / "words"}
    with pytest.raises(BadData, match="its tokenizer has .* tokens and its embeddings 60"):
        load(given, tmp_path / "no2", work=Work())


def test_predictions_of_texts_and_files(tmp_path: Path) -> None:
    model = classifier(tmp_path, SLICED)
    (tmp_path / "texts.txt").write_text("good film\nbad plot\n")
    rows = predict(model, ["good film", tmp_path / "texts.txt"])
    assert [row["text"] for row in rows] == ["good film", "good film", "bad plot"]
    assert rows[0] == rows[1]
    assert rows[0]["bad"] + rows[0]["good"] == pytest.approx(1, abs=2e-3)
    assert rows[0]["class"] == max(("bad", "good"), key=lambda name: rows[0][name])


def test_texts_that_cannot_be_predicted_are_one_line(tmp_path: Path) -> None:
    model = classifier(tmp_path, SLICED)
    for given, kind, message in (
        ("good film " * 6, BadData, "text 1: 14 tokens, and the model reads 12; cut it"),
        (" ", BadData, "text 1: is empty"),
        ("reviews.txt", MissingData, "reviews.txt not found; give an existing file, or a text"),
    ):
        with pytest.raises(kind, match=message):
            predict(model, [given])
