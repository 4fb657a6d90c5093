"""pointcloud/pointdistiller: a small pillar detector from a large one's local graphs."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from stillhouse.artifact import Model
from stillhouse.metrics import Latencies, Latency, Lines, Memory, Profile
from stillhouse.objectives.features import AttentionTransfer, Hint
from stillhouse.objectives.objective import Cosine, Optimizer, Phase, Weighted
from stillhouse.objectives.projectors import ConvProjector
from stillhouse.recipe import Recipe, Stage
from stillhouse.stages import Convert, Evaluate, Make, Train
from stillhouse_pointcloud.data import ReadKitti
from stillhouse_pointcloud.distilled import PILLARS, GraphRole, GraphState
from stillhouse_pointcloud.figures import BirdsEye, ChosenPoints, Overlay
from stillhouse_pointcloud.metrics import KittiAp
from stillhouse_pointcloud.mixed import ReadMixed
from stillhouse_pointcloud.pictured import WithPictures
from stillhouse_pointcloud.recipes.pointdistiller_detectors import (
    Detectors,
    Lesson,
    detectors_of,
)
from stillhouse_pointcloud.recipes.pointdistiller_notes import FEW, MIXED, NOTES, PAPER
from stillhouse_pointcloud.recipes.pointdistiller_settings import (
    BASELINE,
    GRAPHS,
    PointDistillerSettings,
    Student,
)
from stillhouse_pointcloud.samples import Lidar, Street

ROWS: Mapping[Student, str] = {
    "alone": "student 4x alone",
    "alone16": "student 16x alone",
    "fitnets": "FitNets",
    "at": "AT",
    "local": "local only",
    "reweight": "reweight only",
    "both": "both",
}
PORTS, REAL = ("train", "validation", "test"), "real"
BUILTIN = "builtin:"
MARGIN = 2.0  # metres between the last rendered object and the end of the grid


def pointdistiller(settings: PointDistillerSettings) -> Recipe:
    """Zhang et al. 2023 (CVPR, arXiv 2205.11098): a student learns the teacher's local graphs at
    the pillars that hold the most points.

    Claim: a PointPillars of a quarter of the size is as accurate as its teacher by local graphs and
    reweighting together, and more so than by comparing features. Controls: the student alone,
    FitNets, AT, and either part alone. Command: `stillhouse run pointcloud/pointdistiller --scale
    tiny|small|paper`. Scores are those of the last step; nothing is picked on the test frames.

    tiny: drawn scenes, detectors of 8 and 4 channels. small: rendered scenes and 12 of
    kitti-mini's 13 training frames (one validates), 35 m, 32 and 16 channels, 3 seeds. paper: KITTI
    of your own (`--set data=file:<folder>`), 64, 32 and 16 channels.

    Detectors are ours ("pillars-<width>") or mmdetection3d's by name or configuration ("/4" behind
    it: 4 times smaller), as in `--set teacher_model=pointpillars-kitti --set
    student=pointpillars-kitti/4 --set student16=pointpillars-kitti/16`.
    """
    zoo = detectors_of(settings)
    teacher = _teacher(settings, zoo)
    ref = f"teacher.{teacher.outputs[0]}"
    sure = _score(settings, zoo, "teacher", ref)
    students = [
        _student(settings, zoo, s, ref, i) for s in settings.students for i in _seeds(settings)
    ]
    return Recipe(
        name="pointcloud/pointdistiller",
        reference=PAPER,
        stages=(
            _data(settings, zoo),
            teacher,
            sure,  # before anything learns from it
            *students,
            *(_score(settings, zoo, s.name, f"{s.name}.student") for s in students),
            *_studies(settings, zoo, ref),
            _export(settings, zoo),
        ),
        rows={"teacher": ("teacher-scores",)}
        | {
            ROWS[s]: tuple(f"{s}-{seed}-scores" for seed in _seeds(settings))
            for s in settings.students
        },
        baseline=ROWS[BASELINE],
        method=ROWS[_shipped(settings)],
        notes=(*NOTES, *zoo.notes, *_about(settings)),
        studies=_study_titles(settings),
    )


def _about(settings: PointDistillerSettings) -> tuple[str, ...]:
    """Notes on the frames that score."""
    if settings.scenes:
        return MIXED
    return FEW if settings.data.startswith(BUILTIN) else ()


def _seeds(settings: PointDistillerSettings) -> range:
    return range(settings.seeds)


def _shipped(settings: PointDistillerSettings) -> Student:
    """The student that is exported: that of the whole method, where it is among them."""
    return max(settings.students, key=tuple(ROWS).index)


def _data(settings: PointDistillerSettings, zoo: Detectors) -> Make:
    """The frames; KITTI's test frames with some of their pictures."""
    read = ReadKitti(validation=settings.validation)
    make = _mixed(settings, zoo, read) if settings.scenes else read
    ports = (*PORTS, REAL) if settings.scenes else PORTS
    make = settings.spared(make)
    if not settings.data.startswith(BUILTIN):
        make = WithPictures(make=make, port=REAL if settings.scenes else "test")
    return Make(name="data", make=make, inputs={"source": settings.data}, ports=ports)


def _mixed(settings: PointDistillerSettings, zoo: Detectors, read: ReadKitti) -> ReadMixed:
    return ReadMixed(
        read=read,
        scenes=settings.scenes,
        held_out=settings.held_out,
        copies=settings.copies,
        lidar=Lidar(beams=settings.beams),
        street=Street(far=min(Street().far, zoo.area.x[1] - MARGIN)) if zoo.area else Street(),
    )


def _teacher(settings: PointDistillerSettings, zoo: Detectors) -> Train | Convert:
    """Trained here; or given."""
    if settings.teacher:
        inputs = {"checkpoint": settings.teacher}
        return Convert(name="teacher", convert=zoo.load(), inputs=inputs)
    lesson = Lesson(
        phases={"teacher": _phase(settings, ("teacher",), settings.teacher_lr)},
        student="teacher",
        roles=("teacher",),
    )
    fresh = {"teacher": zoo.model(settings.teacher_model)}
    return _train(settings, zoo, "teacher", lesson, fresh, settings.teacher_steps)


@dataclass(frozen=True, kw_only=True)
class _Help:
    """What a student learns from beside the labels: losses, and roles that are trained with it."""

    losses: Mapping[str, Weighted] = field(default_factory=dict[str, Weighted])
    helpers: Mapping[str, Model] = field(default_factory=dict[str, Model])
    feeds: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])


def _help(settings: PointDistillerSettings, zoo: Detectors, name: Student) -> _Help:
    match name:
        case "alone" | "alone16":
            return _Help()
        case "fitnets":
            return _fitnets(settings, zoo)
        case "at":
            maps = (zoo.hint,)
            term = AttentionTransfer(student_outputs=maps, teacher_outputs=maps)
            return _Help(losses={"at": Weighted(term=term, weight=settings.at_weight)})
        case "local" | "reweight" | "both":
            return _graphs(settings, zoo, name)


def _graphs(settings: PointDistillerSettings, zoo: Detectors, name: Student) -> _Help:
    """A loss, and its encoders, of each of the distilled outputs."""
    roles = _graph_roles(zoo)
    helpers: dict[str, Model] = {}
    for role, output in roles.items():
        channels = _channels(settings, zoo, output)
        kwargs = {"graphs": settings.graphs(name, output, channels), "output": output}
        helpers[role] = Model(build=GraphRole, kwargs=kwargs)
    return _Help(
        losses={role: settings.graph_loss(name, output, role) for role, output in roles.items()},
        helpers=helpers,
        feeds=dict.fromkeys(roles, ("teacher", "student")),
    )


def _graph_roles(zoo: Detectors) -> dict[str, str]:
    """Role -> the output whose graphs it holds."""
    return {f"graphs{i + 1 if i else ''}": output for i, output in enumerate(zoo.distilled)}


def _channels(settings: PointDistillerSettings, zoo: Detectors, output: str) -> tuple[int, int]:
    """The teacher's, and the student's."""
    return zoo.channels(settings.teacher_model, output), zoo.channels(settings.student, output)


def _fitnets(settings: PointDistillerSettings, zoo: Detectors) -> _Help:
    """The teacher's map through a regressor of the student's, which ends, as it does, in a ReLU."""
    maps, (target, channels) = (zoo.hint,), _channels(settings, zoo, zoo.hint)
    kwargs = {
        "inputs": [f"student.{zoo.hint}"],
        "channels": [channels],
        "targets": [target],
        "relu": True,
    }
    term = Hint(student="regressor", student_outputs=maps, teacher_outputs=maps)
    return _Help(
        losses={"hint": Weighted(term=term, weight=settings.hint_weight)},
        helpers={"regressor": Model(build=ConvProjector, kwargs=kwargs)},
        feeds={"regressor": ("student",)},
    )


def _student(
    settings: PointDistillerSettings, zoo: Detectors, name: Student, teacher: str, seed: int
) -> Train:
    """First weights and batches are those of its seed, whatever it learns from."""
    given = _help(settings, zoo, name)
    asked = {"teacher": teacher} if given.losses else {}
    lesson = Lesson(
        phases={"student": _phase(settings, ("student", *given.helpers), settings.lr)},
        roles=(*asked, "student", *given.helpers),
        losses=given.losses,
        feeds=given.feeds,
    )
    detector = settings.student16 if name == "alone16" else settings.student
    fresh = {"student": zoo.model(detector), **given.helpers}
    return _train(settings, zoo, f"{name}-{seed}", lesson, fresh, settings.steps, asked, seed)


def _train(
    settings: PointDistillerSettings,
    zoo: Detectors,
    name: str,
    lesson: Lesson,
    fresh: Mapping[str, Model],
    steps: int,
    roles: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Train:
    return Train(
        name=name,
        objective=zoo.objective(lesson),
        inputs={"data": "data.train", **(roles or {})},
        fresh=fresh,
        steps=steps,
        batch=settings.batch,
        seed=seed,
        augment=settings.augment(zoo.limits),
        views=settings.views,
        precision=settings.precision,
    )


def _phase(settings: PointDistillerSettings, trains: tuple[str, ...], lr: float) -> Phase:
    kwargs = {"weight_decay": settings.weight_decay}
    return Phase(
        trains=trains,
        optimizer=Optimizer(build=torch.optim.AdamW, lr=lr, kwargs=kwargs),
        schedule=Cosine(warmup=settings.warmup),
        clip_norm=settings.clip,
    )


def _scored(settings: PointDistillerSettings) -> str:
    return f"data.{settings.scored_on}"


def _score(settings: PointDistillerSettings, zoo: Detectors, name: str, ref: str) -> Evaluate:
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


def _lines(settings: PointDistillerSettings, teacher: str, seed: int) -> dict[str, tuple[str, str]]:
    """Of each row its role and where that comes from."""
    lines = {"teacher": ("teacher", teacher)}
    return lines | {ROWS[s]: (f"student-{s}", f"{s}-{seed}.student") for s in settings.students}


def _sources(lines: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    return dict(lines.values())


def _study_titles(settings: PointDistillerSettings) -> dict[str, tuple[str, ...]]:
    titles: dict[str, tuple[str, ...]] = {}
    titles["Latency in turns, and pictures, first seed"] = ("pictures",)
    if _distilled(settings):
        titles["The loss's encoders after training, first seed"] = ("encoders",)
    if settings.scenes:
        real = tuple(f"real-{seed}" for seed in _seeds(settings))
        titles["Real test frames (too few for differences)"] = real
    return titles


def _distilled(settings: PointDistillerSettings) -> tuple[Student, ...]:
    return tuple(s for s in settings.students if s in GRAPHS)


def _studies(settings: PointDistillerSettings, zoo: Detectors, teacher: str) -> list[Stage]:
    stages: list[Stage] = [_pictures(settings, teacher)]
    if _distilled(settings):
        stages.append(_encoders(settings, zoo, teacher))
    if settings.scenes:
        stages += [_real(settings, zoo, teacher, seed) for seed in _seeds(settings)]
    return stages


def _shown(settings: PointDistillerSettings) -> dict[str, str]:
    ends = dict.fromkeys((BASELINE, _shipped(settings)))
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
    """Whether the encoders have collapsed; and what the loss chooses."""
    distilled, graphs = _distilled(settings), _graph_roles(zoo)
    roles = {"teacher": teacher}
    states: dict[str, GraphState] = {}
    for s in distilled:
        roles |= {f"student-{s}": f"{s}-0.student"}
        roles |= {f"{role}-{s}": f"{s}-0.{role}" for role in graphs}
        for role, output in graphs.items():
            line = ROWS[s] if len(graphs) == 1 else f"{ROWS[s]}, {output}"
            states[line] = GraphState(student=f"student-{s}", graphs=f"{role}-{s}")
    last = distilled[-1]
    chosen = ChosenPoints(student=f"student-{last}", graphs=f"graphs-{last}")
    pictures = (chosen,) if zoo.distilled == (PILLARS,) else ()
    free = _drawn_here(settings) and settings.scored_on == "test"
    return Evaluate(
        name="encoders",
        metrics=(Lines(lines=states),),
        inputs={"data": _scored(settings), **roles},
        figures=() if free else pictures,
        plots=pictures if free else (),
    )


def _real(settings: PointDistillerSettings, zoo: Detectors, teacher: str, seed: int) -> Evaluate:
    """The real test frames, whose pictures a published report leaves out (CC BY-NC-SA). The one
    teacher is scored with the first seed.
    """
    lines = _lines(settings, teacher, seed)
    if seed:
        lines.pop("teacher")
    found = {line: _ap(settings, zoo, role, "exact") for line, (role, _) in lines.items()}
    shown = _shown(settings)
    pictures = (
        BirdsEye(lines=shown, name="real-birds-eye"),
        Overlay(lines=shown, name="real-overlay"),
    )
    return Evaluate(
        name=f"real-{seed}",
        metrics=(Lines(lines=found),),
        inputs={"data": f"data.{REAL}", **_sources(lines)},
        figures=pictures if seed == 0 else (),
    )


def _export(settings: PointDistillerSettings, zoo: Detectors) -> Convert:
    shipped = _shipped(settings)
    name = settings.student16 if shipped == "alone16" else settings.student
    export = zoo.export(f"{name}, 3D boxes in clouds, {ROWS[shipped]}")
    inputs = {"student": f"{shipped}-0.student", "data": "data.train"}
    return Convert(name="export", convert=export, inputs=inputs)
