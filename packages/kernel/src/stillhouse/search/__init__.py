"""Search of architectures: spaces, strategies, and scores that need no training."""

from stillhouse.search.evolution import AgingEvolution, Exhaustive, RandomSearch
from stillhouse.search.slices import Slice
from stillhouse.search.space import Encoding, Listed, SearchSpace, Strategy, Trial

__all__ = [
    "AgingEvolution",
    "Encoding",
    "Exhaustive",
    "Listed",
    "RandomSearch",
    "SearchSpace",
    "Slice",
    "Strategy",
    "Trial",
]
