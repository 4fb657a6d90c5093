"""What promptable segmentation costs: calls, prompts and seconds of a SAM's parts."""

import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from segment_anything.modeling import Sam


@dataclass(kw_only=True)
class Counts:
    """`prompts` decoded in `calls` of the mask decoder; seconds in the image encoder, and in the
    prompt encoder and mask decoder together (upsampling and filters belong to neither).
    """

    prompts: int = 0
    calls: int = 0
    encoder_seconds: float = 0.0
    decoder_seconds: float = 0.0


@contextmanager
def counted(sam: "Sam") -> Generator[Counts, None, None]:
    """Counts of all that `sam` does within: by any generator or predictor, ours or Meta's."""
    counts, since = Counts(), [0.0]

    def begin(*_: object) -> None:
        since[0] = _now(sam.device)

    def encoded(*_: object) -> None:
        counts.encoder_seconds += _now(sam.device) - since[0]

    def decoded(*_: object) -> None:
        counts.decoder_seconds += _now(sam.device) - since[0]

    # Any: the decoder's keyword arguments
    def masks(_: nn.Module, __: tuple[Any, ...], kwargs: Mapping[str, Any], ___: object) -> None:
        decoded()
        counts.calls += 1
        counts.prompts += len(kwargs["sparse_prompt_embeddings"])

    parts = (sam.image_encoder, sam.prompt_encoder, sam.mask_decoder)
    hooks = [part.register_forward_pre_hook(begin) for part in parts]
    hooks += [
        sam.image_encoder.register_forward_hook(encoded),
        sam.prompt_encoder.register_forward_hook(decoded),
        sam.mask_decoder.register_forward_hook(masks, with_kwargs=True),
    ]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
