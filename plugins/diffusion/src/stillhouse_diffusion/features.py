"""Networks whose features images are compared by: a classifier trained here, EfficientNet-Lite0.

B: batch. Both map batch["images"] [B, C, H, W] (uint8 pixels, or floats of -1 ... 1) to "embedding"
[B, D] and "logits" [B, classes].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.artifact import Built, Model, save_model
from stillhouse.batching import each_batch
from stillhouse.data.data import Columns
from stillhouse.errors import BadData
from stillhouse.weights import read_state
from stillhouse.work import Work
from stillhouse_diffusion.phases import pixels

LITE0 = "tf_efficientnet_lite0"
BATCH = 250


class SmallClassifier(nn.Module):
    """Convolutions of `widths`, a max-pooling behind each while the map has a side of 4 or more;
    the mean of the last map is the embedding. Points of a plane (H = 1) go through layers of 1 x 1.
    """

    def __init__(self, *, channels: int, size: int, classes: int, widths: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        side, inside = size, channels
        for width in widths:
            kernel = 3 if side > 1 else 1
            layers += [
                nn.Conv2d(inside, width, kernel, padding=kernel // 2),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            if side >= 4:
                layers.append(nn.MaxPool2d(2))
                side //= 2
            inside = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(inside, classes)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        embedding = self.body(pixels(batch["images"])).mean((2, 3))
        return {"embedding": embedding, "logits": self.head(embedding)}


class Lite0(nn.Module):
    """EfficientNet-Lite0 without its own head, on images scaled to `side` pixels by bilinear
    interpolation, and a linear head for `classes`. Its pixels are normalised by 0.5 and 0.5, which
    is the range -1 ... 1 itself; grey images are given three equal channels.
    """

    def __init__(self, *, classes: int, side: int) -> None:
        import timm

        super().__init__()
        self.side = side
        backbone: Any = timm.create_model(LITE0, num_classes=0)  # Any: timm types no attribute
        self.backbone: nn.Module = backbone
        self.head = nn.Linear(int(backbone.num_features), classes)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        images = pixels(batch["images"])
        images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        scaled = F.interpolate(images, size=self.side, mode="bilinear", align_corners=False)
        # what is trained is the head alone, and batch normalisation must not follow its batches
        embedding = self.backbone.eval()(scaled)
        return {"embedding": embedding, "logits": self.head(embedding)}


def small_classifier(*, channels: int, size: int, classes: int, widths: Sequence[int]) -> nn.Module:
    """A `SmallClassifier`."""
    return SmallClassifier(channels=channels, size=size, classes=classes, widths=widths)


def lite0(*, classes: int, side: int) -> nn.Module:
    """A `Lite0`."""
    return Lite0(classes=classes, side=side)


@dataclass(frozen=True, kw_only=True)
class LoadLite0:
    """A `convert`: the weights of EfficientNet-Lite0 at the port "weights" (a PyTorch file of
    tensors, whose order and shapes are those of timm's network though its names are not), with a
    fresh head. Raises BadData where they do not fit.
    """

    classes: int
    side: int = 128

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        file: Path = inputs["weights"]
        stored = read_state(file)
        kwargs = {"classes": self.classes, "side": self.side}
        with torch.random.fork_rng():
            torch.manual_seed(work.seed)
            module = Lite0(**kwargs)
        copy_in_order(stored, module.backbone, file)
        save_model(out, Built(spec=Model(build=lite0, kwargs=kwargs), module=module))


def copy_in_order(stored: Mapping[str, Tensor], module: nn.Module, file: Path) -> None:
    """Give `module` the tensors of `stored`, one after another; those left over (the stored head)
    must come last. Raises BadData for the first that does not fit.
    """
    values = iter(stored.items())
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            given, value = next(values, ("nothing", torch.zeros(0)))
            if value.shape != tensor.shape:
                found, wanted = list(value.shape), list(tensor.shape)
                raise BadData(
                    f"{file}: '{given}' {found} is not {LITE0}'s '{name}' {wanted}; give the "
                    "weights of EfficientNet-Lite0"
                )
            tensor.copy_(value)


@dataclass(frozen=True, kw_only=True)
class Embed:
    """A `make`: the images of the ports "train" and "test" as "embedding" and "predicted" (the
    class with the largest logit) of the role "features", beside their "labels".
    """

    def __call__(
        self,
        inputs: Mapping[str, Any],  # Any: the opened ports
        *,
        work: Work,
    ) -> Mapping[str, Columns]:
        network = inputs["features"].module
        return {
            port: {
                **embedded(network, inputs[port], work),
                "labels": inputs[port].columns["labels"],
            }
            for port in ("train", "test")
        }


def embedded(network: nn.Module, data: Any, work: Work) -> dict[str, Tensor]:  # Any: Data
    """ "embedding" [N, D] and "predicted" [N] of all images of `data`, on the CPU."""
    network = network.to(work.device).eval()

    def compute(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        found = network({"images": batch["images"].to(work.device)})
        return found["embedding"].float().cpu(), found["logits"].argmax(1).cpu()

    rows = list(each_batch(data, compute, most=BATCH, device=work.device))
    embedding, predicted = (torch.cat(column) for column in zip(*rows, strict=True))
    return {"embedding": embedding, "predicted": predicted}
