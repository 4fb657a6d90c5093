"""What vision/diswot finds out about its score: how it ranks trained networks, what it saves."""

from collections.abc import Mapping
from dataclasses import replace

from stillhouse.cache import Cache
from stillhouse.objectives.logits import kd_loss
from stillhouse.objectives.objective import Composed, Weighted
from stillhouse.objectives.supervised import cross_entropy_loss
from stillhouse.objectives.term import Term
from stillhouse.references import Ref, out
from stillhouse.search import Exhaustive, SearchSpace
from stillhouse.search.correlations import RankCorrelations, Scatter
from stillhouse.search.cost import Contest, SearchTime, SearchWork
from stillhouse.search.scores import DisWOT as DisWOTScore
from stillhouse.search.table import ScoreTable
from stillhouse.search.trained import Trained
from stillhouse.stages import Evaluate, Make, Search, Train
from stillhouse_vision.nas_tables import SampleCells
from stillhouse_vision.recipes.diswot_settings import DisWOT
from stillhouse_vision.recipes.teaching import (
    augmentation,
    data_stage,
    image_spec,
    supervised,
    taught,
    teacher_cache,
    train_stage,
)
from stillhouse_vision.reduce import Reduce
from stillhouse_vision.spaces import NasBench201, ResNetDepths

# the losses at initialisation that are cheap and need no equal widths
METHODS = ("kd", "at", "sp", "rkd")
SHOWN = ("diswot", "semantic", "relation", "parameters", "macs", "nwot", "synflow", "zen")
PAPER_EPOCHS, PAPER_IMAGES = 240, 50_000  # the paper's training on CIFAR-100
PAPER_LINE = "training, 240 epochs (computed)"


def studies(
    settings: DisWOT, space: SearchSpace, score: DisWOTScore, teacher: Ref
) -> dict[str, list[Evaluate]]:
    """The calibration networks and their ranking, the cost of a search, and, where settings.nas,
    cells of NAS-Bench-201; nothing where settings.studies is off.
    """
    if not settings.studies:
        return {}
    small = _small_data(settings)
    small["teacher"] = out(_small_teacher(settings, small["data"]))
    found = {
        f"Ranking of {len(_small_space(settings))} trained networks": _calibration(settings, small),
        "Cost of a search, both ways measured": _small_cost(settings, score, small),
        "Cost of a search among this recipe's students": _cost(settings, space, score, teacher),
    }
    if settings.nas:
        title = f"Ranking of {settings.nas} cells of NAS-Bench-201, trained without a teacher"
        found[title] = _nas(settings, teacher)
    return {title: [stage] for title, stage in found.items()}


def distillation(settings: DisWOT) -> Composed:
    """0.1 CE + 0.9 KD, as the authors train."""
    ce = Term(cross_entropy_loss, "student.logits", "batch.labels")
    kd = Term(kd_loss, "student.logits", "teacher.logits", temperature=settings.temperature)
    losses = {
        "ce": Weighted(term=ce, weight=0.1),
        "kd": Weighted(term=kd, weight=0.9),
    }
    return taught(settings, losses)


def _small_data(settings: DisWOT) -> dict[str, Ref]:
    """Small images, some of them held out."""
    reduced = Reduce(
        size=settings.calibration_size,
        train=settings.calibration_train,
        validation=settings.calibration_validation,
    )
    stage = Make(
        name="calibration-data",
        make=reduced,
        inputs={"source": data_stage(settings)["train"]},
        ports=("train", "validation"),
    )
    return {"data": stage["train"], "validation": stage["validation"]}


def _calibration(settings: DisWOT, small: Mapping[str, Ref]) -> Evaluate:
    """Every network of a small space trained once on small images, then scored by each proxy."""
    space = _small_space(settings)
    search = Search(
        name="calibration",
        space=space,
        score=_small_training(settings),
        budget={},
        trials=len(space),
        inputs=small,
        strategy=Exhaustive(),
    )
    inputs = {"trials": search["trials"], "data": small["data"], "teacher": small["teacher"]}
    return _ranking(settings, _table(settings, space), "", inputs)


def _ranking(
    settings: DisWOT, table: ScoreTable, prefix: str, inputs: Mapping[str, str]
) -> Evaluate:
    scored = Make(name=f"{prefix}proxies", make=table, inputs=inputs, ports=("table",))
    return Evaluate(
        name=f"{prefix}ranking",
        metrics=(RankCorrelations(lines=table.lines, resamples=settings.resamples),),
        plots=(Scatter(lines=SHOWN),),
        inputs={"data": out(scored)},
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


def _small_teacher(settings: DisWOT, data: Ref) -> Train:
    spec = _small_space(settings).model({"blocks": settings.calibration_teacher})
    objective = supervised(settings, "teacher", settings.teacher_lr)
    stage = train_stage(
        settings, "calibration-teacher", objective, fresh={"teacher": spec}, data=data
    )
    return replace(stage, steps=settings.calibration_teacher_steps, augment=None)


def _small_training(settings: DisWOT) -> Trained:
    """Without augmentation: one view, whose teacher outputs serve all candidates."""
    objective = distillation(settings)
    return Trained(
        objective=objective,
        steps=settings.calibration_steps,
        batch=settings.batch,
        views=1,
        cache={"teacher": Cache(outputs=objective.outputs_of("teacher"))},
    )


def _small_cost(settings: DisWOT, score: DisWOTScore, small: Mapping[str, Ref]) -> Evaluate:
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
    return _contested("calibration-cost", contest, settings, small["data"], small["teacher"])


def _cost(settings: DisWOT, space: SearchSpace, score: DisWOTScore, teacher: Ref) -> Evaluate:
    """Choosing the student: seconds a step are measured, whole trainings computed from them."""
    objective = distillation(settings)
    trained = Trained(
        objective=objective,
        steps=settings.steps,
        batch=settings.batch,
        augment=augmentation(settings),
        views=settings.views,
        cache=teacher_cache(settings, objective),
    )
    schedules = {f"training, {settings.steps} steps (computed)": settings.steps}
    contest = Contest(
        space=space,
        score=score,
        trained=trained,
        trials=settings.trials,
        schedules={**schedules, PAPER_LINE: _paper_steps(settings)},
    )
    data = data_stage(settings)["train"]
    return _contested("search-cost", contest, settings, data, teacher)


def _paper_steps(settings: DisWOT) -> int:
    """In batches as large as those whose seconds a step are measured."""
    return PAPER_EPOCHS * (PAPER_IMAGES // settings.batch)


def _contested(name: str, contest: Contest, settings: DisWOT, data: Ref, teacher: Ref) -> Evaluate:
    time = SearchTime(contest=contest, candidates=settings.timed, timed_steps=settings.timed_steps)
    return Evaluate(
        name=name,
        metrics=(SearchWork(contest=contest),),
        measures=(time,),
        inputs={"data": data, "teacher": teacher},
    )


def _nas(settings: DisWOT, teacher: Ref) -> Evaluate:
    """Cells of the benchmark, of ten classes of images of 32 pixels as it trained them."""
    space = NasBench201(classes=settings.classes, images=image_spec(settings))
    sample = Make(
        name="nas-sample",
        make=SampleCells(count=settings.nas, classes=settings.classes),
        inputs={"source": settings.nas_table},
        ports=("trials",),
    )
    table = replace(_table(settings, space), batch=settings.nas_batch)
    data = data_stage(settings)["train"]
    inputs = {"trials": out(sample), "data": data, "teacher": teacher}
    return _ranking(settings, table, "nas-", inputs)
