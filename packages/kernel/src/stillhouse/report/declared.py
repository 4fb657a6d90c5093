"""What the scores of a finished stage are: as recorded when it ran, else as the recipe declares
them now, else as their names say.
"""

from collections.abc import Iterable

from stillhouse.metrics.known import guessed
from stillhouse.metrics.scores import Declared, Score
from stillhouse.recipe import Stage
from stillhouse.stages.evaluate import Evaluate


def declared_scores(stage: Stage, recorded: Declared, stored: Iterable[str]) -> Declared:
    """The scores of a stage by the names in its scores.json; without a record a "row/score" is a
    table's.
    """
    metrics = (*stage.metrics, *stage.measures) if isinstance(stage, Evaluate) else ()
    now = {score.name: score for metric in metrics for score in metric.scores()}
    cells = dict(recorded.cells)
    if not recorded.scores:
        cells = {name: _cell(name) for name in stored if "/" in name}
    found: dict[str, Score] = {}
    for name in dict.fromkeys(cells.get(name, ("", name))[1] for name in stored):
        found[name] = recorded.score(name) or now.get(name) or guessed(name)
    return Declared(scores=tuple(found.values()), cells=cells)


def _cell(name: str) -> tuple[str, str]:
    row, _, score = name.rpartition("/")
    return row, score
