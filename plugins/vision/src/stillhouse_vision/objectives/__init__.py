"""The objectives of this plugin's own systems."""

from stillhouse_vision.objectives.alignment import nt_xent, weighted_alignment_loss
from stillhouse_vision.objectives.kd3 import KD3
from stillhouse_vision.objectives.mixing import beta_sample, mix_distribution
from stillhouse_vision.objectives.selection import mixing_weight, select_instances
from stillhouse_vision.objectives.shared import SharedClassifierProjector

__all__ = [
    "KD3",
    "SharedClassifierProjector",
    "beta_sample",
    "mix_distribution",
    "mixing_weight",
    "nt_xent",
    "select_instances",
    "weighted_alignment_loss",
]
