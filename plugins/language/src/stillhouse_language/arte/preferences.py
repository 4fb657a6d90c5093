"""What a student prefers, as scores, and the pairs that a teacher is aligned by.

Q: questions. R: rationales of a question. A: items that a draft is tried on.
"""

import math
from typing import Annotated

import torch
from jaxtyping import Float, Integer, Shaped
from torch import Generator, Tensor

from stillhouse.errors import BadData, BadSetting
from stillhouse.objectives import check_declared
from stillhouse.objectives.limits import Range

Count = Annotated[int, Range(least=1)]


def preference_scores(
    correct: Shaped[Tensor, "Q R A"],
) -> tuple[Float[Tensor, "Q R"], Float[Tensor, " Q"]]:
    """The student's preferences for rationales and for questions (ARTE, arXiv 2406.19227, eq. 1 to
    4): the share of the items that it answers rightly with a draft as its one example, and the
    mean of this over a question's rationales. Raises BadData without items, or for values outside
    0 ... 1.
    """
    if 0 in correct.shape:
        raise BadData(f"preference: no drafts or no items (correct is {list(correct.shape)})")
    values = correct.double()
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise BadData("preference: answers are right (1) or wrong (0), or between; found others")
    rationales = values.mean(2).float()
    return rationales, rationales.mean(1)


def quartile_pairs(
    scores: Float[Tensor, " Q"], *, k: Count, rng: Generator
) -> Integer[Tensor, "P 2"]:
    """Pairs of questions, chosen and rejected (ARTE, step 3 and appendix G): `k` of the quarter
    with the highest scores and `k` of that with the lowest, drawn without replacement.

    A quarter is floor(Q / 4) questions; of equal scores the earlier one counts as higher. A pair
    whose scores are equal says nothing and is left out: P <= k. Raises BadSetting where a quarter
    has fewer than `k`, BadData for a score that is not finite.
    """
    check_declared(quartile_pairs, k=k)
    if not bool(scores.isfinite().all()):
        raise BadData("quartile pairs: a score is not finite")
    quarter = len(scores) // 4
    if k > quarter:
        raise BadSetting(
            f"quartile pairs: k must be <= {quarter}, a quarter of {len(scores)} questions "
            f"(got {k}); draft more questions or set fewer pairs"
        )
    order = scores.sort(descending=True, stable=True).indices
    best, worst = order[:quarter], order[len(order) - quarter :]
    chosen = best[torch.randperm(quarter, generator=rng)[:k]]
    rejected = worst[torch.randperm(quarter, generator=rng)[:k]]
    pairs = torch.stack([chosen, rejected], 1)
    return pairs[scores[chosen] > scores[rejected]]


def rationale_pairs(scores: Float[Tensor, "Q R"], *, least: float = 0.0) -> Integer[Tensor, "P 3"]:
    """Question, most and least preferred rationale of each question (ARTE, step 3). Questions
    whose scores differ by nothing, or by less than `least`, are left out; of equal scores the
    first rationale is taken. A rationale whose score is NaN is none of either.
    """
    if not (math.isfinite(least) and least >= 0):
        raise BadSetting(f"rationale pairs: least must be >= 0 (got {least})")
    best = scores.nan_to_num(nan=-torch.inf).max(1)
    worst = scores.nan_to_num(nan=torch.inf).min(1)
    gap = best.values - worst.values
    kept = ((gap > 0) & (gap >= least - 1e-6)).nonzero()[:, 0]
    return torch.stack([kept, best.indices[kept], worst.indices[kept]], 1)
