"""What pointcloud/pointdistiller scores, and its studies."""

import functools
from collections.abc import Mapping
from dataclasses import replace

from stillhouse.comparison import Comparison, by_line
from stillhouse.metrics import Latencies, Lines, Profile
from stillhouse.recipe import Bound
from stillhouse.references import Ref, reference
from stillhouse.stages import Evaluate, Train
from stillhouse.stages.evaluate import Figure
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

ROWS: Mapping[str, str] = {
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
REAL = "real"  # the port of the real test frames beside rendered ones
BUILTIN = "builtin:"


def graph_roles(family: Detectors) -> dict[str, str]:
    """Role -> the output whose graphs it holds."""
    return {f"graphs{i + 1 if i else ''}": output for i, output in enumerate(family.distilled)}


def ap(
    settings: PointDistillerSettings, family: Detectors, role: str, sampling: str = "kitti"
) -> KittiAp:
    return KittiAp(role=role, overlaps=settings.overlaps, sampling=sampling, within=family.area)


def last_distilled(settings: PointDistillerSettings) -> Student | None:
    """The student whose encoders are trained alone: the exported one, where it is taught
    by graphs.
    """
    return max(_distilled(settings), key=tuple(ROWS).index, default=None)


def _distilled(settings: PointDistillerSettings) -> tuple[Student, ...]:
    return tuple(s for s in settings.students if s in GRAPHS)


def studies(
    settings: PointDistillerSettings,
    family: Detectors,
    made: Comparison,
    *,
    alone: Train | None,
    real: Ref | None,
) -> dict[str, list[Evaluate]]:
    """`alone` is the training of the encoders without the student, where there are some; `real`
    the real test frames beside rendered ones.
    """
    # what the rows' AP could be at most on these frames
    most = (KittiCeiling(ap=ap(settings, family, "student")),)
    found = {
        "A perfect detector, and the boxes that score": [
            Evaluate(name=CEILING, metrics=most, inputs=made.scores.inputs)
        ],
        "Latency in turns, and figures, first seed": [_figures(settings, made)],
    }
    if alone is not None:
        encoders = _encoders(settings, family, made, alone)
        found["The loss's encoders after training, first seed"] = [encoders]
    if real is not None:
        scored = [_real(settings, family, made, real, seed) for seed in range(settings.seeds)]
        found["Real test frames (too few for differences)"] = scored
    return found


def _shown(made: Comparison) -> dict[str, str]:
    lines = made.lines()
    ends = ("teacher", made.title(BASELINE), made.title(made.exported))
    return {line: lines[line] for line in ends}


def _drawn_here(settings: PointDistillerSettings) -> bool:
    """Whether the frames that score are rendered, so that anyone may publish their images."""
    return settings.scenes > 0 or settings.data.startswith(BUILTIN)


def _with(
    settings: PointDistillerSettings, stage: Evaluate, figures: tuple[Figure, ...]
) -> Evaluate:
    """Figures of rendered test frames are published."""
    if _drawn_here(settings) and settings.scored_on == "test":
        return replace(stage, plots=figures)
    return replace(stage, figures=figures)


def _figures(settings: PointDistillerSettings, made: Comparison) -> Evaluate:
    lines, shown = made.lines(), _shown(made)
    seen = (BirdsEye(lines=shown),)
    stage = Evaluate(
        name="pictures",
        metrics=(by_line(Profile, lines),),
        inputs={**made.scores.inputs, **made.roles()},
        measures=(Latencies(lines=lines, batches=(1,)),),
    )
    # rendered frames have no image
    return _with(settings, stage, seen if _drawn_here(settings) else (*seen, Overlay(lines=shown)))


def _encoders(
    settings: PointDistillerSettings, family: Detectors, made: Comparison, alone: Train
) -> Evaluate:
    """Whether the encoders have collapsed, what they do without the student; and what the loss
    chooses.
    """
    last, graphs = last_distilled(settings), graph_roles(family)
    assert last is not None
    roles: dict[str, str] = {"teacher": made.roles()["teacher"], "first": alone.inputs["student"]}
    roles |= {f"{role}-alone": alone[role] for role in graphs}
    states: dict[str, GraphState] = {}
    for s in _distilled(settings):
        roles[f"student-{s}"] = made.roles()[f"student-{s}"]
        roles |= {f"{role}-{s}": reference(made.students[s][0], role) for role in graphs}
        for role, line in _encoder_lines(family, s).items():
            states[line] = GraphState(student=f"student-{s}", graphs=f"{role}-{s}")
    shares = {
        line: EarnedShare(student=f"student-{last}", alone=f"{role}-alone", graphs=f"{role}-{last}")
        for role, line in _encoder_lines(family, last).items()
    }
    chosen = ChosenPoints(student=f"student-{last}", graphs=f"graphs-{last}")
    stage = Evaluate(
        name="encoders",
        metrics=(Lines(lines=states), Lines(lines=shares)),
        inputs={**made.scores.inputs, **roles},
    )
    return _with(settings, stage, (chosen,) if family.distilled == (PILLARS,) else ())


def _encoder_lines(family: Detectors, student: Student) -> dict[str, str]:
    """Of each role that holds a student's graphs, what it is called in a table."""
    roles = graph_roles(family)
    return {
        role: ROWS[student] if len(roles) == 1 else f"{ROWS[student]}, {output}"
        for role, output in roles.items()
    }


def _real(
    settings: PointDistillerSettings, family: Detectors, made: Comparison, frames: Ref, seed: int
) -> Evaluate:
    """The real test frames, whose images a published report leaves out (CC BY-NC-SA). The one
    teacher is scored with the first seed.
    """
    lines, roles, shown = made.lines(), made.roles(seed), _shown(made)
    if seed:
        roles.pop(lines.pop("teacher"))
    found = by_line(functools.partial(ap, settings, family, sampling="exact"), lines)
    figures = (
        BirdsEye(lines=shown, name="real-birds-eye"),
        Overlay(lines=shown, name="real-overlay"),
    )
    return Evaluate(
        name=f"real-{seed}",
        metrics=(found,) if seed else (found, BoxCounts(within=family.area)),
        inputs={**roles, "data": frames},
        figures=() if seed else figures,
    )
