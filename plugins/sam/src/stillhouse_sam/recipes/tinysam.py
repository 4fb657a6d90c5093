"""sam/tinysam: a small SAM from a large one, in eight bits, that segments everything faster."""

from stillhouse.card import Card
from stillhouse.export import Export
from stillhouse.recipe import Kind, Recipe, Row
from stillhouse.stages import Convert
from stillhouse_sam.confidence import KeepEverything
from stillhouse_sam.exporting import ExportSam
from stillhouse_sam.recipes.tinysam_names import (
    DYNAMIC,
    INPUTS,
    OUTPUT,
    ROWS,
    seeds,
    shipped,
    shipped_sam,
)
from stillhouse_sam.recipes.tinysam_notes import NOTES, PAPER
from stillhouse_sam.recipes.tinysam_quantized import integer_sams, quantized_sams
from stillhouse_sam.recipes.tinysam_scores import (
    score_stages,
    study_stages,
    study_titles,
    trivial_control,
)
from stillhouse_sam.recipes.tinysam_settings import BASELINE, TinySamSettings
from stillhouse_sam.recipes.tinysam_training import (
    data_stages,
    joined_sams,
    student_stage,
    teacher_of,
)
from stillhouse_sam.usage import sam_usage


def tinysam(settings: TinySamSettings) -> Recipe:
    """Shu et al. 2025 (AAAI, arXiv 2312.13789): full-stage distillation with hard prompts and hard
    mask weighting, post-training quantization, and hierarchical segment-everything.

    Claim: distilling tokens and masks as well as embeddings, of prompts where the student errs,
    gives a better small SAM than embeddings alone; it loses little in eight bits, and everything
    mode takes half the time. Controls: embeddings alone, a student without teacher, other searches
    of scales, SAM's own grid. Command: `stillhouse run sam/tinysam --scale tiny|small|paper`. All
    scores are those of the last step; nothing is picked on the test photos.

    tiny: rendered scenes of 64 pixels. small: rendered scenes and COCO photos of 128 pixels, scored
    on photos only, 3 seeds. paper: SA-1B and SAM's checkpoint of your own (`--set
    data=file:<folder> --set teacher=file:sam_vit_h_4b8939.pth`), TinyViT-5M.
    """
    teacher = teacher_of(settings)
    students = [
        student_stage(settings, name, teacher, seed)
        for name in settings.students
        for seed in seeds(settings)
    ]
    small = [*quantized_sams(settings), *integer_sams(settings)]
    return Recipe(
        name="sam/tinysam",
        reference=PAPER,
        stages=(
            *data_stages(settings),
            *teacher.stages,
            *students,
            *joined_sams(students, teacher),
            *small,
            *score_stages(settings, teacher),
            *study_stages(settings, teacher),
            _ready(settings),
            _export(settings),
        ),
        rows=_rows(settings),
        method=ROWS[shipped(settings)],
        control=trivial_control(),
        notes=NOTES,
        studies=study_titles(settings),
    )


def _rows(settings: TinySamSettings) -> dict[str, Row]:
    names: dict[str, tuple[str, Kind]] = {ROWS[s]: (s, "student") for s in settings.students}
    names[ROWS[BASELINE]] = (BASELINE, "baseline")
    names |= {f"W{bits}A{bits}": (f"w{bits}", "compressed") for bits in settings.bits}
    if settings.int8:
        names["int8, ONNX Runtime"] = ("int8", "compressed")
    return {"teacher": Row(kind="teacher", stages=("teacher-scores",))} | {
        title: Row(kind=kind, stages=tuple(f"{name}-{seed}-scores" for seed in seeds(settings)))
        for title, (name, kind) in names.items()
    }


def _ready(settings: TinySamSettings) -> Convert:
    """The student that is exported, with the settings by which it was asked for everything."""
    inputs = {"student": shipped_sam(settings)}
    if settings.high_confidence is None:
        inputs["confidence"] = "everything-confidence.model"
    return Convert(name="ready", convert=KeepEverything(settings=settings.asked()), inputs=inputs)


def _export(settings: TinySamSettings) -> Convert:
    name = shipped(settings)
    card = Card(
        title=f"SAM with {settings.student}, {settings.size} pixels, {ROWS[name]}",
        task="mask-generation",
        paper=PAPER,
    )
    inputs = {"student": "ready.model", "data": "data.calibration"}
    inputs["scores"] = f"{name}-0-scores.scores"
    if settings.int8:
        inputs |= {"onnx": "onnx-0.model", "int8": "int8-0.model"}
    export = Export(inputs=INPUTS, outputs=OUTPUT, dynamic=DYNAMIC, card=card, usage=sam_usage)
    return Convert(name="export", convert=ExportSam(export=export), inputs=inputs)
