"""Architectures of BERT-like encoders in whole numbers, and what they cost.

l: layers, d: width of the residual stream, f: units of the feed-forward layer, h: heads,
w: channels of queries, keys and values, s: tokens of a sample.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from stillhouse.errors import BadSetting

Counting = Literal["true", "paper"]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A post-normalized encoder with absolute positions, all of whose layers are alike.

    Each head has `head_width` channels whatever the width is, so that queries, keys and values have
    heads * head_width. `full_heads` are those of the network that it is cut from: the paper's
    estimate alone reads them. Raises BadSetting for a number below 1.
    """

    layers: int
    width: int
    inner: int
    heads: int
    head_width: int = 64
    vocabulary: int = 30522
    positions: int = 512
    types: int = 2
    pooler: bool = True
    full_heads: int = 12

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "pooler" and value < 1:
                raise BadSetting(f"architecture: {name} must be >= 1 (got {value})")

    @property
    def attention(self) -> int:
        """Channels of queries, keys and values."""
        return self.heads * self.head_width

    def cut(self, *, layers: int, width: int, inner: int, heads: int) -> "Architecture":
        """A smaller one of the same vocabulary and heads; raises BadSetting where it is not."""
        for name, value in (
            ("layers", layers), ("width", width), ("inner", inner), ("heads", heads),
        ):  # fmt: skip
            if value > getattr(self, name):
                raise BadSetting(
                    f"a subnet of {value} {name} cannot be cut from a model of "
                    f"{getattr(self, name)}; give {getattr(self, name)} or fewer"
                )
        return replace(self, layers=layers, width=width, inner=inner, heads=heads)

    def record(self) -> dict[str, Any]:  # Any: JSON values
        """As JSON values; `of` reads them."""
        return dict(vars(self))

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Architecture":  # Any: JSON values
        """What `record` wrote; raises BadSetting for other names."""
        known = set(cls.__dataclass_fields__)
        if unknown := set(record) - known:
            raise BadSetting(f"architecture: '{min(unknown)}' is none of {sorted(known)}")
        return cls(**record)


def kept_layers(depth: int, of: int) -> tuple[int, ...]:
    """Indices of the layers that a subnet of `depth` layers has of `of`: floor(i / (depth / of)),
    i = 0 ... depth - 1 (Xu et al. 2022, arXiv 2201.12507, "alternate layers"; the formula is the
    released code's). Computed in whole numbers, i * of // depth, which no rounding can move.

    Raises BadSetting unless 1 <= depth <= of.
    """
    if not 1 <= depth <= of:
        raise BadSetting(f"kept layers: a depth of 1 to {of} (got {depth})")
    return tuple(i * of // depth for i in range(depth))


def parameter_count(architecture: Architecture, *, kind: Counting = "true") -> int:
    """Parameters of an encoder with its embeddings, without a task's head.

    "true" is what the extracted network holds. "paper" is the official code's estimate, which the
    numbers printed in the paper agree with: it takes queries, keys and values to be d * h / 12 wide
    (h over `full_heads`), and their output d wide, though head_width * h channels are extracted; a
    pooler always counts.
    """
    a = architecture
    depth, d, f = a.layers, a.width, a.inner
    if kind == "paper":
        embeddings = d * (a.vocabulary + a.positions + a.types + 2)
        attention = d * d + 3 * d * d * a.heads / a.full_heads + 4 * d + 2 * d
        return round(embeddings + depth * (attention + 2 * d * f + f + d + 2 * d) + d * d + 2 * d)
    w = a.attention
    embeddings = d * (a.vocabulary + a.positions + a.types) + 2 * d
    attention = 3 * (w * d + w) + w * d + d + 2 * d
    feed_forward = 2 * d * f + f + d + 2 * d
    return embeddings + depth * (attention + feed_forward) + a.pooler * (d * d + d)


def macs(architecture: Architecture, *, tokens: int, kind: Counting = "true") -> int:
    """Multiply-accumulates of a sample of `tokens` in the layers, without lookups, pooler, head:
    l (s (4 d w + 2 d f) + 2 s^2 w).

    "true": w = h * head_width. "paper": w = d * h / full_heads, with which the four models that the
    paper names come within 1 to 4 % of what it prints. Raises BadSetting for tokens < 1.
    """
    if tokens < 1:
        raise BadSetting(f"macs: tokens must be >= 1 (got {tokens})")
    a, s = architecture, tokens
    w = a.attention if kind == "true" else a.width * a.heads / a.full_heads
    return round(a.layers * (s * (4 * a.width * w + 2 * a.width * a.inner) + 2 * s * s * w))
