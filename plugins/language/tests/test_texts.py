"""Text and tasks as rows of tokens."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stillhouse.artifact import Built, Model, load_model
from stillhouse.errors import BadData, BadSetting, MissingData, UnknownName
from stillhouse.work import Work
from stillhouse_language.architecture import Architecture
from stillhouse_language.encoder import Encoder
from stillhouse_language.encoders import NewEncoder
from stillhouse_language.texts import IGNORED, MaskTokens, ReadCorpus, ReadTask, drawn
from stillhouse_language.tokenizing import (
    ASSET,
    check_tokenizer,
    encoded,
    new_tokenizer,
    open_tokenizer,
    pieces,
    special,
)

TEXTS = ["the cat sat on the mat", "the dog ate the cat", "a mat is a mat"]
SMALL = Architecture(
    layers=2, width=8, inner=16, heads=2, head_width=4, vocabulary=60, positions=12, full_heads=2
)


@pytest.fixture
def model(tmp_path: Path) -> Built:
    source = {"source": {"text": np.array(TEXTS)}}
    NewEncoder(architecture=SMALL)(source, tmp_path / "m", work=Work())
    return load_model(tmp_path / "m")


def test_the_vocabulary_is_the_commonest_words_and_all_characters() -> None:
    tokenizer = new_tokenizer(TEXTS, size=36)
    kept = tokenizer.get_vocab()
    assert len(kept) <= 36
    assert {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "m", "##m"} <= set(kept)
    assert tokenizer.encode("The mat").tokens[:2] == ["[CLS]", "the"]
    # a word that is not among them goes by its characters, one never seen is unknown
    assert tokenizer.encode("hat").tokens == ["[CLS]", "h", "##a", "##t", "[SEP]"]
    assert tokenizer.encode("q").tokens == ["[CLS]", "[UNK]", "[SEP]"]
    with pytest.raises(BadSetting, match="characters alone"):
        new_tokenizer(TEXTS, size=10)


def test_texts_are_padded_or_cut_with_their_special_tokens() -> None:
    tokenizer = new_tokenizer(TEXTS, size=60)
    rows = encoded(tokenizer, ["the cat", "the cat sat on the mat"], length=5)
    cls, sep = (tokenizer.token_to_id(t) for t in ("[CLS]", "[SEP]"))
    assert rows["mask"].tolist() == [[1, 1, 1, 1, 0], [1] * 5]
    assert [rows["tokens"][i][0].item() for i in (0, 1)] == [cls, cls]
    assert rows["tokens"][1, 4] == sep
    pair = encoded(tokenizer, [("the cat", "the mat")], length=9)["tokens"][0]
    assert (pair == sep).sum() == 2


def test_running_text_loses_no_token_to_its_pieces() -> None:
    tokenizer = new_tokenizer(TEXTS, size=60)
    found = pieces(tokenizer, TEXTS, length=5)
    assert all(len(row) <= 5 for row in found)
    inner = [token for row in found for token in row[1:-1]]
    assert inner == [t for text in TEXTS for t in tokenizer.encode(text).ids[1:-1]]


def test_held_out_rows_are_none_of_those_trained_on(model: Built) -> None:
    source = {"text": np.array([f"the {a} {b}" for a in "catdog" for b in "satmeo"])}
    make = ReadCorpus(length=8, held=5, rows=20)
    made = make({"source": source, "model": model}, work=Work.seeded(0))
    rows = {port: {tuple(r) for r in made[port]["tokens"].tolist()} for port in made}  # pyright: ignore[reportAttributeAccessIssue]  tensors
    assert len(rows["held"]) == 5
    assert len(made["train"]["mask"]) == 20
    assert not rows["held"] & rows["train"]


def glue(folder: Path, name: str) -> Path:
    folder.mkdir()
    if name == "cola":  # without a header
        lines = {
            "train": 'gj\t1\t\tthe cat sat\ngj\t0\t*\tcat the "sat\n',
            "dev": "gj\t1\t\ta mat\n",
        }
    elif name == "rte":
        head = "index\tsentence1\tsentence2\tlabel\n"
        lines = {
            "train": head + "0\tthe cat\ta cat\tentailment\n1\tthe dog\ta cat\tnot_entailment\n",
            "dev": head + "0\tthe mat\ta mat\tentailment\n",
        }
    else:
        head = "sentence\tlabel\n"
        lines = {"train": head + "the cat\t1\nthe dog\t0\n", "dev": head + "a mat\t1\n"}
    for part, text in lines.items():
        (folder / f"{part}.tsv").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("name", "labels", "names"),
    [
        ("cola", [1, 0], ["1", "0"]),
        ("rte", [0, 1], ["entailment", "not_entailment"]),
        ("sst2", [1, 0], ["1", "0"]),
    ],
)
def test_glue_tasks_as_they_are_distributed(
    tmp_path: Path, model: Built, name: str, labels: list[int], names: list[str]
) -> None:
    given = {"source": glue(tmp_path / name, name), "model": model}
    made: Any = ReadTask(name=name, length=10)(given, work=Work())
    assert made["train"]["labels"].tolist() == labels
    assert made["train"]["label"] == names
    assert made["test"]["tokens"].shape == (1, 10)


def test_what_is_wrong_with_a_task_is_one_line(tmp_path: Path, model: Built) -> None:
    folder = glue(tmp_path / "x", "sst2")
    read = ReadTask(name="x", length=10)
    (folder / "dev.tsv").write_text("sentence\tlabel\na mat\t7\n")
    with pytest.raises(UnknownName, match="task 'x': test: unknown class '7'"):
        read({"source": folder, "model": model}, work=Work())
    (folder / "dev.tsv").write_text("words\tlabel\na mat\t1\n")
    with pytest.raises(BadData, match="row 1 has words, label; a task needs sentence"):
        read({"source": folder, "model": model}, work=Work())
    (folder / "dev.tsv").unlink()
    with pytest.raises(MissingData, match="has no dev or valid or validation or test file"):
        read({"source": folder, "model": model}, work=Work())
    with pytest.raises(BadSetting, match="rows of 99 tokens, and the model reads 12"):
        ReadTask(name="x", length=99)({"source": folder, "model": model}, work=Work())


def test_a_tokenizer_that_is_not_the_models_is_refused() -> None:
    tokenizer = new_tokenizer(TEXTS, size=60)
    count = tokenizer.get_vocab_size()
    check_tokenizer(tokenizer, count + 10, where="x")  # a padded table
    for vocabulary in (count - 1, count + 500):
        with pytest.raises(BadData, match="x: its tokenizer has .* tokens and its embeddings"):
            check_tokenizer(tokenizer, vocabulary, where="x")


def test_masking_hides_some_tokens_and_no_special_one(model: Built) -> None:
    tokenizer = open_tokenizer(model.assets[ASSET])
    rows = encoded(tokenizer, TEXTS * 50, length=9)
    batch = {**rows, "id": torch.arange(150), "view": torch.zeros(150, dtype=torch.int64)}
    mask = special(tokenizer, "[MASK]")
    make = MaskTokens(mask=mask, vocabulary=60, first=5)
    found, again = make(batch), make(batch)
    assert torch.equal(found["tokens"], again["tokens"])
    hidden = found["targets"] != IGNORED
    assert torch.equal(found["targets"][hidden], batch["tokens"][hidden])
    assert torch.equal(found["tokens"][~hidden], batch["tokens"][~hidden])
    assert hidden.any(1).all()
    assert not (hidden & (batch["tokens"] < 5)).any()
    assert 0.6 < (found["tokens"][hidden] == mask).float().mean() < 0.95
    other = make({**batch, "view": torch.ones(150, dtype=torch.int64)})
    assert not torch.equal(other["targets"], found["targets"])


def test_few_rows_are_drawn_of_each_class() -> None:
    labels = torch.tensor([0] * 90 + [1] * 10)
    found: Any = drawn({"labels": labels}, 30, by=labels, rng=torch.Generator().manual_seed(0))
    assert found["labels"].bincount().tolist() == [20, 10]
    whole: Any = drawn({"labels": labels}, 0, by=labels, rng=torch.Generator())
    assert len(whole["labels"]) == 100


def test_an_encoder_is_no_classifier_of_texts(model: Built) -> None:
    from stillhouse_language.predict import predict

    assert isinstance(model.module, Encoder)
    with pytest.raises(BadData, match="no classifier of texts"):
        predict(Built(spec=Model(build=Encoder), module=model.module), ["a"])
