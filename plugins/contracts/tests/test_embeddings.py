import sys
from pathlib import Path

import pytest
import torch

from stillhouse.artifact import load_model
from stillhouse.data.data import TensorData
from stillhouse.errors import BadSetting, MissingExtra
from stillhouse.work import Work
from stillhouse_contracts.embeddings import LearnVectors, learned_vectors
from stillhouse_contracts.tokens import IDS

TEXTS = [["call", "(", "VAR0", ")", ";"], ["send", "(", "VAR0", ")", ";"], ["now", "+", "1"]] * 20


def test_vectors_are_the_same_in_two_runs_and_of_half_a_length_each() -> None:
    pytest.importorskip("gensim")
    table = learned_vectors(TEXTS, 12, seed=3)
    assert torch.equal(table, learned_vectors(TEXTS, 12, seed=3))
    assert not torch.equal(table, learned_vectors(TEXTS, 12, seed=4))
    assert table[0].abs().sum() == 0
    for part in (table[:, :6], table[:, 6:]):
        lengths = part.norm(dim=1)
        assert float(lengths[lengths > 0].mean()) == pytest.approx(2**-0.5, rel=1e-4)
    # no text has it: nothing of Word2Vec, n-grams of FastText
    unseen = table[IDS["delegatecall"]]
    assert unseen[:6].abs().sum() == 0
    assert unseen[6:].abs().sum() > 0


def test_the_table_is_learned_from_the_training_texts(tmp_path: Path) -> None:
    pytest.importorskip("gensim")
    tokens = torch.tensor([[IDS[t] for t in text] for text in TEXTS[:2]] * 8)
    data = TensorData({"tokens": tokens})
    LearnVectors(width=4)({"data": data}, tmp_path / "model", work=Work.seeded(0))
    built = load_model(tmp_path / "model")
    assert list(built.module.state_dict()) == ["embed.table"]
    found = built.module({"tokens": tokens[:1]})["vectors"]
    assert found.shape == (1, 5, 4)
    with pytest.raises(BadSetting, match="must be even"):
        LearnVectors(width=5)


def test_without_gensim_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gensim.models", None)
    with pytest.raises(MissingExtra, match=r"gensim.*uv sync --extra contracts-embeddings"):
        learned_vectors(TEXTS, 4, seed=0)
