"""The scores and studies of sam/tinysam."""

from stillhouse.metrics import Latencies, Latency, Lines, Memory, Profile
from stillhouse.recipe import Bound, Stage
from stillhouse.stages import Convert, Evaluate
from stillhouse_sam.annotated import PUBLISHABLE
from stillhouse_sam.coco_metrics import CocoAp
from stillhouse_sam.confidence import CalibrateConfidence, Confidence
from stillhouse_sam.everything_metrics import Everything, EverythingBoth
from stillhouse_sam.figures import Clicks, EverythingPictures, Masks
from stillhouse_sam.metrics import BoxIou, ClickIou, FilledBoxIou
from stillhouse_sam.recipes.tinysam_names import ROWS, seeds, shipped, shipped_sam
from stillhouse_sam.recipes.tinysam_quantized import compared
from stillhouse_sam.recipes.tinysam_settings import BASELINE, TinySamSettings
from stillhouse_sam.recipes.tinysam_training import Teacher

SEARCHED = {"minmax": "min-max", "mse": "least MSE", "hessian": "Hessian-weighted"}

FILLED = "no model: the box, filled"


def scored(settings: TinySamSettings) -> str:
    return f"data.{settings.scored_on}"


def score_stages(settings: TinySamSettings, teacher: Teacher) -> list[Evaluate]:
    sams = {"teacher": teacher.sam}
    rounded: dict[str, str] = {}
    for seed in seeds(settings):
        sams |= {f"{s}-{seed}": f"{s}-{seed}-sam.model" for s in settings.students}
        rounded |= {f"w{bits}-{seed}": f"w{bits}-{seed}.model" for bits in settings.bits}
        if settings.int8:
            rounded[f"int8-{seed}"] = f"int8-{seed}.model"
    return [
        *(_whole_scores(settings, name, ref) for name, ref in sams.items()),
        *(_forward_scores(settings, name, ref) for name, ref in rounded.items()),
    ]


def _whole_scores(settings: TinySamSettings, name: str, ref: str) -> Evaluate:
    # one seed a row is timed: the others have the same layers
    timed = name == "teacher" or name.endswith("-0")
    return Evaluate(
        name=f"{name}-scores",
        metrics=(
            BoxIou(),
            ClickIou(clicks=settings.clicks),
            CocoAp(),
            Profile(),
        ),
        inputs={"data": scored(settings), "student": ref},
        measures=(Latency(batches=(1,)), Memory()) if timed else (),
    )


def _forward_scores(settings: TinySamSettings, name: str, ref: str) -> Evaluate:
    """Of what runs as a whole only: boxes."""
    inputs = {"data": scored(settings), "student": ref}
    return Evaluate(name=f"{name}-scores", metrics=(BoxIou(), Profile()), inputs=inputs)


def study_titles(settings: TinySamSettings) -> dict[str, tuple[str, ...]]:
    titles = {
        "Segment everything, SAM's grid and the hierarchical one": ("everything",),
        "Segment everything, the teacher": ("everything-teacher",),
        "Pictures, first seed": ("pictures",),
    }
    if settings.compared:
        titles["Ways to search the scales, first seed"] = ("searches",)
    if settings.int8:
        titles["As shipped: one run, in turns"] = ("shipped",)
    return titles


def trivial_control() -> Bound:
    """What an answer to a box is worth that no model gave."""
    return Bound(name="the box, filled", stages=("pictures",), score=f"{FILLED}/box_miou")


def study_stages(settings: TinySamSettings, teacher: Teacher) -> list[Stage]:
    stages: list[Stage] = [
        *_everything(settings, "everything", ROWS[shipped(settings)], shipped_sam(settings)),
        *_everything(settings, "everything-teacher", "teacher", teacher.sam),
        _pictures(settings, teacher),
    ]
    if settings.compared:
        stages.append(_searches(settings))
    if settings.int8:
        stages.append(_as_shipped(settings, teacher))
    return stages


def _everything(settings: TinySamSettings, name: str, line: str, sam: str) -> tuple[Stage, ...]:
    """Both grids by the same SAM on the same photos; its high_confidence first."""
    asked, ports = settings.asked(), {"data": "photos.photos", "student": sam}
    calibrated: tuple[Stage, ...] = ()
    role, found = None, ()
    if settings.high_confidence is None:
        calibrate = CalibrateConfidence(
            settings=asked, photos=settings.confident_photos, lost=settings.lost
        )
        train = {"data": "data.train", "student": sam}
        calibrated = (Convert(name=f"{name}-confidence", convert=calibrate, inputs=train),)
        role, found = "confidence", (Confidence(),)
        ports |= {role: f"{name}-confidence.model"}
    scores = Evaluate(
        name=name,
        metrics=(Everything(settings=asked, hierarchical=True, confidence=role), *found),
        inputs=ports,
        measures=(EverythingBoth(settings=asked, confidence=role),),
        figures=(
            EverythingPictures(
                lines={line: "student"},
                settings=asked,
                confidence=role,
                licences=PUBLISHABLE,
            ),
        ),
    )
    return (*calibrated, scores)


def _pictures(settings: TinySamSettings, teacher: Teacher) -> Evaluate:
    """Curves of all students, and the masks of some on photos."""
    lines = {"teacher": "teacher"} | {ROWS[s]: f"student-{s}" for s in settings.students}
    roles = {"teacher": teacher.sam}
    roles |= {f"student-{s}": f"{s}-0-sam.model" for s in settings.students}
    ends = (BASELINE, shipped(settings))
    shown = {"teacher": "teacher"} | {ROWS[s]: f"student-{s}" for s in ends}
    agreement = {FILLED: FilledBoxIou()} | {row: BoxIou(role=role) for row, role in lines.items()}
    return Evaluate(
        name="pictures",
        metrics=(Lines(lines=agreement),),
        inputs={"data": scored(settings), **roles},
        figures=(Masks(lines=shown, licences=PUBLISHABLE),),
        plots=(Clicks(lines=lines, dashed=("teacher",), clicks=max(settings.clicks)),),
    )


def _searches(settings: TinySamSettings) -> Evaluate:
    tried = compared(settings)
    lines = {
        f"W{bits}A{bits}, {SEARCHED[metric]}": BoxIou(role=f"w{bits}-{metric}")
        for bits, metric in tried
    }
    roles = {f"w{bits}-{metric}": ref for (bits, metric), ref in tried.items()}
    floats = {"in floats": BoxIou()}
    return Evaluate(
        name="searches",
        metrics=(Lines(lines=floats | lines),),
        inputs={"data": scored(settings), "student": shipped_sam(settings), **roles},
    )


def _as_shipped(settings: TinySamSettings, teacher: Teacher) -> Evaluate:
    """The same student by torch and by ONNX Runtime, in floats and in int8, beside the teacher."""
    roles = {
        "teacher": teacher.sam,
        "student": shipped_sam(settings),
        "onnx": "onnx-0.model",
        "int8": "int8-0.model",
    }
    lines = {
        "teacher, torch": "teacher",
        "student, torch": "student",
        "student, ONNX Runtime": "onnx",
        "student, ONNX Runtime, int8": "int8",
    }
    scores = {line: BoxIou(role=role) for line, role in lines.items()}
    sizes = {line: Profile(role=role) for line, role in lines.items()}
    return Evaluate(
        name="shipped",
        metrics=(Lines(lines=scores), Lines(lines=sizes)),
        inputs={"data": scored(settings), **roles},
        measures=(Latencies(lines=lines, batches=(1,)),),
    )
