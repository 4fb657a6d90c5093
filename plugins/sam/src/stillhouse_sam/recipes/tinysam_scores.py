"""The studies of sam/tinysam."""

from collections.abc import Mapping

from stillhouse.comparison import Comparison, by_line
from stillhouse.metrics import Lines
from stillhouse.quantize.scales import Metric
from stillhouse.recipe import Bound
from stillhouse.references import Ref, out
from stillhouse.stages import Convert, Evaluate
from stillhouse_sam.annotated import PUBLISHABLE
from stillhouse_sam.confidence import CalibrateConfidence, Confidence
from stillhouse_sam.everything_metrics import Everything, EverythingBoth
from stillhouse_sam.figures import Clicks, EverythingMasks, Masks
from stillhouse_sam.metrics import BoxIou, FilledBoxIou
from stillhouse_sam.recipes.tinysam_quantized import quantized
from stillhouse_sam.recipes.tinysam_settings import BASELINE, TinySamSettings
from stillhouse_sam.recipes.tinysam_training import masks, photos

SEARCHED: Mapping[Metric, str] = {
    "minmax": "min-max",
    "mse": "least MSE",
    "hessian": "Hessian-weighted",
}
FILLED = "no model: the box, filled"
# what an answer to a box is worth that no model gave
TRIVIAL = Bound(name="the box, filled", stages=("pictures",), row=FILLED, score="box_miou")


def studies(settings: TinySamSettings, made: Comparison) -> dict[str, list[Evaluate]]:
    student, teacher = made.model(made.first), made.model(made.teachers["teacher"])
    row = made.title(made.exported)
    found = {
        "Segment everything, SAM's grid and the hierarchical one": _everything(
            settings, "everything", row, student
        ),
        "Segment everything, the teacher": _everything(
            settings, "everything-teacher", "teacher", teacher
        ),
        "Figures, first seed": _figures(settings, made),
    }
    if settings.compared:
        found["Ways to search the scales, first seed"] = _searches(settings, made, student)
    if settings.int8:
        turns = made.as_exported(teacher="teacher", metric=BoxIou, batches=(1,))
        found["As exported: one run, in turns"] = turns
    return {title: [stage] for title, stage in found.items()}


def confidence(settings: TinySamSettings, name: str, sam: Ref) -> dict[str, Ref]:
    """The port "confidence": a SAM's high_confidence as calibrated; none where it is given."""
    if settings.high_confidence is not None:
        return {}
    calibrate = CalibrateConfidence(
        settings=settings.everything_mode(), photos=settings.confident_photos, lost=settings.lost
    )
    inputs = {"data": masks(settings)["train"], "student": sam}
    return {"confidence": out(Convert(name=f"{name}-confidence", convert=calibrate, inputs=inputs))}


def _everything(settings: TinySamSettings, name: str, line: str, sam: Ref) -> Evaluate:
    """Both grids by the same SAM on the same photos."""
    mode, calibrated = settings.everything_mode(), confidence(settings, name, sam)
    role = "confidence" if calibrated else None
    shown = EverythingMasks(
        lines={line: "student"}, settings=mode, confidence=role, licences=PUBLISHABLE
    )
    everything = Everything(settings=mode, hierarchical=True, confidence=role)
    return Evaluate(
        name=name,
        metrics=(everything, Confidence()) if calibrated else (everything,),
        inputs={"data": out(photos(settings)), "student": sam, **calibrated},
        measures=(EverythingBoth(settings=mode, confidence=role),),
        figures=(shown,),
    )


def _figures(settings: TinySamSettings, made: Comparison) -> Evaluate:
    """Curves of all students, and the masks of some on photos."""
    lines = made.lines()
    ends = ("teacher", made.title(BASELINE), made.title(made.exported))
    agreement = {FILLED: FilledBoxIou(), **by_line(BoxIou, lines).lines}
    return Evaluate(
        name="pictures",
        metrics=(Lines(lines=agreement),),
        inputs={**made.scores.inputs, **made.roles()},
        figures=(Masks(lines={line: lines[line] for line in ends}, licences=PUBLISHABLE),),
        plots=(Clicks(lines=lines, dashed=("teacher",), clicks=max(settings.clicks)),),
    )


def _searches(settings: TinySamSettings, made: Comparison, student: Ref) -> Evaluate:
    tried: list[tuple[int, Metric]] = [(b, m) for b in settings.bits for m in SEARCHED]
    lines = {f"W{bits}A{bits}, {SEARCHED[metric]}": f"w{bits}-{metric}" for bits, metric in tried}
    roles = {
        f"w{bits}-{metric}": out(quantized(settings, student, bits, metric=metric))
        for bits, metric in tried
    }
    return Evaluate(
        name="searches",
        metrics=(by_line(BoxIou, {"in floats": "student", **lines}),),
        inputs={**made.scores.inputs, "student": student, **roles},
    )
