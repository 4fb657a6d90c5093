"""The five stage kinds."""

from stillhouse.stages.convert import Convert
from stillhouse.stages.evaluate import Evaluate
from stillhouse.stages.make import Make
from stillhouse.stages.search import RandomSearch, Search, SearchSpace
from stillhouse.stages.train import Train

__all__ = ["Convert", "Evaluate", "Make", "RandomSearch", "Search", "SearchSpace", "Train"]
