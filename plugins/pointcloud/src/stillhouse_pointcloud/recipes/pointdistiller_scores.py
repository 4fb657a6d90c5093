"""What pointcloud/pointdistiller scores, and its studies."""

from collections.abc import Mapping

from stillhouse.metrics import Latencies, Latency, Lines, Memory, Profile
from stillhouse.recipe import Bound, Stage
from stillhouse.stages import Evaluate
from stillhouse_pointcloud.boxes import CLASSES
from stillhouse_pointcloud.ceiling import BoxCounts, KittiCeiling
from stillhouse_pointcloud.distilled import PILLARS, EarnedShare, GraphState
from stillhouse_pointcloud.figures import BirdsEye, ChosenPoints, Overlay
from stillhouse_pointcloud.metrics import KittiAp
from stillhouse_pointcloud.recipes.pointdistiller_detectors import Detectors
from stillhouse_pointcloud.recipes.pointdistiller_settings import (
    BASELINE,
    GRAPHS,
    PointDistillerSettings,
    Student,
)

ROWS: Mapping[Student, str] = {
    "alone": "student 4x alone",
    "alone16": "student 16x alone",
    "fitnets": "FitNets",
    "at": "AT",
    "local": "local only",
    "reweight": "reweight only",
    "both": "both",
}
CEILING = "ceiling"
CEILED = Bound(
    name="a perfect detector",
    stages=(CEILING,),
    score="mean_3d_moderate_ap",
    counts=tuple(f"{name.lower()}_moderate_boxes" for name in CLASSES),
    enough=0.99,
)
# the student before it was trained, and the encoders of its loss trained without it
FIRST, ALONE = "first-student", "encoders-alone"
REAL = "real"  # the port of the real test frames beside rendered ones
BUILTIN = "builtin:"


def seeds(settings: PointDistillerSettings) -> range:
    return range(settings.seeds)


def exported(settings: PointDistillerSettings) -> Student:
    """The student that is exported: that of the whole method, where it is among them."""
    return max(settings.students, key=tuple(ROWS).index)


def graph_roles(zoo: Detectors) -> dict[str, str]:
    """Role -> the output whose graphs it holds."""
    return {f"graphs{i + 1 if i else ''}": output for i, output in enumerate(zoo.distilled)}


def _scored(settings: PointDistillerSettings) -> str:
    return f"data.{settings.scored_on}"


def score(settings: PointDistillerSettings, zoo: Detectors, name: str, ref: str) -> Evaluate:
    # one seed a row is timed: the others have the same layers
    timed = name == "teacher" or name.endswith("-0")
    return Evaluate(
        name=f"{name}-scores",
        metrics=(_ap(settings, zoo, "student"), Profile()),
        inputs={"data": _scored(settings), "student": ref},
        measures=(Latency(batches=(1,)), Memory(batch=1)) if timed else (),
    )


def _ap(
    settings: PointDistillerSettings, zoo: Detectors, role: str, sampling: str = "kitti"
) -> KittiAp:
    return KittiAp(role=role, overlaps=settings.overlaps, sampling=sampling, within=zoo.area)


def ceiling(settings: PointDistillerSettings, zoo: Detectors) -> Evaluate:
    """What the rows' AP could be at most on these frames."""
    return Evaluate(
        name=CEILING,
        metrics=(KittiCeiling(ap=_ap(settings, zoo, "student")),),
        inputs={"data": _scored(settings)},
    )


def _lines(settings: PointDistillerSettings, teacher: str, seed: int) -> dict[str, tuple[str, str]]:
    """Of each row its role and where that comes from."""
    lines = {"teacher": ("teacher", teacher)}
    return lines | {ROWS[s]: (f"student-{s}", f"{s}-{seed}.student") for s in settings.students}


def _sources(lines: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    return dict(lines.values())


def study_titles(settings: PointDistillerSettings) -> dict[str, tuple[str, ...]]:
    titles: dict[str, tuple[str, ...]] = {
        "A perfect detector, and the boxes that score": (CEILING,)
    }
    titles["Latency in turns, and pictures, first seed"] = ("pictures",)
    if _distilled(settings):
        titles["The loss's encoders after training, first seed"] = ("encoders",)
    if settings.scenes:
        real = tuple(f"real-{seed}" for seed in seeds(settings))
        titles["Real test frames (too few for differences)"] = real
    return titles


def _distilled(settings: PointDistillerSettings) -> tuple[Student, ...]:
    return tuple(s for s in settings.students if s in GRAPHS)


def last_distilled(settings: PointDistillerSettings) -> Student | None:
    """The student whose encoders are asked what they do alone: the exported one, where it is taught
    by graphs.
    """
    return max(_distilled(settings), key=tuple(ROWS).index, default=None)


def studies(settings: PointDistillerSettings, zoo: Detectors, teacher: str) -> list[Stage]:
    stages: list[Stage] = [_pictures(settings, teacher)]
    if _distilled(settings):
        stages.append(_encoders(settings, zoo, teacher))
    if settings.scenes:
        stages += [_real(settings, zoo, teacher, seed) for seed in seeds(settings)]
    return stages


def _shown(settings: PointDistillerSettings) -> dict[str, str]:
    ends = dict.fromkeys((BASELINE, exported(settings)))
    return {"teacher": "teacher"} | {ROWS[s]: f"student-{s}" for s in ends}


def _drawn_here(settings: PointDistillerSettings) -> bool:
    """Whether the frames that score are rendered, so that anyone may publish their pictures."""
    return settings.scenes > 0 or settings.data.startswith(BUILTIN)


def _pictures(settings: PointDistillerSettings, teacher: str) -> Evaluate:
    lines = _lines(settings, teacher, 0)
    shown = _shown(settings)
    seen = (BirdsEye(lines=shown),)
    # rendered frames have no picture
    pictures = seen if _drawn_here(settings) else (*seen, Overlay(lines=shown))
    free = _drawn_here(settings) and settings.scored_on == "test"
    return Evaluate(
        name="pictures",
        metrics=(Lines(lines={line: Profile(role=role) for line, (role, _) in lines.items()}),),
        inputs={"data": _scored(settings), **_sources(lines)},
        measures=(
            Latencies(lines={line: role for line, (role, _) in lines.items()}, batches=(1,)),
        ),
        figures=() if free else pictures,
        plots=pictures if free else (),
    )


def _encoders(settings: PointDistillerSettings, zoo: Detectors, teacher: str) -> Evaluate:
    """Whether the encoders have collapsed, what they do without the student; and what the loss
    chooses.
    """
    roles = {"teacher": teacher}
    states: dict[str, GraphState] = {}
    for s in _distilled(settings):
        roles |= {f"student-{s}": f"{s}-0.student"}
        roles |= {f"{role}-{s}": f"{s}-0.{role}" for role in graph_roles(zoo)}
        for role, line in _encoder_lines(zoo, s).items():
            states[line] = GraphState(student=f"student-{s}", graphs=f"{role}-{s}")
    last = last_distilled(settings)
    assert last is not None
    roles |= {"first": f"{FIRST}.model"}
    roles |= {f"{role}-alone": f"{ALONE}.{role}" for role in graph_roles(zoo)}
    shares = {
        line: EarnedShare(student=f"student-{last}", alone=f"{role}-alone", graphs=f"{role}-{last}")
        for role, line in _encoder_lines(zoo, last).items()
    }
    chosen = ChosenPoints(student=f"student-{last}", graphs=f"graphs-{last}")
    pictures = (chosen,) if zoo.distilled == (PILLARS,) else ()
    free = _drawn_here(settings) and settings.scored_on == "test"
    return Evaluate(
        name="encoders",
        metrics=(Lines(lines=states), Lines(lines=shares)),
        inputs={"data": _scored(settings), **roles},
        figures=() if free else pictures,
        plots=pictures if free else (),
    )


def _encoder_lines(zoo: Detectors, student: Student) -> dict[str, str]:
    """Of each role that holds a student's graphs, what it is called in a table."""
    roles = graph_roles(zoo)
    return {
        role: ROWS[student] if len(roles) == 1 else f"{ROWS[student]}, {output}"
        for role, output in roles.items()
    }


def _real(settings: PointDistillerSettings, zoo: Detectors, teacher: str, seed: int) -> Evaluate:
    """The real test frames, whose pictures a published report leaves out (CC BY-NC-SA). The one
    teacher is scored with the first seed.
    """
    lines = _lines(settings, teacher, seed)
    if seed:
        lines.pop("teacher")
    found = {line: _ap(settings, zoo, role, "exact") for line, (role, _) in lines.items()}
    counts = () if seed else (BoxCounts(within=zoo.area),)
    shown = _shown(settings)
    pictures = (
        BirdsEye(lines=shown, name="real-birds-eye"),
        Overlay(lines=shown, name="real-overlay"),
    )
    return Evaluate(
        name=f"real-{seed}",
        metrics=(Lines(lines=found), *counts),
        inputs={"data": f"data.{REAL}", **_sources(lines)},
        figures=pictures if seed == 0 else (),
    )
