"""Distillation methods as vision/distill's settings have them."""

from stillhouse.artifact import Model
from stillhouse.objectives.catalogue import distillation_method
from stillhouse.objectives.methods import MethodEntry
from stillhouse_vision.models import channels
from stillhouse_vision.recipes.distill_settings import WARM, Distill

PAPER = (
    "Hinton, Vinyals, Dean 2015, Distilling the knowledge in a neural network (arXiv 1503.02531)"
)


def method_entry(
    settings: Distill, objective: str, *, student: Model, teacher: Model
) -> MethodEntry:
    """The entry of an objective between two models, with the numbers that are set."""
    own = {
        key.partition(".")[2]: v
        for key, v in settings.numbers.items()
        if key.startswith(f"{objective}.")
    }
    shared = {"temperature": settings.temperature} if objective in WARM else {}
    given = (channels(student), channels(teacher), settings.classes, settings.samples)
    return distillation_method(objective)(*given, **(shared | own))
