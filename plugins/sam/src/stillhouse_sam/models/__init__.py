"""SAM's parts as roles, whole SAMs by name, and what converts between them."""

from stillhouse_sam.models.converts import Join, LoadSam, Split
from stillhouse_sam.models.encoders import (
    Encoder,
    cnn_encoder,
    timm_encoder,
    tiny_vit_encoder,
    vit_encoder,
)
from stillhouse_sam.models.named import (
    META_SHAPE,
    Shape,
    decoder_named,
    encoder_named,
    joined,
    named,
    prompts_named,
)
from stillhouse_sam.models.network import (
    DecoderRole,
    PromptEncoderRole,
    SamNetwork,
    load_sam,
    mask_decoder,
    network,
    prompt_encoder,
)

__all__ = [
    "META_SHAPE",
    "DecoderRole",
    "Encoder",
    "Join",
    "LoadSam",
    "PromptEncoderRole",
    "SamNetwork",
    "Shape",
    "Split",
    "cnn_encoder",
    "decoder_named",
    "encoder_named",
    "joined",
    "load_sam",
    "mask_decoder",
    "named",
    "network",
    "prompt_encoder",
    "prompts_named",
    "timm_encoder",
    "tiny_vit_encoder",
    "vit_encoder",
]
