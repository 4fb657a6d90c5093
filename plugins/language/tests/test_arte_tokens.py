"""The row of language/arte that learns token distributions: kept as sparse targets, read back."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.artifact import Artifact, Built, save_model
from stillhouse.data.data import TensorData
from stillhouse.data.shards import save_data
from stillhouse.errors import BadData
from stillhouse.objectives.objective import Composed
from stillhouse.recipe import Context, Recipe
from stillhouse.settings import make_recipe, make_settings
from stillhouse.sparse import TopK
from stillhouse.stages import Train
from stillhouse.work import Work
from stillhouse_language.arte.token_targets import PadRows
from stillhouse_language.causal.model import CausalLM
from stillhouse_language.causal.samples import built as language_model
from stillhouse_language.causal.samples import model, tokenizer
from stillhouse_language.causal.tokens import trainable

NAME = "language/arte"
ROWS = ["original", "arte", "tokens"]
TEXTS = [("the cat", " sat on a mat"), ("a mat", " sat on the cat on the mat"), ("the", " cat")]


def recipe(**settings: Any) -> Recipe:
    return make_recipe(NAME, make_settings(NAME, "tiny", {"rows": ROWS, **settings}))


def models(folder: Path) -> dict[str, Built]:
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    teacher = model(1)
    with torch.no_grad():  # as sure as one that has learned: few tokens hold nearly all
        teacher.network.get_output_embeddings().weight.mul_(3)
    return {
        "teacher": replace(language_model(folder / "a"), module=teacher),
        "student": replace(language_model(folder / "b"), module=model(2)),
    }


def examples() -> TensorData:
    return TensorData(trainable(tokenizer(), TEXTS * 4, context=64, where="x"))


def test_rows_are_padded_and_padding_does_not_count(tmp_path: Path) -> None:
    found = PadRows()({**models(tmp_path), "data": examples()}, work=Work())["train"]
    tokens, labels, counted = (found[name] for name in ("tokens", "labels", "counted"))
    assert isinstance(tokens, torch.Tensor)
    assert isinstance(labels, torch.Tensor)
    assert isinstance(counted, torch.Tensor)
    lengths = [len(tokenizer().ids(a)) + len(tokenizer().ids(b)) + 1 for a, b in TEXTS]
    assert tokens.shape == labels.shape == (12, max(lengths))
    for row, (prompt, response) in enumerate(TEXTS):
        expected = [*tokenizer().ids(response), tokenizer().end]
        assert labels[row][counted[row]].tolist() == expected
        assert int(counted[row].nonzero()[0]) == len(tokenizer().ids(prompt)) - 1


def test_other_vocabularies_are_one_line(tmp_path: Path) -> None:
    given = models(tmp_path)
    other = tmp_path / "c"
    other.mkdir()
    given["teacher"] = language_model(other, vocab_size=len(tokenizer().inner) + 3)
    with pytest.raises(BadData, match="row tokens: teacher and student have other vocabularies"):
        PadRows()({**given, "data": examples()}, work=Work())


def test_the_row_differs_from_arte_in_its_targets_alone() -> None:
    made = recipe()
    arte, tokens = made.stage("arte-0"), made.stage("tokens-0")
    assert isinstance(arte, Train)
    assert isinstance(tokens, Train)
    assert (arte.steps, arte.batch, arte.seed) == (tokens.steps, tokens.batch, tokens.seed)
    assert made.stage("tokens-data").inputs["data"] == arte.inputs["data"]
    assert tokens.inputs["teacher"] == made.stage("arte-data").inputs["teacher"]
    assert tokens.cache["teacher"].outputs == (TopK(temperature=1.0),)
    assert isinstance(tokens.objective, Composed)
    weights = {name: loss.weight for name, loss in tokens.objective.losses.items()}
    assert weights == {"ce": 0.5, "kd": 0.5}
    assert "tokens-data" not in {stage.name for stage in recipe(rows=ROWS[:2]).stages}
    whole = recipe(token_weight=1).stage("tokens-0")
    assert isinstance(whole, Train)
    assert isinstance(whole.objective, Composed)
    assert set(whole.objective.losses) == {"kd"}


def divergence(teacher: Built, student: CausalLM, rows: Any) -> float:
    """KL(teacher || student) of the counted positions, nats."""
    with torch.no_grad():
        t, s = (
            m({"tokens": rows["tokens"]})["logits"].log_softmax(-1)[rows["counted"]]
            for m in (teacher.module, student)
        )
    return float((t.exp() * (t - s)).sum(-1).mean())


def test_kept_distributions_bring_the_student_to_its_teacher(tmp_path: Path) -> None:
    given = models(tmp_path)
    rows = PadRows()({**given, "data": examples()}, work=Work())["train"]
    artifacts: dict[str, Artifact] = {"data": save_data(tmp_path / "data", rows)}
    artifacts |= {role: save_model(tmp_path / role, each) for role, each in given.items()}
    ctx = Context(
        stage="tokens-0",
        out=tmp_path / "out",
        checkpoints=tmp_path / "checkpoints",
        caches=tmp_path / "caches",
        digests={port: artifact.digest for port, artifact in artifacts.items()},
    )
    ctx.out.mkdir()
    stage = recipe(token_weight=1, steps=60, lr=1e-2).stage("tokens-0")
    assert isinstance(stage, Train)
    result = stage.run(artifacts, ctx)
    kept = result.measured["teacher_cache"]["teacher"]["kept"]
    assert kept
    trained = result.outputs["student"].open().module
    assert isinstance(trained, CausalLM)
    assert isinstance(given["student"].module, CausalLM)
    before = divergence(given["teacher"], given["student"].module, rows)
    assert divergence(given["teacher"], trained, rows) < before / 3
