"""Any classifier of torchvision by name, with the outputs of this plugin's own models."""

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.errors import BadSetting, UnknownName
from stillhouse_vision.models.classifier import ImageSpec, Normalise

COLOURS = 3


def torchvision_model(
    *,
    name: str,
    classes: int,
    images: Mapping[str, Any],  # Any: ImageSpec.json()
) -> nn.Module:
    """torchvision's `name` with fresh weights; raises UnknownName with the nearest one."""
    return TorchvisionClassifier(name, classes, ImageSpec.of(images))


class TorchvisionClassifier(nn.Module):
    """logits, embedding (what the last linear layer reads), and hint1..N: of each size of feature
    maps the last one, where the network has such maps. There are no preacts.

    Grey images are given to all three colours, which is what its first layer takes.
    """

    def __init__(self, name: str, classes: int, images: ImageSpec) -> None:
        super().__init__()
        from torchvision.models.feature_extraction import create_feature_extractor

        if images.channels not in (1, COLOURS):
            raise BadSetting(
                f"torchvision:{name} takes grey or colour images; mean and std have "
                f"{images.channels} values"
            )
        self.normalise = Normalise(images)
        net = _network(name, classes, images.size)
        head = _head(net, name)
        hints = _maps(net, images.size, name)
        nodes = {hint: f"hint{i}" for i, hint in enumerate(hints, 1)}
        self.net = create_feature_extractor(net, {**nodes, head: "logits"})
        self.head = head

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = self.normalise(batch["images"])
        read: list[Tensor] = []
        linear = self.net.get_submodule(self.head)

        def keep(_module: nn.Module, given: tuple[Tensor, ...]) -> None:
            read.append(given[0])

        hook = linear.register_forward_pre_hook(keep)
        try:
            outputs: dict[str, Tensor] = self.net(x.expand(-1, COLOURS, -1, -1))
        finally:
            hook.remove()
        hints = {name: value for name, value in outputs.items() if name != "logits"}
        return {"logits": outputs["logits"], "embedding": read[0].flatten(1), **hints}


def _network(name: str, classes: int, size: int) -> nn.Module:
    from torchvision import models

    names = models.list_models(module=models)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=8, cutoff=0)
        raise UnknownName("torchvision model", name, near)
    takes = inspect.signature(models.get_model_builder(name)).parameters
    more: dict[str, Any] = {"image_size": size} if name.startswith("vit_") else {}
    if name in ("googlenet", "inception_v3"):
        more = {"aux_logits": False, "init_weights": False}
    assert "weights" in takes
    return models.get_model(name, weights=None, num_classes=classes, **more)


def _head(net: nn.Module, name: str) -> str:
    linear = [path for path, module in net.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise BadSetting(f"torchvision:{name} does not end in a linear layer; choose another model")
    return linear[-1]


def _maps(net: nn.Module, size: int, name: str) -> list[str]:
    """Modules whose output is the last feature map of its size, in order, without pooling."""
    last: dict[tuple[int, ...], str] = {}

    def note(path: str, module: nn.Module) -> Any:  # Any: a hook
        def hook(_module: nn.Module, _given: Any, output: Any) -> None:  # Any: of any module
            pooled = "Pool" in type(module).__name__
            if isinstance(output, Tensor) and output.ndim == 4 and not pooled:
                last.pop(tuple(output.shape[2:]), None)
                last[tuple(output.shape[2:])] = path

        return module.register_forward_hook(hook)

    hooks = [note(path, module) for path, module in net.named_modules() if path]
    try:
        with torch.no_grad(), torch.random.fork_rng():
            weight = next(net.parameters())
            net.eval()(torch.zeros(1, COLOURS, size, size, device=weight.device))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise BadSetting(
            f"torchvision:{name}: cannot take images of {size} pixels ({reason}); set size"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
        net.train()
    return list(last.values())
