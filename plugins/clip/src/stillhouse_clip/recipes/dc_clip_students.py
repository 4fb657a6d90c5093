"""The trainings of clip/dc_clip's students: from the pairs alone, in stage 1, in both stages."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from stillhouse.artifact import Model
from stillhouse.cache import Cache
from stillhouse.comparison import seeded
from stillhouse.objectives.objective import Composed, Weighted
from stillhouse.objectives.term import Term
from stillhouse.references import Ref, out
from stillhouse.stages import Convert, Make, Train
from stillhouse_clip.dual import (
    FreshDual,
    TakeAnchors,
    image_width,
    map_projector,
)
from stillhouse_clip.holding import cell
from stillhouse_clip.images import ImageSpec
from stillhouse_clip.objectives import (
    anchor_distillation_loss,
    embedding_distillation_loss,
    feature_distillation_loss,
)
from stillhouse_clip.pairing import PairUp, PickText
from stillhouse_clip.recipes.dc_clip_settings import (
    ALIGNED,
    BASELINE,
    DCClip,
    Student,
    Target,
)
from stillhouse_clip.recipes.dc_clip_teacher import (
    HALF,
    Teacher,
    contrastive,
    pairs_stage,
    parts_of,
    phase_of,
    tokens_stage,
)


def students_of(settings: DCClip, teacher: Teacher) -> Mapping[str, tuple[Train, ...]]:
    """By row, or by row and rate of the grid, a training a seed."""
    seeds = range(settings.seeds)
    if not settings.grid:
        return {
            row: tuple(_student(settings, teacher, row, seed) for seed in seeds)
            for row in settings.students
        }
    return {
        f"{row}-{cell(rate)}": tuple(_student(settings, teacher, row, seed, rate) for seed in seeds)
        for row in settings.students
        for rate in settings.grid
    }


def _student(
    settings: DCClip, teacher: Teacher, row: Student, seed: int, rate: float | None = None
) -> Train:
    """The last training of a row's student, at a rate of the grid or its own."""
    name = row if rate is None else f"{row}-{cell(rate)}"
    if row == BASELINE:
        start, lr = out(_start(settings, teacher, seed)), _first_rate(settings, row, rate)
        return replace(
            align_stage(settings, teacher, start, name, seed, lr=lr),
            objective=contrastive(settings, "student", lr),
            steps=settings.scratch_steps,
        )
    first = distilled(settings, teacher, row, seed, rate)
    if not row.endswith(ALIGNED):
        return first
    lr = second_rate(settings, row, rate)
    return align_stage(settings, teacher, out(first), name, seed, lr=lr)


def _first_rate(settings: DCClip, row: str, rate: float | None = None) -> float:
    """The highest learning rate of a row, of its stage 1 where it has two."""
    usual = settings.scratch_lr if row == BASELINE else settings.distill_lr
    return settings.rates.get(row, usual) if rate is None else rate


def second_rate(settings: DCClip, row: str, rate: float | None = None) -> float:
    """The highest learning rate of stage 2: a tenth of a rate that is the row's own."""
    own = settings.rates.get(row) if rate is None else rate
    return settings.align_lr if own is None else own / 10


def _start(settings: DCClip, teacher: Teacher, seed: int) -> Convert:
    """The student's first weights."""
    fresh = FreshDual(
        image=settings.student,
        images=ImageSpec(size=settings.student_size, **HALF),
        dim=teacher.dim,
        width=settings.text_width,
        layers=settings.text_layers,
        heads=settings.text_heads,
        context=settings.context,
        layers_from=settings.text_start == "layers",
    )
    stage = Convert(name="start", convert=fresh, inputs={"tower": out(teacher.words)})
    return seeded(stage, seed + 1)[seed]


def distilled(
    settings: DCClip, teacher: Teacher, row: str, seed: int, rate: float | None = None
) -> Train:
    """Stage 1: the image tower from images alone, then the text tower from texts alone. A row of
    two stages shares it with that of its target where both have one rate.
    """
    target: Target = row.removesuffix(ALIGNED)  # pyright: ignore[reportAssignmentType]
    lr, name = _first_rate(settings, row, rate), str(target)
    if rate is not None:
        name = f"{target}-{cell(rate)}"
    elif lr != _first_rate(settings, target):
        name = f"{row}-first"
    shared: dict[str, Any] = {"steps": settings.distill_steps, "batch": settings.batch}
    refs = {"teacher": out(teacher.stage)}
    if target == "logits":
        refs["anchors"] = out(_anchors(settings, teacher))
    image = Train(
        name=f"{name}-image-{seed}",
        objective=_distilling(settings, target, "image", lr),
        inputs={
            "data": parts_of(settings)["images"],
            "student": out(_start(settings, teacher, seed)),
            **refs,
        },
        fresh=_projector(settings, teacher, target, "image"),
        cache=_kept(target, "map", "embedding"),
        seed=seed,
        augment=PickText(),
        views=2,
        **shared,
    )
    return Train(
        name=f"{name}-{seed}",
        objective=_distilling(settings, target, "text", lr),
        inputs={"data": out(tokens_stage(settings, teacher)), "student": out(image), **refs},
        fresh=_projector(settings, teacher, target, "text"),
        cache=_kept(target, "text_map", "text"),
        seed=seed,
        views=1,
        **shared,
    )


def _kept(target: Target, feature: str, output: str) -> Mapping[str, Cache]:
    """The teacher's outputs that a target reads, computed once."""
    outputs = (feature, output) if target == "map" else (output,)
    return {"teacher": Cache(outputs=outputs, dtype="fp16")}


def _anchors(settings: DCClip, teacher: Teacher) -> Convert:
    return Convert(
        name="anchors",
        convert=TakeAnchors(count=settings.anchors),
        inputs={"teacher": out(teacher.stage), "tokens": out(tokens_stage(settings, teacher))},
    )


def _projector(
    settings: DCClip, teacher: Teacher, target: Target, side: str
) -> Mapping[str, Model]:
    if target != "map":
        return {}
    if side == "image":
        kwargs: dict[str, Any] = {
            "source": "student.map",
            "width": image_width(settings.student),
            "target": teacher.map,
            "places": teacher.places,
        }
    else:
        kwargs = {"source": "student.text_map", "width": settings.text_width}
        kwargs["target"] = teacher.text
    return {"projector": Model(build=map_projector, kwargs=kwargs)}


def _distilling(settings: DCClip, target: Target, side: str, lr: float) -> Composed:
    """What one tower learns of its teacher alone, and which parameters learn it."""
    output, feature = ("embedding", "map") if side == "image" else ("text", "text_map")
    pair = (f"student.{output}", f"teacher.{output}")
    smooth: dict[str, Any] = {"beta": settings.beta, "whiten": settings.whiten}
    losses: dict[str, Weighted] = {}
    if target == "logits":
        term = Term(anchor_distillation_loss, *pair, "anchors.rows", scale=settings.anchor_scale)
        losses["logits"] = Weighted(term=term)
    else:
        term = Term(embedding_distillation_loss, *pair, **smooth)
        weight = settings.embedding_weight if target == "map" else 1.0
        losses["embedding"] = Weighted(term=term, weight=weight)
    trains = ("student", "projector") if target == "map" else ("student",)
    if target == "map":
        mask = ("student.text_mask",) if side == "text" else ()
        reads = (f"projector.{feature}", f"teacher.{feature}", *mask)
        losses["map"] = Weighted(term=Term(feature_distillation_loss, *reads, **smooth))
    phase = phase_of(settings, trains, lr, only=(f"{side}.*", "linear.*"))
    feeds = {"projector": (f"student.{feature}",)} if target == "map" else {}
    return Composed(phases={side: phase}, losses=losses, feeds=feeds)


def align_stage(
    settings: DCClip,
    teacher: Teacher,
    student: Ref,
    name: str,
    seed: int,
    *,
    lr: float,
    pairs: Make | None = None,
) -> Train:
    """Stage 2: InfoNCE on pairs whose texts are of all languages."""
    if pairs is None:
        pairs = pairs_stage(settings, teacher.words, "pairs", PairUp(copies=settings.copies))
    only = ("text.*", "log_scale") if settings.freeze_image else ()
    return Train(
        name=f"{name}-{seed}",
        objective=contrastive(settings, "student", lr, only=only),
        inputs={"data": out(pairs), "student": student},
        steps=settings.align_steps,
        batch=settings.batch,
        seed=seed,
        augment=PickText(),
        views=settings.copies,
    )
