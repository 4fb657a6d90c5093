"""The stages of sam/tinysam that read the data and train: the teacher, the students."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from stillhouse.artifact import Model
from stillhouse.cache import Cache
from stillhouse.objectives.objective import Cosine, Optimizer, Phase
from stillhouse.recipe import Stage
from stillhouse.references import Ref, out
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


def masks(settings: TinySamSettings) -> Make:
    """The photos with masks that train and score."""
    read = ReadMasks(
        size=settings.size,
        low=LOW * settings.grid,
        masks=settings.masks,
        validation=settings.validation,
        held_out=settings.held_out,
        scenes=settings.scenes,
        void=settings.void,
    )
    return Make(name="data", make=read, inputs={"source": settings.data}, ports=PORTS)


def photos(settings: TinySamSettings) -> Make:
    """The photos of everything mode."""
    source = settings.everything_photos()
    # those of the same folder are those that are tested on, never some that were trained on
    read = ReadEverything(
        count=settings.everything,
        held_out=settings.held_out if source == settings.data else None,
        void=settings.void,
    )
    return Make(name="photos", make=read, inputs={"source": source}, ports=("photos",))


@dataclass(frozen=True, kw_only=True)
class Joined:
    """From a training to a whole SAM; what was not trained there is one of `parts`."""

    parts: Mapping[str, Ref]

    def __call__(self, stage: Stage) -> Stage:
        if not isinstance(stage, Train):
            return stage
        parts = {**self.parts, **{part: stage[part] for part in stage.outputs}}
        return Convert(name=f"{stage.name}-sam", convert=Join(), inputs=parts)


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


def teacher_of(settings: TinySamSettings) -> tuple[Stage, Mapping[str, Ref]]:
    """Trained here on true masks, or given; and its parts."""
    shape = settings.shape()
    if settings.teacher:
        load = LoadSam(name=settings.teacher_model, shape=shape)
        tried = {"data": masks(settings)["train"]} if settings.check_teacher else {}
        inputs = {"checkpoint": settings.teacher, **tried}
        whole = Convert(name="teacher", convert=load, inputs=inputs)
        sam = {"sam": out(whole)}
        return whole, {
            part: out(Convert(name=f"teacher-{part}", convert=Split(part=part), inputs=sam))
            for part in PARTS
        }
    phase = _phase(settings, PARTS, settings.teacher_lr, settings.teacher_lr)
    objective = replace(_objective(settings, phase), distil=())
    fresh = {"encoder": encoder_named(settings.teacher_model, shape=shape)}
    more, roles = {"prompts": prompts_named(shape=shape), "decoder": decoder_named(shape=shape)}, {}
    if settings.box_steps:
        boxes = _boxes(settings, more)
        more, roles = {}, {part: boxes[part] for part in boxes.outputs}
    train = _train(settings, "teacher", objective, fresh | more, roles)
    train = replace(train, steps=settings.teacher_steps)
    return train, {part: train[part] for part in PARTS}


def _boxes(settings: TinySamSettings, fresh: Mapping[str, Model]) -> Train:
    """The teacher's prompt encoder and decoder, which know what a box is."""
    objective = FillBoxes(
        phases={"boxes": _phase(settings, tuple(fresh), settings.box_lr, settings.box_lr)},
        grid=settings.grid,
        channels=settings.channels,
        focal=settings.focal,
    )
    return replace(_train(settings, "boxes", objective, fresh, {}), steps=settings.box_steps)


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


def student_stage(settings: TinySamSettings, name: Student, teacher: Mapping[str, Ref]) -> Train:
    """First weights and batches are those of its seed, whatever it learns from."""
    objective = _learns(settings, name)
    roles: dict[str, Ref] = {}
    if objective.distil:
        roles["teacher-encoder"] = teacher["encoder"]
    if name != "embedding":
        roles |= {part: teacher[part] for part in ("prompts", "decoder")}
    if not {"tokens", "output"}.isdisjoint(objective.distil):
        roles["teacher-decoder"] = teacher["decoder"]
    fresh = {"encoder": encoder_named(settings.student, shape=settings.shape())}
    return _train(settings, name, objective, fresh, roles)


def _train(
    settings: TinySamSettings,
    name: str,
    objective: FillBoxes | FullStage,
    fresh: Mapping[str, Model],
    roles: Mapping[str, Ref],
) -> Train:
    cached = [role for role in roles if role == "teacher-encoder"]
    return Train(
        name=name,
        objective=objective,
        inputs={"data": masks(settings)["train"], **roles},
        fresh=fresh,
        cache={role: Cache(outputs=("embedding",), dtype="fp16") for role in cached},
        steps=settings.steps,
        batch=settings.batch,
        augment=Flip(),
        views=VIEWS,
        precision=settings.precision,
        micro_batch=min(SMALLEST, settings.batch),
    )
