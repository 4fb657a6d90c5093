"""What vision/diswot finds out about its score: how it ranks trained networks, what it saves."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from stillhouse.cache import Cache
from stillhouse.objectives.logits import KD
from stillhouse.objectives.objective import Composed, Weighted
from stillhouse.objectives.supervised import CrossEntropy
from stillhouse.recipe import Stage
from stillhouse.search import Exhaustive, SearchSpace
from stillhouse.search.correlations import RankCorrelations, Scatter
from stillhouse.search.cost import Contest, SearchTime, SearchWork
from stillhouse.search.scores import DisWOT as DisWOTScore
from stillhouse.search.table import ScoreTable
from stillhouse.search.trained import Trained
from stillhouse.stages import Evaluate, Make, Search, Train
from stillhouse_vision.models import ImageSpec
from stillhouse_vision.nas_tables import SampleCells
from stillhouse_vision.recipes.diswot_settings import DisWOT
from stillhouse_vision.recipes.teaching import (
    augmentation,
    image_spec,
    phase,
    supervised,
    train_stage,
)
from stillhouse_vision.reduce import Reduce
from stillhouse_vision.spaces import NasBench201, ResNetDepths

# the losses at initialisation that are cheap and ask for no equal widths
METHODS = ("kd", "at", "sp", "rkd")
SHOWN = ("diswot", "semantic", "relation", "parameters", "macs", "nwot", "synflow", "zen")
PAPER_EPOCHS, PAPER_PICTURES = 240, 50_000  # the paper's training on CIFAR-100
PAPER_LINE = "training, 240 epochs (computed)"
STORED: Mapping[str, Cache] = {"teacher": Cache(outputs=("logits",))}


@dataclass(frozen=True, kw_only=True)
class Studies:
    """Stages, and which of them each heading of the report shows."""

    stages: tuple[Stage, ...]
    titles: Mapping[str, tuple[str, ...]]


def study_stages(settings: DisWOT, space: SearchSpace, score: DisWOTScore, teacher: str) -> Studies:
    """The calibration networks and their ranking, the cost of a search, and, where settings.nas,
    cells of NAS-Bench-201; nothing where settings.studies is off.
    """
    if not settings.studies:
        return Studies(stages=(), titles={})
    calibration = _calibration(settings)
    costs = _small_cost(settings, score), _cost(settings, space, score, teacher)
    titles = {
        f"Ranking of {_count(settings)} trained networks": ("ranking",),
        "Cost of a search, both ways measured": ("calibration-cost",),
        "Cost of a search among this recipe's students": ("search-cost",),
    }
    if not settings.nas:
        return Studies(stages=(*calibration, *costs), titles=titles)
    return Studies(
        stages=(*calibration, *costs, *_nas(settings, teacher)),
        titles={
            **titles,
            f"Ranking of {settings.nas} cells of NAS-Bench-201, trained without a teacher": (
                "nas-ranking",
            ),
        },
    )


def distillation(settings: DisWOT) -> Composed:
    """0.1 CE + 0.9 KD, as the authors train."""
    kd = KD(temperature=settings.temperature)
    return Composed(
        phases={"student": phase(settings, ("student",), settings.lr)},
        roles=("teacher", "student"),
        losses={
            "ce": Weighted(term=CrossEntropy(), weight=0.1),
            "kd": Weighted(term=kd, weight=0.9),
        },
    )


def _calibration(settings: DisWOT) -> tuple[Stage, ...]:
    """Every network of a small space trained once on small pictures, then scored by each proxy."""
    space = _small_space(settings)
    reduced = Reduce(
        size=settings.calibration_size,
        train=settings.calibration_train,
        validation=settings.calibration_validation,
    )
    search = Search(
        name="calibration",
        space=space,
        score=_small_training(settings),
        budget={},
        trials=len(space),
        inputs={
            "data": "calibration-data.train",
            "validation": "calibration-data.validation",
            "teacher": "calibration-teacher.teacher",
        },
        strategy=Exhaustive(),
    )
    return (
        Make(
            name="calibration-data",
            make=reduced,
            inputs={"source": "data.train"},
            ports=("train", "validation"),
        ),
        _small_teacher(settings),
        search,
        *_ranking(
            settings,
            _table(settings, space),
            ("proxies", "ranking"),
            trials="calibration.trials",
            data="calibration-data.train",
            teacher="calibration-teacher.teacher",
        ),
    )


def _ranking(
    settings: DisWOT,
    table: ScoreTable,
    names: tuple[str, str],
    *,
    trials: str,
    data: str,
    teacher: str,
) -> tuple[Stage, Stage]:
    scored, ranked = names
    return (
        Make(
            name=scored,
            make=table,
            inputs={"trials": trials, "data": data, "teacher": teacher},
            ports=("table",),
        ),
        Evaluate(
            name=ranked,
            metrics=(RankCorrelations(lines=table.lines, resamples=settings.resamples),),
            plots=(Scatter(lines=SHOWN),),
            inputs={"data": f"{scored}.table"},
        ),
    )


def _table(settings: DisWOT, space: SearchSpace) -> ScoreTable:
    return ScoreTable(
        space=space, methods=METHODS, batch=settings.score_batch, inits=settings.inits
    )


def _small_space(settings: DisWOT) -> ResNetDepths:
    return ResNetDepths(
        choices=settings.calibration_depths,
        widths=settings.calibration_widths,
        classes=settings.classes,
        images=replace(image_spec(settings), size=settings.calibration_size),
    )


def _small_teacher(settings: DisWOT) -> Train:
    spec = _small_space(settings).model({"blocks": settings.calibration_teacher})
    stage = train_stage(
        settings,
        "calibration-teacher",
        supervised(settings, "teacher", settings.teacher_lr),
        fresh={"teacher": spec},
        steps=settings.calibration_teacher_steps,
        data="calibration-data.train",
    )
    return replace(stage, augment=None)


def _small_training(settings: DisWOT) -> Trained:
    """Without augmentation: one view, whose teacher outputs serve all candidates."""
    return Trained(
        objective=distillation(settings),
        steps=settings.calibration_steps,
        batch=settings.batch,
        views=1,
        cache=STORED,
    )


def _small_cost(settings: DisWOT, score: DisWOTScore) -> Evaluate:
    """Both ways of choosing a calibration network, each measured from end to end."""
    line = f"training, {settings.calibration_steps} steps (measured)"
    contest = Contest(
        space=_small_space(settings),
        score=score,
        trained=_small_training(settings),
        trials=len(_small_space(settings)),
        schedules={line: settings.calibration_steps, PAPER_LINE: _paper_steps(settings)},
        whole=line,
    )
    inputs = {"data": "calibration-data.train", "teacher": "calibration-teacher.teacher"}
    return _contested("calibration-cost", contest, settings, inputs)


def _cost(settings: DisWOT, space: SearchSpace, score: DisWOTScore, teacher: str) -> Evaluate:
    """Choosing the student: seconds a step are measured, whole trainings computed from them."""
    trained = Trained(
        objective=distillation(settings),
        steps=settings.steps,
        batch=settings.batch,
        augment=augmentation(settings),
        views=settings.views,
        cache=STORED if settings.cache else {},
    )
    schedules = {f"training, {settings.steps} steps (computed)": settings.steps}
    contest = Contest(
        space=space,
        score=score,
        trained=trained,
        trials=settings.trials,
        schedules={**schedules, PAPER_LINE: _paper_steps(settings)},
    )
    return _contested("search-cost", contest, settings, {"data": "data.train", "teacher": teacher})


def _paper_steps(settings: DisWOT) -> int:
    """In batches as large as those whose seconds a step are measured."""
    return PAPER_EPOCHS * (PAPER_PICTURES // settings.batch)


def _contested(
    name: str, contest: Contest, settings: DisWOT, inputs: Mapping[str, str]
) -> Evaluate:
    time = SearchTime(contest=contest, candidates=settings.timed, timed_steps=settings.timed_steps)
    return Evaluate(
        name=name, metrics=(SearchWork(contest=contest),), measures=(time,), inputs=inputs
    )


def _nas(settings: DisWOT, teacher: str) -> tuple[Stage, ...]:
    """Cells of the benchmark, of ten classes of pictures of 32 pixels as it trained them."""
    images: ImageSpec = image_spec(settings)
    space = NasBench201(classes=settings.classes, images=images)
    sample = Make(
        name="nas-sample",
        make=SampleCells(count=settings.nas, classes=settings.classes),
        inputs={"source": settings.nas_table},
        ports=("trials",),
    )
    return (
        sample,
        *_ranking(
            settings,
            replace(_table(settings, space), batch=settings.nas_batch),
            ("nas-proxies", "nas-ranking"),
            trials="nas-sample.trials",
            data="data.train",
            teacher=teacher,
        ),
    )


def _count(settings: DisWOT) -> int:
    return len(_small_space(settings))
