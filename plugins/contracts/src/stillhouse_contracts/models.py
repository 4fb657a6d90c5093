"""Detectors of vulnerabilities in functions: the teacher with adaptive fusion, the small STip, and
two networks of the field as controls.

B: batch. L: tokens. V: vocabulary. E: width of a token's vector. C: types of vulnerability.

A network reads batch["tokens"], int64 [B, L], 0 where there is padding (behind a text's end); or,
for distillation without data, "mixture", float [B, L, V], soft tokens, or "vectors", float
[B, L, E], which with "tokens" beside them end where those do. It gives
"logits" [B, C], a sigmoid a type, and "features" [B, D] in front of the head.

What is official: a teacher with feature extraction and adaptive fusion, a light student. Widths,
depths, the recurrent part and one network with a sigmoid a type (in place of a network a type) are
inferred.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stillhouse.artifact import Built, Model
from stillhouse.errors import BadData, BadSetting, UnknownName
from stillhouse.weights import import_checkpoint
from stillhouse.work import Work
from stillhouse_contracts.attention import AdaptiveFusion, masked_max, masked_mean
from stillhouse_contracts.tokens import VOCABULARY
from stillhouse_contracts.usage import detected_by

Backbone = Literal["none", "gru", "conv", "transformer"]
ATTENTION_HEADS = 4
HALF = 0.5


class TokenVectors(nn.Module):
    """Tokens, soft tokens or vectors of a batch -> vectors [B, L, E] and the mask [B, L] of what is
    no padding. The table is fixed: it travels with the weights, and no optimizer changes it.
    """

    table: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("table", hashed_vectors(width))

    def forward(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        if "vectors" in batch:
            vectors = batch["vectors"]
            if "tokens" in batch:  # of a text that noise distorts: it ends where it ended
                return vectors, batch["tokens"] != 0
            return vectors, torch.ones(vectors.shape[:2], dtype=torch.bool, device=vectors.device)
        if "mixture" in batch:
            mixture = batch["mixture"]
            # what is mostly padding is padding
            return mixture @ self.table, mixture[..., 0] < HALF
        tokens = batch["tokens"]
        return self.table[tokens], tokens != 0


def hashed_vectors(width: int) -> Tensor:
    """A vector a token of the vocabulary, [V, width], normal, of mean length 1; zeros for padding.
    The same everywhere: they depend on the vocabulary's order alone, on no contract.
    """
    if width < 1:
        raise BadSetting(f"a token's vector must have a number at least (got width {width})")
    rng = torch.Generator().manual_seed(len(VOCABULARY))
    table = torch.randn(len(VOCABULARY), width, generator=rng) * width**-0.5
    table[0] = 0
    return table


class Detector(nn.Module):
    """Vectors -> a linear map to `width` -> a backbone -> `blocks` of adaptive fusion -> mean and
    largest over the tokens -> two layers -> logits.
    """

    def __init__(
        self,
        *,
        vectors: int,
        width: int,
        backbone: Backbone,
        blocks: int,
        slots: int,
        heads: int,
        expand: int,
        normalisation: str,
        classes: int,
    ) -> None:
        super().__init__()
        self.embed = TokenVectors(vectors)
        self.enter = nn.Linear(vectors, width)
        self.backbone = _backbone(backbone, width)
        self.blocks = nn.ModuleList(
            AdaptiveFusion(
                width=width, heads=heads, expand=expand, slots=slots, normalisation=normalisation
            )
            for _ in range(blocks)
        )
        self.hidden = nn.Linear(2 * width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        vectors, mask = self.embed(batch)
        x = self.backbone(self.enter(vectors), mask)
        for block in self.blocks:
            x = block(x, mask)
        pooled = torch.cat([masked_mean(x, mask), masked_max(x, mask)], -1)
        features = torch.relu(self.hidden(pooled))
        return {"logits": self.head(features), "features": features}


def _backbone(name: Backbone, width: int) -> nn.Module:
    match name:
        case "none":
            return Passing()
        case "gru":
            return Recurrent(width)
        case "conv":
            return Convolutional(width)
        case "transformer":
            return Attending(width)
    raise UnknownName("backbone", name, ["none", "gru", "conv", "transformer"])


class Passing(nn.Module):
    """x as it is."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x * mask[..., None].to(x.dtype)


class Recurrent(nn.Module):
    """A bidirectional GRU, [B, L, width] -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        if width % 2:
            raise BadSetting(f"a bidirectional GRU needs an even width (got {width})")
        self.gru = nn.GRU(width, width // 2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return _recurrent(self.gru, x, mask)


def _recurrent(network: nn.RNNBase, x: Tensor, mask: Tensor) -> Tensor:
    """The states of each text as if it were alone: padding behind it is not read. [B, L, states],
    zeros at the padding.
    """
    lengths = mask.sum(1).clamp_min(1).cpu()
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    states, _ = nn.utils.rnn.pad_packed_sequence(
        network(packed)[0], batch_first=True, total_length=x.shape[1]
    )
    return states * mask[..., None].to(x.dtype)


class Convolutional(nn.Module):
    """A convolution of three tokens beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 3, padding=1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        inside = mask[..., None].to(x.dtype)
        found = self.conv((x * inside).transpose(1, 2)).transpose(1, 2)
        return (x + torch.relu(found)) * inside


class Attending(nn.Module):
    """Two encoder layers of torch's transformer, with learned positions of at most 512 tokens."""

    def __init__(self, width: int, *, longest: int = 512) -> None:
        super().__init__()
        if width % ATTENTION_HEADS:
            raise BadSetting(f"a transformer of {ATTENTION_HEADS} heads: the width is {width}")
        self.positions = nn.Parameter(torch.randn(longest, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, ATTENTION_HEADS, 2 * width, dropout=0.1, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        padding = ~mask
        padding[:, 0] = False  # attention needs a token, in a text without any
        found = self.layers(x + self.positions[: x.shape[1]], src_key_padding_mask=padding)
        return found * mask[..., None].to(x.dtype)


class TextCnn(nn.Module):
    """Kim 2014 (arXiv 1408.5882): convolutions of 3, 4 and 5 tokens, the largest over the text."""

    def __init__(self, *, vectors: int, width: int, classes: int) -> None:
        super().__init__()
        self.embed = TokenVectors(vectors)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(vectors, width, kernel, padding=kernel // 2) for kernel in (3, 4, 5)
        )
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(3 * width, classes)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        vectors, mask = self.embed(batch)
        x = (vectors * mask[..., None].to(vectors.dtype)).transpose(1, 2)
        found = [torch.relu(conv(x)).amax(-1) for conv in self.convolutions]
        features = torch.cat(found, -1)
        return {"logits": self.head(self.dropout(features)), "features": features}


class BiLstmAttention(nn.Module):
    """A bidirectional LSTM with attention over its states: ReChecker's detector (Qian et al. 2020,
    IEEE Access 8), which reads the same kind of fragments.
    """

    def __init__(self, *, vectors: int, width: int, classes: int) -> None:
        super().__init__()
        self.embed = TokenVectors(vectors)
        self.lstm = nn.LSTM(vectors, width, batch_first=True, bidirectional=True)
        self.score = nn.Linear(2 * width, 1)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        vectors, mask = self.embed(batch)
        states = _recurrent(self.lstm, vectors, mask)
        scores = self.score(torch.tanh(states)).squeeze(-1)
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        features = (scores.softmax(-1)[..., None] * states).sum(1)
        return {"logits": self.head(features), "features": features}


def detector(**kwargs: Any) -> nn.Module:  # Any: JSON values
    """A `Detector`; `types` are the names of its classes."""
    return Detector(**_without_types(kwargs))


def text_cnn(**kwargs: Any) -> nn.Module:  # Any: JSON values
    """A `TextCnn`."""
    return TextCnn(**_without_types(kwargs))


def bilstm(**kwargs: Any) -> nn.Module:  # Any: JSON values
    """A `BiLstmAttention`."""
    return BiLstmAttention(**_without_types(kwargs))


def _without_types(kwargs: Mapping[str, Any]) -> dict[str, Any]:  # Any: JSON values
    own = {k: v for k, v in kwargs.items() if k not in ("types", "length")}
    return {**own, "classes": len(kwargs["types"])}


TEACHER: Mapping[str, Any] = {  # Any: JSON values, here and below
    "width": 256,
    "backbone": "gru",
    "blocks": 3,
    "slots": 64,
    "heads": 8,
    "expand": 4,
    "normalisation": "batch",
}
STUDENT: Mapping[str, Any] = {
    "width": 64,
    "backbone": "conv",
    "blocks": 1,
    "slots": 16,
    "heads": 4,
    "expand": 1,
    "normalisation": "layer",
}
NETWORKS: Mapping[str, tuple[Callable[..., nn.Module], Mapping[str, Any]]] = {
    "af-teacher": (detector, TEACHER),
    "stip": (detector, STUDENT),
    "textcnn": (text_cnn, {"width": 64}),
    "bilstm": (bilstm, {"width": 64}),
}


def model(name: str, *, types: Sequence[str], length: int, vectors: int, **changes: Any) -> Model:
    """The spec of a network of `NETWORKS` for the types and the length of texts, with `changes` of
    its arguments. Raises UnknownName with the nearest.
    """
    if name not in NETWORKS:
        raise UnknownName("model", name, NETWORKS)
    build, kwargs = NETWORKS[name]
    for key in changes:
        if key not in kwargs:
            raise UnknownName("argument", key, kwargs, where=f"model '{name}'")
    given = {"types": list(types), "length": length, "vectors": vectors}
    return Model(build=build, kwargs={**kwargs, **changes, **given})


@dataclass(frozen=True, kw_only=True)
class OpenDetector:
    """A `convert`: a given detector at the port "checkpoint", a folder with model.json, or weights
    for `model`. Raises BadData for one of other types or another length.
    """

    model: Model

    def __call__(
        self,
        inputs: Mapping[str, Any],  # Any: Built or Path
        out: Path,
        *,
        work: Work,
    ) -> None:
        import_checkpoint(inputs["checkpoint"], out, spec=self.model, check=self._check)

    def _check(self, source: Built) -> None:
        wanted, found = detected_by(self.model), detected_by(source.spec)
        if found is None:
            raise BadData("the given teacher is no detector in contracts; give one that is")
        if found != wanted:
            raise BadData(
                f"the given teacher reads {found[1]} tokens and detects {', '.join(found[0])}; set "
                "length and types alike"
            )
