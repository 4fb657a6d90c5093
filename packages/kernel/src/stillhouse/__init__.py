"""Stillhouse: small models out of large ones, in any domain, reproducibly.

The public names below are imported when they are first used, so that `import stillhouse` is light.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillhouse.artifact import Artifact, Built, Model, load_model, save_model
    from stillhouse.cache import Cache
    from stillhouse.card import Card, Usage
    from stillhouse.data.data import Data, Ragged, TensorData
    from stillhouse.data.datasets import ImagePaths
    from stillhouse.data.sampling import Beside, Mix, NoData
    from stillhouse.data.taking import Take
    from stillhouse.domain import Domain, domains
    from stillhouse.engine import fit
    from stillhouse.errors import StillhouseError
    from stillhouse.export import Export
    from stillhouse.federated.stage import Federate
    from stillhouse.library import Distilled, distill
    from stillhouse.metrics.metric import Metric
    from stillhouse.metrics.scores import Score
    from stillhouse.objectives.objective import (
        Composed,
        Constant,
        Cosine,
        Models,
        Objective,
        Optimizer,
        Phase,
        Schedule,
        Step,
        Tensors,
        Weighted,
    )
    from stillhouse.objectives.term import Term
    from stillhouse.recipe import BaseStage, Bound, Context, Event, Recipe, Result, Scale, Stage
    from stillhouse.runs import Runs, home, project_root, run_recipe, run_stage
    from stillhouse.settings import Settings, make_recipe, make_settings
    from stillhouse.sparse import Sampled, TopK
    from stillhouse.stages.convert import Convert
    from stillhouse.stages.evaluate import Evaluate, Figure
    from stillhouse.stages.make import Make
    from stillhouse.stages.search import Search
    from stillhouse.stages.train import Train
    from stillhouse.training import Augment, Setup

# module -> its public names; the same as above, which is what type checkers read
_NAMES = {
    "artifact": ("Artifact", "Built", "Model", "load_model", "save_model"),
    "cache": ("Cache",),
    "card": ("Card", "Usage"),
    "data.data": ("Data", "Ragged", "TensorData"),
    "data.datasets": ("ImagePaths",),
    "data.sampling": ("Beside", "Mix", "NoData"),
    "data.taking": ("Take",),
    "domain": ("Domain", "domains"),
    "engine": ("fit",),
    "errors": ("StillhouseError",),
    "export": ("Export",),
    "federated.stage": ("Federate",),
    "library": ("Distilled", "distill"),
    "metrics.metric": ("Metric",),
    "metrics.scores": ("Score",),
    "objectives.objective": (
        *("Composed", "Constant", "Cosine", "Models", "Objective", "Optimizer", "Phase"),
        *("Schedule", "Step", "Tensors", "Weighted"),
    ),
    "objectives.term": ("Term",),
    "recipe": ("BaseStage", "Bound", "Context", "Event", "Recipe", "Result", "Scale", "Stage"),
    "runs": ("Runs", "home", "project_root", "run_recipe", "run_stage"),
    "settings": ("Settings", "make_recipe", "make_settings"),
    "sparse": ("Sampled", "TopK"),
    "stages.convert": ("Convert",),
    "stages.evaluate": ("Evaluate", "Figure"),
    "stages.make": ("Make",),
    "stages.search": ("Search",),
    "stages.train": ("Train",),
    "training": ("Augment", "Setup"),
}
_MODULE = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "Artifact", "Augment", "BaseStage", "Beside", "Bound", "Built", "Cache", "Card", "Composed",
    "Constant", "Context", "Convert", "Cosine", "Data", "Distilled", "Domain", "Evaluate", "Event",
    "Export", "Federate", "Figure", "ImagePaths", "Make", "Metric", "Mix", "Model", "Models",
    "NoData", "Objective", "Optimizer", "Phase", "Ragged", "Recipe", "Result", "Runs", "Sampled",
    "Scale", "Schedule", "Score", "Search", "Settings", "Setup", "Stage", "Step",
    "StillhouseError", "Take", "TensorData", "Tensors", "Term", "TopK", "Train", "Usage",
    "Weighted", "distill", "domains", "fit", "home", "load_model", "make_recipe", "make_settings",
    "project_root", "run_recipe", "run_stage", "save_model",
]  # fmt: skip


def __getattr__(name: str) -> Any:  # Any: the public names have no common type
    if name not in _MODULE:
        raise AttributeError(f"module 'stillhouse' has no attribute '{name}'")
    return getattr(importlib.import_module(f"stillhouse.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
