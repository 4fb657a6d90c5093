"""A network of timm on images scaled up to the side that it knows, with weights that others
trained, and a linear head fitted to a few labels.

B: batch. C H W: channels, height, width of the images as they are stored.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from stillhouse.artifact import Built, Model, save_model
from stillhouse.batching import each_batch
from stillhouse.data.data import RowData
from stillhouse.embedding import FEATURES
from stillhouse.errors import BadData
from stillhouse.recipe import Resource
from stillhouse.weights import State, as_named, checkpoint_file, read_state
from stillhouse.work import Work
from stillhouse_vision.models.classifier import ImageSpec
from stillhouse_vision.models.from_timm import TimmClassifier

HEAD_TENSORS = 2  # weight and bias of the classes that a file's network knows
MOST_ROWS = 250  # images that are computed at a time
FOLDS = 5
MANY = 5000  # labelled images of which one fold is enough to choose by
# L2 of scikit-learn's logistic regression on standardized features, strongest first
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
UNCHECKED = 1e-3  # where a class has one image, and nothing can be held out
ITERATIONS = 5000

Array = NDArray[np.float64]
Labels = NDArray[np.int64]


class Upscaled(nn.Module):
    """batch["images"] [B, C, H, W] (uint8, or floats in [0, 1]), scaled to `side` pixels by
    bilinear interpolation, through timm's `name`: its logits, embedding and hints.

    `mean` and `std` are those of the network's own training; grey images get three equal channels.
    A batch with a column "features" [B, D], the embeddings as `Embed` has stored them, goes through
    the head alone.
    """

    def __init__(
        self, *, name: str, classes: int, side: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.side = side
        images = ImageSpec(size=side, mean=tuple(mean), std=tuple(std))
        self.inner = TimmClassifier(name, classes, images)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if FEATURES in batch:
            embedding = batch[FEATURES]
            return {"logits": self.head(embedding), "embedding": embedding}
        images = batch["images"]
        if not images.is_floating_point():
            images = images.to(self.inner.normalise.mean.dtype) / 255
        images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        scaled = F.interpolate(images, size=self.side, mode="bilinear", align_corners=False)
        return self.inner({**batch, "images": scaled})

    @property
    def head(self) -> nn.Linear:
        """The layer behind the embedding. Raises BadData for a network whose head is another."""
        head: Any = self.inner.net.get_classifier()  # Any: timm types no module
        if not isinstance(head, nn.Linear):
            raise BadData(
                f"a head of {type(head).__name__}, where a linear layer is fitted; choose another "
                "pretrained_name"
            )
        return head


def upscaled(
    *,
    name: str,
    classes: int,
    side: int,
    mean: list[float],
    std: list[float],
    images: Mapping[str, Any],  # noqa: ARG001  Any: ImageSpec.json() of what is stored: for the card
) -> nn.Module:
    """An `Upscaled` with fresh weights."""
    return Upscaled(name=name, classes=classes, side=side, mean=mean, std=std)


def named_upscaled(
    name: str,
    *,
    classes: int,
    images: ImageSpec,
    side: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Model:
    """The spec of an `upscaled` for images as `images` says they are stored."""
    kwargs = {"name": name, "classes": classes, "side": side, "mean": list(mean), "std": list(std)}
    return Model(build=upscaled, kwargs={**kwargs, "images": images.json()})


@dataclass(frozen=True, kw_only=True)
class LoadPretrained:
    """A `convert`: the weights of the port "weights" in `model`, an `upscaled`, without the head
    that they came with; the new head is zero.

    The file's names may be another implementation's where its tensors are in the same order and of
    the same shapes, its head last. Raises BadData for what does not fit.
    """

    model: Model

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        # Any: what the ports' openers return
        file = checkpoint_file(Path(inputs["weights"]))
        module = self.model.new()
        assert isinstance(module, Upscaled)
        net: nn.Module = module.inner.net
        names = [name for name in net.state_dict() if not _of_head(name, module)]
        net.load_state_dict(
            _backbone(read_state(file), net.state_dict(), names, file), strict=False
        )
        with torch.no_grad():
            for parameter in module.head.parameters():
                parameter.zero_()
        save_model(out, Built(spec=self.model, module=module))


def _of_head(name: str, module: Upscaled) -> bool:
    head = next(n for n, m in module.inner.net.named_modules() if m is module.head)
    return name.startswith(f"{head}.")


def _backbone(state: State, wanted: State, names: Sequence[str], file: Path) -> State:
    """The tensors `names` out of a file's."""
    for way in as_named(state):
        if set(names) <= set(way):
            found = {name: way[name] for name in names}
            break
    else:
        found = dict(zip(names, state.values(), strict=False))
    if len(found) < len(names) or len(state) > len(names) + HEAD_TENSORS:
        raise BadData(
            f"{file}: {len(state)} tensors, the network has {len(names)} and {HEAD_TENSORS} of its "
            "head; set pretrained_name to the network of these weights"
        )
    for name, tensor in found.items():
        if tensor.shape != wanted[name].shape:
            raise BadData(
                f"{file}: a tensor {list(tensor.shape)} where the network's '{name}' is "
                f"{list(wanted[name].shape)}; set pretrained_name to the network of these weights"
            )
    return found


@dataclass(frozen=True, kw_only=True)
class FitHead:
    """A `convert`: the model of the port "network", its head fitted to the labelled images of the
    port "data" on its frozen embeddings: logistic regression with L2, whose strength is the one
    of the lowest log loss in a cross-validation on the same images.
    """

    resource: ClassVar[Resource] = "gpu"

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        # Any: what the ports' openers return
        built: Built = inputs["network"]
        data: RowData = inputs["data"]
        module = built.module
        assert isinstance(module, Upscaled)
        features, labels = _embedded(module, data, work)
        weight, bias = fit_head(features, labels, classes=module.head.out_features, seed=work.seed)
        with torch.no_grad():
            module.head.weight.copy_(torch.from_numpy(weight))
            module.head.bias.copy_(torch.from_numpy(bias))
        save_model(out, Built(spec=built.spec, module=module))


def _embedded(module: Upscaled, data: RowData, work: Work) -> tuple[Array, Labels]:
    module.to(work.device).eval()

    def compute(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            outputs = module({name: value.to(work.device) for name, value in batch.items()})
        return outputs["embedding"].double().cpu(), batch["labels"]

    rows = list(each_batch(data, compute, most=MOST_ROWS, device=work.device))
    module.to("cpu")
    features, labels = (torch.cat(column).numpy() for column in zip(*rows, strict=True))
    return features, labels


def fit_head(features: Array, labels: Labels, *, classes: int, seed: int) -> tuple[Array, Array]:
    """Weight [classes, D] and bias [classes] of a softmax on features [N, D] as they are: logistic
    regression on standardized ones, its L2 by stratified cross-validation where each class has two
    images. Raises BadData where a class has none.
    """
    counts = np.bincount(labels, minlength=classes)
    if counts.min() < 1:
        raise BadData(f"class {int(counts.argmin())} has no labelled image; set more labels")
    mean, spread = features.mean(0), features.std(0)
    scale = np.where(spread > 0, spread, 1.0)
    standard = (features - mean) / scale
    strength = _strength(standard, labels, least=int(counts.min()), seed=seed)
    weight, bias = _fitted(standard, labels, strength)
    weight = weight / scale
    return weight, bias - weight @ mean


def _strength(features: Array, labels: Labels, *, least: int, seed: int) -> float:
    """Of STRENGTHS the one with the lowest mean log loss on what was held out."""
    if least < 2:
        return UNCHECKED
    folds = list(_folds(labels, min(FOLDS, least), seed))[: 1 if len(labels) > MANY else FOLDS]
    losses = {
        strength: float(np.mean([_held_out_loss(features, labels, out, strength) for out in folds]))
        for strength in STRENGTHS
    }
    return min(losses, key=lambda strength: losses[strength])


def _folds(labels: Labels, count: int, seed: int) -> Iterator[NDArray[np.bool_]]:
    """Which rows each fold holds out, each class spread over all folds."""
    rng = np.random.default_rng(seed)
    fold = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        fold[rows] = np.arange(len(rows)) % count
    return (fold == number for number in range(count))


def _held_out_loss(
    features: Array, labels: Labels, out: NDArray[np.bool_], strength: float
) -> float:
    weight, bias = _fitted(features[~out], labels[~out], strength)
    logits = torch.from_numpy(features[out] @ weight.T + bias)
    return float(F.cross_entropy(logits, torch.from_numpy(labels[out])))


def _fitted(features: Array, labels: Labels, strength: float) -> tuple[Array, Array]:
    from sklearn.linear_model import LogisticRegression  # takes seconds to import

    fitted = LogisticRegression(C=strength, max_iter=ITERATIONS).fit(features, labels)
    weight, bias = np.asarray(fitted.coef_), np.asarray(fitted.intercept_)
    if len(weight) == 1:  # of two classes scikit-learn keeps the logit of the second
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight, bias
