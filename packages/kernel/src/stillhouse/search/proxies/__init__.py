"""Scores of a network that need no training; higher is more promising.

DisWOT's (`diswot_score`), losses of distillation at initialisation (`distillation_score`), and what
both are to be compared with (`COMPARISON`), of which the number of parameters comes first.
"""

from stillhouse.search.proxies.comparison import (
    COMPARISON,
    grad_norm,
    jacov,
    macs,
    nwot,
    parameters,
    snip,
    synflow,
    zen,
)
from stillhouse.search.proxies.distillation import METHODS, Seen, distillation_score, seen
from stillhouse.search.proxies.diswot import (
    Combine,
    Similarities,
    View,
    combined,
    diswot_score,
    relation_distance,
    semantic_distance,
    views,
)
from stillhouse.search.proxies.network import head_gradient

__all__ = [
    "COMPARISON",
    "METHODS",
    "Combine",
    "Seen",
    "Similarities",
    "View",
    "combined",
    "distillation_score",
    "diswot_score",
    "grad_norm",
    "head_gradient",
    "jacov",
    "macs",
    "nwot",
    "parameters",
    "relation_distance",
    "seen",
    "semantic_distance",
    "snip",
    "synflow",
    "views",
    "zen",
]
