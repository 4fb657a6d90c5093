"""Distillation methods by name, with the weights the field uses on CIFAR-100.

`distillation_method("dkd")(student, teacher, 100, 50000, beta=2.0)` gives the loss terms, the roles
to train beside the student, and what feeds them. Models name their outputs "logits", "embedding",
"hint1" to "hintN" (after a stage's last ReLU) and "preact1" to "preactN" (before it).

Sources of the weights, named in the comments below:
  RD  the CIFAR-100 benchmark of the CRD paper (arXiv 1910.10699): 240 epochs, batch 64
  DK  the CIFAR-100 settings of the DKD paper (arXiv 2203.08679), the same schedule
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from stillhouse.errors import BadSetting, UnknownName
from stillhouse.objectives import methods
from stillhouse.objectives.declared import Loss
from stillhouse.objectives.inputs import named
from stillhouse.objectives.logits import dist_loss, dkd_loss, kd_loss
from stillhouse.objectives.methods import (
    EMBEDDINGS,
    WARMUP,
    Channels,
    MethodEntry,
    Pair,
    whole,
    with_ce,
)
from stillhouse.objectives.objective import Weighted
from stillhouse.objectives.relations import cc_loss, pkt_loss
from stillhouse.objectives.term import Term

LOGITS = ("student.logits", "teacher.logits")
WARM: Mapping[str, float] = {"temperature": 4.0}


@dataclass(frozen=True, kw_only=True)
class Plain:
    """A loss of what both models give, beside `ce` times the cross-entropy with the labels: a
    method of one line. Its numbers are the two weights and the numbers among `hyperparameters`; it
    needs at least `classes`.
    """

    loss: Loss
    reads: tuple[str, ...]
    weight: float
    ce: float = 1.0
    warmup: float = 0.0
    classes: int = 2
    hyperparameters: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def numbers(self) -> Mapping[str, float]:
        hyper = {k: v for k, v in self.hyperparameters.items() if not isinstance(v, bool)}
        return {**hyper, "weight": self.weight, "ce": self.ce}

    def entry(self, name: str, given: Pair, numbers: Mapping[str, float]) -> MethodEntry:
        if given.classes < self.classes:
            raise BadSetting(
                f"objective '{name}' needs at least {self.classes} classes (got {given.classes}): "
                "with 2 it keeps little or nothing of the teacher's confidence; use kd"
            )
        own = {
            k: whole(k, numbers.get(k, v), objective=name)
            if type(v) is int
            else type(v)(numbers.get(k, v))
            for k, v in self.hyperparameters.items()
        }
        loss = Weighted(
            term=Term(self.loss, *self.reads, **own),
            weight=numbers.get("weight", self.weight),
            warmup=self.warmup,
        )
        return MethodEntry(losses=with_ce(numbers.get("ce", self.ce), **{name: loss}))


@dataclass(frozen=True, kw_only=True)
class Method:
    """A named objective: called with the two models, classes and samples it gives its entry."""

    name: str
    build: Plain | Callable[..., MethodEntry]  # (given: Pair, *, <numbers by name>)

    @property
    def numbers(self) -> Mapping[str, float]:
        """What can be overridden, with the field's values: weights, temperature, ..."""
        if isinstance(self.build, Plain):
            return self.build.numbers
        parameters = list(inspect.signature(self.build).parameters.values())[1:]
        return {parameter.name: parameter.default for parameter in parameters}

    def __call__(
        self, student: Channels, teacher: Channels, classes: int, samples: int, **numbers: float
    ) -> MethodEntry:
        """The entry; `numbers` replace the field's. Raises UnknownName for an unknown one."""
        for key in numbers:
            if key not in self.numbers:
                raise UnknownName("setting", key, self.numbers, where=f"objective '{self.name}'")
        given = Pair(student=student, teacher=teacher, classes=classes, samples=samples)
        if isinstance(self.build, Plain):
            return self.build.entry(self.name, given, numbers)
        return self.build(given, **numbers)


def distillation_method(name: str) -> Method:
    """The method `name`; raises UnknownName with the nearest."""
    return named(DISTILLATION_METHODS, name, what="objective", where="distillation methods")


# a loss of what both models give: one line
PLAIN: Mapping[str, Plain] = {
    # RD, DK: T = 4, 0.1 CE + 0.9 KD
    "kd": Plain(loss=kd_loss, reads=LOGITS, weight=0.9, ce=0.1, hyperparameters=WARM),
    # DK, supplement: alpha 1, T = 4, warm-up 20 epochs; beta 8 for resnet32x4 -> resnet8x4, 2 for
    # ResNet-56 -> 20 and 110 -> 32, 6 for VGG and WRN pairs: the more confident the teacher, the
    # larger
    "dkd": Plain(
        loss=dkd_loss,
        reads=(*LOGITS, "batch.labels"),
        weight=1.0,
        warmup=WARMUP,
        classes=3,
        hyperparameters={**WARM, "alpha": 1.0, "beta": 8.0},
    ),
    # the DIST paper (arXiv 2205.10536), CIFAR-100: 1 CE + 2 inter + 2 intra at T = 4
    "dist": Plain(
        loss=dist_loss,
        reads=LOGITS,
        weight=1.0,
        classes=3,
        hyperparameters={**WARM, "beta": 2.0, "gamma": 2.0},
    ),
    # the logit standardization paper (arXiv 2403.01427), CIFAR-100: T = 2, 0.1 CE + 9 KD
    "std_kd": Plain(
        loss=kd_loss,
        reads=LOGITS,
        weight=9.0,
        ce=0.1,
        classes=3,
        hyperparameters={"temperature": 2.0, "standardize": True},
    ),
    # the paper's kernel (gamma 0.4, order 2), weight 100 as published runs of this formula use.
    # RD's 0.02 belongs to another formula (products of successive differences of an embedding):
    # with unit embeddings a squared difference of kernels is below 0.6, and 0.02 of it would do
    # nothing
    "cc": Plain(
        loss=cc_loss, reads=EMBEDDINGS, weight=100.0, hyperparameters={"gamma": 0.4, "order": 2}
    ),
    # RD, DK: weight 30000 (the loss is a mean over pairs)
    "pkt": Plain(loss=pkt_loss, reads=EMBEDDINGS, weight=30000.0),
}
DISTILLATION_METHODS: Mapping[str, Method] = {
    **{name: Method(name=name, build=plain) for name, plain in PLAIN.items()},
    **{
        build.__name__: Method(name=build.__name__, build=build)
        for build in (
            *(methods.hint, methods.at, methods.ofd, methods.mgd, methods.reviewkd),
            *(methods.sp, methods.rkd, methods.ickd, methods.infonce, methods.crd),
        )
    },
}
