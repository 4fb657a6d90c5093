"""clip/dc_clip: a small dual encoder of several languages, by distillation and alignment."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from stillhouse.artifact import Model
from stillhouse.cache import Cache
from stillhouse.card import Card
from stillhouse.comparison import Comparison, Scores, by_line, seeded
from stillhouse.inputs import raw_input
from stillhouse.metrics import Latency, Memory, Profile
from stillhouse.objectives.groups import NoDecay, Only
from stillhouse.objectives.objective import Composed, Cosine, Optimizer, Phase, Weighted
from stillhouse.objectives.term import Term
from stillhouse.places import project_root
from stillhouse.recipe import Recipe, Stage
from stillhouse.references import Ref, out
from stillhouse.stages import Convert, Evaluate, Make, Train
from stillhouse_clip.altclip import ReadAltClip
from stillhouse_clip.bilingual import PORTS, ReadPairs
from stillhouse_clip.dual import (
    FreshDual,
    JoinHeads,
    ReadE5,
    ReadMapNet,
    TakeAnchors,
    heads,
    image_width,
    map_projector,
)
from stillhouse_clip.dual_export import DualExport
from stillhouse_clip.images import ImageSpec
from stillhouse_clip.languages import Aligned, Lacking, Retrieval, Vocabulary, read_templates
from stillhouse_clip.objectives import (
    anchor_distillation_loss,
    embedding_distillation_loss,
    feature_distillation_loss,
    scaled_contrastive_loss,
)
from stillhouse_clip.pairing import PairUp, PickText, Tokens
from stillhouse_clip.recipes.dc_clip_notes import JOINED, NOTES, PAPER
from stillhouse_clip.recipes.dc_clip_settings import (
    ALIGNED,
    BASELINE,
    TEACHER_HEADS,
    DCClip,
    Target,
)

HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
E5_WIDTH, LITE0_WIDTH = 384, 1280
ALTCLIP = {"dim": 768, "map": 1024, "text": 768, "places": 256}  # of BAAI/AltCLIP
TITLES: Mapping[str, str] = {
    "scratch": "contrastive from scratch",
    "embedding": "stage 1, embedding",
    "map": "stage 1, feature map",
    "logits": "stage 1, logits",
    "embedding-aligned": "two stages, embedding",
    "map-aligned": "two stages, feature map",
    "logits-aligned": "two stages, logits",
}


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """The teacher, what has its tokenizer, and the widths that students are held to."""

    stage: Stage
    words: Stage
    dim: int
    map: int
    text: int
    places: int


def dc_clip(settings: DCClip) -> Recipe:
    """Zhang et al. 2024 (DC-CLIP, arXiv 2404.11249): a bilingual CLIP made small.

    Claim: feature distillation of each tower alone, then alignment on few pairs of both languages,
    gives a small dual encoder that the same pairs alone do not. Rows: the pairs alone; stage 1 by
    feature map, embedding or logits; both stages. Command: `stillhouse run clip/dc_clip --scale
    tiny|small|paper`. Scores are those of the last step. The heads of the
    teacher at small were chosen on test sets (see the notes), nothing else.

    tiny: drawn scenes with English and Chinese sentences, a teacher trained on them. small:
    Flickr8k photos with English and Chinese captions, and emoji with names in 12 languages; the
    teacher is multilingual-e5-small and EfficientNet-Lite0, joined here. paper: AltCLIP.
    """
    data, teacher, templates = _data(settings), _teacher(settings), _templates(settings)
    students = _students(settings, teacher)
    tested = {"images": data["test_images"], "texts": data["test_texts"]}
    aligned = functools.partial(
        Aligned,
        languages=settings.languages,
        context=settings.context,
        named=settings.named,
        templates=templates,
    )
    made = Comparison(
        teachers={"teacher": teacher.stage},
        students=students,
        titles=TITLES,
        baseline=BASELINE,
        exported=settings.exported,
        scores=_scores(aligned, tested, "student"),
        teacher_scores=_scores(aligned, tested, "teacher"),
    )
    title = f"{settings.student} and a text tower, {TITLES[settings.exported]}"
    export = DualExport(
        context=settings.context,
        language=settings.languages[0],
        named=settings.named,
        templates=templates,
        card=Card(title=title, task="zero-shot-image-classification", paper=PAPER),
    )
    return made.recipe(
        name="clip/dc_clip",
        reference=PAPER,
        export=Convert(
            name="export",
            convert=export,
            inputs={"data": data["test_images"], "texts": data["test_texts"]},
        ),
        studies=_studies(settings, teacher, made, tested),
        notes=(*NOTES, *JOINED) if settings.text_network else NOTES,
        caution=_caution(settings),
    )


def _templates(settings: DCClip) -> Mapping[str, tuple[str, ...]]:
    """Those of the file given; none where the known ones do."""
    if not settings.templates:
        return {}
    return read_templates(raw_input(settings.templates, project_root()))


def _caution(settings: DCClip) -> str:
    if settings.scale != "tiny":
        return ""
    return (
        "Scale tiny shows that everything works, not what the method is worth: after so few steps "
        "neither teacher nor students have learned what they can."
    )


def _scores(metric: functools.partial[Aligned], tested: Mapping[str, str], role: str) -> Scores:
    return Scores(
        role=role,
        metrics=(metric(role=role), Profile(role=role)),
        inputs=tested,
        measures=(Latency(role=role), Memory(role=role)),
        data=("images", "texts"),
    )


def _data(settings: DCClip) -> Make:
    more = {"more": settings.more} if settings.more else {}
    return Make(
        name="data",
        make=ReadPairs(size=settings.size, languages=settings.languages),
        inputs={"source": settings.data, **more},
        ports=PORTS,
    )


def _tokens(settings: DCClip, teacher: "Teacher | Stage") -> Make:
    words = teacher.words if isinstance(teacher, Teacher) else teacher
    return Make(
        name="tokens",
        make=Tokens(length=settings.context),
        inputs={"texts": _data(settings)["texts"], "tower": out(words)},
        ports=("train",),
    )


def _pairs(settings: DCClip, words: Stage, name: str, make: PairUp) -> Make:
    tokens = _tokens(settings, words)
    return Make(
        name=name,
        make=make,
        inputs={"images": _data(settings)["images"], "tokens": out(tokens)},
        ports=("train",),
    )


def _teacher(settings: DCClip) -> Teacher:
    """AltCLIP; two networks that others trained, joined; or small towers trained here."""
    texts = {"texts": _data(settings)["texts"]}
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
    pairs = _pairs(settings, towers, "teacher-pairs", PairUp(copies=settings.teacher_copies))
    return Teacher(
        stage=Train(
            name="teacher",
            objective=_contrastive(settings, "teacher", settings.teacher_lr),
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
    pairs = _pairs(settings, text, "teacher-pairs", PairUp(copies=settings.teacher_copies))
    phase = _phase(settings, ("heads",), settings.teacher_lr, weight_decay=1.0)
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


def _phase(
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


def _contrastive(settings: DCClip, role: str, lr: float, *, only: tuple[str, ...] = ()) -> Composed:
    """Symmetric InfoNCE of images and texts, pairs of one label being each other's targets."""
    reads = (f"{role}.embedding", f"{role}.text", f"{role}.scale", "batch.labels")
    return Composed(
        phases={role: _phase(settings, (role,), lr, only=only)},
        losses={"pairs": Weighted(term=Term(scaled_contrastive_loss, *reads))},
    )


def _students(settings: DCClip, teacher: Teacher) -> Mapping[str, tuple[Train, ...]]:
    seeds = range(settings.seeds)
    found: dict[str, tuple[Train, ...]] = {}
    for name in settings.students:
        if name == BASELINE:
            found[name] = tuple(
                replace(
                    _align(settings, teacher, out(_start(settings, teacher, seed)), name, seed),
                    objective=_contrastive(settings, "student", settings.scratch_lr),
                    steps=settings.scratch_steps,
                )
                for seed in seeds
            )
            continue
        target: Target = name.removesuffix(ALIGNED)  # pyright: ignore[reportAssignmentType]
        first = [_distilled(settings, teacher, target, seed) for seed in seeds]
        if name.endswith(ALIGNED):
            found[name] = tuple(
                _align(settings, teacher, out(stage), name, seed)
                for seed, stage in enumerate(first)
            )
        else:
            found[name] = tuple(first)
    return found


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


def _distilled(settings: DCClip, teacher: Teacher, target: Target, seed: int) -> Train:
    """Stage 1: the image tower from images alone, then the text tower from texts alone."""
    shared: dict[str, Any] = {"steps": settings.distill_steps, "batch": settings.batch}
    refs = {"teacher": out(teacher.stage)}
    if target == "logits":
        refs["anchors"] = out(_anchors(settings, teacher))
    image = Train(
        name=f"{target}-image-{seed}",
        objective=_distilling(settings, target, "image"),
        inputs={
            "data": _data(settings)["images"],
            "student": out(_start(settings, teacher, seed)),
            **refs,
        },
        fresh=_projector(settings, teacher, target, "image"),
        cache={"teacher": Cache(outputs=("map", "embedding"), dtype="fp16")},
        seed=seed,
        augment=PickText(),
        views=2,
        **shared,
    )
    return Train(
        name=f"{target}-{seed}",
        objective=_distilling(settings, target, "text"),
        inputs={"data": out(_tokens(settings, teacher)), "student": out(image), **refs},
        fresh=_projector(settings, teacher, target, "text"),
        cache={"teacher": Cache(outputs=("text_map", "text"), dtype="fp16")},
        seed=seed,
        views=1,
        **shared,
    )


def _anchors(settings: DCClip, teacher: Teacher) -> Convert:
    return Convert(
        name="anchors",
        convert=TakeAnchors(count=settings.anchors),
        inputs={"teacher": out(teacher.stage), "tokens": out(_tokens(settings, teacher))},
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


def _distilling(settings: DCClip, target: Target, side: str) -> Composed:
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
    phase = _phase(settings, trains, settings.distill_lr, only=(f"{side}.*", "linear.*"))
    feeds = {"projector": (f"student.{feature}",)} if target == "map" else {}
    return Composed(phases={side: phase}, losses=losses, feeds=feeds)


def _align(
    settings: DCClip,
    teacher: Teacher,
    student: Ref,
    name: str,
    seed: int,
    pairs: Make | None = None,
) -> Train:
    """Stage 2: InfoNCE on pairs whose texts are of all languages."""
    if pairs is None:
        pairs = _pairs(settings, teacher.words, "pairs", PairUp(copies=settings.copies))
    only = ("text.*", "log_scale") if settings.freeze_image else ()
    return Train(
        name=f"{name}-{seed}",
        objective=_contrastive(settings, "student", settings.align_lr, only=only),
        inputs={"data": out(pairs), "student": student},
        steps=settings.align_steps,
        batch=settings.batch,
        seed=seed,
        augment=PickText(),
        views=settings.copies,
    )


def _studies(
    settings: DCClip, teacher: Teacher, made: Comparison, tested: Mapping[str, str]
) -> Mapping[str, list[Evaluate]]:
    shared: dict[str, Any] = {"languages": settings.languages, "context": settings.context}
    sources = ("photos", "names") if settings.more else ()
    table = functools.partial(Retrieval, sources=sources, **shared)
    seen = {"seen": _data(settings)["texts"]}
    sizes = Vocabulary(role="words", width=teacher.text, **shared)
    return {
        "Retrieval by language, first seed": [
            Evaluate(
                name="retrieval",
                metrics=(by_line(table, made.lines()),),
                inputs={**tested, **made.roles()},
                data=("images", "texts"),
            )
        ],
        "Concepts that the pairs of stage 2 lack": _lacking(settings, teacher),
        "The tokenizer, whole and trimmed": [
            Evaluate(
                name="vocabulary",
                metrics=(sizes,),
                inputs={**tested, **seen, "words": out(teacher.words)},
                data=("images", "texts", "seen"),
            )
        ],
    }


def _lacking(settings: DCClip, teacher: Teacher) -> list[Evaluate]:
    """Stage 1; stage 2 on all pairs, on those of a share of the labels, and so at a higher rate."""
    words, target, share = teacher.words, settings.target, settings.share
    half = _pairs(
        settings,
        words,
        "pairs-half",
        PairUp(copies=settings.copies, part="covered", share=share),
    )
    ahead, data = "test_" if settings.lacking_on == "test" else "", _data(settings)
    found: list[Evaluate] = []
    for seed in range(settings.seeds):
        first = _distilled(settings, teacher, target, seed)
        every = _align(settings, teacher, out(first), f"{target}{ALIGNED}", seed)
        some = _align(settings, teacher, out(first), "half", seed, half)
        some = replace(some, steps=settings.lacking_steps)
        fast = replace(
            some,
            name=f"half-fast-{seed}",
            objective=_contrastive(settings, "student", settings.lacking_lr),
        )
        lines = {
            "stage 1": "first",
            "stage 2, all pairs": "every",
            f"stage 2, pairs of {share:.0%}": "some",
            f"the same at {settings.lacking_lr / settings.align_lr:.0f} times the rate": "fast",
        }
        metric = functools.partial(
            Lacking,
            languages=settings.languages,
            context=settings.context,
            share=share,
            named=settings.named,
        )
        found.append(
            Evaluate(
                name=f"lacking-{seed}",
                metrics=(by_line(metric, lines),),
                inputs={
                    "images": data[f"{ahead}images"],
                    "texts": data[f"{ahead}texts"],
                    "first": out(first),
                    "every": out(every),
                    "some": out(some),
                    "fast": out(fast),
                },
                data=("images", "texts"),
                seed=seed,
            )
        )
    return found
