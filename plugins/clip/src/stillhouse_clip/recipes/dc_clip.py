"""clip/dc_clip: a small dual encoder of several languages, by distillation and alignment."""

import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from stillhouse.card import Card
from stillhouse.comparison import Comparison, Scores, by_line
from stillhouse.inputs import raw_input
from stillhouse.metrics import Latency, Memory, Profile
from stillhouse.places import project_root
from stillhouse.recipe import Recipe
from stillhouse.references import out
from stillhouse.stages import Convert, Evaluate, Make
from stillhouse_clip.dual_export import DualExport
from stillhouse_clip.dual_figures import TopFiveNames
from stillhouse_clip.holding import cell
from stillhouse_clip.languages import Aligned, Lacking, Retrieval, Vocabulary, read_templates
from stillhouse_clip.pairing import PairUp
from stillhouse_clip.recipes.dc_clip_notes import GRID, JOINED, NOTES, PAPER
from stillhouse_clip.recipes.dc_clip_settings import (
    ALIGNED,
    BASELINE,
    DCClip,
)
from stillhouse_clip.recipes.dc_clip_students import (
    align_stage,
    distilled,
    second_rate,
    students_of,
)
from stillhouse_clip.recipes.dc_clip_teacher import (
    Teacher,
    contrastive,
    pairs_stage,
    parts_of,
    teacher_of,
)
from stillhouse_clip.zero_shot_sets import ReadSets, ZeroShotSets, read_sets

TITLES: Mapping[str, str] = {
    "scratch": "contrastive from scratch",
    "embedding": "stage 1, embedding",
    "map": "stage 1, feature map",
    "logits": "stage 1, logits",
    "embedding-aligned": "two stages, embedding",
    "map-aligned": "two stages, feature map",
    "logits-aligned": "two stages, logits",
}


def dc_clip(settings: DCClip) -> Recipe:
    """Zhang et al. 2024 (DC-CLIP, arXiv 2404.11249): a bilingual CLIP made small.

    Claim: feature distillation of each tower alone, then alignment on few pairs of both languages,
    gives a small dual encoder that the same pairs alone do not. Rows: the pairs alone; stage 1 by
    feature map, embedding or logits; both stages. Command: `stillhouse run clip/dc_clip --scale
    tiny|small|paper`. Scores are those of the last step; nothing is chosen on test data: with
    `--set grid=<rates>` all is trained on a part of the training pairs and scored on the rest.

    tiny: drawn scenes with English and Chinese sentences, a teacher trained on them. small:
    Flickr8k photos with English and Chinese captions, and emoji with names in 12 languages; the
    teacher is multilingual-e5-small and EfficientNet-Lite0, joined here. paper: AltCLIP.
    """
    data, teacher, templates = parts_of(settings), teacher_of(settings), _templates(settings)
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
        students=students_of(settings, teacher),
        titles=_titles(settings),
        baseline=_key(settings, BASELINE),
        exported=_key(settings, settings.exported),
        scores=_scores(settings, aligned, tested, "student"),
        teacher_scores=_scores(settings, aligned, tested, "teacher"),
    )
    title = f"{settings.student} and a text tower, {made.title(made.exported)}"
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
        studies={} if settings.grid else _studies(settings, teacher, made, tested),
        notes=_notes(settings),
        caution=_caution(settings),
    )


def _templates(settings: DCClip) -> Mapping[str, tuple[str, ...]]:
    """Those of the file given; none where the known ones do."""
    if not settings.templates:
        return {}
    return read_templates(raw_input(settings.templates, project_root()))


def _notes(settings: DCClip) -> tuple[str, ...]:
    joined = JOINED if settings.text_network else ()
    return (*NOTES, *joined, *((GRID,) if settings.grid else ()))


def _caution(settings: DCClip) -> str:
    if settings.scale != "tiny":
        return ""
    return (
        "Scale tiny shows that everything works, not what the method is worth: after so few steps "
        "neither teacher nor students have learned what they can."
    )


def _scores(
    settings: DCClip, metric: functools.partial[Aligned], tested: Mapping[str, str], role: str
) -> Scores:
    if settings.grid:  # what a model costs is nothing to choose a rate by
        return Scores(
            role=role, metrics=(metric(role=role),), inputs=tested, data=("images", "texts")
        )
    return Scores(
        role=role,
        metrics=(metric(role=role), Profile(role=role)),
        inputs=tested,
        measures=(Latency(role=role), Memory(role=role)),
        figures=() if role == "teacher" else (TopFiveNames(by=metric(role=role)),),
        data=("images", "texts"),
    )


def _key(settings: DCClip, row: str) -> str:
    """A row's short name; with a grid that of its first rate."""
    return f"{row}-{cell(settings.grid[0])}" if settings.grid else row


def _titles(settings: DCClip) -> Mapping[str, str]:
    if not settings.grid:
        return TITLES
    return {
        f"{row}-{cell(rate)}": f"{TITLES[row]}, rate {rate:g}"
        for row in settings.students
        for rate in settings.grid
    }


def _studies(
    settings: DCClip, teacher: Teacher, made: Comparison, tested: Mapping[str, str]
) -> Mapping[str, list[Evaluate]]:
    shared: dict[str, Any] = {"languages": settings.languages, "context": settings.context}
    sources = ("photos", "names") if settings.more else ()
    table = functools.partial(Retrieval, sources=sources, **shared)
    seen = {"seen": parts_of(settings)["texts"]}
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
        **_sets(settings, made),
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


def _sets(settings: DCClip, made: Comparison) -> Mapping[str, list[Evaluate]]:
    """The table of the data sets of the setting `sets`; none without."""
    if not settings.sets:
        return {}
    sets = read_sets(Path(raw_input(settings.sets, project_root())))
    images = Make(
        name="sets",
        make=ReadSets(size=settings.size, sets=sets),
        inputs={"sets": settings.sets},
        ports=("images",),
    )
    table = functools.partial(
        ZeroShotSets,
        sets=sets,
        languages=settings.languages,
        context=settings.context,
        templates=_templates(settings),
    )
    scored = Evaluate(
        name="sets-scores",
        metrics=(by_line(table, made.lines()),),
        inputs={"images": images["images"], **made.roles()},
        data=("images",),
    )
    return {"Zero-shot classification of data sets, first seed": [scored]}


def _lacking(settings: DCClip, teacher: Teacher) -> list[Evaluate]:
    """Stage 1; stage 2 on all pairs, on those of a share of the labels, and so at a higher rate."""
    words, share, row = teacher.words, settings.share, f"{settings.target}{ALIGNED}"
    lr = second_rate(settings, row)
    half = pairs_stage(
        settings,
        words,
        "pairs-half",
        PairUp(copies=settings.copies, part="covered", share=share),
    )
    ahead, data = "test_" if settings.lacking_on == "test" else "", parts_of(settings)
    found: list[Evaluate] = []
    for seed in range(settings.seeds):
        first = distilled(settings, teacher, row, seed)
        every = align_stage(settings, teacher, out(first), row, seed, lr=lr)
        some = align_stage(settings, teacher, out(first), "half", seed, lr=lr, pairs=half)
        some = replace(some, steps=settings.lacking_steps)
        fast = replace(
            some,
            name=f"half-fast-{seed}",
            objective=contrastive(settings, "student", settings.lacking_lr),
        )
        lines = {
            "stage 1": "first",
            "stage 2, all pairs": "every",
            f"stage 2, pairs of {share:.0%}": "some",
            f"the same at {settings.lacking_lr / lr:.1f} times the rate": "fast",
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
