"""The zoo: each objective by name, with the weights the field uses on CIFAR-100.

`zoo_method("dkd")(student, teacher, 100, 50000, beta=2.0)` gives the loss terms, the roles to train
beside the student, and what feeds them. Models name their outputs "logits", "embedding", "hint1" to
"hintN" (after a stage's last ReLU) and "preact1" to "preactN" (before it).

Sources of the weights, named in the comments below:
  RD  the CIFAR-100 benchmark of the CRD paper (arXiv 1910.10699): 240 epochs, batch 64
  DK  the CIFAR-100 settings of the DKD paper (arXiv 2203.08679), the same schedule
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from stillhouse.artifact import Model
from stillhouse.errors import BadSetting, UnknownName
from stillhouse.objectives.contrastive import CRD, InfoNCE
from stillhouse.objectives.features import (
    AttentionTransfer,
    Hint,
    MaskedGenerative,
    Overhaul,
    Review,
)
from stillhouse.objectives.inputs import named
from stillhouse.objectives.logits import DIST, DKD, KD
from stillhouse.objectives.objective import Weighted
from stillhouse.objectives.projectors import (
    ContrastiveMemory,
    ConvProjector,
    LinearProjector,
    MaskedGenerator,
    OverhaulConnectors,
    ReviewFusion,
)
from stillhouse.objectives.relations import (
    ChannelCorrelation,
    CorrelationCongruence,
    ProbabilisticTransfer,
    RelationalAngle,
    RelationalDistance,
    SimilarityPreserving,
)
from stillhouse.objectives.supervised import CrossEntropy

WARMUP = 20 / 240  # DK: 20 of 240 epochs, for DKD and ReviewKD


@dataclass(frozen=True, kw_only=True)
class Channels:
    """A model's hints, shallow to deep: channels and sizes (height); and the embedding width."""

    hints: tuple[int, ...]
    sizes: tuple[int, ...]
    embedding: int

    def __post_init__(self) -> None:
        if not self.hints or len(self.hints) != len(self.sizes):
            raise BadSetting(
                "hints and sizes must have one entry a stage, and at least one "
                f"(got {len(self.hints)} and {len(self.sizes)})"
            )


@dataclass(frozen=True, kw_only=True)
class ZooEntry:
    """Loss terms with weights, the roles to train beside the student, and what feeds those."""

    losses: Mapping[str, Weighted]
    roles: Mapping[str, Model] = field(default_factory=dict[str, Model])
    feeds: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What an entry depends on: the two models, the number of classes, the number of samples."""

    student: Channels
    teacher: Channels
    classes: int
    samples: int


@dataclass(frozen=True, kw_only=True)
class Method:
    """A named objective: called with the two models, classes and samples it gives its entry."""

    name: str
    build: Callable[..., ZooEntry]  # (given: Pair, *, <numbers by name>)

    @property
    def numbers(self) -> Mapping[str, float]:
        """What can be overridden, with the field's values: weights, temperature, ..."""
        parameters = list(inspect.signature(self.build).parameters.values())[1:]
        return {parameter.name: parameter.default for parameter in parameters}

    def __call__(
        self, student: Channels, teacher: Channels, classes: int, samples: int, **numbers: float
    ) -> ZooEntry:
        """The entry; `numbers` replace the field's. Raises UnknownName for one not there."""
        for key in numbers:
            if key not in self.numbers:
                raise UnknownName("setting", key, self.numbers, where=f"objective '{self.name}'")
        given = Pair(student=student, teacher=teacher, classes=classes, samples=samples)
        return self.build(given, **numbers)


def zoo_method(name: str) -> Method:
    """The method `name`; raises UnknownName with the nearest."""
    return named(ZOO, name, what="objective", where="zoo")


def kd(_: Pair, *, temperature: float = 4.0, weight: float = 0.9, ce: float = 0.1) -> ZooEntry:
    """RD, DK: T = 4, 0.1 CE + 0.9 KD."""
    return ZooEntry(
        losses=_with_ce(ce, kd=Weighted(term=KD(temperature=temperature), weight=weight))
    )


def dkd(
    given: Pair,
    *,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
    weight: float = 1.0,
    ce: float = 1.0,
) -> ZooEntry:
    """DK, supplement: alpha 1, T = 4, warm-up 20 epochs; beta 8 for resnet32x4 -> resnet8x4.

    beta is 2 for ResNet-56 -> 20 and 110 -> 32, 6 for VGG and WRN pairs: the surer the teacher, the
    larger.
    """
    _need_classes("dkd", given.classes)
    term = DKD(alpha=alpha, beta=beta, temperature=temperature)
    return ZooEntry(losses=_with_ce(ce, dkd=Weighted(term=term, weight=weight, warmup=WARMUP)))


def dist(
    given: Pair,
    *,
    temperature: float = 4.0,
    beta: float = 2.0,
    gamma: float = 2.0,
    weight: float = 1.0,
    ce: float = 1.0,
) -> ZooEntry:
    """The DIST paper (arXiv 2205.10536), CIFAR-100: 1 CE + 2 inter + 2 intra at T = 4."""
    _need_classes("dist", given.classes)
    term = DIST(beta=beta, gamma=gamma, temperature=temperature)
    return ZooEntry(losses=_with_ce(ce, dist=Weighted(term=term, weight=weight)))


def std_kd(
    given: Pair, *, temperature: float = 2.0, weight: float = 9.0, ce: float = 0.1
) -> ZooEntry:
    """The logit standardization paper (arXiv 2403.01427), CIFAR-100: T = 2, 0.1 CE + 9 KD."""
    _need_classes("std_kd", given.classes)
    term = KD(temperature=temperature, standardize=True)
    return ZooEntry(losses=_with_ce(ce, std_kd=Weighted(term=term, weight=weight)))


def hint(given: Pair, *, weight: float = 100.0, ce: float = 1.0) -> ZooEntry:
    """RD: weight 100, the middle stage (the second of three), together with the labels."""
    pairs = _stages(given, "hint")
    s, t = pairs[len(pairs) // 2]
    term = Hint(student_outputs=(f"hint{s + 1}",), teacher_outputs=(f"hint{t + 1}",))
    kwargs = {
        "inputs": [f"student.hint{s + 1}"],
        "channels": [given.student.hints[s]],
        "targets": [given.teacher.hints[t]],
        "relu": True,
    }
    return _projected(
        _with_ce(ce, hint=Weighted(term=term, weight=weight)),
        Model(build=ConvProjector, kwargs=kwargs),
    )


def at(given: Pair, *, weight: float = 1000.0, ce: float = 1.0) -> ZooEntry:
    """RD, DK and the paper: weight 1000, every stage."""
    pairs = _stages(given, "at")
    term = AttentionTransfer(
        student_outputs=tuple(f"hint{s + 1}" for s, _ in pairs),
        teacher_outputs=tuple(f"hint{t + 1}" for _, t in pairs),
    )
    return ZooEntry(losses=_with_ce(ce, at=Weighted(term=term, weight=weight)))


def ofd(given: Pair, *, weight: float = 1e-3, ce: float = 1.0) -> ZooEntry:
    """DK and the OFD paper: weight 0.001, every stage, before the ReLU."""
    pairs = _stages(given, "ofd")
    term = Overhaul(
        student_outputs=tuple(f"preact{s + 1}" for s, _ in pairs),
        teacher_outputs=tuple(f"preact{t + 1}" for _, t in pairs),
        margins=tuple(f"margin{i + 1}" for i in range(len(pairs))),
    )
    kwargs = {
        "inputs": [f"student.preact{s + 1}" for s, _ in pairs],
        "teachers": [f"teacher.preact{t + 1}" for _, t in pairs],
        "channels": [given.student.hints[s] for s, _ in pairs],
        "targets": [given.teacher.hints[t] for _, t in pairs],
    }
    return _projected(
        _with_ce(ce, ofd=Weighted(term=term, weight=weight)),
        Model(build=OverhaulConnectors, kwargs=kwargs),
        sources=("student", "teacher"),
    )


def mgd(given: Pair, *, ratio: float = 0.15, weight: float = 7e-5, ce: float = 1.0) -> ZooEntry:
    """The MGD paper (arXiv 2205.01529), ImageNet (it has no CIFAR run): 7e-5, 15 % masked."""
    s, t = len(given.student.hints), len(given.teacher.hints)
    term = MaskedGenerative(student_output=f"hint{s}", teacher_output=f"hint{t}")
    kwargs = {
        "source": f"student.hint{s}",
        "channels": given.student.hints[-1],
        "target": given.teacher.hints[-1],
        "ratio": ratio,
    }
    return _projected(
        _with_ce(ce, mgd=Weighted(term=term, weight=weight)),
        Model(build=MaskedGenerator, kwargs=kwargs),
    )


def reviewkd(given: Pair, *, weight: float = 5.0, ce: float = 1.0) -> ZooEntry:
    """DK: weight 5 for resnet32x4 -> resnet8x4, warm-up 20 epochs; all stages, the embedding."""
    pairs = _stages(given, "reviewkd")
    inputs = (*(f"hint{s + 1}" for s, _ in pairs), "embedding")
    channels = [*(given.student.hints[s] for s, _ in pairs), given.student.embedding]
    term = Review(
        student_outputs=inputs,
        teacher_outputs=(*(f"hint{t + 1}" for _, t in pairs), "embedding"),
    )
    kwargs = {
        "inputs": [f"student.{name}" for name in inputs],
        "channels": channels,
        "targets": [*(given.teacher.hints[t] for _, t in pairs), given.teacher.embedding],
        "width": min(512, channels[-1]),  # DK
    }
    return _projected(
        _with_ce(ce, reviewkd=Weighted(term=term, weight=weight, warmup=WARMUP)),
        Model(build=ReviewFusion, kwargs=kwargs),
    )


def sp(given: Pair, *, weight: float = 3000.0, ce: float = 1.0) -> ZooEntry:
    """RD, DK and the paper: weight 3000, the last stage."""
    term = SimilarityPreserving(
        student_output=f"hint{len(given.student.hints)}",
        teacher_output=f"hint{len(given.teacher.hints)}",
    )
    return ZooEntry(losses=_with_ce(ce, sp=Weighted(term=term, weight=weight)))


def rkd(_: Pair, *, distance: float = 25.0, angle: float = 50.0, ce: float = 1.0) -> ZooEntry:
    """RD, DK and the paper: 25 distance-wise, 50 angle-wise, on the embedding."""
    return ZooEntry(
        losses=_with_ce(
            ce,
            rkd_distance=Weighted(term=RelationalDistance(), weight=distance),
            rkd_angle=Weighted(term=RelationalAngle(), weight=angle),
        )
    )


def cc(
    _: Pair, *, weight: float = 100.0, gamma: float = 0.4, order: float = 2, ce: float = 1.0
) -> ZooEntry:
    """The paper's kernel (gamma 0.4, order 2), weight 100 as published runs of this formula use.

    RD's 0.02 belongs to another formula (products of successive differences of an embedding): with
    unit embeddings a squared difference of kernels is below 0.6, and 0.02 of it would do nothing.
    """
    term = CorrelationCongruence(gamma=gamma, order=int(order))
    return ZooEntry(losses=_with_ce(ce, cc=Weighted(term=term, weight=weight)))


def pkt(_: Pair, *, weight: float = 30000.0, ce: float = 1.0) -> ZooEntry:
    """RD, DK: weight 30000 (the loss is a mean over pairs), on the embedding."""
    return ZooEntry(losses=_with_ce(ce, pkt=Weighted(term=ProbabilisticTransfer(), weight=weight)))


def ickd(given: Pair, *, weight: float = 2.5, ce: float = 1.0) -> ZooEntry:
    """The ICKD authors' CIFAR-100 run: weight 2.5, the last stage."""
    s, t = len(given.student.hints), len(given.teacher.hints)
    term = ChannelCorrelation(student_output=f"hint{s}", teacher_output=f"hint{t}")
    kwargs = {
        "inputs": [f"student.hint{s}"],
        "channels": [given.student.hints[-1]],
        "targets": [given.teacher.hints[-1]],
    }
    return _projected(
        _with_ce(ce, ickd=Weighted(term=term, weight=weight)),
        Model(build=ConvProjector, kwargs=kwargs),
    )


def infonce(
    given: Pair, *, temperature: float = 0.07, weight: float = 1.0, ce: float = 1.0
) -> ZooEntry:
    """T = 0.07 as CRD and MoCo (arXiv 1911.05722); weight 1 is ours, no CIFAR-100 table has it."""
    kwargs = {
        "inputs": ["student.embedding"],
        "channels": [given.student.embedding],
        "targets": [given.teacher.embedding],
    }
    return _projected(
        _with_ce(ce, infonce=Weighted(term=InfoNCE(temperature=temperature), weight=weight)),
        Model(build=LinearProjector, kwargs=kwargs),
    )


def crd(
    given: Pair,
    *,
    temperature: float = 0.07,
    negatives: float = 16384,
    weight: float = 0.8,
    ce: float = 1.0,
) -> ZooEntry:
    """RD, DK: 0.8, T = 0.07, 16384 negatives (fewer in smaller data), width 128, momentum 0.5."""
    kwargs = {
        "student": given.student.embedding,
        "teacher": given.teacher.embedding,
        "samples": given.samples,
        "negatives": min(int(negatives), given.samples - 1),
        "temperature": temperature,
    }
    return ZooEntry(
        losses=_with_ce(ce, crd=Weighted(term=CRD(samples=given.samples), weight=weight)),
        roles={"memory": Model(build=ContrastiveMemory, kwargs=kwargs)},
        feeds={"memory": ("student", "teacher")},
    )


ZOO: Mapping[str, Method] = {
    build.__name__: Method(name=build.__name__, build=build)
    for build in (
        kd,
        dkd,
        dist,
        std_kd,
        hint,
        at,
        ofd,
        mgd,
        reviewkd,
        sp,
        rkd,
        cc,
        pkt,
        ickd,
        infonce,
        crd,
    )
}


def _with_ce(weight: float, **losses: Weighted) -> dict[str, Weighted]:
    return {"ce": Weighted(term=CrossEntropy(), weight=weight), **losses}


def _projected(
    losses: Mapping[str, Weighted], projector: Model, sources: tuple[str, ...] = ("student",)
) -> ZooEntry:
    return ZooEntry(losses=losses, roles={"projector": projector}, feeds={"projector": sources})


def _stages(given: Pair, name: str) -> list[tuple[int, int]]:
    """Pairs of stages by index: one to one, or, where the numbers differ, those of equal size."""
    student, teacher = given.student, given.teacher
    if len(student.hints) == len(teacher.hints):
        return [(i, i) for i in range(len(student.hints))]
    deepest = {size: i for i, size in enumerate(teacher.sizes)}
    last = {size: i for i, size in enumerate(student.sizes)}
    pairs = [(i, deepest[size]) for size, i in last.items() if size in deepest]
    if not pairs:
        raise BadSetting(
            f"objective '{name}': no stage of the student (sizes {list(student.sizes)}) has the "
            f"size of one of the teacher's ({list(teacher.sizes)}); use one on logits or "
            "embeddings: kd, dkd, dist, std_kd, rkd, cc, pkt, infonce, crd"
        )
    return pairs


def _need_classes(name: str, classes: int) -> None:
    if classes < 3:
        raise BadSetting(
            f"objective '{name}' needs at least 3 classes (got {classes}): with 2 it keeps little "
            "or nothing of the teacher's confidence; use kd"
        )
