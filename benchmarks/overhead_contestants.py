"""A contestant of overhead.py in its own process: `overhead_contestants.py NAME STEPS DTYPE`.

Each trains the same student from the same teacher on the same batches with the same formula, in the
way its own documentation shows, without its metric logging. What had to be set away from a peer's
defaults for the same formula is in `CHANGED`.
"""

import math
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import overhead_core as core
import torch
from rounds import Feed, Passes, State
from torch import Tensor, nn

CHANGED: Mapping[str, str] = {
    "bare": "",
    "stillhouse": "",
    "torchdistill": (
        "teacher put into eval mode by hand (it stays in train mode by default, so that its "
        "BatchNorm drifts) and requires_grad: False (its default trains the teacher too)"
    ),
    "modelopt": (
        "reduction='batchmean' (its default 'mean' divides by the classes too); T^2 is its own; "
        "StaticLossBalancer(0.9) for 0.1 CE; needs `requests`, which it does not declare"
    ),
}
PACKAGES = {"torchdistill": "torchdistill", "modelopt": "nvidia-modelopt"}


class Rolled(core.Net):
    """The same network as a role: named tensors in, named tensors out."""

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"logits": super().forward(batch["images"])}


def rolled(net: nn.Module, role: str) -> nn.Module:
    found = Rolled(core.WIDTHS[role])
    found.load_state_dict(net.state_dict())
    return found


def state(student: nn.Module) -> State:
    """The student's weights so far, and its loss on the first batch: the same for all."""
    teacher, net = core.networks()
    net.load_state_dict(student.state_dict())
    weights = torch.cat([value.flatten().double() for value in net.state_dict().values()])
    images, labels = core.batches()[0]
    with torch.no_grad():
        loss = core.formula(net(images), teacher(images), labels)
    return {"loss": float(loss), "weights": weights.tolist(), "environment": _environment()}


def _environment() -> dict[str, Any]:  # Any: JSON
    import importlib.metadata

    from stillhouse.environment import environment

    found = dict(environment("cpu"))
    found["packages"] = found["packages"] | {
        name: importlib.metadata.version(name) for name in PACKAGES.values()
    }
    return found


def bare(_steps: int) -> None:
    teacher, student = core.networks()
    feed = Feed(core.batches(), time.process_time, lambda: state(student))
    core.train_bare(feed, teacher, student)


def stillhouse(steps: int) -> None:
    from stillhouse.engine import fit
    from stillhouse.objectives import (
        Composed,
        Optimizer,
        Phase,
        Term,
        Weighted,
        cross_entropy_loss,
        kd_loss,
    )
    from stillhouse.recipe import Context
    from stillhouse.training import Setup

    nets = dict(zip(("teacher", "student"), core.networks(), strict=True))
    models = {role: rolled(net, role) for role, net in nets.items()}
    sgd = Optimizer(lr=core.LR, kwargs={"momentum": core.MOMENTUM, "weight_decay": core.DECAY})
    ce = Term(cross_entropy_loss, "student.logits", "batch.labels")
    kd = Term(kd_loss, "student.logits", "teacher.logits", temperature=core.TEMPERATURE)
    objective = Composed(
        phases={"distill": Phase(trains=("student",), optimizer=sgd)},
        losses={
            "ce": Weighted(term=ce, weight=core.CE),
            "kd": Weighted(term=kd, weight=core.KD),
        },
    )
    ids = torch.arange(core.BATCH * core.BATCHES).split(core.BATCH)
    batches = [
        {"images": images, "labels": labels, "id": rows}
        for (images, labels), rows in zip(core.batches(), ids, strict=True)
    ]
    feed = Feed(batches, time.process_time, lambda: state(models["student"]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # a checkpoint is due every 60 s; here most of those pass while others have their round
        ctx = Context(
            stage="overhead",
            out=folder,
            checkpoints=folder / "checkpoints",
            caches=folder,
            checkpoint_seconds=math.inf,
        )
        setup = Setup(steps=steps, batch=core.BATCH)
        data = Passes(iter(feed), size=core.BATCH, count=core.BATCHES)
        fit(objective, models, data, setup=setup, ctx=ctx)


def torchdistill(_steps: int) -> None:
    from torchdistill.core.distillation import get_distillation_box

    teacher, student = core.networks()
    loss = {
        "key": "KDLoss",
        "kwargs": {
            "student_module_path": ".",
            "student_module_io": "output",
            "teacher_module_path": ".",
            "teacher_module_io": "output",
            "temperature": core.TEMPERATURE,
            "alpha": core.CE,
            "reduction": "batchmean",
        },
    }
    terms = {"kd": {"criterion": loss, "weight": 1.0}}
    sgd = {"lr": core.LR, "momentum": core.MOMENTUM, "weight_decay": core.DECAY}
    config = {
        "num_epochs": 1,
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "SGD", "kwargs": sgd},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": terms}},
    }
    box = get_distillation_box(
        teacher, student, {}, config, torch.device("cpu"), None, distributed=False, lr_factor=1
    )
    box.teacher_model.eval()
    box.pre_epoch_process(epoch=0)
    feed = Feed(core.batches(), time.process_time, lambda: state(student))
    for images, labels in feed:
        box.pre_forward_process()
        loss = box.forward_process(images, targets=labels, supp_dict=None)
        box.post_forward_process(loss)


def modelopt(_steps: int) -> None:
    import modelopt.torch.distill as mtd

    teacher, student = core.networks()
    config = {
        "teacher_model": teacher,
        "criterion": mtd.LogitsDistillationLoss(core.TEMPERATURE, reduction="batchmean"),
        "loss_balancer": mtd.StaticLossBalancer(core.KD),
    }
    model = mtd.convert(student, mode=[("kd_loss", config)])
    model.train()
    optimizer = core.sgd(p for p in model.parameters() if p.requires_grad)
    feed = Feed(core.batches(), time.process_time, lambda: state(model))
    for images, labels in feed:
        hard = nn.functional.cross_entropy(model(images), labels)
        loss = model.compute_kd_loss(student_loss=hard)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


CONTESTANTS = {
    "bare": bare,
    "stillhouse": stillhouse,
    "torchdistill": torchdistill,
    "modelopt": modelopt,
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    name, steps, dtype = sys.argv[1:]
    torch.set_default_dtype({"float32": torch.float32, "float64": torch.float64}[dtype])
    CONTESTANTS[name](int(steps))
