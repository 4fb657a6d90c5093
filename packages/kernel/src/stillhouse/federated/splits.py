"""Private data sets out of one labelled data set: pure functions of labels and a seed.

K: rows. C: classes, 0 ... C - 1. A split is a tensor of row numbers a client, in ascending order;
no row goes to two clients. Rows of the transfer set and of the test set are to be taken out before.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from stillhouse.errors import BadData, BadSetting
from stillhouse.objectives.inputs import positive


def dirichlet_split(
    labels: Integer[Tensor, " K"], *, clients: int, size: int, alpha: float, seed: int
) -> tuple[Tensor, ...]:
    """`size` rows a client, classes mixed by a draw from a symmetric Dirichlet distribution.

    As in Hsu et al. 2019 (arXiv 1909.06335), section 3: a client draws its class mix, then its rows
    by it, without replacement. `alpha` > 0 is the concentration of each class: 0.1 gives a client
    one or two classes, 100 all of them. A class that earlier clients have used up is left out of a
    client's mix. Raises BadSetting when the rows do not suffice, BadData for negative labels.
    """
    positive("alpha", alpha)
    _check(len(labels), clients, size)
    rng = np.random.default_rng(seed)
    pools = _pools(labels, rng)
    parts: list[Tensor] = []
    for _ in range(clients):
        mix = rng.dirichlet(np.full(len(pools), alpha))
        counts = _counts(mix, np.array([len(pool) for pool in pools]), size, rng)
        parts.append(_take(pools, counts))
    return tuple(parts)


def grouped_split(
    labels: Integer[Tensor, " K"],
    *,
    groups: Sequence[Sequence[int]],
    members: Sequence[int],
    size: int,
    seed: int,
) -> tuple[Tensor, ...]:
    """`size` rows a client, uniformly from the classes of its group: clients with real neighbours.

    `groups` are sets of classes, `members` the clients of each; clients come group by group.
    Raises BadSetting when the lists do not fit together, share a class, or the rows of a group do
    not suffice.
    """
    if len(groups) != len(members) or not groups or min(members) < 1:
        raise BadSetting(
            f"groups and members must be as long, each member count >= 1 "
            f"(got {len(groups)} groups and members {list(members)})"
        )
    named = [label for group in groups for label in group]
    if len(set(named)) < len(named):
        raise BadSetting(f"groups must not share a class (got {[list(g) for g in groups]})")
    rng = np.random.default_rng(seed)
    parts: list[Tensor] = []
    for group, count in zip(groups, members, strict=True):
        rows = torch.isin(labels, torch.tensor(list(group))).nonzero().flatten()
        if size < 1 or len(rows) < count * size:
            raise BadSetting(
                f"group {list(group)}: {count} clients of {size} rows need {count * size} "
                f"(it has {len(rows)}); size must be >= 1"
            )
        drawn = rows[torch.from_numpy(rng.permutation(len(rows)))][: count * size]
        parts += [part.sort().values for part in drawn.split(size)]
    return tuple(parts)


def label_distribution(labels: Integer[Tensor, " K"], classes: int) -> Float[Tensor, " C"]:
    """The share of each class among `labels`; raises BadData for none, or one outside."""
    if len(labels) == 0 or int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise BadData(f"labels: at least one, each 0 ... {classes - 1}, is needed")
    return torch.bincount(labels, minlength=classes) / len(labels)


def personal_weights(
    labels: Integer[Tensor, " K"], distributions: Float[Tensor, "N C"]
) -> Float[Tensor, "K N"]:
    """What each test row counts for each client: distributions[n, labels[k]] over the number of
    test rows of that class, each column divided by its sum.

    The weighted accuracy is the expected accuracy on a test set of the client's own label
    distribution (ours: the paper does not say how ALMA's test sets are made), from one test set and
    with less noise than a subset would have. A class that the test set lacks counts nothing.
    Raises BadData for a client of which the test set has no class.
    """
    counts = torch.bincount(labels, minlength=distributions.shape[1])
    weights = (distributions / counts.clamp_min(1)).T[labels]
    sums = weights.sum(dim=0)
    if not bool((sums > 0).all()):
        raise BadData(f"the test set has no class of client {int(sums.argmin())}")
    return weights / sums


def _check(rows: int, clients: int, size: int) -> None:
    if clients < 1 or size < 1 or clients * size > rows:
        raise BadSetting(
            f"clients and size must be >= 1 and need clients * size <= rows "
            f"(got {clients} * {size} of {rows} rows)"
        )


def _pools(labels: Tensor, rng: np.random.Generator) -> list[Tensor]:
    """The rows of each class, shuffled."""
    if int(labels.min()) < 0:
        raise BadData(f"labels must be >= 0 (got {int(labels.min())})")
    rows = [(labels == c).nonzero().flatten() for c in range(int(labels.max()) + 1)]
    return [pool[torch.from_numpy(rng.permutation(len(pool)))] for pool in rows]


def _counts(
    mix: npt.NDArray[np.float64],
    left: npt.NDArray[np.int64],
    size: int,
    rng: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """How many rows of each class, at most `left`; draws again for classes that ran out."""
    counts = np.zeros_like(left)
    while (missing := size - int(counts.sum())) > 0:
        open_classes = counts < left
        chances = np.where(open_classes, mix, 0.0)
        if chances.sum() == 0:  # all classes of the mix are used up
            chances = open_classes.astype(float)
        drawn = rng.multinomial(missing, chances / chances.sum())
        counts = np.minimum(counts + drawn, left)
    return counts


def _take(pools: list[Tensor], counts: npt.NDArray[np.int64]) -> Tensor:
    taken = [pool[:count] for pool, count in zip(pools, counts, strict=True)]
    pools[:] = [pool[count:] for pool, count in zip(pools, counts, strict=True)]
    return torch.cat(taken).sort().values
