"""Learned prompts: CoOp (Zhou et al. 2022, arXiv 2109.01134), as VLM-OOD's code has them.

Vectors in the place of words stand before each class name, the same for all classes: tokens are
[first] [context] x n, name, ".". They are put in where the text tower looks its tokens up, so any
text tower can be prompted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.artifact import Built, Model, recorded, save_model, spec_of
from stillhouse.errors import BadData
from stillhouse.objectives.groups import Group, NoDecay
from stillhouse.work import Work
from stillhouse_clip.banks import TEXTS, save_bank
from stillhouse_clip.objectives.vlm_ood import unit
from stillhouse_clip.recipes.own_teacher import text_column
from stillhouse_clip.tokens import ASSET, tokenized
from stillhouse_clip.towers import context_length

SPREAD = 0.02  # standard deviation of fresh vectors


class PromptLearner(nn.Module):
    """Class texts with learned vectors before their names -> text [K, D], of the known classes,
    and every [C, D] where it is not in training. Only `context` [n, width] is to be trained.
    """

    tokens: Tensor
    mask: Tensor

    def __init__(
        self, towers: nn.Module, *, names: Sequence[str], known: int, contexts: int, length: int
    ) -> None:
        super().__init__()
        self.towers, self.names, self.known, self.contexts = towers, tuple(names), known, contexts
        self.register_buffer("tokens", torch.zeros(len(names), length, dtype=torch.int64))
        self.register_buffer("mask", torch.zeros(len(names), length, dtype=torch.int64))
        width = token_table(towers).embedding_dim
        self.context = nn.Parameter(SPREAD * torch.randn(contexts, width))

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.training:
            return {"text": self._texts(0, self.known)}
        parts = range(0, len(self.tokens), TEXTS)
        every = torch.cat([self._texts(a, min(a + TEXTS, len(self.tokens))) for a in parts])
        return {"text": every[: self.known], "every": every}

    def _texts(self, first: int, last: int) -> Tensor:
        table = token_table(self.towers)
        handle = table.register_forward_hook(self._put)
        try:
            batch = {"tokens": self.tokens[first:last], "mask": self.mask[first:last]}
            return self.towers(batch)["text"]
        finally:
            handle.remove()

    def _put(self, _module: nn.Module, _inputs: Any, found: Tensor) -> Tensor:
        """The looked-up tokens [B, L, width] with the vectors in the places behind the first."""
        context = self.context.to(found.dtype).expand(len(found), -1, -1)
        return torch.cat([found[:, :1], context, found[:, 1 + self.contexts :]], 1)


def token_table(module: nn.Module) -> nn.Embedding:
    """The largest table of a text tower that is looked up: that of its tokens."""
    tables = [each for each in module.modules() if isinstance(each, nn.Embedding)]
    if not tables:
        raise BadData(f"{type(module).__name__}: no table of tokens, so no prompt can be learned")
    return max(tables, key=lambda table: table.num_embeddings)


def prompt_learner(
    *, source: Mapping[str, Any], names: Sequence[str], known: int, contexts: int, length: int
) -> nn.Module:
    """A `PromptLearner` of the towers that `source` builds, without its tokens."""
    towers = spec_of(source).new()
    return PromptLearner(towers, names=names, known=known, contexts=contexts, length=length)


@dataclass(frozen=True, kw_only=True)
class FreshPrompts:
    """A `convert`: a prompt learner of the text tower of the port "teacher" and the port "classes",
    with descriptions behind the names where `enriched`; vectors are drawn by the stage's seed.
    """

    enriched: bool
    contexts: int = 8
    truncate: bool = False

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        # Any: what the ports' openers return
        teacher, classes = inputs["teacher"], inputs["classes"]
        texts = [f"{name}." for name in text_column(classes, "name")]
        if self.enriched:
            described = text_column(classes, "description")
            texts = [f"{text} {more}" for text, more in zip(texts, described, strict=True)]
        most = context_length(teacher.module) - self.contexts
        found = tokenized(
            teacher.assets[ASSET], texts, length=most, truncate=self.truncate, where="prompts"
        )
        tokens, mask = found["tokens"], found["mask"]
        blank = tokens[:, :1].expand(-1, self.contexts)  # looked up, then replaced
        kwargs = {
            "source": recorded(teacher.spec),
            "names": text_column(classes, "name"),
            "known": int(classes.columns["known"].sum()),
            "contexts": self.contexts,
            "length": tokens.shape[1] + self.contexts,
        }
        spec = Model(build=prompt_learner, kwargs=kwargs)
        with torch.random.fork_rng():
            torch.manual_seed(work.seed)
            module = spec.new()
        assert isinstance(module, PromptLearner)
        module.towers.load_state_dict(teacher.module.state_dict())
        module.tokens.copy_(torch.cat([tokens[:, :1], blank, tokens[:, 1:]], 1))
        ones = torch.ones_like(blank)
        module.mask.copy_(torch.cat([mask[:, :1], ones, mask[:, 1:]], 1))
        save_model(out, Built(spec=spec, module=module, assets=teacher.assets))


@dataclass(frozen=True, kw_only=True)
class BankOfPrompts:
    """A `convert`: the bank of the port "prompts", a trained prompt learner."""

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        # Any: what the ports' openers return
        module = inputs["prompts"].module.to(work.device).eval()
        with torch.no_grad():
            rows = unit(module({})["every"]).cpu()
        save_bank(out, list(module.names), rows, known=module.known)


@dataclass(frozen=True, kw_only=True)
class TrainedContext:
    """A grouping: of a prompt learner the vectors alone are trained, without weight decay; other
    roles as NoDecay has them.
    """

    def __call__(self, module: nn.Module) -> Sequence[Group]:
        if not isinstance(module, PromptLearner):
            return NoDecay()(module)
        rest = [n for n, p in module.named_parameters() if p.requires_grad and n != "context"]
        return [
            Group(names=("context",), options={"weight_decay": 0.0}),
            Group(names=tuple(rest), trains=False),
        ]
