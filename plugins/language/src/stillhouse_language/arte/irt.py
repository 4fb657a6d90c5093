"""Item response theory: which validation items discriminate subjects.

A: subjects, each a model with a number of examples in its prompt. I: items.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Integer, Shaped
from scipy.optimize import minimize
from scipy.special import expit, logit
from torch import Tensor

from stillhouse.errors import BadData, BadSetting

SPREAD = 0.5  # standard deviation of ln discrimination, a priori


@dataclass(frozen=True, kw_only=True)
class TwoParameter:
    """A fitted model P(subject a is right about item i) = sigmoid(alpha_i (theta_a - beta_i)).

    `log_posterior` is that of the estimate, in nats, without the constants of the priors.
    """

    ability: Float[Tensor, " A"]  # theta
    difficulty: Float[Tensor, " I"]  # beta
    discrimination: Float[Tensor, " I"]  # alpha > 0
    log_posterior: float

    def probabilities(self) -> Float[Tensor, "A I"]:
        """P of each subject and item."""
        gap = self.ability[:, None] - self.difficulty
        return torch.sigmoid(self.discrimination * gap)

    def most_discriminating(self, count: int) -> Integer[Tensor, " count"]:
        """The items with the largest alpha, in the items' order; of equal ones the earlier. Raises
        BadSetting for more than there are.
        """
        items = len(self.discrimination)
        if not 1 <= count <= items:
            raise BadSetting(f"items: between 1 and {items} can be chosen (got {count})")
        order = self.discrimination.sort(descending=True, stable=True).indices
        return order[:count].sort().values


def fit_2pl(correct: Shaped[Tensor, "A I"]) -> TwoParameter:
    """Two-parameter logistic model, maximum a posteriori, with priors theta, beta ~ N(0, 1) and
    ln alpha ~ N(0, 0.5^2).

    ARTE (arXiv 2406.19227) says Bayesian inference in its section 3.2 and maximum likelihood in
    appendix E; 20 subjects do not identify the latter. alpha is positive by construction: an item
    that good subjects fail gets a small one, so that it is not chosen. The start is fixed, the
    result is the same every time. Raises BadData for an empty matrix or other values than 0 and 1.
    """
    if 0 in correct.shape:
        raise BadData(f"2PL: no subjects or no items ({list(correct.shape)})")
    right = correct.double().cpu().numpy()
    if not np.isin(right, (0.0, 1.0)).all():
        raise BadData("2PL: answers are right (1) or wrong (0); found others")
    subjects, items = right.shape
    start = np.concatenate(
        [_log_odds(right, 1), -_log_odds(right, 0), np.zeros(items)],
    )

    def lost(x: np.ndarray) -> tuple[float, np.ndarray]:
        return _minus_log_posterior(x, right)

    # "2-point" differences are not needed: the gradient is exact
    found = minimize(lost, start, jac=True, method="L-BFGS-B", options=LIMITS)
    theta, beta, log_alpha = np.split(found.x, [subjects, subjects + items])
    return TwoParameter(
        ability=torch.from_numpy(theta),
        difficulty=torch.from_numpy(beta),
        discrimination=torch.from_numpy(np.exp(log_alpha)),
        log_posterior=-float(found.fun),
    )


LIMITS = {"maxiter": 2000, "maxfun": 20_000, "ftol": 1e-14, "gtol": 1e-9}


def _log_odds(right: np.ndarray, axis: int) -> np.ndarray:
    """Of the shares of right answers, half an answer added on both sides."""
    count = right.shape[axis]
    return logit((right.sum(axis) + 0.5) / (count + 1))


def _minus_log_posterior(x: np.ndarray, right: np.ndarray) -> tuple[float, np.ndarray]:
    """Value and gradient by theta, beta and ln alpha."""
    subjects, items = right.shape
    theta, beta, log_alpha = np.split(x, [subjects, subjects + items])
    alpha = np.exp(log_alpha)
    gap = theta[:, None] - beta
    z = alpha * gap
    # -ln p of what was seen: ln(1 + e^z) - y z
    value = float((np.logaddexp(0.0, z) - right * z).sum())
    value += 0.5 * float((theta**2).sum() + (beta**2).sum() + ((log_alpha / SPREAD) ** 2).sum())
    off = expit(z) - right  # d value / d z
    gradient = np.concatenate(
        [
            (off * alpha).sum(1) + theta,
            -(off * alpha).sum(0) + beta,
            (off * gap * alpha).sum(0) + log_alpha / SPREAD**2,
        ]
    )
    return value, gradient
