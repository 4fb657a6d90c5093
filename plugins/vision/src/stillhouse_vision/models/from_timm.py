"""Any model of timm by name, with the outputs of this plugin's own models."""

import difflib
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from stillhouse.errors import UnknownName
from stillhouse_vision.models.classifier import ImageSpec, Normalise


def timm_model(
    *,
    name: str,
    classes: int,
    images: Mapping[str, Any],  # Any: ImageSpec.json()
) -> nn.Module:
    """timm's `name` with fresh weights; raises UnknownName with the nearest one."""
    return TimmClassifier(name, classes, ImageSpec.of(images))


class TimmClassifier(nn.Module):
    """logits, embedding, and hint1..N where the model has timm's `forward_intermediates`.

    The hints are the levels of the model's feature pyramid (a transformer's blocks as [B, C, H, W]
    maps); timm does not show them before their ReLU, so there are no preacts.
    """

    def __init__(self, name: str, classes: int, images: ImageSpec) -> None:
        super().__init__()
        import timm

        if not timm.is_model(name):
            # a few of its more than a thousand names
            near = difflib.get_close_matches(name, timm.list_models(), n=8, cutoff=0)
            raise UnknownName("timm model", name, near)
        self.normalise = Normalise(images)
        # Any: timm's models share methods, not a type
        self.net: Any = timm.create_model(
            name, num_classes=classes, in_chans=images.channels, **_size(name, images.size)
        )
        self.levels = callable(getattr(self.net, "forward_intermediates", None))

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = self.normalise(batch["images"])
        last, maps = (
            self.net.forward_intermediates(x) if self.levels else (self.net.forward_features(x), [])
        )
        outputs = {"logits": self.net.forward_head(last)}
        outputs["embedding"] = self.net.forward_head(last, pre_logits=True)
        return outputs | {f"hint{i}": hint for i, hint in enumerate(maps, 1)}


def _size(name: str, size: int) -> dict[str, Any]:  # Any: arguments of create_model
    """Models with a fixed grid of patches must know the size when they are built; the others do not
    take it.
    """
    import timm

    fixed = timm.get_pretrained_cfg(name)
    return {"img_size": size} if fixed is not None and fixed.fixed_input_size else {}
