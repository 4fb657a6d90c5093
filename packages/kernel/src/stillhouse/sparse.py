"""Targets of long vocabularies: a few classes of each row, by which a cache keeps an output.

V: classes. k: kept classes of a row. "*N": samples and further axes, such as tokens. A target is
never made dense again: it is read as outputs of its own, by `sparse_kd_loss` or `sampled_kd_loss`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Integer
from torch import Generator, Tensor

from stillhouse.errors import BadSetting
from stillhouse.training import mix

BLOCK = 1 << 24  # numbers of a block of rows that is worked on at a time
Auto = Literal["auto"]


@dataclass(frozen=True, kw_only=True)
class TopK:
    """The k largest log-probabilities of `output` at `temperature`, and the logarithm of what all
    other classes have together: read as "<output>.index", "<output>.log_p" and "<output>.rest" by
    `sparse_kd_loss` at this temperature. k="auto": the smallest power of two that errs by at most
    `error` (stillhouse.fidelity).
    """

    output: str = "logits"
    k: int | Auto = "auto"
    temperature: float = 1.0
    error: float = 0.05  # largest relative error of the KL that is accepted

    def __post_init__(self) -> None:
        _check(self)

    @property
    def names(self) -> tuple[str, str, str]:
        return (f"{self.output}.index", f"{self.output}.log_p", f"{self.output}.rest")


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """k classes of `output`, drawn by their probabilities at `temperature` from (seed, id, view),
    with weights whose expectations are the probabilities, and the entropy of all classes: read as
    "<output>.index", "<output>.weight" and "<output>.entropy" by `sampled_kd_loss`. k="auto" as of
    `TopK`.
    """

    output: str = "logits"
    k: int | Auto = "auto"
    temperature: float = 1.0
    error: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self)

    @property
    def names(self) -> tuple[str, str, str]:
        return (f"{self.output}.index", f"{self.output}.weight", f"{self.output}.entropy")


def _check(form: TopK | Sampled) -> None:
    where = f"cache: {type(form).__name__} of '{form.output}'"
    if form.k != "auto" and form.k < 1:
        raise BadSetting(f"{where}: k must be >= 1 or 'auto' (got {form.k})")
    for name in ("temperature", "error"):
        if not getattr(form, name) > 0:
            raise BadSetting(f"{where}: {name} must be > 0 (got {getattr(form, name)})")


def kept_of(form: TopK | Sampled, classes: int) -> int:
    """How many classes are kept of so many. Raises BadSetting where that is not chosen yet."""
    if form.k == "auto":
        raise BadSetting(f"cache: k of '{form.output}' is 'auto' and was not chosen yet")
    return min(form.k, classes)


def likeliest(
    logits: Float[Tensor, "*N V"], k: int, temperature: float
) -> tuple[Integer[Tensor, "*N k"], Float[Tensor, "*N k"], Float[Tensor, "*N"]]:
    """The classes, log-probabilities and log of the rest of `TopK`; the rest is -inf for k = V."""

    def block(x: Tensor, _rows: slice) -> tuple[Tensor, ...]:
        top = x.topk(k, dim=1)
        total = x.logsumexp(1)
        rest = x.scatter_(1, top.indices, float("-inf")).logsumexp(1)
        return top.indices, top.values - total[:, None], rest - total

    index, log_p, rest = _by_rows(logits, temperature, block)
    return index, log_p, rest


def drawn(
    logits: Float[Tensor, "*N V"], k: int, temperature: float, u: Float[Tensor, "*N"]
) -> tuple[Integer[Tensor, "*N k"], Float[Tensor, "*N k"], Float[Tensor, "*N"]]:
    """k different classes, their log-weights and the entropy in nats of `Sampled`.

    Systematic sampling with inclusion probabilities min(1, t / tau) that sum to k (Madow 1949): the
    classes with t >= tau are there always, with weight t; of the others those whose stretch of the
    summed probabilities holds one of the points tau (u + 0, 1, 2, ...), with weight tau. So the
    weights of a row sum to 1, and each has the expectation t. `u` in [0, 1) is all the randomness
    of a row.
    """
    starts = u.reshape(-1).double().to(logits.device)

    def block(x: Tensor, rows: slice) -> tuple[Tensor, ...]:
        log_t = x.log_softmax(1)
        t = log_t.exp()
        entropy = -torch.where(t > 0, t * log_t, 0.0).sum(1)
        index, weight = _systematic(t.double(), k, starts[rows])
        return index, weight.log().float(), entropy

    index, log_weight, entropy = _by_rows(logits, temperature, block)
    return index, log_weight, entropy


def _systematic(
    t: Float[Tensor, "n V"], k: int, u: Float[Tensor, " n"]
) -> tuple[Integer[Tensor, "n k"], Float[Tensor, "n k"]]:
    top = t.topk(k, dim=1)
    rest = t.scatter(1, top.indices, 0.0).sum(1, keepdim=True)
    # tails[m]: what is left when the m largest are certain, m = 0 ... k - 1
    tails = rest + top.values.flip(1).cumsum(1).flip(1)
    slots = torch.arange(k, device=t.device)
    taus = tails / (k - slots)
    certain = (top.values <= taus).to(torch.int8).argmax(1, keepdim=True)  # the first that holds
    certain = torch.where((top.values <= taus).any(1, keepdim=True), certain, k - 1)
    tau = taus.gather(1, certain)
    sure = slots < certain
    left = t.scatter(1, top.indices, torch.where(sure, 0.0, top.values))
    points = tau * (u[:, None] + slots - certain).clamp_min(0)
    found = torch.searchsorted(left.cumsum(1), points, right=True).clamp_max(t.shape[1] - 1)
    index = torch.where(sure, top.indices, found)
    return index, torch.where(sure, top.values, tau)


def starts(
    ids: Integer[Tensor, " B"], view: int, seed: int, shape: torch.Size
) -> Float[Tensor, "*N"]:
    """The `u` of `drawn` for rows of `shape` [B, ...], from (seed, id, view) alone."""
    rows = [
        torch.rand(shape[1:], generator=Generator().manual_seed(mix(seed, number, view)))
        for number in ids.tolist()
    ]
    return torch.stack(rows)


Block = Callable[[Tensor, slice], tuple[Tensor, ...]]


def _by_rows(logits: Tensor, temperature: float, block: Block) -> list[Tensor]:
    """What `block` says of logits / temperature, in blocks of rows, over all of them."""
    flat = logits.reshape(-1, logits.shape[-1])
    parts = [
        block(flat[rows].float() / temperature, rows)
        for rows in _blocks(len(flat), logits.shape[-1])
    ]
    whole = [torch.cat(columns) for columns in zip(*parts, strict=True)]
    return [column.reshape(*logits.shape[:-1], *column.shape[1:]) for column in whole]


def _blocks(rows: int, classes: int) -> Iterator[slice]:
    size = max(1, BLOCK // classes)
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))
