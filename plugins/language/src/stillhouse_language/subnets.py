"""Subnets of a SuperLM: run in place by views of its weights, or cut out as networks."""

from typing import Any

import torch
from torch import Tensor, nn

from stillhouse_language.architecture import Architecture, kept_layers
from stillhouse_language.encoder import Encoder, Tensors, encode


class Subnet(nn.Module):
    """A subnet that computes with its SuperLM's own weights: a gradient of the one is that of the
    other, and nothing is copied. It is in train or eval mode as the SuperLM is.
    """

    def __init__(self, model: Encoder, architecture: Architecture) -> None:
        super().__init__()
        a = architecture
        # what fits is the same network in smaller numbers; anything else is refused by name
        self.architecture = model.architecture.cut(
            layers=a.layers, width=a.width, inner=a.inner, heads=a.heads
        )
        self.model = model

    def forward(self, batch: Tensors) -> dict[str, Tensor]:
        return encode(self.model, self.architecture, batch)

    def projections(self, batch: Tensors, *, in_place: bool = False) -> dict[str, Tensor]:
        """ "query", "key" and "value" of the last kept layer alone. `in_place`: for a backward pass
        that adds to `grad`, without a gradient of the size of the vocabulary beside it.
        """
        return encode(self.model, self.architecture, batch, whole=False, in_place=in_place)


def subnet(model: Encoder, architecture: Architecture) -> Subnet:
    """The "bottom-left" subnet of a SuperLM (Xu et al. 2022, arXiv 2201.12507, sec. 3.2): the first
    width columns of what touches the residual stream, the first inner units, the leftmost heads, of
    the layers `kept_layers` names. Views, no copies. Raises BadSetting for one that does not fit.
    """
    return Subnet(model, architecture)


def extract(model: Encoder, architecture: Architecture) -> Encoder:
    """The subnet as a network of its own, with copies of its slices: it computes what `subnet`
    does. Raises BadSetting for an architecture that does not fit.
    """
    cut = subnet(model, architecture).architecture
    own = Encoder(cut.record(), model.embeddings.LayerNorm.eps, model.dropout)
    source, kept = model.state_dict(), kept_layers(cut.layers, model.architecture.layers)
    with torch.no_grad():
        for name, parameter in own.named_parameters():
            whole = source[_of_super(name, kept)]
            parameter.copy_(whole[tuple(slice(0, size) for size in parameter.shape)])
    return own.train(model.training)


def _of_super(name: str, kept: tuple[int, ...]) -> str:
    """The name in the SuperLM of a parameter of a subnet."""
    parts: list[Any] = name.split(".")
    if parts[:2] == ["encoder", "layer"]:
        parts[2] = str(kept[int(parts[2])])
    return ".".join(parts)
