"""The stages of sam/tinysam that read the data and train: the teacher, the students."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from stillhouse.artifact import Model
from stillhouse.cache import Cache
from stillhouse.objectives.objective import Cosine, Optimizer, Phase
from stillhouse.recipe import Stage
from stillhouse.stages import Convert, Make, Train
from stillhouse_sam.augment import Flip
from stillhouse_sam.data import PORTS, ReadEverything, ReadMasks
from stillhouse_sam.filled import FillBoxes
from stillhouse_sam.full_stage import FullStage
from stillhouse_sam.models import (
    Join,
    LoadSam,
    Split,
    decoder_named,
    encoder_named,
    prompts_named,
)
from stillhouse_sam.models.converts import Part
from stillhouse_sam.recipes.tinysam_settings import Student, TinySamSettings

VIEWS = 2  # as it is, and mirrored
LOW = 4  # low-resolution masks have so many pixels a cell of the embedding
SMALLEST = 2  # slice of a batch, where memory does not suffice
PARTS: tuple[Part, ...] = ("encoder", "prompts", "decoder")
NOTHING: Mapping[str, Any] = {}  # Any: the default of several kinds of mapping


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """Where the teacher's parts and the whole of it come from."""

    stages: tuple[Stage, ...]
    sam: str
    parts: Mapping[str, str]


def data_stages(settings: TinySamSettings) -> tuple[Make, ...]:
    read = ReadMasks(
        size=settings.size,
        low=LOW * settings.grid,
        masks=settings.masks,
        validation=settings.validation,
        held_out=settings.held_out,
        scenes=settings.scenes,
        void=settings.void,
    )
    # photos of the same folder are those that are tested on, never some that were trained on
    source = settings.everything_photos()
    photos = ReadEverything(
        count=settings.everything,
        held_out=settings.held_out if source == settings.data else None,
        void=settings.void,
    )
    return (
        Make(
            name="data",
            make=read,
            inputs={"source": settings.data},
            ports=PORTS,
        ),
        Make(name="photos", make=photos, inputs={"source": source}, ports=("photos",)),
    )


def _phase(settings: TinySamSettings, trains: tuple[str, ...], lr: float, decoder: float) -> Phase:
    """`lr` is that of all roles but the decoder."""
    kwargs = {"weight_decay": settings.weight_decay}
    return Phase(
        trains=trains,
        optimizer=Optimizer(build=torch.optim.AdamW, lr=lr, kwargs=kwargs),
        schedule=Cosine(warmup=settings.warmup),
        lr_scale={"decoder": decoder / lr} if "decoder" in trains else {},
        clip_norm=settings.clip_norm,
    )


def teacher_of(settings: TinySamSettings) -> Teacher:
    """Trained here on true masks; or given."""
    shape = settings.shape()
    if settings.teacher:
        load = LoadSam(name=settings.teacher_model, shape=shape)
        tried = {"data": "data.train"} if settings.check_teacher else {}
        inputs = {"checkpoint": settings.teacher, **tried}
        whole = Convert(name="teacher", convert=load, inputs=inputs)
        split = [
            Convert(
                name=f"teacher-{part}", convert=Split(part=part), inputs={"sam": "teacher.model"}
            )
            for part in PARTS
        ]
        parts: dict[str, str] = {part: f"teacher-{part}.model" for part in PARTS}
        return Teacher(stages=(whole, *split), sam="teacher.model", parts=parts)
    phase = _phase(settings, PARTS, settings.teacher_lr, settings.teacher_lr)
    objective = replace(_objective(settings, phase), distil=())
    fresh = {"encoder": encoder_named(settings.teacher_model, shape=shape)}
    asked = {"prompts": prompts_named(shape=shape), "decoder": decoder_named(shape=shape)}
    before: tuple[Train, ...] = ()
    if settings.box_steps:
        before = (_boxes(settings, asked),)
        roles = {part: f"{before[0].name}.{part}" for part in asked}
    else:
        fresh, roles = fresh | asked, {}
    train = _train(
        settings, "teacher", objective, fresh=fresh, roles=roles, steps=settings.teacher_steps
    )
    parts = {part: f"teacher.{part}" for part in PARTS}
    join = Convert(name="teacher-sam", convert=Join(), inputs=dict(parts))
    return Teacher(stages=(*before, train, join), sam="teacher-sam.model", parts=parts)


def _boxes(settings: TinySamSettings, fresh: Mapping[str, Model]) -> Train:
    """The teacher's prompt encoder and decoder, which know what a box is."""
    objective = FillBoxes(
        phases={"boxes": _phase(settings, tuple(fresh), settings.box_lr, settings.box_lr)},
        grid=settings.grid,
        channels=settings.channels,
        focal=settings.focal,
    )
    return _train(settings, "boxes", objective, fresh=fresh, steps=settings.box_steps)


def _objective(settings: TinySamSettings, phase: Phase) -> FullStage:
    """All terms of plain prompts."""
    return FullStage(
        phases={"student": phase},
        alpha=settings.alpha,
        beta=settings.beta,
        gamma=settings.gamma,
        focal=settings.focal,
        prompts_per_image=settings.prompts_per_image,
        box_share=settings.box_share,
        more_clicks=settings.more_clicks,
        eps=settings.eps,
    )


def _learns(settings: TinySamSettings, name: Student) -> FullStage:
    """The loss of a student; hard prompts and hard weighting each add one part."""
    trains = ("encoder", "decoder") if settings.train_decoder else ("encoder",)
    if name == "embedding":
        trains = ("encoder",)
    whole = _objective(settings, _phase(settings, trains, settings.lr, settings.decoder_lr))
    match name:
        case "alone":
            return replace(whole, distil=())
        case "embedding":
            return replace(
                whole, distil=("embedding",), mask_weight=0.0, iou_weight=0.0, more_clicks=0
            )
        case "stages":
            return whole
        case "prompts":
            return replace(whole, hard_rounds=settings.hard_rounds)
        case "weighting":
            return replace(whole, hard_rounds=settings.hard_rounds, hard_weighting=True)


def student_stage(settings: TinySamSettings, name: Student, teacher: Teacher, seed: int) -> Train:
    """First weights and batches are those of its seed, whatever it learns from."""
    objective = _learns(settings, name)
    roles: dict[str, str] = {}
    if objective.distil:
        roles["teacher-encoder"] = teacher.parts["encoder"]
    if name != "embedding":
        roles |= {"prompts": teacher.parts["prompts"], "decoder": teacher.parts["decoder"]}
    if not {"tokens", "output"}.isdisjoint(objective.distil):
        roles["teacher-decoder"] = teacher.parts["decoder"]
    return _train(
        settings,
        f"{name}-{seed}",
        objective,
        fresh={"encoder": encoder_named(settings.student, shape=settings.shape())},
        roles=roles,
        steps=settings.steps,
        seed=seed,
    )


def _train(
    settings: TinySamSettings,
    name: str,
    objective: FillBoxes | FullStage,
    *,
    steps: int,
    fresh: Mapping[str, Model],
    roles: Mapping[str, str] = NOTHING,
    seed: int = 0,
) -> Train:
    asked = [role for role in roles if role == "teacher-encoder"]
    return Train(
        name=name,
        objective=objective,
        inputs={"data": "data.train", **roles},
        fresh=fresh,
        cache={role: Cache(outputs=("embedding",), dtype="fp16") for role in asked},
        steps=steps,
        batch=settings.batch,
        seed=seed,
        augment=Flip(),
        views=VIEWS,
        precision=settings.precision,
        micro_batch=min(SMALLEST, settings.batch),
    )


def joined_sams(students: Iterable[Train], teacher: Teacher) -> list[Convert]:
    """Whole SAMs; what a student did not learn is the teacher's."""
    joined: list[Convert] = []
    for student in students:
        parts: dict[str, str] = dict(teacher.parts) | {
            p: f"{student.name}.{p}" for p in student.outputs
        }
        joined.append(Convert(name=f"{student.name}-sam", convert=Join(), inputs=parts))
    return joined
