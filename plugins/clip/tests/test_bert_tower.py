from collections.abc import Sequence
from typing import Any

import pytest
import torch

from stillhouse.errors import BadData, BadSetting
from stillhouse_clip.bert_tower import BertTower, TextSpec, layers_taken


def spec(**changed: Any) -> TextSpec:
    sizes = {"vocabulary": 30, "width": 16, "layers": 2, "heads": 4, "inner": 32, "context": 7}
    return TextSpec.of({**sizes, "pad": 1, **changed})


def ids(*rows: list[int]) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [1] * (longest - len(row)) for row in rows])


def test_it_computes_what_transformers_bert_computes_of_the_same_tensors() -> None:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    tower = BertTower(spec()).eval()
    bert = BertModel(BertConfig(**spec().bert()), add_pooling_layer=False).eval()
    missing, unexpected = bert.load_state_dict(tower.bert.state_dict(), strict=False)
    assert not unexpected
    assert not [name for name in missing if "position_ids" not in name]
    tokens = ids([0, 5, 9, 2], [0, 8, 2], [0, 3, 4, 5, 6, 7, 2])
    with torch.no_grad():
        found = tower({"tokens": tokens})
        expected = bert(tokens, attention_mask=(tokens != 1).long()).last_hidden_state
    where = tokens != 1
    torch.testing.assert_close(found["text_map"][where], expected[where])
    assert torch.equal(found["text_mask"], where)
    mean = torch.stack([row[there].mean(0) for row, there in zip(expected, where, strict=True)])
    torch.testing.assert_close(found["text"], mean)


def test_padding_changes_nothing() -> None:
    tower = BertTower(spec(), dim=5).eval()
    short, padded = torch.tensor([[0, 5, 2]]), torch.tensor([[0, 5, 2, 1, 1]])
    torch.testing.assert_close(tower({"tokens": short})["text"], tower({"tokens": padded})["text"])


def test_a_prefix_is_read_and_is_not_in_the_map() -> None:
    torch.manual_seed(0)
    plain = BertTower(spec(context=9))
    primed = BertTower(spec(prefix=(11, 12), positions=9))
    primed.load_state_dict(plain.state_dict())
    written = plain.eval()({"tokens": torch.tensor([[0, 11, 12, 5, 2]])})
    found = primed.eval()({"tokens": torch.tensor([[0, 5, 2]])})
    torch.testing.assert_close(found["text"], written["text"])
    torch.testing.assert_close(found["text_map"], written["text_map"][:, [0, 3, 4]])
    assert found["text_mask"].shape == (1, 3)


def test_the_first_token_may_stand_for_the_text() -> None:
    tower = BertTower(spec(pooling="first")).eval()
    found = tower({"tokens": torch.tensor([[0, 5, 2]])})
    torch.testing.assert_close(found["text"], found["text_map"][:, 0])


def test_what_cannot_be_is_refused_in_a_line() -> None:
    with pytest.raises(BadData, match="8 tokens, more than the context of 7"):
        BertTower(spec())({"tokens": torch.zeros(1, 8, dtype=torch.int64)})
    with pytest.raises(BadSetting, match="width 16 is no multiple of 3 heads"):
        spec(heads=3)
    with pytest.raises(BadSetting, match="a context of 7 tokens and 2 before them"):
        spec(prefix=(3, 4), positions=8)
    assert TextSpec.of(spec(prefix=(3,)).json()) == spec(prefix=(3,))


def test_a_shallow_encoder_begins_with_every_kth_layer_of_a_deep_one() -> None:
    assert layers_taken(12, 3) == (3, 7, 11)
    assert layers_taken(12, 12) == tuple(range(12))
    assert layers_taken(5, 2) == (1, 4)
    with pytest.raises(BadSetting, match="3 layers cannot begin with those of 2"):
        layers_taken(2, 3)


@pytest.mark.parametrize("prefix", [(), (3, 4)])
def test_of_several_texts_the_tokens_that_count_are_computed_to_the_same_gradients(
    prefix: tuple[int, ...],
) -> None:
    torch.manual_seed(0)
    tower = BertTower(spec(prefix=prefix, positions=9), dim=5)
    # nobody's text reaches the last column
    tokens = torch.cat([ids([0, 5, 9, 2], [0, 8, 2], [2]), torch.ones(3, 2).long()], dim=1)
    aim = torch.randn(3, 5)

    def found(*batches: torch.Tensor) -> tuple[dict[str, torch.Tensor], Sequence[torch.Tensor]]:
        made = [tower({"tokens": batch}) for batch in batches]
        whole = {name: torch.cat([each[name] for each in made]) for name in made[0]}
        counted = whole["text_map"] * whole["text_mask"][..., None]
        loss = (whole["text"] - aim).square().sum() + counted.square().sum()
        return whole, torch.autograd.grad(loss, list(tower.parameters()))

    (together, steps), (apart, expected) = found(tokens), found(*tokens.split(1))
    assert together["text_map"].shape == (3, 6, 16)
    assert not together["text_map"][~together["text_mask"]].any()
    torch.testing.assert_close(together["text"], apart["text"])
    torch.testing.assert_close(steps, expected, rtol=1e-5, atol=1e-5)


def test_a_batch_of_nothing_but_padding_is_no_number_that_is_not_finite() -> None:
    found = BertTower(spec(), dim=5).train()({"tokens": ids([1, 1], [1, 1])})
    assert found["text"].isfinite().all()
    assert found["text_map"].shape == (2, 2, 16)
