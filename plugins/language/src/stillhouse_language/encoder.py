"""A BERT-like encoder whose layers can be run in part: what a SuperLM and its subnets share.

B: samples, S: tokens, d: width, w: channels of queries, keys and values, V: vocabulary.

Modules and parameters have the names of transformers' BertModel, so that an exported folder is one
that `AutoModel` opens. Tokens whose `mask` is 0 are padding, behind the text.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.errors import BadData
from stillhouse_language.architecture import Architecture, kept_layers
from stillhouse_language.lookup import looked_up

Tensors = Mapping[str, Tensor]
PROJECTIONS = ("query", "key", "value")


class Embeddings(nn.Module):
    """Word, position and type embeddings, and the normalization behind their sum."""

    def __init__(self, a: Architecture, epsilon: float) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(a.vocabulary, a.width)
        self.position_embeddings = nn.Embedding(a.positions, a.width)
        self.token_type_embeddings = nn.Embedding(a.types, a.width)
        self.LayerNorm = nn.LayerNorm(a.width, eps=epsilon)


class SelfAttention(nn.Module):
    """The projections to queries, keys and values."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.query = nn.Linear(a.width, a.attention)
        self.key = nn.Linear(a.width, a.attention)
        self.value = nn.Linear(a.width, a.attention)


class Added(nn.Module):
    """A linear map whose result is added to the residual stream, and the normalization of that."""

    def __init__(self, inputs: int, a: Architecture, epsilon: float) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, a.width)
        self.LayerNorm = nn.LayerNorm(a.width, eps=epsilon)


class Layer(nn.Module):
    """Self-attention and a feed-forward layer."""

    def __init__(self, a: Architecture, epsilon: float) -> None:
        super().__init__()
        self.attention = nn.ModuleDict(
            {"self": SelfAttention(a), "output": Added(a.attention, a, epsilon)}
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(a.width, a.inner)})
        self.output = Added(a.inner, a, epsilon)


class Encoder(nn.Module):
    """An encoder of one architecture: post-normalized layers, exact GELU, absolute positions.

    forward maps "tokens" and "mask" ([B, S] integers) to "hidden" ([B, S, d], after the last
    layer), "query", "key", "value" ([B, S, w]) of the last layer, and "embedding" ([V, d], the
    words', which a masked language model reads its logits off). `dropout` is in force in
    train mode. Weights are drawn as BERT draws them: normal of deviation 0.02, biases 0.
    """

    def __init__(
        self,
        architecture: Mapping[str, Any],  # Any: JSON values
        epsilon: float = 1e-12,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.architecture = a = Architecture.of(architecture)
        self.dropout = dropout
        self.embeddings = Embeddings(a, epsilon)
        layers = nn.ModuleList(Layer(a, epsilon) for _ in range(a.layers))
        self.encoder = nn.ModuleDict({"layer": layers})
        self.pooler = nn.ModuleDict({"dense": nn.Linear(a.width, a.width)}) if a.pooler else None
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, batch: Tensors) -> dict[str, Tensor]:
        found = encode(self, self.architecture, batch)
        return {**found, "embedding": self.embeddings.word_embeddings.weight}

    def projections(self, batch: Tensors) -> dict[str, Tensor]:
        """ "query", "key" and "value" alone: what stands behind them is not computed."""
        return encode(self, self.architecture, batch, whole=False)

    def pooled(self, hidden: Tensor) -> Tensor:
        """BERT's pooled first token, [B, d]: tanh of a linear map. Raises BadData without one."""
        if self.pooler is None:
            raise BadData('the encoder has no pooler; pool="mean" needs none')
        width = hidden.shape[-1]
        return torch.tanh(_linear(hidden[:, 0], self.pooler["dense"], width, width))


def encode(
    model: Encoder, a: Architecture, batch: Tensors, *, whole: bool = True, in_place: bool = False
) -> dict[str, Tensor]:
    """The outputs of the subnet `a` of `model`, whose weights it reads in place: the first width
    columns and rows of all that touches the residual stream, the first inner units, the leftmost
    heads, and the kept layers. Not `whole`: of the last layer its projections alone. `in_place`:
    the gradient of the words' table is added where it is (`looked_up`).
    """
    drop = model.dropout if model.training else 0.0
    mask, hidden = batch["mask"], _embedded(model, a, batch["tokens"], in_place)
    hidden = F.dropout(hidden, drop, model.training)
    keys = mask.bool()[:, None, None, :]
    stack: Any = model.encoder["layer"]  # Any: a ModuleList of Layers
    *before, last = kept_layers(a.layers, model.architecture.layers)
    for index in before:
        hidden = _attended(stack[index], a, hidden, _projected(stack[index], a, hidden), keys, drop)
    found = _projected(stack[last], a, hidden)
    outputs: dict[str, Tensor] = dict(zip(PROJECTIONS, found, strict=True))
    if whole:
        outputs["hidden"] = _attended(stack[last], a, hidden, found, keys, drop)
    return outputs


def _embedded(model: Encoder, a: Architecture, tokens: Tensor, in_place: bool) -> Tensor:
    length, e = tokens.shape[1], model.embeddings
    if not torch.compiler.is_exporting() and length > model.architecture.positions:
        most = model.architecture.positions
        raise BadData(f"a text of {length} tokens: the model reads {most}; give shorter texts")
    places = torch.arange(length, device=tokens.device)
    words = e.word_embeddings.weight
    if in_place and torch.is_grad_enabled() and words.requires_grad:
        found = looked_up(words, tokens, a.width)
    else:
        found = F.embedding(tokens, _columns(words, a.width))
    summed = (
        found
        + F.embedding(places, _columns(e.position_embeddings.weight, a.width))
        + _columns(e.token_type_embeddings.weight, a.width)[0]
    )
    return _normalized(summed, e.LayerNorm, a.width)


def _projected(layer: Any, a: Architecture, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    part = layer.attention["self"]
    query, key, value = (
        _linear(hidden, getattr(part, name), a.attention, a.width) for name in PROJECTIONS
    )
    return query, key, value


def _attended(
    layer: Any,  # Any: a Layer
    a: Architecture,
    hidden: Tensor,
    projections: tuple[Tensor, Tensor, Tensor],
    keys: Tensor,
    drop: float,
) -> Tensor:
    """The rest of a layer, behind its projections."""
    batch, length, _ = hidden.shape
    split = (batch, length, a.heads, a.head_width)
    query, key, value = (each.reshape(split).transpose(1, 2) for each in projections)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=keys, dropout_p=drop)
    mixed = mixed.transpose(1, 2).reshape(batch, length, a.attention)
    attention = layer.attention["output"]
    hidden = _added(attention, a, hidden, mixed, drop)
    inner = F.gelu(_linear(hidden, layer.intermediate["dense"], a.inner, a.width))
    return _added(layer.output, a, hidden, inner, drop)


def _added(part: Added, a: Architecture, hidden: Tensor, inputs: Tensor, drop: float) -> Tensor:
    found = _linear(inputs, part.dense, a.width, inputs.shape[-1])
    found = F.dropout(found, drop, training=drop > 0)
    return _normalized(hidden + found, part.LayerNorm, a.width)


def _columns(weight: Tensor, width: int) -> Tensor:
    """A view of the first columns; the weight itself where it has no more."""
    return weight if weight.shape[1] == width else weight[:, :width]


def _linear(x: Tensor, linear: Any, outputs: int, inputs: int) -> Tensor:  # Any: an nn.Linear
    """The map of the first `inputs` to the first `outputs` units, by views of its weight."""
    weight, bias = _columns(linear.weight, inputs), linear.bias
    if weight.shape[0] != outputs:
        weight, bias = weight[:outputs], bias[:outputs]
    return F.linear(x, weight, bias)


def _normalized(x: Tensor, norm: nn.LayerNorm, width: int) -> Tensor:
    weight, bias = norm.weight, norm.bias
    if weight.shape[0] != width:
        weight, bias = weight[:width], bias[:width]
    return F.layer_norm(x, (width,), weight, bias, norm.eps)
