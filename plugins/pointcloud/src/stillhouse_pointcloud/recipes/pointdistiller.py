"""pointcloud/pointdistiller: a small pillar detector from a large one's local graphs."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from stillhouse.artifact import Model
from stillhouse.comparison import Comparison, Scores, seeded
from stillhouse.metrics import Latency, Memory, Profile
from stillhouse.objectives.features import at_loss, hint_loss
from stillhouse.objectives.objective import Composed, Cosine, Objective, Optimizer, Phase, Weighted
from stillhouse.objectives.projectors import ConvProjector
from stillhouse.objectives.term import Term
from stillhouse.recipe import Recipe, Stage
from stillhouse.references import Ref, out
from stillhouse.stages import Convert, Make, Train
from stillhouse_pointcloud.camera_images import WithCameraImages
from stillhouse_pointcloud.data import ReadKitti
from stillhouse_pointcloud.distilled import FreshDetector, GraphRole, graph_feeds
from stillhouse_pointcloud.mixed import ReadMixed
from stillhouse_pointcloud.recipes.pointdistiller_detectors import Detectors, Help, detectors_of
from stillhouse_pointcloud.recipes.pointdistiller_notes import FEW, MIXED, NOTES, PAPER
from stillhouse_pointcloud.recipes.pointdistiller_scores import (
    BUILTIN,
    CEILED,
    REAL,
    ROWS,
    ap,
    graph_roles,
    last_distilled,
    studies,
)
from stillhouse_pointcloud.recipes.pointdistiller_settings import (
    BASELINE,
    PointDistillerSettings,
    Student,
)
from stillhouse_pointcloud.samples import Lidar, Street
from stillhouse_pointcloud.tried import TriedDetector

PORTS = ("train", "validation", "test")
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
    as `--set data=file:<folder>`, 64, 32 and 16 channels.

    Detectors are ours ("pillars-<width>") or mmdetection3d's by name or configuration ("/4" behind
    it: 4 times smaller), as in `--set teacher_model=pointpillars-kitti --set
    student=pointpillars-kitti/4 --set student16=pointpillars-kitti/16`.
    """
    family = detectors_of(settings)
    data = _data(settings, family)
    teacher = _teacher(settings, family, data["train"])
    students = {
        name: seeded(_student(settings, family, name, data["train"], out(teacher)), settings.seeds)
        for name in settings.students
    }
    # that of the whole method, where it is among them
    exported = max(settings.students, key=tuple(ROWS).index)
    made = Comparison(
        teachers={"teacher": teacher},
        students=students,
        titles=ROWS,
        baseline=BASELINE,
        exported=exported,
        scores=Scores(
            metrics=(ap(settings, family, "student"), Profile()),
            inputs={"data": data[settings.scored_on]},
            measures=(Latency(batches=(1,)), Memory(batch=1)),
        ),
    )
    detector = settings.student16 if exported == "alone16" else settings.student
    title = f"{detector}, 3D boxes in clouds, {made.title(exported)}"
    inputs = {"data": data["train"]}
    return made.recipe(
        name="pointcloud/pointdistiller",
        reference=PAPER,
        export=Convert(name="export", convert=family.export(title), inputs=inputs),
        studies=studies(
            settings,
            family,
            made,
            alone=_alone(settings, family, inputs["data"], out(teacher)),
            real=data[REAL] if settings.scenes else None,
        ),
        ceiling=CEILED,
        notes=(*NOTES, *family.notes, *_about(settings)),
    )


def _about(settings: PointDistillerSettings) -> tuple[str, ...]:
    """Notes on the frames that score."""
    if settings.scenes:
        return MIXED
    return FEW if settings.data.startswith(BUILTIN) else ()


def _data(settings: PointDistillerSettings, family: Detectors) -> Make:
    """The frames; KITTI's test frames with some of their images."""
    read = ReadKitti(validation=settings.validation)
    make = _mixed(settings, family, read) if settings.scenes else read
    ports = (*PORTS, REAL) if settings.scenes else PORTS
    make = settings.with_samples(make)
    if not settings.data.startswith(BUILTIN):
        make = WithCameraImages(make=make, port=REAL if settings.scenes else "test")
    return Make(name="data", make=make, inputs={"source": settings.data}, ports=ports)


def _mixed(settings: PointDistillerSettings, family: Detectors, read: ReadKitti) -> ReadMixed:
    return ReadMixed(
        read=read,
        scenes=settings.scenes,
        held_out=settings.held_out,
        copies=settings.copies,
        lidar=Lidar(beams=settings.beams),
        street=Street(far=min(Street().far, family.area.x[1] - MARGIN))
        if family.area
        else Street(),
    )


def _teacher(settings: PointDistillerSettings, family: Detectors, data: Ref) -> Stage:
    """Trained here; or given."""
    if settings.teacher:
        tried = {"data": data} if settings.check_teacher else {}
        load = TriedDetector(
            load=family.load(),
            classes=family.classes,
            overlaps=settings.overlaps,
            within=family.area,
        )
        inputs = {"checkpoint": settings.teacher, **tried}
        return Convert(name="teacher", convert=load, inputs=inputs)
    phase = _phase(settings, ("teacher",), settings.teacher_lr)
    fresh = {"teacher": family.model(settings.teacher_model)}
    objective = family.objective(phase, "teacher", Help())
    train = _train(settings, family, "teacher", objective, fresh, {"data": data})
    return replace(train, steps=settings.teacher_steps)


def _help(settings: PointDistillerSettings, family: Detectors, name: Student) -> Help:
    match name:
        case "alone" | "alone16":
            return Help()
        case "fitnets":
            return _fitnets(settings, family)
        case "at":
            term = Term(at_loss, f"student.{family.hint}", f"teacher.{family.hint}")
            return Help(losses={"at": Weighted(term=term, weight=settings.at_weight)})
        case "local" | "reweight" | "both":
            return _graphs(settings, family, name)


def _graphs(settings: PointDistillerSettings, family: Detectors, name: Student) -> Help:
    """A loss, and its encoders, of each of the distilled outputs."""
    roles = graph_roles(family)
    helpers: dict[str, Model] = {}
    for role, output in roles.items():
        channels = _channels(settings, family, output)
        kwargs = {"graphs": settings.graphs(name, output, channels), "output": output}
        helpers[role] = Model(build=GraphRole, kwargs=kwargs)
    return Help(
        losses={role: settings.graph_loss(name, output, role) for role, output in roles.items()},
        helpers=helpers,
        feeds={role: graph_feeds(output) for role, output in roles.items()},
    )


def _channels(settings: PointDistillerSettings, family: Detectors, output: str) -> tuple[int, int]:
    """The teacher's, and the student's."""
    return family.channels(settings.teacher_model, output), family.channels(
        settings.student, output
    )


def _fitnets(settings: PointDistillerSettings, family: Detectors) -> Help:
    """The teacher's map through a regressor of the student's, which ends, as it does, in a ReLU."""
    source, (target, channels) = f"student.{family.hint}", _channels(settings, family, family.hint)
    kwargs = {
        "inputs": [source],
        "channels": [channels],
        "targets": [target],
        "relu": True,
    }
    term = Term(hint_loss, f"regressor.{family.hint}", f"teacher.{family.hint}")
    return Help(
        losses={"hint": Weighted(term=term, weight=settings.hint_weight)},
        helpers={"regressor": Model(build=ConvProjector, kwargs=kwargs)},
        feeds={"regressor": (source,)},
    )


def _student(
    settings: PointDistillerSettings, family: Detectors, name: Student, data: Ref, teacher: Ref
) -> Train:
    """First weights and batches are those of its seed, whatever it learns from."""
    given = _help(settings, family, name)
    detector = settings.student16 if name == "alone16" else settings.student
    fresh = {"student": family.model(detector), **given.helpers}
    objective = family.objective(_phase(settings, tuple(fresh), settings.lr), "student", given)
    roles = {"teacher": teacher} if given.losses else {}
    return _train(settings, family, name, objective, fresh, {"data": data, **roles})


def _alone(
    settings: PointDistillerSettings, family: Detectors, data: Ref, teacher: Ref
) -> Train | None:
    """How far the encoders of the exported student's loss lower it alone: trained as long and on
    the same batches while both detectors stay as they are, the student at its first weights.
    """
    name = last_distilled(settings)
    if name is None:
        return None
    given = _help(settings, family, name)
    fresh = FreshDetector(model=family.model(settings.student), seed=0)
    first = Convert(name="first-student", convert=fresh, inputs={})
    objective = Composed(
        phases={"encoders": _phase(settings, tuple(given.helpers), settings.lr)},
        losses=given.losses,
        feeds=given.feeds,
    )
    roles = {"teacher": teacher, "student": out(first)}
    return _train(
        settings, family, "encoders-alone", objective, given.helpers, {"data": data, **roles}
    )


def _train(
    settings: PointDistillerSettings,
    family: Detectors,
    name: str,
    objective: Objective,
    fresh: Mapping[str, Model],
    inputs: Mapping[str, Ref],
) -> Train:
    return Train(
        name=name,
        objective=objective,
        inputs=inputs,
        fresh=fresh,
        steps=settings.steps,
        batch=settings.batch,
        augment=settings.augment(family.limits),
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
