"""Distillation of networks and data that a program already has: `distill`.

For a program of one's own, beside recipes: any nn.Module as student and teacher, a torch Dataset or
DataLoader, no stage, no key. The training is that of `stillhouse.engine.fit`.
"""

import contextlib
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from stillhouse.data.data import Data
from stillhouse.data.datasets import Source, data_of
from stillhouse.engine import fit
from stillhouse.errors import BadData, BadSetting, ContractError, UnknownName
from stillhouse.metrics.classification import Classification
from stillhouse.network_roles import STUDENT, TEACHER, State, as_role
from stillhouse.objectives.catalogue import distillation_method
from stillhouse.objectives.groups import Only
from stillhouse.objectives.methods import Channels, with_ce
from stillhouse.objectives.objective import (
    Composed,
    Cosine,
    Optimizer,
    Phase,
    Schedule,
    Weighted,
    roles_read,
)
from stillhouse.objectives.term import Term, outputs_of, owner_of
from stillhouse.recipe import Context, Event, Observer
from stillhouse.training import Precision, Setup
from stillhouse.work import Work

PROGRESS_SECONDS = 5.0
CHECKPOINT_SECONDS = 60.0
ADAMW = Optimizer(build=torch.optim.AdamW, lr=1e-3)

Losses = str | Mapping[str, Weighted | Term]


@dataclass(frozen=True, kw_only=True)
class Distilled:
    """A trained student: the module that was given, in eval mode, with the record of its training.

    `curves` has a row a logged step: "step", "loss" and each term. `scores` are those of "student"
    and "teacher" on the test data (accuracy, nll_loss, ...; see `Classification`), empty without
    any. `resumed_at` is the step that a stopped training went on from.
    """

    student: nn.Module
    curves: Sequence[Mapping[str, float]]
    scores: Mapping[str, Mapping[str, float]] = field(
        default_factory=dict[str, Mapping[str, float]]
    )
    resumed_at: int | None = None


def distill(
    student: nn.Module,
    teacher: nn.Module | None,
    data: Source,
    *,
    steps: int,
    losses: Losses = "kd",
    layers: Mapping[str, str] | None = None,
    optimizer: Optimizer = ADAMW,
    schedule: Schedule = Cosine(),  # noqa: B008
    batch: int = 64,
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "fp32",
    test: Source | None = None,
    folder: Path | str | None = None,
    observe: Observer | None = None,
) -> Distilled:
    """Train `student` in place on `data`, by the labels and by what `teacher` gives.

    A sample is (input, label), an input, or a dict of tensors. Of a pair the network is called with
    the inputs; of a dict with those columns that its forward names, but "labels". What it gives is
    a tensor, read as "logits", or a mapping of tensors; `layers` adds outputs of its modules, as
    {"student.mid": "layer2", "teacher.mid": "layer3"}.

    `losses` is a distillation method that reads logits, labels or "embedding" only ("kd", Hinton et
    al. 2015, arXiv 1503.02531: 0.1 cross-entropy + 0.9 KD at temperature 4; "dkd", "dist", "pkt",
    ...), or terms by name. Without a teacher the student learns from the labels alone: the
    baseline that a gain is measured against.

    Parameters of the student that do not require gradients stay as they are. A DataLoader brings
    its batch size. With a `folder`, a training that is stopped goes on where it was when the same
    call is made again; a checkpoint of another training in it is refused.

    Raises BadSetting, BadData or UnknownName for what cannot be trained, ContractError for networks
    that do not fit their data or each other.
    """
    if precision == "fast" and layers:
        raise BadSetting(
            "precision 'fast' runs other forms of a network, whose layers have no names"
        )
    source, size = data_of(data, batch)
    terms = _terms(losses, taught=teacher is not None)
    networks = {STUDENT: student, **({} if teacher is None else {TEACHER: teacher})}
    held = {role: State.of(network) for role, network in networks.items()}
    place = _device(device)
    objective = Composed(
        phases={"distill": _phase(student, optimizer, schedule)},
        losses={n: t if isinstance(t, Weighted) else Weighted(term=t) for n, t in terms.items()},
    )
    with contextlib.ExitStack() as stack:
        roles = {
            role: stack.enter_context(as_role(network, role, layers or {}))
            for role, network in networks.items()
        }
        stack.callback(lambda: [state.restore() for state in held.values()])
        models: dict[str, nn.Module] = dict(roles)
        _check(objective, models, source)
        kept = stack.enter_context(_folder(folder))
        ctx = Context(
            stage="distill",
            out=kept,
            checkpoints=kept / "checkpoints",
            caches=kept / "teacher-cache",
            device=place,
            observe=observe or _Printed(),
            checkpoint_seconds=math.inf if folder is None else CHECKPOINT_SECONDS,
        )
        setup = Setup(steps=steps, batch=size, seed=seed, views=1, precision=precision)
        fitted = fit(objective, models, source, setup=setup, ctx=ctx)
        scores = {} if test is None else _scores(roles, data_of(test, size)[0], place)
        shutil.rmtree(ctx.checkpoints, ignore_errors=True)
    student.eval()
    return Distilled(
        student=student, curves=fitted.curves, scores=scores, resumed_at=fitted.resumed_at
    )


def _terms(losses: Losses, *, taught: bool) -> Mapping[str, Weighted | Term]:
    if not taught:
        return with_ce(1.0)
    if not isinstance(losses, str):
        return losses
    any_ = Channels(hints=(1,), sizes=(1,), embedding=1)
    entry = distillation_method(losses)(any_, any_, classes=3, samples=1)
    if entry.roles or any("hint" in n for w in entry.losses.values() for n in w.term.names):
        raise BadSetting(
            f"losses='{losses}' trains projectors between layers of known shapes; a recipe does "
            "that (stillhouse run vision/distill), or give terms by name and `layers`"
        )
    return entry.losses


def _phase(student: nn.Module, optimizer: Optimizer, schedule: Schedule) -> Phase:
    trained = [name for name, value in student.named_parameters() if value.requires_grad]
    if not trained:
        raise BadSetting("the student has no parameter that requires a gradient")
    grouping = Only(patterns=tuple(f"network.{name}" for name in trained))
    return Phase(trains=(STUDENT,), optimizer=optimizer, schedule=schedule, grouping=grouping)


def _check(objective: Composed, models: Mapping[str, nn.Module], data: Data) -> None:
    """One small batch through all: errors come before the training, with the names at hand."""
    for role in roles_read(objective):
        if role not in models:
            raise BadSetting(f"losses: a term reads '{role}'; roles are student and teacher")
    batch = next(iter(data.batches(2, rng=None)), None)
    if batch is None:
        raise BadData("the training data hold no sample")
    names = tuple(n for w in objective.losses.values() for n in w.term.names)
    outputs: dict[str, Mapping[str, Tensor]] = {"batch": batch}
    for role, module in models.items():
        module.eval()
        at = next(module.parameters(), torch.empty(0)).device
        with torch.no_grad():
            outputs[role] = module({name: value.to(at) for name, value in batch.items()})
    for owner in dict.fromkeys(map(owner_of, names)):
        for output in outputs_of(owner, names):
            if output not in outputs[owner]:
                what = "column" if owner == "batch" else "output"
                raise UnknownName(what, output, outputs[owner], where=owner)
    classes = {r: o["logits"].shape[-1] for r, o in outputs.items() if "logits" in o}
    if len(set(classes.values())) > 1:
        raise ContractError(
            f"the student gives {classes[STUDENT]} logits a sample, the teacher "
            f"{classes[TEACHER]}; both must know the same classes, in the same order"
        )


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise BadSetting(f"device '{name}': torch sees no CUDA device here; use cpu or auto")
    return name


@contextlib.contextmanager
def _folder(folder: Path | str | None) -> Generator[Path]:
    if folder is not None:
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def _scores(
    roles: Mapping[str, nn.Module], data: Data, device: str
) -> dict[str, Mapping[str, float]]:
    found: dict[str, Mapping[str, float]] = {}
    for role, module in roles.items():
        module.to(device).eval()
        scores = Classification(role=role)({role: module}, data, work=Work.seeded(0))
        found[role] = {name: value for name, value in scores.items() if isinstance(name, str)}
    return found


class _Printed:
    """Progress on stderr, a line in `PROGRESS_SECONDS`."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def __call__(self, event: Event) -> None:
        now = time.monotonic()
        if not event.total or event.text == "checkpoint":
            return
        if now - self.last >= PROGRESS_SECONDS or event.done >= event.total or event.text:
            self.last = now
            losses = " ".join(f"{n} {v:.4f}" for n, v in event.scores.items() if "loss" in n)
            words = (event.text or "step", f"{event.done}/{event.total}", losses)
            print("distill:", *filter(None, words), file=sys.stderr, flush=True)
