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
from stillhouse_pointcloud.converts import ExportDetector, LoadDetector
from stillhouse_pointcloud.data import ReadKitti
from stillhouse_pointcloud.detectors import Detection, model
from stillhouse_pointcloud.distilled import LAYERS, PILLARS, GraphRole, GraphState
from stillhouse_pointcloud.figures import BirdsEye, ChosenPoints
from stillhouse_pointcloud.metrics import KittiAp
from stillhouse_pointcloud.mixed import ReadMixed
from stillhouse_pointcloud.recipes.pointdistiller_notes import MIXED, NOTES, PAPER
from stillhouse_pointcloud.recipes.pointdistiller_settings import (
    BASELINE,
    GRAPHS,
    PointDistillerSettings,
    Student,
    width,
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
PORTS = ("train", "validation", "test")
BUILTIN = "builtin:"
MARGIN = 2.0  # metres between the last rendered object and the end of the grid


def pointdistiller(settings: PointDistillerSettings) -> Recipe:
    """Zhang et al. 2023 (CVPR, arXiv 2205.11098): a student learns the teacher's local graphs at
    the pillars that hold the most points.

    Claim: a PointPillars of a quarter of the size is as accurate as its teacher by local graphs and
    reweighting together, and more so than by comparing features. Controls: the student alone,
    FitNets, AT, and either part alone. Command: `stillhouse run pointcloud/pointdistiller --scale
    tiny|small|paper`. Scores are those of the last step; nothing is picked on the test frames.

    tiny: drawn scenes, detectors of 8 and 4 channels. small: rendered scenes and the 13 training
    frames of kitti-mini, 35 m, 32 and 16 channels, 3 seeds. paper: KITTI of your own (`--set
    data=file:<folder>`), 64, 32 and 16 channels.
    """
    teacher = _teacher(settings)
    ref = f"teacher.{teacher.outputs[0]}"
    students = [_student(settings, s, ref, i) for s in settings.students for i in _seeds(settings)]
    return Recipe(
        name="pointcloud/pointdistiller",
        reference=PAPER,
        stages=(
            _data(settings),
            teacher,
            *students,
            *_scores(settings, ref, students),
            *_studies(settings, ref),
            _export(settings),
        ),
        rows={"teacher": ("teacher-scores",)}
        | {
            ROWS[s]: tuple(f"{s}-{seed}-scores" for seed in _seeds(settings))
            for s in settings.students
        },
        baseline=ROWS[BASELINE],
        notes=(*NOTES, *MIXED) if settings.scenes else NOTES,
        studies=_study_titles(settings),
    )


def _seeds(settings: PointDistillerSettings) -> range:
    return range(settings.seeds)


def _shipped(settings: PointDistillerSettings) -> Student:
    """The student that is exported: that of the whole method, where it is among them."""
    return max(settings.students, key=tuple(ROWS).index)


def _detector(settings: PointDistillerSettings, name: str) -> Model:
    return model(name, grid=settings.grid(), layers=settings.layers, momentum=settings.momentum)


def _data(settings: PointDistillerSettings) -> Make:
    read = ReadKitti(validation=settings.validation)
    source = {"source": settings.data}
    if not settings.scenes:
        return Make(name="data", make=settings.spared(read), inputs=source, ports=PORTS)
    mixed = ReadMixed(
        read=read,
        scenes=settings.scenes,
        held_out=settings.held_out,
        copies=settings.copies,
        lidar=Lidar(beams=settings.beams),
        street=Street(far=min(Street().far, settings.x[1] - MARGIN)),
    )
    return Make(name="data", make=settings.spared(mixed), inputs=source, ports=(*PORTS, "real"))


def _teacher(settings: PointDistillerSettings) -> Train | Convert:
    """Trained here; or given."""
    spec = _detector(settings, settings.teacher_model)
    if settings.teacher:
        inputs = {"checkpoint": settings.teacher}
        return Convert(name="teacher", convert=LoadDetector(model=spec), inputs=inputs)
    objective = Detection(
        phases={"teacher": _phase(settings, ("teacher",), settings.teacher_lr)},
        grid=settings.grid(),
        student="teacher",
        roles=("teacher",),
    )
    return _train(settings, "teacher", objective, {"teacher": spec}, settings.teacher_steps)


@dataclass(frozen=True, kw_only=True)
class _Lesson:
    """What a student learns from beside the labels: losses, and a role that is trained with it."""

    losses: Mapping[str, Weighted] = field(default_factory=dict[str, Weighted])
    helpers: Mapping[str, Model] = field(default_factory=dict[str, Model])
    feeds: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])


def _lesson(settings: PointDistillerSettings, name: Student) -> _Lesson:
    match name:
        case "alone" | "alone16":
            return _Lesson()
        case "fitnets":
            return _fitnets(settings)
        case "at":
            maps = (settings.hint,)
            term = AttentionTransfer(student_outputs=maps, teacher_outputs=maps)
            return _Lesson(losses={"at": Weighted(term=term, weight=settings.at_weight)})
        case "local" | "reweight" | "both":
            kwargs = {"graphs": settings.graphs(name), "output": settings.layer}
            return _Lesson(
                losses={"graphs": settings.graph_loss(name)},
                helpers={"graphs": Model(build=GraphRole, kwargs=kwargs)},
                feeds={"graphs": ("teacher", "student")},
            )


def _fitnets(settings: PointDistillerSettings) -> _Lesson:
    """The teacher's map through a regressor of the student's, which ends, as it does, in a ReLU."""
    maps, times = (settings.hint,), LAYERS[settings.hint]
    kwargs = {
        "inputs": [f"student.{settings.hint}"],
        "channels": [times * width(settings.student)],
        "targets": [times * width(settings.teacher_model)],
        "relu": True,
    }
    term = Hint(student="regressor", student_outputs=maps, teacher_outputs=maps)
    return _Lesson(
        losses={"hint": Weighted(term=term, weight=settings.hint_weight)},
        helpers={"regressor": Model(build=ConvProjector, kwargs=kwargs)},
        feeds={"regressor": ("student",)},
    )


def _student(settings: PointDistillerSettings, name: Student, teacher: str, seed: int) -> Train:
    """First weights and batches are those of its seed, whatever it learns from."""
    lesson = _lesson(settings, name)
    asked = {"teacher": teacher} if lesson.losses else {}
    objective = Detection(
        phases={"student": _phase(settings, ("student", *lesson.helpers), settings.lr)},
        grid=settings.grid(),
        roles=(*asked, "student", *lesson.helpers),
        losses=lesson.losses,
        feeds=lesson.feeds,
    )
    detector = settings.student16 if name == "alone16" else settings.student
    fresh = {"student": _detector(settings, detector), **lesson.helpers}
    return _train(settings, f"{name}-{seed}", objective, fresh, settings.steps, asked, seed)


def _train(
    settings: PointDistillerSettings,
    name: str,
    objective: Detection,
    fresh: Mapping[str, Model],
    steps: int,
    roles: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Train:
    return Train(
        name=name,
        objective=objective,
        inputs={"data": "data.train", **(roles or {})},
        fresh=fresh,
        steps=steps,
        batch=settings.batch,
        seed=seed,
        augment=settings.augment(),
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


def _scores(
    settings: PointDistillerSettings, teacher: str, students: list[Train]
) -> list[Evaluate]:
    detectors = {"teacher": teacher} | {s.name: f"{s.name}.student" for s in students}
    return [
        Evaluate(
            name=f"{name}-scores",
            metrics=(_ap(settings, "student"), Profile()),
            inputs={"data": _scored(settings), "student": ref},
            # one seed a row is timed: the others have the same layers
            measures=(Latency(batches=(1,)), Memory(batch=1))
            if name == "teacher" or name.endswith("-0")
            else (),
        )
        for name, ref in detectors.items()
    ]


def _ap(settings: PointDistillerSettings, role: str, sampling: str = "kitti") -> KittiAp:
    return KittiAp(role=role, overlaps=settings.overlaps, sampling=sampling, within=settings.grid())


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


def _studies(settings: PointDistillerSettings, teacher: str) -> list[Stage]:
    stages: list[Stage] = [_pictures(settings, teacher)]
    if _distilled(settings):
        stages.append(_encoders(settings, teacher))
    if settings.scenes:
        stages += [_real(settings, teacher, seed) for seed in _seeds(settings)]
    return stages


def _shown(settings: PointDistillerSettings) -> dict[str, str]:
    ends = dict.fromkeys((BASELINE, _shipped(settings)))
    return {"teacher": "teacher"} | {ROWS[s]: f"student-{s}" for s in ends}


def _drawn_here(settings: PointDistillerSettings) -> bool:
    """Whether the frames that score are rendered, so that anyone may publish their pictures."""
    return settings.scenes > 0 or settings.data.startswith(BUILTIN)


def _pictures(settings: PointDistillerSettings, teacher: str) -> Evaluate:
    lines = _lines(settings, teacher, 0)
    pictures: tuple[BirdsEye] = (BirdsEye(lines=_shown(settings)),)
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


def _encoders(settings: PointDistillerSettings, teacher: str) -> Evaluate:
    """Whether the encoders have collapsed; and what the loss chooses."""
    distilled = _distilled(settings)
    roles = {"teacher": teacher}
    for s in distilled:
        roles |= {f"student-{s}": f"{s}-0.student", f"graphs-{s}": f"{s}-0.graphs"}
    states = {ROWS[s]: GraphState(student=f"student-{s}", graphs=f"graphs-{s}") for s in distilled}
    last = distilled[-1]
    chosen = ChosenPoints(student=f"student-{last}", graphs=f"graphs-{last}")
    pictures = (chosen,) if settings.layer == PILLARS else ()
    free = _drawn_here(settings) and settings.scored_on == "test"
    return Evaluate(
        name="encoders",
        metrics=(Lines(lines=states),),
        inputs={"data": _scored(settings), **roles},
        figures=() if free else pictures,
        plots=pictures if free else (),
    )


def _real(settings: PointDistillerSettings, teacher: str, seed: int) -> Evaluate:
    """The real test frames, whose pictures a published report leaves out (CC BY-NC-SA)."""
    lines = _lines(settings, teacher, seed)
    found = {line: _ap(settings, role, "exact") for line, (role, _) in lines.items()}
    pictures = (BirdsEye(lines=_shown(settings), name="real-birds-eye"),)
    return Evaluate(
        name=f"real-{seed}",
        metrics=(Lines(lines=found),),
        inputs={"data": "data.real", **_sources(lines)},
        figures=pictures if seed == 0 else (),
    )


def _export(settings: PointDistillerSettings) -> Convert:
    shipped = _shipped(settings)
    name = settings.student16 if shipped == "alone16" else settings.student
    export = ExportDetector(title=f"{name}, 3D boxes in clouds, {ROWS[shipped]}", paper=PAPER)
    inputs = {"student": f"{shipped}-0.student", "data": "data.train"}
    return Convert(name="export", convert=export, inputs=inputs)
