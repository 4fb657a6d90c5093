"""Distillation methods that train roles beside the student, pair up stages or have several terms.

Sources of the weights, named in the comments below:
  RD  the CIFAR-100 benchmark of the CRD paper (arXiv 1910.10699): 240 epochs, batch 64
  DK  the CIFAR-100 settings of the DKD paper (arXiv 2203.08679), the same schedule
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stillhouse.artifact import Model
from stillhouse.errors import BadSetting
from stillhouse.objectives.contrastive import crd_sides_loss, info_nce_loss
from stillhouse.objectives.features import (
    at_stages_loss,
    hint_loss,
    mgd_loss,
    ofd_stages_loss,
    reviewkd_loss,
)
from stillhouse.objectives.limits import is_number
from stillhouse.objectives.objective import Weighted
from stillhouse.objectives.projectors import (
    ContrastiveMemory,
    ConvProjector,
    LinearProjector,
    MaskedGenerator,
    OverhaulConnectors,
    ReviewFusion,
)
from stillhouse.objectives.relations import ickd_loss, rkd_angle_loss, rkd_distance_loss, sp_loss
from stillhouse.objectives.supervised import cross_entropy_loss
from stillhouse.objectives.term import Term

WARMUP = 20 / 240  # DK: 20 of 240 epochs, for DKD and ReviewKD
EMBEDDINGS = ("student.embedding", "teacher.embedding")


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
class MethodEntry:
    """Loss terms with weights, the roles to train beside the student, and what those read."""

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


def hint(given: Pair, *, weight: float = 100.0, ce: float = 1.0) -> MethodEntry:
    """RD: weight 100, the middle stage (the second of three), together with the labels."""
    pairs = _stages(given, "hint")
    s, t = pairs[len(pairs) // 2]
    term = Term(hint_loss, f"projector.hint{s + 1}", f"teacher.hint{t + 1}")
    inputs = [f"student.hint{s + 1}"]
    kwargs = {
        "inputs": inputs,
        "channels": [given.student.hints[s]],
        "targets": [given.teacher.hints[t]],
        "relu": True,
    }
    return _projected(
        with_ce(ce, hint=Weighted(term=term, weight=weight)),
        Model(build=ConvProjector, kwargs=kwargs),
        inputs,
    )


def at(given: Pair, *, weight: float = 1000.0, ce: float = 1.0) -> MethodEntry:
    """RD, DK and the paper: weight 1000, every stage."""
    pairs = _stages(given, "at")
    students = tuple(f"student.hint{s + 1}" for s, _ in pairs)
    term = Term(at_stages_loss, students, tuple(f"teacher.hint{t + 1}" for _, t in pairs))
    return MethodEntry(losses=with_ce(ce, at=Weighted(term=term, weight=weight)))


def ofd(given: Pair, *, weight: float = 1e-3, ce: float = 1.0) -> MethodEntry:
    """DK and the OFD paper: weight 0.001, every stage, before the ReLU."""
    pairs = _stages(given, "ofd")
    inputs = [f"student.preact{s + 1}" for s, _ in pairs]
    teachers = [f"teacher.preact{t + 1}" for _, t in pairs]
    term = Term(
        ofd_stages_loss,
        tuple(f"projector.preact{s + 1}" for s, _ in pairs),
        tuple(teachers),
        tuple(f"projector.margin{i + 1}" for i in range(len(pairs))),
    )
    kwargs = {
        "inputs": inputs,
        "teachers": teachers,
        "channels": [given.student.hints[s] for s, _ in pairs],
        "targets": [given.teacher.hints[t] for _, t in pairs],
    }
    return _projected(
        with_ce(ce, ofd=Weighted(term=term, weight=weight)),
        Model(build=OverhaulConnectors, kwargs=kwargs),
        [*inputs, *teachers],
    )


def mgd(given: Pair, *, ratio: float = 0.15, weight: float = 7e-5, ce: float = 1.0) -> MethodEntry:
    """The MGD paper (arXiv 2205.01529), ImageNet (it has no CIFAR run): 7e-5, 15 % masked."""
    s, t = len(given.student.hints), len(given.teacher.hints)
    term = Term(mgd_loss, f"projector.hint{s}", f"teacher.hint{t}")
    source = f"student.hint{s}"
    kwargs = {
        "source": source,
        "channels": given.student.hints[-1],
        "target": given.teacher.hints[-1],
        "ratio": ratio,
    }
    return _projected(
        with_ce(ce, mgd=Weighted(term=term, weight=weight)),
        Model(build=MaskedGenerator, kwargs=kwargs),
        [source],
    )


def reviewkd(given: Pair, *, weight: float = 5.0, ce: float = 1.0) -> MethodEntry:
    """DK: weight 5 for resnet32x4 -> resnet8x4, warm-up 20 epochs; all stages, the embedding."""
    pairs = _stages(given, "reviewkd")
    outputs = (*(f"hint{s + 1}" for s, _ in pairs), "embedding")
    channels = [*(given.student.hints[s] for s, _ in pairs), given.student.embedding]
    term = Term(
        reviewkd_loss,
        tuple(f"projector.{name}" for name in outputs),
        (*(f"teacher.hint{t + 1}" for _, t in pairs), "teacher.embedding"),
    )
    inputs = [f"student.{name}" for name in outputs]
    kwargs = {
        "inputs": inputs,
        "channels": channels,
        "targets": [*(given.teacher.hints[t] for _, t in pairs), given.teacher.embedding],
        "width": min(512, channels[-1]),  # DK
    }
    return _projected(
        with_ce(ce, reviewkd=Weighted(term=term, weight=weight, warmup=WARMUP)),
        Model(build=ReviewFusion, kwargs=kwargs),
        inputs,
    )


def sp(given: Pair, *, weight: float = 3000.0, ce: float = 1.0) -> MethodEntry:
    """RD, DK and the paper: weight 3000, the last stage."""
    s, t = len(given.student.hints), len(given.teacher.hints)
    term = Term(sp_loss, f"student.hint{s}", f"teacher.hint{t}")
    return MethodEntry(losses=with_ce(ce, sp=Weighted(term=term, weight=weight)))


def rkd(_: Pair, *, distance: float = 25.0, angle: float = 50.0, ce: float = 1.0) -> MethodEntry:
    """RD, DK and the paper: 25 distance-wise, 50 angle-wise, on the embedding."""
    return MethodEntry(
        losses=with_ce(
            ce,
            rkd_distance=Weighted(term=Term(rkd_distance_loss, *EMBEDDINGS), weight=distance),
            rkd_angle=Weighted(term=Term(rkd_angle_loss, *EMBEDDINGS), weight=angle),
        )
    )


def ickd(given: Pair, *, weight: float = 2.5, ce: float = 1.0) -> MethodEntry:
    """The ICKD authors' CIFAR-100 run: weight 2.5, the last stage."""
    s, t = len(given.student.hints), len(given.teacher.hints)
    term = Term(ickd_loss, f"projector.hint{s}", f"teacher.hint{t}")
    inputs = [f"student.hint{s}"]
    kwargs = {
        "inputs": inputs,
        "channels": [given.student.hints[-1]],
        "targets": [given.teacher.hints[-1]],
    }
    return _projected(
        with_ce(ce, ickd=Weighted(term=term, weight=weight)),
        Model(build=ConvProjector, kwargs=kwargs),
        inputs,
    )


def infonce(
    given: Pair, *, temperature: float = 0.07, weight: float = 1.0, ce: float = 1.0
) -> MethodEntry:
    """T = 0.07 as CRD and MoCo (arXiv 1911.05722); weight 1 is ours, no CIFAR-100 table has it."""
    term = Term(info_nce_loss, "projector.embedding", "teacher.embedding", temperature=temperature)
    inputs = ["student.embedding"]
    kwargs = {
        "inputs": inputs,
        "channels": [given.student.embedding],
        "targets": [given.teacher.embedding],
    }
    return _projected(
        with_ce(ce, infonce=Weighted(term=term, weight=weight)),
        Model(build=LinearProjector, kwargs=kwargs),
        inputs,
    )


def crd(
    given: Pair,
    *,
    temperature: float = 0.07,
    negatives: float = 16384,
    weight: float = 0.8,
    ce: float = 1.0,
) -> MethodEntry:
    """RD, DK: 0.8, T = 0.07, 16384 negatives (fewer in smaller data), width 128, momentum 0.5."""
    term = Term(
        crd_sides_loss,
        ("memory.student_positives", "memory.teacher_positives"),
        ("memory.student_negatives", "memory.teacher_negatives"),
        samples=given.samples,
    )
    kwargs = {
        "student": given.student.embedding,
        "teacher": given.teacher.embedding,
        "samples": given.samples,
        "negatives": min(whole("negatives", negatives, objective="crd"), given.samples - 1),
        "temperature": temperature,
    }
    return MethodEntry(
        losses=with_ce(ce, crd=Weighted(term=term, weight=weight)),
        roles={"memory": Model(build=ContrastiveMemory, kwargs=kwargs)},
        feeds={"memory": EMBEDDINGS},
    )


def whole(name: str, value: float, *, objective: str) -> int:
    """A number that counts, which settings hold as a float; raises BadSetting for 2.5."""
    if not is_number(value) or value != int(value):
        raise BadSetting(f"objective '{objective}': {name} must be a whole number (got {value})")
    return int(value)


def with_ce(weight: float, **losses: Weighted) -> dict[str, Weighted]:
    term = Term(cross_entropy_loss, "student.logits", "batch.labels")
    return {"ce": Weighted(term=term, weight=weight), **losses}


def _projected(
    losses: Mapping[str, Weighted], projector: Model, reads: Sequence[str]
) -> MethodEntry:
    return MethodEntry(
        losses=losses, roles={"projector": projector}, feeds={"projector": tuple(reads)}
    )


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
