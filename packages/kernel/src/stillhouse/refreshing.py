"""Training data that an objective re-selects while it trains, and the record of what it chose."""

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from stillhouse.data.data import Data, Rows
from stillhouse.errors import BadData, BadRecipe
from stillhouse.metrics.scores import Declared, by_name
from stillhouse.objectives.objective import Describing, Objective, Refreshing
from stillhouse.training import Position
from stillhouse.work import Work

Refresh = dict[str, float]  # a refresh: its step, how many rows it chose, what the objective says


def due(objective: Objective, position: Position) -> bool:
    """Whether the data of this step are still to be chosen."""
    if not isinstance(objective, Refreshing) or position.step % objective.refresh_every:
        return False
    return position.step != position.origin or position.index is None


def choose(
    objective: Objective,
    models: Mapping[str, nn.Module],
    data: Data,
    *,
    step: int,
    work: Work,
) -> Rows:
    """The rows the objective chooses at `step`, every role in eval mode; raises BadData unless they
    are `Rows`, at least one.
    """
    assert isinstance(objective, Refreshing)
    for module in models.values():
        module.eval()
    rows = objective.refresh(models, data, step=step, work=work)
    if not isinstance(rows, Rows) or len(rows) == 0:
        raise BadData(
            f"stage '{work.ctx.stage}': refresh at step {step} must choose Rows of the data, at "
            "least one"
        )
    return rows


def record(objective: Objective, chosen: Data, data: Data, *, step: int, stage: str) -> Refresh:
    """The record of a refresh; raises BadData for a number that is not finite."""
    found: dict[str, Any] = {"step": step, "selected": len(chosen)}  # Any: whole numbers stay whole
    if isinstance(objective, Describing):
        known = by_name(objective.quantities())
        for name, value in objective.describe(chosen, data, step=step).items():
            if not math.isfinite(value):
                raise BadData(f"stage '{stage}': refresh at step {step} gave {name} = {value}")
            if name not in known:
                raise BadRecipe(
                    f"stage '{stage}': {type(objective).__name__} recorded '{name}' of a refresh, "
                    "which it does not declare; add a Score of it to its quantities()"
                )
            found[name] = value
    return found


def declared(objective: Objective) -> Declared:
    """What the numbers of its refreshes are."""
    found = objective.quantities() if isinstance(objective, Describing) else ()
    return Declared(scores=tuple(by_name(found).values()))
