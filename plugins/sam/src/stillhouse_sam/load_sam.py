"""An exported SAM as a stock Sam, with torch, safetensors and segment-anything alone.

A copy of this file lies beside the weights. It needs neither Stillhouse nor timm:

    from load_sam import load_sam
    from segment_anything import SamPredictor

    predictor = SamPredictor(load_sam())
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from torch import nn

HERE = Path(__file__).parent
RECORD, WEIGHTS, ENCODER = "export.json", "model.safetensors", "image_encoder.pt2"


def load_sam(folder: Path = HERE) -> Sam:
    """The SAM of an exported folder, in eval mode on the CPU."""
    shape = json.loads((folder / RECORD).read_text())["sam"]
    sam = Sam(
        image_encoder=image_encoder(folder, shape["image_encoder"]),
        prompt_encoder=PromptEncoder(**shape["prompt_encoder"]),
        mask_decoder=MaskDecoder(
            transformer=TwoWayTransformer(**shape["transformer"]), **shape["mask_decoder"]
        ),
        pixel_mean=shape["pixel_mean"],
        pixel_std=shape["pixel_std"],
    )
    weights = load_file(folder / WEIGHTS)
    for name, part in sam.named_children():
        inside = f"sam.{name}."
        if (folder / ENCODER).is_file() and name == "image_encoder":
            continue  # its weights are in its own file
        part.load_state_dict(
            {key.removeprefix(inside): v for key, v in weights.items() if key.startswith(inside)}
        )
    return sam.eval()


def image_encoder(folder: Path, shape: dict[str, Any]) -> Any:  # Any: annotated as SAM's own ViT
    """segment_anything's ViT; or what torch.export wrote of another network, which cannot train."""
    if not (folder / ENCODER).is_file():
        return ImageEncoderViT(**shape, norm_layer=partial(nn.LayerNorm, eps=1e-6))  # pyright: ignore[reportArgumentType]
    graph: Any = torch.export.load(folder / ENCODER).module()
    graph.img_size = shape["img_size"]
    graph.train = partial(_same, graph)  # torch raises at eval() of what it exported
    return graph


def _same(graph: nn.Module, mode: bool = True) -> nn.Module:  # noqa: ARG001
    return graph
