"""Texts continued and answers compared by a causal language model, in batches that share a prefix.

What all rows begin with goes through the model once; its keys and values are reused by every row.
"""

import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from stillhouse.errors import BadData, BadSetting
from stillhouse_language.causal.model import CausalLM
from stillhouse_language.causal.tokens import Tokenizer

Ids = Sequence[int]
TAIL = 8  # tokens in which a stop text is looked for, beside its own length


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a text goes on: at most `max_new` tokens, until `stop` (which is kept) or the end token;
    the likeliest token at temperature 0, else one drawn.
    """

    max_new: int = 64
    temperature: float = 0.0
    stop: str = ""

    def __post_init__(self) -> None:
        if self.max_new < 1 or not 0 <= self.temperature < float("inf"):
            raise BadSetting(
                f"sampling: max_new must be >= 1 and temperature >= 0 (got {self.max_new} and "
                f"{self.temperature})"
            )


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """What rows begin with, seen once by a model."""

    length: int
    cache: Any  # Any: transformers' keys and values of one row; None for an empty prefix

    def of(self, rows: int) -> Any:  # Any: as `cache`
        """The same for so many rows, to be added to."""
        found = copy.deepcopy(self.cache)
        if found is not None and rows > 1:
            found.batch_repeat_interleave(rows)
        return found


def prefix_of(model: CausalLM, tokens: Ids) -> Prefix:
    """The keys and values of a prefix."""
    if not tokens:
        return Prefix(length=0, cache=None)
    given = torch.tensor([[*tokens]], device=_device(model))
    with torch.no_grad():
        found = model.network.base_model(input_ids=given, use_cache=True)
    return Prefix(length=len(tokens), cache=_cache_of(found))


def generate(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompts: Sequence[Ids],
    *,
    sampling: Sampling,
    rng: Generator,
    prefix: Ids = (),
) -> list[str]:
    """How the model continues prefix + prompt, a text a prompt, cut behind the stop text. Raises
    BadData for a prompt that is empty or leaves no room in the model's context.
    """
    if not prompts:
        return []
    longest = max(map(len, prompts))
    _check_room(model, len(prefix) + longest + sampling.max_new, shortest=min(map(len, prompts)))
    device, seen = _device(model), prefix_of(model, prefix)
    # on the left: every row's next token is at the same place
    rows = torch.tensor([[0] * (longest - len(p)) + [*p] for p in prompts], device=device)
    real = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    mask = torch.cat([real.new_ones(len(prompts), seen.length), real], 1)
    cache, given = seen.of(len(prompts)), rows
    places = (mask.cumsum(1) - 1).clamp_min(0)[:, seen.length :]
    made = list[Tensor]()
    done = torch.zeros(len(prompts), dtype=torch.bool)
    while True:
        with torch.no_grad():
            found = model.network(
                input_ids=given,
                attention_mask=mask,
                position_ids=places,
                use_cache=True,
                logits_to_keep=1,
                **_cached(model, cache),
            )
        cache, token = _cache_of(found), _next(found.logits[:, -1], sampling, rng)
        made.append(token)
        done |= (token == tokenizer.end) | _stopped(tokenizer, made, sampling.stop)
        if len(made) == sampling.max_new or bool(done.all()):
            break
        given = token[:, None].to(device)
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], 1)
        places = places[:, -1:] + 1
    return [_text(tokenizer, row, sampling.stop) for row in torch.stack(made, 1).tolist()]


def option_log_probs(
    model: CausalLM,
    contexts: Sequence[Ids],
    options: Sequence[Sequence[Ids]],
    *,
    prefix: Ids = (),
    batch: int = 64,
) -> list[Tensor]:
    """Of each context, the log-probability of each of its options behind prefix + context, in nats,
    summed over the option's tokens.

    Options that differ in their last token alone go through the model as one row. Raises BadData
    for an empty context or option, or what does not fit the model's context.
    """
    rows, wanted = dict[tuple[int, ...], int](), list[list[tuple[int, int, Ids]]]()
    for context, several in zip(contexts, options, strict=True):
        places = list[tuple[int, int, Ids]]()
        for option in several:
            if not option:
                raise BadData("options: one is empty")
            row = rows.setdefault((*context, *option[:-1]), len(rows))
            places.append((row, len(context) - 1, option))
        wanted.append(places)
    log_p = _row_log_probs(model, [*rows], wanted, prefix, batch)
    return [torch.tensor([log_p[place[0], place[2]] for place in _keys(each)]) for each in wanted]


def _keys(places: list[tuple[int, int, Ids]]) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    for row, first, option in places:
        yield row, first, tuple(option)


def _row_log_probs(
    model: CausalLM,
    rows: Sequence[Ids],
    wanted: Sequence[Sequence[tuple[int, int, Ids]]],
    prefix: Ids,
    batch: int,
) -> dict[tuple[int, tuple[int, ...]], float]:
    """By row and option: its log-probability."""
    if rows:
        _check_room(model, len(prefix) + max(map(len, rows)), shortest=min(map(len, rows)))
    starts: dict[int, dict[tuple[int, ...], int]] = {}
    for each in wanted:
        for row, first, option in _keys([*each]):
            starts.setdefault(row, {})[option] = first
    seen, device = prefix_of(model, prefix), _device(model)
    # of like length together: less padding
    order = sorted(range(len(rows)), key=lambda row: (len(rows[row]), row))
    found = dict[tuple[int, tuple[int, ...]], float]()
    for start in range(0, len(order), batch):
        some = order[start : start + batch]
        longest = max(len(rows[row]) for row in some)
        given = torch.tensor(
            [[*rows[row], *[0] * (longest - len(rows[row]))] for row in some], device=device
        )
        with torch.no_grad():
            hidden = model.network.base_model(
                input_ids=given, use_cache=seen.length > 0, **_cached(model, seen.of(len(some)))
            ).last_hidden_state
        # logits of the requested places alone
        lines = [(i, row, option, first) for i, row in enumerate(some)
                 for option, first in starts[row].items()]  # fmt: skip
        index = [(i, first + j) for i, _, option, first in lines for j in range(len(option))]
        at = torch.tensor(index, device=device)
        logits = model.network.get_output_embeddings()(hidden[at[:, 0], at[:, 1]])
        head = model.head
        log_p = head.of(logits.detach()).float().log_softmax(-1)
        tokens = torch.tensor([t for _, _, option, _ in lines for t in option], device=device)
        picked = log_p.gather(1, tokens[:, None])[:, 0].double().cpu()
        lengths = [len(option) for _, _, option, _ in lines]
        for (_, row, option, _), part in zip(lines, picked.split(lengths), strict=True):
            found[row, option] = float(part.sum())
    return found


def _next(logits: Tensor, sampling: Sampling, rng: Generator) -> Tensor:
    if sampling.temperature == 0:
        return logits.argmax(-1).cpu()
    p = (logits.float() / sampling.temperature).softmax(-1).cpu()
    return torch.multinomial(p, 1, generator=rng)[:, 0]


def _stopped(tokenizer: Tokenizer, made: Sequence[Tensor], stop: str) -> Tensor:
    """Which rows end with the stop text."""
    count = len(made[0])
    if not stop:
        return torch.zeros(count, dtype=torch.bool)
    tail = torch.stack([*made[-(TAIL + len(stop)) :]], 1).tolist()
    return torch.tensor([stop in tokenizer.text(row) for row in tail])


def _text(tokenizer: Tokenizer, row: list[int], stop: str) -> str:
    if tokenizer.end in row:
        row = row[: row.index(tokenizer.end)]
    text = tokenizer.text(row)
    place = text.find(stop) if stop else -1
    return text if place < 0 else text[: place + len(stop)]


def _check_room(model: CausalLM, longest: int, *, shortest: int) -> None:
    if shortest < 1:
        raise BadData("generation: a prompt is empty")
    if longest > model.context:
        raise BadData(
            f"text over the context: {longest:,} tokens with prompt and continuation, the model "
            f"takes {model.context:,}; use shorter examples or fewer new tokens"
        )


def _cached(model: CausalLM, cache: Any) -> dict[str, Any]:
    """Keys and values as an argument: transformers calls it `cache` since 5.2x."""
    known = inspect.signature(type(model.network.base_model).forward).parameters
    return {"cache" if "cache" in known else "past_key_values": cache}


def _cache_of(found: Any) -> Any:
    """Keys and values among what transformers gives."""
    return found["cache"] if "cache" in found else found["past_key_values"]


def _device(model: CausalLM) -> torch.device:
    return next(model.parameters()).device
