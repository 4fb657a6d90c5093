"""The data of clip/dc_clip and its teacher: the stages that all rows share."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from stillhouse.artifact import Model
from stillhouse.cache import Cache
from stillhouse.objectives.groups import NoDecay, Only
from stillhouse.objectives.objective import Composed, Cosine, Optimizer, Phase, Weighted
from stillhouse.objectives.term import Term
from stillhouse.recipe import Stage
from stillhouse.references import Ref, out
from stillhouse.stages import Convert, Make, Train
from stillhouse_clip.altclip import ReadAltClip
from stillhouse_clip.bilingual import PORTS, ReadPairs
from stillhouse_clip.dual import (
    FreshDual,
    JoinHeads,
    ReadE5,
    ReadMapNet,
    heads,
    image_width,
)
from stillhouse_clip.holding import HoldOutLabels
from stillhouse_clip.images import ImageSpec
from stillhouse_clip.objectives import (
    scaled_contrastive_loss,
)
from stillhouse_clip.pairing import PairUp, PickText, Tokens
from stillhouse_clip.recipes.dc_clip_settings import (
    TEACHER_HEADS,
    DCClip,
)

HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
E5_WIDTH, LITE0_WIDTH = 384, 1280
ALTCLIP = {"dim": 768, "map": 1024, "text": 768, "places": 256}  # of BAAI/AltCLIP


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """The teacher, what has its tokenizer, and the widths that students are held to."""

    stage: Stage
    words: Stage
    dim: int
    map: int
    text: int
    places: int


def data_stage(settings: DCClip) -> Make:
    more = {"more": settings.more} if settings.more else {}
    return Make(
        name="data",
        make=ReadPairs(size=settings.size, languages=settings.languages),
        inputs={"source": settings.data, **more},
        ports=PORTS,
    )


def parts_of(settings: DCClip) -> Mapping[str, Ref]:
    """By port of `ReadPairs`; with a grid the test is a part of the training pairs."""
    data = data_stage(settings)
    if settings.grid:
        inputs = {"images": data["images"], "texts": data["texts"]}
        data = Make(name="held-out", make=HoldOutLabels(), inputs=inputs, ports=PORTS)
    return {port: data[port] for port in PORTS}


def tokens_stage(settings: DCClip, teacher: Teacher | Stage) -> Make:
    words = teacher.words if isinstance(teacher, Teacher) else teacher
    return Make(
        name="tokens",
        make=Tokens(length=settings.context),
        inputs={"texts": parts_of(settings)["texts"], "tower": out(words)},
        ports=("train",),
    )


def pairs_stage(settings: DCClip, words: Stage, name: str, make: PairUp) -> Make:
    tokens = tokens_stage(settings, words)
    return Make(
        name=name,
        make=make,
        inputs={"images": parts_of(settings)["images"], "tokens": out(tokens)},
        ports=("train",),
    )


def teacher_of(settings: DCClip) -> Teacher:
    """AltCLIP; two networks that others trained, joined; or small towers trained here."""
    texts = {"texts": parts_of(settings)["texts"]}
    if settings.teacher:
        read = ReadAltClip(keep=settings.vocabulary)
        stage = Convert(name="teacher", convert=read, inputs={"teacher": settings.teacher, **texts})
        return Teacher(stage=stage, words=stage, **ALTCLIP)
    if settings.text_network:
        return _joined(settings, texts)
    fresh = FreshDual(
        image=settings.teacher_image,
        images=ImageSpec(size=settings.teacher_size, **HALF),
        dim=settings.dim,
        width=settings.teacher_width,
        layers=settings.teacher_layers,
        heads=TEACHER_HEADS,
        context=settings.context,
        keep=settings.vocabulary,
    )
    towers = Convert(name="teacher-towers", convert=fresh, inputs=texts)
    pairs = pairs_stage(settings, towers, "teacher-pairs", PairUp(copies=settings.teacher_copies))
    return Teacher(
        stage=Train(
            name="teacher",
            objective=contrastive(
                settings,
                "teacher",
                settings.teacher_lr,
                weight_decay=settings.teacher_weight_decay,
            ),
            inputs={"data": out(pairs), "teacher": out(towers)},
            steps=settings.teacher_steps,
            batch=settings.batch,
            augment=PickText(),
            views=settings.teacher_copies,
        ),
        words=towers,
        dim=settings.dim,
        map=image_width(settings.teacher_image),
        text=settings.teacher_width,
        places=0,
    )


def _joined(settings: DCClip, texts: Mapping[str, str]) -> Teacher:
    text = Convert(
        name="text-network",
        convert=ReadE5(keep=settings.vocabulary, context=settings.context),
        inputs={"weights": settings.text_network, **texts},
    )
    image = Convert(
        name="image-network",
        convert=ReadMapNet(
            name=settings.image_name, images=ImageSpec(size=settings.teacher_size, **HALF)
        ),
        inputs={"weights": settings.image_network},
    )
    pairs = pairs_stage(settings, text, "teacher-pairs", PairUp(copies=settings.teacher_copies))
    decay = settings.teacher_weight_decay
    phase = phase_of(settings, ("heads",), settings.teacher_lr, weight_decay=decay)
    reads = ("heads.embedding", "heads.text", "heads.scale", "batch.labels")
    joined = Train(
        name="heads",
        objective=Composed(
            phases={"heads": phase},
            losses={"pairs": Weighted(term=Term(scaled_contrastive_loss, *reads))},
            feeds={"heads": ("image.embedding", "text.text")},
        ),
        inputs={"data": out(pairs), "image": out(image), "text": out(text)},
        fresh={"heads": Model(build=heads, kwargs={"features": LITE0_WIDTH, "words": E5_WIDTH})},
        cache={"image": Cache(outputs=("embedding",)), "text": Cache(outputs=("text",))},
        steps=settings.teacher_steps,
        batch=4 * settings.batch,
        augment=PickText(flip=False),
        views=settings.teacher_copies,
    )
    return Teacher(
        stage=Convert(
            name="teacher",
            convert=JoinHeads(),
            inputs={"image": out(image), "text": out(text), "heads": out(joined)},
        ),
        words=text,
        dim=E5_WIDTH,
        map=LITE0_WIDTH,
        text=E5_WIDTH,
        places=0,
    )


def phase_of(
    settings: DCClip,
    trains: tuple[str, ...],
    lr: float,
    *,
    only: tuple[str, ...] = (),
    weight_decay: float | None = None,
) -> Phase:
    decay = settings.weight_decay if weight_decay is None else weight_decay
    groups = NoDecay(also=("*embeddings*", "log_scale"))
    return Phase(
        trains=trains,
        optimizer=Optimizer(
            build=torch.optim.AdamW,
            lr=lr,
            kwargs={"weight_decay": decay, "betas": (0.9, 0.98)},
        ),
        schedule=Cosine(warmup=0.05),
        clip_norm=1.0,
        grouping=Only(patterns=only, then=groups) if only else groups,
    )


def contrastive(
    settings: DCClip,
    role: str,
    lr: float,
    *,
    only: tuple[str, ...] = (),
    weight_decay: float | None = None,
) -> Composed:
    """Symmetric InfoNCE of images and texts, pairs of one label being each other's targets."""
    reads = (f"{role}.embedding", f"{role}.text", f"{role}.scale", "batch.labels")
    return Composed(
        phases={role: phase_of(settings, (role,), lr, only=only, weight_decay=weight_decay)},
        losses={"pairs": Weighted(term=Term(scaled_contrastive_loss, *reads))},
    )
