"""The five stage kinds."""

from stillhouse.search.evolution import RandomSearch
from stillhouse.search.space import SearchSpace
from stillhouse.stages.convert import Convert
from stillhouse.stages.evaluate import Evaluate
from stillhouse.stages.make import Make
from stillhouse.stages.search import Search
from stillhouse.stages.train import Train

__all__ = ["Convert", "Evaluate", "Make", "RandomSearch", "Search", "SearchSpace", "Train"]
