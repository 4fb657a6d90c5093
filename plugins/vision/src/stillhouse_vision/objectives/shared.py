"""A classifier shared by teacher and student (SimKD's and KD3's): the projector in front of the
teacher's linear head, the head as a role of its own, and the student that is deployed.

B: samples of the batch. C: channels. H W: height and width of a map.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from stillhouse.artifact import Built, Model, recorded, save_model, spec_of
from stillhouse.errors import BadData, BadSetting
from stillhouse.objectives.inputs import named
from stillhouse.objectives.objective import Tensors
from stillhouse.work import Work
from stillhouse_vision.models.classifier import Classifier, ImageSpec, conv1, conv3
from stillhouse_vision.models.from_timm import TimmClassifier

IMAGES = 4  # random images on which a head must give the teacher's own logits
AGREE = 1e-4  # largest difference relative to the largest logit


class SharedClassifierProjector(nn.Module):
    """The student's last map `source` [B, Cs, H, W] to the teacher's width, ready for its head.

    SimKD (arXiv 2203.14001), as KD3 uses it: 1 x 1 convolution to target / factor channels, 3 x 3
    convolution, 1 x 1 convolution to `target` channels, each with BatchNorm and ReLU, none with a
    bias. A map larger than `size` (that of the teacher's) is average-pooled to it first. Leaves
    "map" [B, target, H, W] and "embedding" [B, target], its mean over positions.
    """

    def __init__(self, source: str, channels: int, target: int, size: int, factor: int = 2) -> None:
        super().__init__()
        check_factor(factor, target)
        self.source, self.size = source, size
        middle = target // factor
        self.maps = nn.Sequential(
            *(conv1(channels, middle), nn.BatchNorm2d(middle), nn.ReLU()),
            *(conv3(middle, middle), nn.BatchNorm2d(middle), nn.ReLU()),
            *(conv1(middle, target), nn.BatchNorm2d(target), nn.ReLU()),
        )

    def forward(self, given: Tensors) -> dict[str, Tensor]:
        x = named(given, self.source, what="input", where="projector")
        if x.shape[2] > self.size:
            x = F.adaptive_avg_pool2d(x, self.size)
        projected: Tensor = self.maps(x)
        return {"map": projected, "embedding": projected.mean((2, 3))}


def check_factor(factor: int, target: int) -> None:
    """Raises BadSetting unless the projector can be `factor` times as narrow as its target."""
    if factor < 1 or target % factor:
        raise BadSetting(
            f"projector: factor must divide target, the teacher's width (got {factor} and {target})"
        )


class LinearHead(nn.Module):
    """embedding [B, width] -> logits [B, classes]."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, classes)

    def forward(self, given: Tensors) -> dict[str, Tensor]:
        return {"logits": self.linear(given["embedding"])}


def last_map(outputs: Mapping[str, Any]) -> str:
    """The name of the deepest "hint<i>" among a model's outputs; raises BadSetting without one."""
    hints = [name for name in outputs if name.startswith("hint")]
    if not hints:
        raise BadSetting("a classifier is shared by feature maps, and this model shows none")
    return max(hints, key=lambda name: int(name.removeprefix("hint")))


def linear_of(module: nn.Module) -> nn.Linear:
    """The last linear layer of a classifier of this plugin; raises BadData for another model."""
    found = None
    if isinstance(module, Classifier):
        found = module.head
    elif isinstance(module, TimmClassifier):
        found = module.net.get_classifier()
    if not isinstance(found, nn.Linear):
        raise BadData(
            f"{type(module).__name__}: has no linear head that a student could share; "
            "choose a teacher that pools its last map into one linear layer"
        )
    return found


@dataclass(frozen=True, kw_only=True)
class ExtractHead:
    """A `convert`: the linear head of the port "teacher" as a model of its own, checked to give the
    teacher's logits on the mean of its last map.
    """

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        teacher: Built = inputs["teacher"]
        linear = linear_of(teacher.module)
        kwargs = {"width": linear.in_features, "classes": linear.out_features}
        spec = Model(build=LinearHead, kwargs=kwargs)
        head = LinearHead(**kwargs)
        head.linear.load_state_dict(linear.state_dict())
        _check_head(teacher, head, work.rng)
        save_model(out, Built(spec=spec, module=head))


@torch.no_grad()
def _check_head(teacher: Built, head: LinearHead, rng: Generator) -> None:
    images = ImageSpec.of(teacher.spec.kwargs["images"])
    noise = torch.rand(IMAGES, images.channels, *[images.size] * 2, generator=rng)
    outputs: Tensors = teacher.module.eval()({"images": noise})
    embedding = outputs[last_map(outputs)].mean((2, 3))
    logits = outputs["logits"]
    if embedding.shape[1] == head.linear.in_features:
        gap = float((head({"embedding": embedding})["logits"] - logits).abs().max())
        if gap <= AGREE * float(logits.abs().max()):
            return
    raise BadData(
        f"{teacher.spec.build.__qualname__}: its logits are not a linear layer on the mean of its "
        "last map, so no student can share its classifier; choose a ResNet or the like"
    )


class SharedClassifier(nn.Module):
    """A student's body, a projector and the teacher's head as one classifier: images -> logits,
    embedding. The student's own head is left out.
    """

    def __init__(self, student: nn.Module, projector: SharedClassifierProjector, head: LinearHead):
        super().__init__()
        self.student, self.projector, self.head = without_head(student), projector, head

    def forward(self, batch: Tensors) -> dict[str, Tensor]:
        source = self.projector.source
        features: Tensors = self.student(batch)
        embedding = self.projector({source: features[source]})["embedding"]
        return {"logits": self.head({"embedding": embedding})["logits"], "embedding": embedding}


def without_head(module: nn.Module) -> nn.Module:
    """The same module, its last linear layer replaced by nothing; nobody trained it."""
    if isinstance(module, Classifier):
        module.head = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    elif isinstance(module, TimmClassifier):
        module.net.reset_classifier(0)
    return module


def shared_classifier(
    *,
    student: Mapping[str, Any],  # Any: {"build": "module:name", "kwargs": JSON values}
    projector: Mapping[str, Any],  # Any: arguments of the projector
    head: Mapping[str, Any],  # Any: arguments of the head
    images: Mapping[str, Any],  # Any: ImageSpec.json(), for who reads the spec
) -> nn.Module:
    """The deployed student of these parts, with fresh weights."""
    if student["kwargs"]["images"] != images:
        raise BadSetting("shared_classifier: images must be those of the student")
    return SharedClassifier(
        spec_of(student).new(), SharedClassifierProjector(**projector), LinearHead(**head)
    )


@dataclass(frozen=True, kw_only=True)
class MergeStudent:
    """A `convert`: ports "student", "projector" and "head" into one `shared_classifier`."""

    def __call__(
        self,
        inputs: Mapping[str, Any],
        out: Path,
        *,
        work: Work,
    ) -> None:  # Any: Built by port
        student, projector, head = (inputs[port] for port in ("student", "projector", "head"))
        spec = Model(
            build=shared_classifier,
            kwargs={
                "student": recorded(student.spec),
                "projector": dict(projector.spec.kwargs),
                "head": dict(head.spec.kwargs),
                "images": dict(student.spec.kwargs["images"]),
            },
        )
        module = SharedClassifier(student.module, projector.module, head.module)
        save_model(out, replace(student, spec=spec, module=module.eval()))
