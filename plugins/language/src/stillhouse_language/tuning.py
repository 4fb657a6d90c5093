"""Fine-tuning of encoders on labelled tasks: its objective, and many of them in one stage."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from stillhouse.batching import each_batch
from stillhouse.checkpoint import State
from stillhouse.data.data import Columns, Data, RowData, TensorData
from stillhouse.engine import fit
from stillhouse.errors import BadData, BadSetting
from stillhouse.objectives.groups import NoDecay
from stillhouse.objectives.objective import Composed, Cosine, Optimizer, Phase, Tensors, Weighted
from stillhouse.objectives.supervised import cross_entropy_loss
from stillhouse.objectives.term import Term
from stillhouse.training import Setup, mix
from stillhouse.work import Work
from stillhouse_language.classifier import AddHead, classes_of
from stillhouse_language.texts import drawn

DRAW, HEAD = 1, 2  # what a training's seed is for, beside its batches


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How a classifier is fine-tuned: `steps` of AdamW on batches of `batch` rows, cosine to 0
    after a warm-up of a tenth, clip 1.0; `fresh_lr` is the rate of a network of fresh weights.
    """

    steps: int
    batch: int
    lr: float
    fresh_lr: float
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        if min(self.steps, self.batch) < 1:
            raise BadSetting(
                f"fine-tuning: steps and batch must be >= 1 (got {self.steps} and {self.batch})"
            )

    def objective(self, *, fresh: bool = False) -> Composed:
        optimizer = Optimizer(
            build=torch.optim.AdamW,
            lr=self.fresh_lr if fresh else self.lr,
            kwargs={"weight_decay": self.weight_decay},
        )
        phase = Phase(
            trains=("student",),
            optimizer=optimizer,
            schedule=Cosine(warmup=0.1),
            clip_norm=1.0,
            grouping=NoDecay(),
        )
        term = Term(cross_entropy_loss, "student.logits", "batch.labels")
        return Composed(phases={"student": phase}, losses={"ce": Weighted(term=term)})


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One fine-tuning of an encoder: a head, `labels` rows of the task (0: all), `tuning`."""

    tuning: Tuning
    head: AddHead
    labels: int

    def at(self, rate: float) -> "Lesson":
        """The same at another learning rate."""
        return replace(self, tuning=replace(self.tuning, lr=rate, fresh_lr=rate))

    def accuracy(self, encoder: nn.Module, train: RowData, test: Data, work: Work) -> float:
        """On `test` after the last step."""
        return accuracy(self.tuned(encoder, train, work), test, device=work.device)

    def tuned(self, encoder: nn.Module, train: RowData, work: Work) -> nn.Module:
        """After the last step, on the work's device; rows, head and batches by the work's seed."""
        rng = torch.Generator().manual_seed(mix(work.seed, DRAW))
        rows = labelled(train, self.labels, rng)
        spec, module = self.head.made(encoder, classes_of(train), seed=mix(work.seed, HEAD))
        del spec
        models: dict[str, nn.Module] = {"student": module}
        setup = Setup(steps=self.tuning.steps, batch=self.tuning.batch, seed=work.seed)
        objective = self.tuning.objective(fresh=self.head.fresh)
        with torch.random.fork_rng(), torch.enable_grad():
            module.requires_grad_(True)
            fit(objective, models, TensorData(rows), setup=setup, ctx=work.ctx)
        return models["student"].to(work.device)


def labelled(train: RowData, count: int, rng: torch.Generator) -> Columns:
    """`count` rows, classes balanced (0: all)."""
    labels = train.columns["labels"]
    assert isinstance(labels, Tensor)
    return drawn(train.select(torch.arange(len(train))), count, by=labels, rng=rng)


def accuracy(model: nn.Module, data: Data, *, device: str, batch: int = 128) -> float:
    """The share of rows whose largest logit is their label's; raises BadData without rows."""
    answers, labels = _answers(model, data, device=device, batch=batch)
    return float((answers == labels).double().mean())


def matthews(model: nn.Module, data: Data, *, device: str, batch: int = 128) -> float:
    """Matthews' correlation of largest logits and labels, -1 to 1 and 0 for one answer to all, as
    GLUE scores CoLA; raises BadData without rows.
    """
    from torchmetrics.functional.classification import multiclass_matthews_corrcoef  # slow import

    answers, labels = _answers(model, data, device=device, batch=batch)
    if min(len(answers.unique()), len(labels.unique())) == 1:
        return 0.0  # torchmetrics gives a number between that follows from no table of counts
    classes = int(max(answers.max(), labels.max())) + 1
    return float(multiclass_matthews_corrcoef(answers, labels, num_classes=max(classes, 2)))


def _answers(model: nn.Module, data: Data, *, device: str, batch: int) -> tuple[Tensor, Tensor]:
    def one(rows: Tensors) -> tuple[Tensor, Tensor]:
        moved = {name: value.to(device) for name, value in rows.items()}
        return model(moved)["logits"].argmax(1).cpu(), rows["labels"].cpu()

    with torch.no_grad():
        found = list(each_batch(data, one, most=batch, device=device))
    if not found:
        raise BadData("the evaluation data hold no sample")
    answers, labels = zip(*found, strict=True)
    return torch.cat(answers), torch.cat(labels)


def record_of(value: float) -> State:
    """What a training of many leaves: no tensor, and its score."""
    return {}, {"score": value}


def means(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and the standard error of the mean (0 of one value)."""
    numbers = torch.tensor(values, dtype=torch.float64)
    error = numbers.std() / len(values) ** 0.5 if len(values) > 1 else torch.zeros(())
    return float(numbers.mean()), float(error)
