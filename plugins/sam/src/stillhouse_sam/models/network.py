"""SAM's prompt encoder and decoder as roles, and a whole SAM of three parts.

B: images. N: prompts an image. P: prompts of all. K: points a prompt. T: its tokens. C: channels.
G: side of the embedding; L = 4 G: side of the logits. S: side of the frame in pixels.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn

from stillhouse.artifact import SPEC, Record, load_model, spec_of
from stillhouse.errors import BadData, BadSetting
from stillhouse_sam.models.encoders import MEAN, STD, Encoder, frames
from stillhouse_sam.prompts import MIDDLE


class PromptEncoderRole(nn.Module):
    """batch["points"] [P, K, 2] (x, y in pixels of the frame) with batch["labels"] [P, K] (1 of the
    object, 0 not, -1 padding), and or batch["boxes_prompt"] [P, 4] (xyxy) -> {"sparse": [P, T, C],
    "dense": [P, C, G, G], "position": [1, C, G, G]}. `net` is segment-anything's PromptEncoder.

    T is K + 1 for points alone (SAM adds one of padding), 2 for boxes, K + 2 for both.
    """

    def __init__(self, net: PromptEncoder) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return prompted(self.net, batch)


class DecoderRole(nn.Module):
    """batch["embedding"] [P, C, G, G] (repeated for each prompt), "sparse", "dense" and "position"
    of a prompt encoder -> {"logits": [P, 3, L, L], "iou": [P, 3], "tokens": [P, 5 + T, C]}.

    Logits and iou are those of segment-anything's MaskDecoder (`net`) for multimask_output=True;
    tokens leave its two-way transformer: of the IoU, of the four masks, of the prompt.
    """

    def __init__(self, net: MaskDecoder) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return decoded(self.net, batch)


def prompted(net: PromptEncoder, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `PromptEncoderRole` gives; raises BadData without any prompt."""
    points = (batch["points"], batch["labels"]) if "points" in batch else None
    boxes = batch.get("boxes_prompt")
    if points is None and boxes is None:
        raise BadData("a prompt needs points with labels, or boxes_prompt; none of them is given")
    sparse, dense = net(points=points, boxes=boxes, masks=None)
    return {"sparse": sparse, "dense": dense, "position": net.get_dense_pe()}


def decoded(net: MaskDecoder, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `DecoderRole` gives: the steps of segment-anything's decoder around its transformer."""
    sparse = batch["sparse"]
    count, masks = sparse.shape[0], net.num_mask_tokens
    own = torch.cat([net.iou_token.weight, net.mask_tokens.weight])
    tokens = torch.cat([own.expand(count, -1, -1), sparse], dim=1)
    source = batch["embedding"] + batch["dense"]
    position = batch["position"].expand(count, -1, -1, -1)
    after, image = net.transformer(source, position, tokens)
    upscaled = net.output_upscaling(image.transpose(1, 2).reshape(source.shape))
    heads = net.output_hypernetworks_mlps
    weights = torch.stack([heads[i](after[:, 1 + i]) for i in range(masks)], dim=1)
    logits = (weights @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])
    iou = net.iou_prediction_head(after[:, 0])
    # the first mask is the one for prompts without ambiguity
    return {"logits": logits[:, 1:], "iou": iou[:, 1:], "tokens": after}


class SamNetwork(nn.Module):
    """A whole SAM: `sam` is a stock segment_anything Sam. `everything` are the settings with which
    it finds everything in an image, where they were kept with it (`KeepEverything`).

    batch["images"] [B, 3, S, S] and "sizes" [B, 2] as of `Encoder`, "point_coords" [B, N, K, 2] and
    "point_labels" int64 [B, N, K] as of `labelled` -> {"logits": [B, N, 3, L, L], "iou": [B, N, 3],
    "embedding": [B, C, G, G]}: each of any number of prompts is answered, an image is embedded
    once.
    """

    def __init__(self, sam: Sam, everything: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.sam, self.everything = sam, everything

    @property
    def img_size(self) -> int:
        """The side S of the frames."""
        return self.sam.image_encoder.img_size

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        sam = self.sam
        mean, std = cast(Tensor, sam.pixel_mean), cast(Tensor, sam.pixel_std)
        x = frames(batch["images"], batch["sizes"], mean, std)
        embedding = sam.image_encoder(x)
        return {**answered(sam, embedding, batch), "embedding": embedding}


class Decoder(nn.Module):
    """What of a SAM comes after its image encoder: batch["embedding"] [B, C, G, G], "point_coords"
    and "point_labels" -> {"logits", "iou"} as of `SamNetwork`.
    """

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.prompt_encoder, self.mask_decoder = sam.prompt_encoder, sam.mask_decoder

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return answered(self, batch["embedding"], batch)


def answered(
    sam: Sam | Decoder, embedding: Tensor, batch: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """logits [B, N, 3, L, L] and iou [B, N, 3] of the prompts of a batch, for its embeddings."""
    points, labels = batch["point_coords"], batch["point_labels"]
    images, count = labels.shape[:2]
    prompt = labelled(sam.prompt_encoder, points.flatten(0, 1), labels.flatten(0, 1))
    each = embedding[:, None].expand(-1, count, -1, -1, -1).flatten(0, 1)
    found = decoded(sam.mask_decoder, {"embedding": each, **prompt})
    return {name: found[name].unflatten(0, (images, count)) for name in ("logits", "iou")}


def labelled(net: PromptEncoder, points: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Prompts as segment_anything's ONNX files take them: points [P, K, 2] (x, y in pixels of the
    frame) whose label [P, K] is 1 of the object, 0 not, 2 and 3 the top left and bottom right
    corner of a box, -1 nothing (its place does not count) -> as `PromptEncoderRole`.

    A prompt without a box gets one point of label -1, as `PromptEncoder` adds itself elsewhere.
    """
    kinds = [net.not_a_point_embed, *net.point_embeddings]
    table = torch.cat([cast(nn.Embedding, kind).weight for kind in kinds])
    place = net.pe_layer.forward_with_coords(points + MIDDLE, net.input_image_size)
    real = (labels != -1)[..., None]
    sparse = torch.where(real, place, 0.0) + table[labels + 1]
    _, dense = net(points=None, boxes=None, masks=None)
    dense = dense.expand(labels.shape[0], -1, -1, -1)  # len() would be a constant in an export
    return {"sparse": sparse, "dense": dense, "position": net.get_dense_pe()}


def prompt_encoder(*, size: int, grid: int, channels: int, inside: int = 16) -> nn.Module:
    """segment-anything's PromptEncoder for frames of `size` and embeddings [channels, grid, grid];
    `inside` channels where it reads a mask.
    """
    if channels % 2:
        raise BadSetting(f"channels must be even (got {channels})")
    net = PromptEncoder(
        embed_dim=channels,
        image_embedding_size=(grid, grid),
        input_image_size=(size, size),
        mask_in_chans=inside,
    )
    return PromptEncoderRole(net)


def mask_decoder(
    *, channels: int, depth: int = 2, heads: int = 8, mlp: int = 2048, iou_width: int = 256
) -> nn.Module:
    """segment-anything's MaskDecoder on a TwoWayTransformer of `depth` blocks."""
    if channels % (2 * heads) or channels % 8:
        raise BadSetting(
            f"channels must be a multiple of 8 and of twice heads (got {channels} and {heads})"
        )
    transformer = TwoWayTransformer(
        depth=depth, embedding_dim=channels, num_heads=heads, mlp_dim=mlp
    )
    net = MaskDecoder(
        transformer_dim=channels,
        transformer=transformer,
        num_multimask_outputs=3,
        iou_head_depth=3,
        iou_head_hidden_dim=iou_width,
    )
    return DecoderRole(net)


def network(
    *,
    encoder: Record,
    prompts: Record,
    decoder: Record,
    everything: Mapping[str, Any] | None = None,  # Any: JSON values
) -> nn.Module:
    """A whole SAM of three parts, each a record of its builder and arguments (`recorded`)."""
    first, second, third = (spec_of(record).new() for record in (encoder, prompts, decoder))
    if not isinstance(first, Encoder):
        raise BadSetting(f"encoder: {encoder['build']} builds no image encoder")
    if not isinstance(second, PromptEncoderRole) or not isinstance(third, DecoderRole):
        raise BadSetting(f"{prompts['build']} and {decoder['build']} are no parts of a SAM")
    sam = Sam(
        image_encoder=cast("Any", first.net),  # Any: annotated as SAM's own ViT
        prompt_encoder=second.net,
        mask_decoder=third.net,
        pixel_mean=list(MEAN),
        pixel_std=list(STD),
    )
    return SamNetwork(sam, everything)


def load_sam(folder: Path) -> Sam:
    """The stock Sam, in eval mode on the CPU, of an exported folder or that of a stage.

    Raises BadData where the folder holds no whole SAM.
    """
    found = [path for path in (folder, folder / "model") if (path / SPEC).is_file()]
    if not found:
        raise BadData(f"{folder}: there is no {SPEC}; give the folder of an exported SAM")
    module = load_model(found[0]).module
    if not isinstance(module, SamNetwork):
        raise BadData(f"{folder}: a {type(module).__name__}, not a whole SAM; join its parts first")
    return module.sam.eval()
