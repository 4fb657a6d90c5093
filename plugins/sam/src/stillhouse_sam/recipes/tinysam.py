"""sam/tinysam: a small SAM from a large one, in eight bits, that segments everything faster."""

from collections.abc import Mapping

from stillhouse.card import Card
from stillhouse.comparison import Comparison, Scores, seeded
from stillhouse.export import Export
from stillhouse.metrics import Latency, Memory, Profile
from stillhouse.recipe import Recipe
from stillhouse.references import out
from stillhouse.stages import Convert
from stillhouse_sam.coco_metrics import CocoAp
from stillhouse_sam.confidence import KeepEverything
from stillhouse_sam.exporting import ExportSam
from stillhouse_sam.metrics import BoxIou, ClickIou
from stillhouse_sam.recipes.tinysam_notes import NOTES, PAPER
from stillhouse_sam.recipes.tinysam_quantized import DYNAMIC, INPUTS, OUTPUT, integers, quantized
from stillhouse_sam.recipes.tinysam_scores import TRIVIAL, confidence, studies
from stillhouse_sam.recipes.tinysam_settings import BASELINE, TinySamSettings
from stillhouse_sam.recipes.tinysam_training import Joined, masks, student_stage, teacher_of
from stillhouse_sam.usage import sam_usage

ROWS: Mapping[str, str] = {
    "alone": "student alone",
    "embedding": "embedding only",
    "stages": "+ tokens and output",
    "prompts": "+ hard prompts",
    "weighting": "+ hard mask weighting",
}


def tinysam(settings: TinySamSettings) -> Recipe:
    """Shu et al. 2025 (AAAI, arXiv 2312.13789): full-stage distillation with hard prompts and hard
    mask weighting, post-training quantization, and hierarchical segment-everything.

    Claim: distilling tokens and masks as well as embeddings, of prompts where the student errs,
    gives a better small SAM than embeddings alone; it loses little in eight bits, and everything
    mode takes half the time. Controls: embeddings alone, a student without teacher, other searches
    of scales, SAM's own grid. Command: `stillhouse run sam/tinysam --scale tiny|small|paper`. All
    scores are those of the last step; nothing is picked on the test photos.

    tiny: rendered scenes of 64 pixels. small: rendered scenes and COCO photos of 128 pixels, scored
    on photos only, 3 seeds. paper: SA-1B and SAM's your checkpoint (`--set
    data=file:<folder> --set teacher=file:sam_vit_h_4b8939.pth`), TinyViT-5M.
    """
    made = _comparison(settings)
    exported: dict[str, str] = {
        "student": out(_ready(settings, made)),
        "data": masks(settings)["calibration"],
    }
    title = f"SAM with {settings.student}, {settings.size} pixels, {made.title(made.exported)}"
    card = Card(title=title, task="mask-generation", paper=PAPER)
    export = Export(inputs=INPUTS, outputs=OUTPUT, dynamic=DYNAMIC, card=card, usage=sam_usage)
    return made.recipe(
        name="sam/tinysam",
        reference=PAPER,
        export=Convert(name="export", convert=ExportSam(export=export), inputs=exported),
        studies=studies(settings, made),
        control=TRIVIAL,
        notes=NOTES,
    )


def _comparison(settings: TinySamSettings) -> Comparison:
    teacher, parts = teacher_of(settings)
    joined = Joined(parts=parts)
    students = {
        name: seeded(student_stage(settings, name, parts), settings.seeds)
        for name in settings.students
    }
    # that of the most parts of the method
    exported = max(settings.students, key=tuple(ROWS).index)
    sams = [out(joined(student)) for student in students[exported]]
    small = {
        f"W{bits}A{bits}": [quantized(settings, sam, bits, i) for i, sam in enumerate(sams)]
        for bits in settings.bits
    }
    files: dict[str, str] = {}
    if settings.int8:
        whole = [integers(settings, sam, i) for i, sam in enumerate(sams)]
        small["int8, ONNX Runtime"] = [int8 for int8, _ in whole]
        files = {"int8": out(whole[0][0]), "onnx": out(whole[0][1])}
    data = {"data": masks(settings)[settings.scored_on]}
    return Comparison(
        teachers={"teacher": teacher},
        students=students,
        titles=ROWS,
        baseline=BASELINE,
        exported=exported,
        finish=joined,
        scores=Scores(
            metrics=(BoxIou(), ClickIou(clicks=settings.clicks), CocoAp(), Profile()),
            inputs=data,
            measures=(Latency(batches=(1,)), Memory()),
        ),
        compressed=small,
        files=files,
        # of what runs as a whole only: boxes
        compressed_scores=Scores(metrics=(BoxIou(), Profile()), inputs=data),
    )


def _ready(settings: TinySamSettings, made: Comparison) -> Convert:
    """The student that is exported, with the settings of everything mode by which it was scored."""
    sam = made.model(made.first)
    keep = KeepEverything(settings=settings.everything_mode())
    inputs = {"student": sam, **confidence(settings, "everything", sam)}
    return Convert(name="ready", convert=keep, inputs=inputs)
