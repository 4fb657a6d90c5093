"""Text encoders in BERT's form (arXiv 1810.04805), which transformers' BertModel opens by name.

B: texts. L: tokens. W: width. D: width of the shared space.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from stillhouse.errors import BadData, BadSetting

Pooling = Literal["mean", "first"]


@dataclass(frozen=True, kw_only=True)
class TextSpec:
    """Sizes of a text encoder. `context` is the most tokens of a text, `pad` the id that fills it
    up; `prefix` are ids put behind a text's first token, as e5's "query: ".
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    inner: int
    context: int
    pad: int
    prefix: tuple[int, ...] = ()
    pooling: Pooling = "mean"
    epsilon: float = 1e-12
    positions: int = 0  # rows of the table; as many as tokens for 0

    def __post_init__(self) -> None:
        for name in ("vocabulary", "width", "layers", "heads", "inner", "context"):
            if getattr(self, name) < 1:
                raise BadSetting(f"text: {name} must be >= 1 (got {getattr(self, name)})")
        if self.width % self.heads:
            raise BadSetting(f"text: width {self.width} is no multiple of {self.heads} heads")
        if self.positions and self.positions < self.context + len(self.prefix):
            raise BadSetting(
                f"text: a context of {self.context} tokens and {len(self.prefix)} before them "
                f"needs as many positions (there are {self.positions})"
            )

    def json(self) -> dict[str, Any]:  # Any: JSON values
        return {**asdict(self), "prefix": list(self.prefix)}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "TextSpec":  # Any: JSON values
        """The spec that `json` wrote; raises BadSetting."""
        try:
            kept: dict[str, Any] = {**values, "prefix": tuple(values.get("prefix", ()))}
            return cls(**kept)
        except TypeError as error:
            raise BadSetting(f"text: {error}") from error

    def bert(self) -> dict[str, Any]:  # Any: JSON values
        """Arguments of transformers' BertConfig for the same network."""
        return {
            "vocab_size": self.vocabulary,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": self.inner,
            "max_position_embeddings": self.rows,
            "type_vocab_size": 1,
            "layer_norm_eps": self.epsilon,
            "pad_token_id": self.pad,
        }

    @property
    def rows(self) -> int:
        """Rows of the table of positions."""
        return self.positions or self.context + len(self.prefix)


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Which of the tokens [B, L] are computed: all (`where` None), or T of them in a row, whose
    numbers in the flat [B * L] are `where` [T].
    """

    mask: Tensor
    where: Tensor | None = None

    @classmethod
    def packed(cls, mask: Tensor) -> "_Layout":
        """Of those that count alone, up to the longest text's end."""
        rows, columns = mask.nonzero(as_tuple=True)
        longest = int(columns.max()) + 1 if len(columns) else 1
        return cls(mask=mask[:, :longest], where=rows * longest + columns)

    @property
    def columns(self) -> Tensor:
        """The column of each token: [L] or [T]."""
        length = self.mask.shape[1]
        if self.where is None:
            return torch.arange(length, device=self.mask.device)
        return self.where % length

    def pack(self, x: Tensor) -> Tensor:
        """[B, L, ...] as the layers take it: [B, L, ...] or [T, ...]."""
        x = x[:, : self.mask.shape[1]]
        return x if self.where is None else x.flatten(0, 1).index_select(0, self.where)

    def unpack(self, x: Tensor) -> Tensor:
        """[B, L, C] of what the layers give, with zeros where nothing counts."""
        if self.where is None:
            return x
        whole = x.new_zeros(self.mask.numel(), *x.shape[1:]).index_copy(0, self.where, x)
        return whole.unflatten(0, self.mask.shape)


class BertEncoder(nn.Module):
    """Token ids [B, L] and which of them count to the last layer's tokens [B, L, W].

    Of several texts those that do not count are not computed, and are 0: they are most of a batch
    of short texts and a long one. A text alone is computed whole, and what is compiled or exported.
    """

    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        self.embeddings = _Embeddings(spec)
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(_Layer(spec) for _ in range(spec.layers))
        self.apply(_small)

    def forward(
        self, ids: Int64[Tensor, "B L"], mask: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B L W"]:
        # a compiler and an exporter want shapes that hang on no value, and an exporter
        # takes the number of texts for a constant where it is compared
        dense = torch.compiler.is_compiling() or len(ids) == 1
        layout = _Layout(mask=mask) if dense else _Layout.packed(mask)
        x = self.embeddings(layout.pack(ids), layout.columns)
        layers = self.encoder.get_submodule("layer")
        assert isinstance(layers, nn.ModuleList)
        for layer in layers:
            x = layer(x, layout)
        x = layout.unpack(x)
        return x if dense else nn.functional.pad(x, (0, 0, 0, ids.shape[1] - x.shape[1]))


class _Embeddings(nn.Module):
    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(spec.vocabulary, spec.width, padding_idx=spec.pad)
        self.position_embeddings = nn.Embedding(spec.rows, spec.width)
        self.token_type_embeddings = nn.Embedding(1, spec.width)
        self.LayerNorm = nn.LayerNorm(spec.width, eps=spec.epsilon)

    def forward(self, ids: Tensor, columns: Tensor) -> Tensor:
        x = self.word_embeddings(ids) + self.position_embeddings(columns)
        return self.LayerNorm(x + self.token_type_embeddings.weight[0])


class _Layer(nn.Module):
    """Attention and a feed-forward network, each added to its input and normalized after that."""

    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        self.attention = nn.Module()
        self.attention.self = _Attention(spec)
        self.attention.output = _Added(spec.width, spec)
        self.intermediate = nn.Module()
        self.intermediate.dense = nn.Linear(spec.width, spec.inner)
        self.output = _Added(spec.inner, spec)

    def forward(self, x: Tensor, layout: _Layout) -> Tensor:
        x = self.attention.output(self.attention.self(x, layout), x)  # pyright: ignore[reportCallIssue]
        inner = nn.functional.gelu(self.intermediate.dense(x))  # pyright: ignore[reportCallIssue]
        return self.output(inner, x)


class _Attention(nn.Module):
    def __init__(self, spec: TextSpec) -> None:
        super().__init__()
        self.heads = spec.heads
        self.query = nn.Linear(spec.width, spec.width)
        self.key = nn.Linear(spec.width, spec.width)
        self.value = nn.Linear(spec.width, spec.width)

    def forward(self, x: Tensor, layout: _Layout) -> Tensor:
        q, k, v = (
            layout.unpack(part(x)).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
        mask = layout.mask[:, None, None]
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        return layout.pack((scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))


class _Added(nn.Module):
    def __init__(self, inner: int, spec: TextSpec) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, spec.width)
        self.LayerNorm = nn.LayerNorm(spec.width, eps=spec.epsilon)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + before)


def _small(module: nn.Module) -> None:
    """BERT's first weights: normal of deviation 0.02, biases 0."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        with torch.no_grad():
            module.weight[module.padding_idx].zero_()


class BertTower(nn.Module):
    """batch["tokens"] int64 [B, L] -> "text" [B, D], "text_map" [B, L, W] and "text_mask" [B, L],
    where a token is; L is at most the spec's context.

    The embedding is the mean over tokens, prefix included, or the first token, through a linear
    map to `dim`; without a `dim` it is that itself. Raises BadData for longer texts.
    """

    def __init__(self, spec: TextSpec, dim: int = 0) -> None:
        super().__init__()
        self.spec = spec
        self.bert = BertEncoder(spec)
        self.head = nn.Linear(spec.width, dim) if dim else nn.Identity()

    @property
    def length(self) -> int:
        """The most tokens that it reads."""
        return self.spec.context

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ids = batch["tokens"]
        if ids.shape[1] > self.spec.context:
            raise BadData(
                f"text: {ids.shape[1]} tokens, more than the context of {self.spec.context}"
            )
        ids, ahead = self._prefixed(ids), len(self.spec.prefix)
        mask = ids != self.spec.pad
        x = self.bert(ids, mask)
        pooled = x[:, 0]
        if self.spec.pooling == "mean":
            weight = mask[..., None].to(x.dtype)
            pooled = (x * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1)
        if ahead:
            x, mask = (torch.cat([y[:, :1], y[:, 1 + ahead :]], dim=1) for y in (x, mask))
        return {"text": self.head(pooled), "text_map": x, "text_mask": mask}

    def _prefixed(self, ids: Tensor) -> Tensor:
        if not self.spec.prefix:
            return ids
        prefix = torch.tensor(self.spec.prefix, device=ids.device).expand(len(ids), -1)
        return torch.cat([ids[:, :1], prefix, ids[:, 1:]], dim=1)


def layers_taken(of: int, count: int) -> Sequence[int]:
    """Which layers of a deep encoder a shallow one begins with: every k-th, the last among them.

    `layers_taken(12, 3)` is (3, 7, 11).
    """
    if not 1 <= count <= of:
        raise BadSetting(f"text: {count} layers cannot begin with those of {of}")
    return tuple(of * (place + 1) // count - 1 for place in range(count))
