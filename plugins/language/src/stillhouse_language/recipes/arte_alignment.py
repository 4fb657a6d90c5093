"""Stages of language/arte between drafts and data: items, preferences, pairs, DPO, and what it
moved.
"""

import functools
from dataclasses import dataclass

import torch

from stillhouse.objectives.objective import Cosine, Optimizer, Phase
from stillhouse.references import out
from stillhouse.stages import Convert, Evaluate, Make, Train
from stillhouse_language.arte.answering import Answering
from stillhouse_language.arte.metrics import Alignment, WrittenStyles
from stillhouse_language.arte.objectives import Dpo
from stillhouse_language.arte.pairing import BuildPairs
from stillhouse_language.arte.preferring import ChooseItems, CollectPreferences
from stillhouse_language.arte.reading import TASKS
from stillhouse_language.causal.adapters import ADAPTERS, AddAdapters, MergeAdapters
from stillhouse_language.recipes.arte_data import Sources
from stillhouse_language.recipes.arte_settings import ArteSettings


@dataclass(frozen=True, kw_only=True)
class Aligning:
    """Steps 2 and 3 of ARTE as stages."""

    settings: ArteSettings
    sources: Sources

    @property
    def answering(self) -> Answering:
        return Answering(mode=self.settings.answering, longest=self.settings.longest)

    @functools.cached_property
    def items(self) -> Make:
        settings, read = self.settings, self.sources.read
        both = {"student": out(self.sources.student), "teacher": out(self.sources.teacher)}
        if self.sources.student == self.sources.teacher:
            del both["teacher"]
        if settings.drafts == "endpoint":  # the teacher that drafts is elsewhere
            both.pop("teacher", None)
        choose = ChooseItems(
            count=settings.items,
            models=tuple(both),
            shots=settings.shots,
            draws=settings.draws,
            answering=self.answering,
        )
        parts = {part: read[part] for part in (TASKS, "seeds", "validation")}
        return Make(
            name="items", make=choose, inputs={**parts, **both}, ports=("items", "subjects")
        )

    @functools.cached_property
    def preferences(self) -> Make:
        return Make(
            name="preferences",
            make=CollectPreferences(answering=self.answering),
            inputs={
                TASKS: self.sources.read[TASKS],
                "drafts": self.sources.drafts["drafts"],
                "items": self.items["items"],
                "student": out(self.sources.student),
            },
            ports=("preferences",),
        )

    def pairs(self, *, reverse: bool = False) -> Make:
        """Training and held-out pairs."""
        settings = self.settings
        build = BuildPairs(
            question_pairs=settings.question_pairs,
            by=settings.prefer,
            least=settings.least,
            longest=settings.longest_pair,
            per_prompt=settings.asked,
            held_out=settings.held_out,
            reverse=reverse,
            filter_wrong=settings.filter_wrong,
        )
        return Make(
            name="reversed-pairs" if reverse else "pairs",
            make=build,
            inputs={
                TASKS: self.sources.read[TASKS],
                "seeds": self.sources.read["seeds"],
                "preferences": out(self.preferences),
                "reference": out(self.sources.teacher),
            },
            ports=("train", "held_out"),
        )

    def merged(self, *, reverse: bool = False) -> Convert:
        """The aligned teacher, adapters and weights in one."""
        settings, name = self.settings, "reversed" if reverse else "aligned"
        adapters = Convert(
            name="adapters",
            convert=AddAdapters(rank=settings.rank, alpha=settings.alpha),
            inputs={"base": out(self.sources.teacher)},
        )
        optimizer = Optimizer(
            build=torch.optim.AdamW, lr=settings.align_lr, kwargs={"weight_decay": 0.0}
        )
        phase = Phase(
            trains=("teacher",),
            optimizer=optimizer,
            schedule=Cosine(warmup=0.1),
            clip_norm=1.0,
            grouping=ADAPTERS,
        )
        aligned = Train(
            name=f"{name}-adapters",
            objective=Dpo(phases={"align": phase}, beta=settings.beta),
            inputs={
                "data": self.pairs(reverse=reverse)["train"],
                "teacher": out(adapters),
                "base": out(self.sources.teacher),
            },
            bases={"teacher": "base"},
            steps=settings.align_steps,
            batch=settings.align_batch,
            micro_batch=1,
            precision=settings.precision,
        )
        return Convert(
            name=f"{name}-teacher",
            convert=MergeAdapters(),
            inputs={"adapted": out(aligned)},
        )

    @property
    def _teachers(self) -> dict[str, Convert]:
        found = {"aligned": self.merged()}
        if "reversed" in self.settings.rows:
            found["reversed"] = self.merged(reverse=True)
        return found

    def moved(self) -> Evaluate:
        """Log-probabilities of chosen and rejected before and after, on training pairs and on those
        held out; the reverse teacher on the same pairs.
        """
        pairs = self.pairs()
        parts = {"train": "training pairs", "held_out": "held-out pairs"}
        lines = {
            f"{name} teacher, {title}": (name, port)
            for name in self._teachers
            for port, title in parts.items()
        }
        inputs = {port: pairs[port] for port in parts}
        inputs |= {name: out(stage) for name, stage in self._teachers.items()}
        inputs["reference"] = out(self.sources.teacher)
        return Evaluate(
            name="moved",
            metrics=(Alignment(lines=lines),),
            inputs=inputs,
            data=tuple(parts),
        )

    def written(self, styles: tuple[str, ...]) -> Evaluate:
        """In which styles the teachers write, before and after."""
        roles = {"original teacher": "reference"} | {f"{n} teacher": n for n in self._teachers}
        inputs = {name: out(stage) for name, stage in self._teachers.items()}
        inputs["reference"] = out(self.sources.teacher)
        read = self.sources.read
        return Evaluate(
            name="written",
            metrics=(WrittenStyles(lines=roles, styles=styles, longest=self.settings.longest),),
            inputs={"data": read["validation"], TASKS: read[TASKS], **inputs},
            data=("data", TASKS),
        )
