"""The objectives of networks of contracts, and fresh networks."""

import torch

from stillhouse.artifact import Model
from stillhouse.objectives import Composed, Cosine, Optimizer, Phase, Term, Weighted
from stillhouse.objectives.groups import Grouping, one_group
from stillhouse_contracts.objectives import (
    binary_kd_loss,
    label_loss,
    pseudo_label_loss,
)

DECAY = 1e-4
CLIP = 5.0  # of the gradient's norm: recurrent parts


def one_update(role: str, lr: float, grouping: Grouping = one_group) -> Phase:
    """One update of a role a step: AdamW, as the reconstruction has it, at a rate that rises for a
    twentieth of the run and falls by half a cosine.
    """
    return Phase(
        trains=(role,),
        optimizer=Optimizer(build=torch.optim.AdamW, lr=lr, kwargs={"weight_decay": DECAY}),
        schedule=Cosine(warmup=0.05),
        clip_norm=CLIP,
        grouping=grouping,
    )


def supervised(
    role: str,
    lr: float,
    *,
    grouping: Grouping = one_group,
    column: str = "labels",
    positive: float = 1.0,
) -> Composed:
    """Cross-entropy to the labels; `positive` is the weight of functions that have a type."""
    term = Term(label_loss, f"{role}.logits", f"batch.{column}", positive=positive)
    losses = {"label": Weighted(term=term)}
    return Composed(phases={role: one_update(role, lr, grouping)}, losses=losses)


def distilled(lr: float, *, alpha: float, temperature: float, positive: float = 1.0) -> Composed:
    """alpha T² KL to the teacher and (1 - alpha) cross-entropy to the labels."""
    kd = Term(binary_kd_loss, "student.logits", "teacher.logits", temperature=temperature)
    label = Term(label_loss, "student.logits", "batch.labels", positive=positive)
    losses = {
        "kd": Weighted(term=kd, weight=alpha),
        "label": Weighted(term=label, weight=1 - alpha),
    }
    return Composed(phases={"student": one_update("student", lr)}, losses=losses)


def taught(lr: float, *, alpha: float, temperature: float) -> Composed:
    """The same without labels: cross-entropy to what the teacher decides."""
    kd = Term(binary_kd_loss, "student.logits", "teacher.logits", temperature=temperature)
    pseudo = Term(pseudo_label_loss, "student.logits", "teacher.logits")
    losses = {
        "kd": Weighted(term=kd, weight=alpha),
        "label": Weighted(term=pseudo, weight=1 - alpha),
    }
    return Composed(phases={"student": one_update("student", lr)}, losses=losses)


def drawn(spec: Model, seed: int) -> torch.nn.Module:
    """A network with fresh weights of a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return spec.new()
