"""Regressors on a network that others trained and that stays as it is: landmarks by a linear layer
that ridge regression fits to few labelled faces.

B: batch. P: points. D: numbers of a feature map. K: folds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.artifact import Built, Model, save_model
from stillhouse.data.data import RowData
from stillhouse.embedding import FEATURES
from stillhouse.errors import BadData, BadSetting
from stillhouse.recipe import Resource
from stillhouse.weights import as_ordered, checkpoint_file, load_strictly, read_state
from stillhouse.work import Work
from stillhouse_landmarks.models import ImageSpec
from stillhouse_landmarks.ridge import cross_fitted
from stillhouse_landmarks.shape import ShapeRole

FOLD = "fold"  # of a labelled face, from 0
NO_FOLD = -1  # of all others
CLASSES = 1000  # that published weights of timm's networks know


class FrozenRegressor(nn.Module):
    """batch["images"] [B, 3, S, S] (uint8, or floats in [0, 1]), scaled to `side` pixels, through
    timm's `name` up to its block `level`; the whole map [B, D] is the "embedding", and one linear
    layer gives "landmarks" [B, 2P], fractions of the crop.

    A batch with a column "features" (`stillhouse.embedding`) goes through the linear layer alone.
    With `folds`, a row whose column "fold" is k >= 0 goes through the layer that was fitted without
    the faces of fold k: cross-fitting, so that no face is answered for by what has learned it.
    """

    mean: Tensor
    std: Tensor
    fold_weight: Tensor
    fold_bias: Tensor

    def __init__(
        self,
        *,
        name: str,
        level: int,
        side: int,
        mean: Sequence[float],
        std: Sequence[float],
        points: int,
        folds: int,
    ) -> None:
        import timm

        super().__init__()
        self.side = side
        net: Any = timm.create_model(name, num_classes=CLASSES)  # Any: timm types no module
        self.net, self.indices = pruned(net, name=name, level=level)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        self.net.eval()
        with torch.no_grad():
            width = self._map(torch.zeros(1, 3, side, side)).shape[1]
        self.head = nn.Linear(width, 2 * points)
        # buffers: they are no part of the network that is used
        self.register_buffer("fold_weight", torch.zeros(folds, 2 * points, width))
        self.register_buffer("fold_bias", torch.zeros(folds, 2 * points))

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        embedding = batch.get(FEATURES)
        if embedding is None:
            images = batch["images"]
            if not images.is_floating_point():
                images = images.to(self.mean.dtype) / 255
            scaled = F.interpolate(images, size=self.side, mode="bilinear", align_corners=False)
            embedding = self._map((scaled - self.mean) / self.std)
        embedding = embedding.to(self.head.weight.dtype)
        landmarks = self.head(embedding)
        if FOLD in batch:
            landmarks = self._cross_fitted(embedding, batch[FOLD], landmarks)
        return {"landmarks": landmarks, "embedding": embedding}

    def _map(self, images: Tensor) -> Tensor:
        self.net.eval()  # it stays as it is: no statistics of its BatchNorm are learned
        (found,) = self.net.forward_intermediates(
            images, indices=self.indices, intermediates_only=True
        )
        return found.flatten(1)

    def _cross_fitted(self, embedding: Tensor, fold: Tensor, landmarks: Tensor) -> Tensor:
        for number, (weight, bias) in enumerate(zip(self.fold_weight, self.fold_bias, strict=True)):
            own = fold == number
            if bool(own.any()):
                landmarks = landmarks.index_put((own,), F.linear(embedding[own], weight, bias))
        return landmarks


def pruned(net: Any, *, name: str, level: int) -> tuple[Any, list[int]]:  # Any: timm's
    """The network without what lies behind its block `level`, and the block's own number in it.
    Raises BadSetting for a network that gives no maps of its blocks, and for a level it has not.
    """
    if not hasattr(net, "prune_intermediate_layers"):
        raise BadSetting(f"pretrained_name: timm's '{name}' gives no maps of its blocks")
    try:
        indices = list(net.prune_intermediate_layers([level], prune_head=True))
    except (AssertionError, IndexError, ValueError) as error:
        raise BadSetting(f"pretrained_level: '{name}' has no block {level}") from error
    return net, indices


def frozen_regressor(
    *,
    name: str,
    level: int,
    side: int,
    mean: list[float],
    std: list[float],
    images: Mapping[str, Any],  # Any: ImageSpec.json() of the crops: for cards and checks
    folds: int = 0,
) -> nn.Module:
    """A `FrozenRegressor` with fresh weights."""
    points = ImageSpec.of(images).points
    return FrozenRegressor(
        name=name, level=level, side=side, mean=mean, std=std, points=points, folds=folds
    )


@dataclass(frozen=True, kw_only=True)
class LoadFrozen:
    """A `convert`: the weights of the port "weights" in `model`, a `frozen_regressor`; its linear
    layer is zero.

    The file is one of the whole network, head included; its names may be another implementation's
    where its tensors are in the same order and of the same shapes. Raises BadData for what does not
    fit.
    """

    model: Model

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        # Any: what the ports' openers return
        import timm

        file, name = checkpoint_file(Path(inputs["weights"])), self.model.kwargs["name"]
        whole: Any = timm.create_model(name, num_classes=CLASSES)  # Any: timm types no module
        load_strictly(
            whole, as_ordered(read_state(file), whole.state_dict()), where=f"{file} ({name})"
        )
        module = self.model.new()
        assert isinstance(module, FrozenRegressor)
        module.net.load_state_dict({k: whole.state_dict()[k] for k in module.net.state_dict()})
        with torch.no_grad():
            for parameter in module.head.parameters():
                parameter.zero_()
        save_model(out, Built(spec=self.model, module=module))


@dataclass(frozen=True, kw_only=True)
class FitRidge:
    """A `convert`: the model of the port "network", its linear layer fitted by ridge regression to
    the rows of the port "data" (columns features, landmarks, fold), whose landmarks a shape model
    at the port "shape" softens where there is one.

    `folds` layers more are fitted without the faces of one fold each; their errors on these choose
    the strength of the regression for all. Raises BadData where there are fewer folds.
    """

    folds: int
    resource: ClassVar[Resource] = "cpu"

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        # Any: what the ports' openers return
        built: Built = inputs["network"]
        rows = _all(inputs["data"])
        target = rows["landmarks"].float()
        if "shape" in inputs:
            role = inputs["shape"].module
            assert isinstance(role, ShapeRole)
            target = role.shape().soften(target)
        whole, parts = cross_fitted(
            rows[FEATURES].float().numpy(),
            target.numpy(),
            rows[FOLD].numpy(),
            folds=self.folds,
            where=f"stage '{work.ctx.stage}'",
        )
        spec = Model(build=built.spec.build, kwargs={**built.spec.kwargs, "folds": self.folds})
        module = spec.new()
        assert isinstance(module, FrozenRegressor)
        assert isinstance(built.module, FrozenRegressor)
        module.net.load_state_dict(built.module.net.state_dict())
        with torch.no_grad():
            module.head.weight.copy_(torch.from_numpy(whole.weight))
            module.head.bias.copy_(torch.from_numpy(whole.bias))
            for number, part in enumerate(parts):
                module.fold_weight[number] = torch.from_numpy(part.weight)
                module.fold_bias[number] = torch.from_numpy(part.bias)
        save_model(out, Built(spec=spec, module=module))


@dataclass(frozen=True, kw_only=True)
class WithoutFolds:
    """A `convert`: the `FrozenRegressor` of the port "network" without the layers of its folds, as
    it is used on other faces.
    """

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        built: Built = inputs["network"]  # Any: what the port's opener returns
        spec = Model(build=built.spec.build, kwargs={**built.spec.kwargs, "folds": 0})
        module = spec.new()
        state = built.module.state_dict()
        kept = module.state_dict()
        module.load_state_dict({n: v if v.numel() == 0 else state[n] for n, v in kept.items()})
        save_model(out, Built(spec=spec, module=module))


def _all(data: RowData) -> Mapping[str, Tensor]:
    if len(data) == 0:
        raise BadData("the training data hold no face")
    return data.rows(torch.arange(len(data)))
