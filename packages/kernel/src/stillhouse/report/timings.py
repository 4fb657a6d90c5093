"""Which latencies may be compared: two models timed apart differ by what else the machine did."""

from collections.abc import Mapping

from stillhouse.metrics.known import MACS
from stillhouse.metrics.scores import Score
from stillhouse.profile import Latencies
from stillhouse.recipe import Recipe, Stage
from stillhouse.report.collect import Finished
from stillhouse.report.document import Document, Row
from stillhouse.stages.evaluate import Evaluate

TIME = "ms"  # the unit of a latency


def evaluated_model(stage: Stage) -> str:
    """The reference of the model that an evaluation is about: the student, else no teacher."""
    data = getattr(stage, "data_ports", ("data",))
    roles = [port for port in stage.inputs if port not in data]
    role = min(roles, key=lambda port: (port != "student", port == "teacher"), default="")
    return stage.inputs.get(role, "")


def timed_in_turns(
    recipe: Recipe, done: Mapping[str, Finished]
) -> Mapping[str, Mapping[str, float]]:
    """Latencies by title of the row and score, of the first study that times a teacher's row and
    another one in turns; none without such a study.
    """
    titles = {
        evaluated_model(recipe.stage(name)): title
        for title, row in reversed([*recipe.rows.items()])
        for name in row.stages
    }
    teachers = {title for title, row in recipe.rows.items() if row.kind == "teacher"}
    for name in (name for stages in recipe.studies.values() for name in stages):
        stage = recipe.stage(name)
        if isinstance(stage, Evaluate) and name in done:
            found = _of_study(stage, done[name], titles)
            if found.keys() & teachers and found.keys() - teachers:
                return found
    return {}


def _of_study(
    stage: Evaluate, done: Finished, titles: Mapping[str, str]
) -> Mapping[str, Mapping[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for measure in (*stage.metrics, *stage.measures):
        for line, role in measure.lines.items() if isinstance(measure, Latencies) else ():
            title = titles.get(stage.inputs[role])
            values = {
                score.name: done.values[line, score.name]
                for score in measure.scores()
                if (line, score.name) in done.values
            }
            if title is not None and values:
                found.setdefault(title, values)
    return found


def latencies(
    document: Document, row: Row, teacher: Row, score: Score
) -> tuple[float, float] | None:
    """A latency of a row and of its teacher where they may be compared: taken in turns; or apart,
    but in one environment and in the order of their MACs.
    """
    name = score.name
    if name in row.timed and name in teacher.timed:
        return row.timed[name], teacher.timed[name]
    if name not in row.scores or name not in teacher.scores:
        return None
    ours, theirs = row.scores[name].mean, teacher.scores[name].mean
    together = len(_places(document, row, name) | _places(document, teacher, name)) == 1
    return (ours, theirs) if together and _ordered(row, teacher, ours, theirs) else None


def _ordered(row: Row, teacher: Row, ours: float, theirs: float) -> bool:
    """Whether the one that takes more time takes more MACs."""
    if MACS.name not in row.scores or MACS.name not in teacher.scores:
        return False
    more = row.scores[MACS.name].mean > teacher.scores[MACS.name].mean
    return more == (ours > theirs)


def _places(document: Document, row: Row, name: str) -> set[tuple[int, str | None]]:
    """Where a score of a row was measured: environment (-1: no record of it) and device."""
    environments = {
        stage: number for number, one in enumerate(document.environments) for stage in one.stages
    }
    devices = {stage.name: stage.device for stage in document.stages}
    measured = [seed.stage for seed in row.seeds if name in seed.scores]
    return {(environments.get(stage, -1), devices.get(stage)) for stage in measured}
