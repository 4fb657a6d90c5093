"""The encoder against transformers' BERT, and subnets against what is extracted of them."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.errors import BadData, BadSetting
from stillhouse_language import Architecture, extract, subnet
from stillhouse_language.encoder import Encoder
from stillhouse_language.relations import relations

FULL = Architecture(
    layers=6, width=24, inner=96, heads=4, head_width=6, vocabulary=50, positions=16, full_heads=4
)


def encoder(architecture: Architecture = FULL) -> Encoder:
    torch.manual_seed(0)
    model = Encoder(architecture.record())
    for parameter in model.parameters():  # biases and gains of their own, too
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def batch() -> dict[str, Tensor]:
    torch.manual_seed(1)
    mask = torch.ones(3, 9, dtype=torch.int64)
    mask[1, 5:], mask[2, 2:] = 0, 0
    return {"tokens": torch.randint(0, 50, (3, 9)), "mask": mask}


def bert(model: Encoder) -> Any:  # Any: of transformers
    from transformers import BertConfig, BertModel

    a = model.architecture
    config = BertConfig(
        vocab_size=a.vocabulary,
        hidden_size=a.width,
        num_hidden_layers=a.layers,
        num_attention_heads=a.heads,
        intermediate_size=a.inner,
        max_position_embeddings=a.positions,
    )
    other = BertModel(config).eval()
    other.set_attn_implementation("eager")
    other.load_state_dict(model.state_dict())
    return other


def test_it_computes_what_transformers_does() -> None:
    model, given = encoder(), batch()
    with torch.no_grad():
        theirs = bert(model)(input_ids=given["tokens"], attention_mask=given["mask"])
        ours = model(given)["hidden"]
        pooled = model.pooled(ours)
    seen = given["mask"].bool()
    torch.testing.assert_close(ours[seen], theirs.last_hidden_state[seen], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pooled, theirs.pooler_output, rtol=1e-5, atol=1e-5)


def test_its_projections_are_those_that_transformers_attends_with() -> None:
    """Queries against keys at the model's own heads are its attention; transformers gives that in
    eager mode alone, and an EMPTY tuple with its default attention, over which a loss is 0.
    """
    model, given = encoder(), batch()
    other = bert(model)
    with torch.no_grad():
        found = model.projections(given)
        theirs = other(
            input_ids=given["tokens"], attention_mask=given["mask"], output_attentions=True
        ).attentions
    assert len(theirs) == FULL.layers, "no attention came: of what would a loss be?"
    heads = (3, 9, FULL.heads, FULL.head_width)
    query, key = (found[name].view(heads).transpose(1, 2) for name in ("query", "key"))
    scores = query @ key.transpose(2, 3) * FULL.head_width**-0.5
    scores = scores.masked_fill(~given["mask"].bool()[:, None, None], -1e9)
    torch.testing.assert_close(scores.softmax(-1), theirs[-1], rtol=1e-4, atol=1e-5)
    # the relation of queries with themselves at as many heads
    own = query @ query.transpose(2, 3) * FULL.head_width**-0.5
    own = own.masked_fill(~given["mask"].bool()[:, None, None], -1e9).softmax(-1)
    torch.testing.assert_close(relations(found["query"], given["mask"], heads=4), own)


CUTS = [
    FULL,
    FULL.cut(layers=1, width=8, inner=16, heads=1),
    FULL.cut(layers=4, width=10, inner=25, heads=3),
    FULL.cut(layers=5, width=24, inner=32, heads=2),
]


@pytest.mark.parametrize("cut", CUTS)
def test_what_is_extracted_computes_what_the_slices_do(cut: Architecture) -> None:
    model, given = encoder(), batch()
    with torch.no_grad():
        sliced, own = subnet(model, cut)(given), extract(model, cut)(given)
    for name in ("hidden", "query", "key", "value"):
        torch.testing.assert_close(own[name], sliced[name], rtol=1e-6, atol=1e-6)
    assert own["query"].shape == (3, 9, cut.heads * cut.head_width)


def test_slices_are_the_first_rows_and_columns_of_the_kept_layers() -> None:
    model, cut = encoder(), FULL.cut(layers=4, width=10, inner=25, heads=3)
    own = dict(extract(model, cut).named_parameters())
    whole = dict(model.named_parameters())
    for mine, kept in enumerate((0, 1, 3, 4)):  # floor(i / (4 / 6))
        for name, shape in (
            ("attention.self.key.weight", (18, 10)),
            ("attention.output.dense.weight", (10, 18)),
            ("intermediate.dense.weight", (25, 10)),
            ("output.LayerNorm.bias", (10,)),
        ):
            part = whole[f"encoder.layer.{kept}.{name}"][tuple(slice(0, n) for n in shape)]
            assert torch.equal(own[f"encoder.layer.{mine}.{name}"], part)


def test_a_subnet_shares_its_weights_and_what_it_leaves_out_gets_no_gradient() -> None:
    model, cut = encoder(), FULL.cut(layers=2, width=8, inner=16, heads=2)
    part = subnet(model, cut)
    assert {p.data_ptr() for p in part.parameters()} == {p.data_ptr() for p in model.parameters()}
    found = part.projections(batch()).values()
    torch.stack([value.square().sum() for value in found]).sum().backward()
    layers: Any = model.encoder["layer"]  # Any: a ModuleList of layers
    first, skipped, last = (layers[i] for i in (0, 1, 3))
    assert all(p.grad is None for p in skipped.parameters())
    gradient = first.attention["output"].dense.weight.grad
    assert gradient[:8, :12].abs().min() > 0
    assert gradient[8:].abs().max() == 0
    assert gradient[:, 12:].abs().max() == 0
    # of the last kept layer the projections alone are computed
    assert last.attention["self"].query.weight.grad is not None
    assert last.intermediate["dense"].weight.grad is None


def test_a_subnet_that_does_not_fit_is_refused() -> None:
    larger = Architecture(layers=6, width=32, inner=96, heads=4)
    with pytest.raises(BadSetting, match="a subnet of 32 width cannot be cut from a model of 24"):
        subnet(encoder(), larger)


def test_a_text_over_the_context_is_refused() -> None:
    long = {"tokens": torch.zeros(1, 17, dtype=torch.int64), "mask": torch.ones(1, 17).long()}
    with pytest.raises(BadData, match="a text of 17 tokens: the model reads 16"):
        encoder()(long)


def test_dropout_is_in_force_in_training_alone() -> None:
    model, given = encoder(), batch()
    with torch.no_grad(), warnings.catch_warnings():
        assert torch.equal(model(given)["hidden"], model(given)["hidden"])
        model.train()
        assert not torch.equal(model(given)["hidden"], model(given)["hidden"])
        # a subnet follows its SuperLM
        part = subnet(model, CUTS[2])
        assert not torch.equal(part(given)["hidden"], part(given)["hidden"])
