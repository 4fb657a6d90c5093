"""Figures of predictions: samples, the student's mistakes, which classes are confused."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor

from stillhouse.batching import each_batch
from stillhouse.data.data import Data, TensorData
from stillhouse.objectives.objective import Models, Tensors
from stillhouse.work import Work

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RIGHT, WRONG = "#1a7f37", "#c4432b"
INK, MUTED, GRID = "#16202c", "#566273", "#e3e8ee"
MATRIX = 20  # classes that a matrix has room for


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Prediction of a role for each row: the most likely class [N] and its probability [N]."""

    classes: Tensor
    certainty: Tensor


def answer(
    roles: tuple[str, ...], models: Models, batch: Tensors
) -> tuple[Tensor, dict[str, Answers]]:
    """The labels [N] of a batch, and what each role's "logits" say, all on the CPU."""
    device = next(models[roles[0]].parameters()).device
    moved = {name: value.to(device) for name, value in batch.items()}
    found: dict[str, Answers] = {}
    for role in roles:
        best = models[role](moved)["logits"].float().softmax(1).max(1)
        found[role] = Answers(classes=best.indices.cpu(), certainty=best.values.cpu())
    return batch["labels"].cpu().long(), found


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Test images with the truth above and what each role predicts below each.

    `names` are the classes' names; without them classes are numbers.
    """

    name: str
    roles: tuple[str, ...] = ("teacher", "student")
    names: tuple[str, ...] = ()
    columns: int = 8
    rows: int = 3

    def draw(self, batch: Tensors, predicted: dict[str, Answers]) -> "Figure":
        """Images of a batch, with the predictions below them."""
        from matplotlib.figure import Figure  # not pyplot: no global state, no window

        figure = Figure(figsize=(1.35 * self.columns, 1.9 * self.rows), layout="constrained")
        axes = figure.subplots(self.rows, self.columns, squeeze=False).flatten()
        for place, axis in enumerate(axes):
            axis.set_axis_off()
            if place < len(batch["images"]):
                truth = int(batch["labels"][place])
                _show(axis, batch["images"][place], name_of(self.names, truth))
                for line, (role, each) in enumerate(predicted.items()):
                    number = int(each.classes[place])
                    words = self.words(number, float(each.certainty[place]))
                    _beneath(axis, f"{role}: {words}", line, right=number == truth)
        return figure

    def words(self, number: int, certainty: float) -> str:
        """Text of a prediction."""
        del certainty
        return name_of(self.names, number)


@dataclass(frozen=True, kw_only=True)
class Predictions(Grid):
    """Images drawn at random by `seed`."""

    name: str = "predictions"
    seed: int = 0

    def __call__(self, models: Models, data: Data, *, work: Work) -> "Figure":
        rng = Generator().manual_seed(self.seed)
        batch = next(iter(data.batches(self.columns * self.rows, rng=rng)))
        return self.draw(batch, _answers_of(self.roles, models, batch))


@dataclass(frozen=True, kw_only=True)
class Mistakes(Grid):
    """The images of which the last of the roles, the student, is most confident and wrong, the most
    certain first, with the probability that each role gives its answer.
    """

    name: str = "mistakes"

    def __call__(self, models: Models, data: Data, *, work: Work) -> "Figure":
        most, student = self.columns * self.rows, self.roles[-1:]

        def most_confident(batch: Tensors) -> tuple[Tensor, Tensor, Tensor]:
            shown = {"images": batch["images"], "labels": batch["labels"]}
            labels, predicted = answer(student, models, shown)
            mine = predicted[student[0]]
            certainty = mine.certainty.where(mine.classes != labels, -1)
            index = certainty.argsort(descending=True, stable=True)[:most]
            index = index[certainty[index] >= 0]
            return certainty[index], batch["images"].cpu()[index], labels[index]

        device = next(models[student[0]].parameters()).device
        found = list(each_batch(data, most_confident, most=250, device=device))
        certainty, images, labels = (torch.cat(part) for part in zip(*found, strict=True))
        index = certainty.argsort(descending=True, stable=True)[:most]
        batch = {"images": images[index], "labels": labels[index]}
        return self.draw(batch, _answers_of(self.roles, models, batch))

    def words(self, number: int, certainty: float) -> str:
        return f"{name_of(self.names, number)} {certainty:.0%}"


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Which classes each role takes for which, in percent of the true class; with many classes the
    pairs that the last role confuses most often, in number of test images.
    """

    name: str = "confusion"
    roles: tuple[str, ...] = ("teacher", "student")
    names: tuple[str, ...] = ()

    def __call__(self, models: Models, data: Data, *, work: Work) -> "Figure":
        device = next(models[self.roles[0]].parameters()).device

        def predicted(batch: Tensors) -> Tensor:
            labels, by_role = answer(self.roles, models, batch)
            return torch.stack([labels, *(each.classes for each in by_role.values())])

        labels, *found = torch.cat(
            list(each_batch(data, predicted, most=250, device=device)), dim=1
        )
        classes = max(len(self.names), *(int(each.max()) + 1 for each in (labels, *found)))
        counts = {
            role: torch.bincount(labels * classes + each, minlength=classes**2)
            .reshape(classes, classes)
            .double()
            for role, each in zip(self.roles, found, strict=True)
        }
        return self._matrices(counts) if classes <= MATRIX else self._pairs(counts)

    def _matrices(self, counts: dict[str, Tensor]) -> "Figure":
        from matplotlib.figure import Figure

        classes = len(next(iter(counts.values())))
        side = 1.6 + 0.36 * classes
        figure = Figure(figsize=(side * len(counts), side + 0.5), layout="constrained")
        names = [name_of(self.names, number) for number in range(classes)]
        every: Any = figure.subplots(1, len(counts), squeeze=False)  # Any: untyped by matplotlib
        for axes, (role, found) in zip(every[0], counts.items(), strict=True):
            shares = 100 * found / found.sum(1, keepdim=True).clamp_min(1)
            axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=100)
            for i, j in torch.nonzero(shares >= 0.5).tolist():
                colour = "white" if shares[i, j] > 55 else INK
                text = f"{shares[i, j]:.0f}"
                axes.text(j, i, text, ha="center", va="center", fontsize=7, color=colour)
            axes.set_xticks(range(classes), names, rotation=45, ha="right", fontsize=8)
            axes.set_yticks(range(classes), names, fontsize=8)
            axes.set_title(f"{role}, % of each true class", fontsize=9, color=INK)
            axes.set_xlabel("answer", fontsize=8, color=MUTED)
            axes.set_ylabel("true class", fontsize=8, color=MUTED)
            axes.tick_params(length=0)
        return figure

    def _pairs(self, counts: dict[str, Tensor], most: int = 20) -> "Figure":
        from matplotlib.figure import Figure

        mine = counts[self.roles[-1]].clone()
        mine.fill_diagonal_(0)
        places = mine.flatten().argsort(descending=True, stable=True)[:most]
        pairs = [(int(p) // len(mine), int(p) % len(mine)) for p in places if mine.flatten()[p] > 0]
        figure = Figure(figsize=(7.2, 1.2 + 0.3 * max(len(pairs), 1)), layout="constrained")
        axes: Any = figure.subplots()  # Any: untyped by matplotlib
        for place, (role, found) in enumerate(counts.items()):
            heights = [pair + 0.4 * (place - (len(counts) - 1) / 2) for pair in range(len(pairs))]
            widths = [float(found[i, j]) for i, j in pairs]
            colour = "#0069a8" if role == self.roles[-1] else "#7b8796"
            axes.barh(heights, widths, height=0.38, color=colour, label=role)
        words = [f"{name_of(self.names, i)} taken for {name_of(self.names, j)}" for i, j in pairs]
        axes.set_yticks(range(len(pairs)), words, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel("test images", fontsize=8, color=MUTED)
        axes.grid(axis="x", color=GRID)
        axes.set_axisbelow(True)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.tick_params(length=0)
        if pairs:
            axes.legend(frameon=False, fontsize=8)
        return figure


def name_of(names: tuple[str, ...], number: int) -> str:
    """A class's name, its number where it has none."""
    return names[number] if number < len(names) else str(number)


def _answers_of(roles: tuple[str, ...], models: Models, batch: Tensors) -> dict[str, Answers]:
    """What roles say of a batch, in batches that fit the memory."""
    if not len(batch["labels"]):
        return {}
    data = TensorData({"images": batch["images"], "labels": batch["labels"]})
    device = next(models[roles[0]].parameters()).device
    parts = list(
        each_batch(data, lambda rows: answer(roles, models, rows)[1], most=len(data), device=device)
    )
    return {
        role: Answers(
            classes=torch.cat([part[role].classes for part in parts]),
            certainty=torch.cat([part[role].certainty for part in parts]),
        )
        for role in roles
    }


def _show(axis: "Axes", image: Tensor, title: str) -> None:
    pixels = image if image.dtype == torch.uint8 else (image * 255).round().to(torch.uint8)
    axis.imshow(pixels.expand(3, -1, -1).permute(1, 2, 0).numpy(), interpolation="nearest")
    axis.set_title(title, fontsize=9)


def _beneath(axis: "Axes", text: str, line: int, *, right: bool) -> None:
    """A line of words below an image, coloured by whether they are right."""
    axis.text(
        0.5,
        -0.04 - 0.14 * line,
        text,
        color=RIGHT if right else WRONG,
        fontsize=7,
        ha="center",
        va="top",
        transform=axis.transAxes,
    )
