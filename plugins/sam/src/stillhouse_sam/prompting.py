"""Masks that a SAM, whole or not, predicts from boxes and clicks on images in its frame.

B: images. P: prompts. K: clicks. C: channels. G: side of the embedding. L: side of the masks. S:
side of the frame in pixels. Of three masks the one of the highest predicted IoU is the answer.
"""

from typing import cast

import torch
from jaxtyping import Float, Int64
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.nn import functional

from stillhouse.errors import BadRecipe
from stillhouse.objectives.inputs import named
from stillhouse.objectives.objective import Models, Tensors
from stillhouse_sam.models.encoders import frames
from stillhouse_sam.models.network import SamNetwork, decoded, prompted
from stillhouse_sam.prompts import box_prompts, in_frame


def whole(module: nn.Module) -> Sam | None:
    """The stock Sam of a role; None for one that only answers boxes by its forward."""
    if isinstance(module, SamNetwork):
        return module.sam
    return module if isinstance(module, Sam) else None


def sam_of(models: Models, role: str, *, where: str) -> Sam:
    """The stock Sam of `role`; raises BadRecipe where it is not a whole one."""
    module = named(models, role, what="role", where=where)
    sam = whole(module)
    if sam is None:
        raise BadRecipe(
            f"{where}: role '{role}' is a {type(module).__name__}, which answers boxes alone; "
            "give a whole SAM, or score it by BoxIou"
        )
    return sam


def threshold_of(module: nn.Module) -> float:
    """The logit above which a pixel is in the mask."""
    sam = whole(module)
    return 0.0 if sam is None else float(sam.mask_threshold)


def on_device(batch: Tensors, module: nn.Module) -> dict[str, Tensor]:
    """The batch on the module's device."""
    device = device_of(module)
    return {name: value.to(device) for name, value in batch.items()}


def device_of(module: nn.Module) -> torch.device:
    """Where a module reads from: the CPU, if it runs outside torch."""
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def embedded(sam: Sam, batch: Tensors) -> Float[Tensor, "B C G G"]:
    """The embedding of images [B, 3, S, S] with sizes [B, 2]."""
    mean, std = cast(Tensor, sam.pixel_mean), cast(Tensor, sam.pixel_std)
    return sam.image_encoder(frames(batch["images"], batch["sizes"], mean, std))


def best(found: Tensors) -> tuple[Float[Tensor, "P L L"], Float[Tensor, " P"]]:
    """The logits of the highest predicted IoU, and that."""
    iou, place = found["iou"].float().max(dim=1)
    return found["logits"][torch.arange(len(place), device=place.device), place].float(), iou


def predict_from_boxes(
    module: nn.Module,
    batch: Tensors,
    rows: Int64[Tensor, " P"],
    boxes: Float[Tensor, "P 4"],
    *,
    at_once: int = 64,
) -> tuple[Float[Tensor, "P L L"], Float[Tensor, " P"]]:
    """Logits and predicted IoU of the answers to boxes (xyxy in pixels of the frame), box p in
    image rows[p] of the batch; at least one box, `at_once` in a forward.

    A whole SAM embeds each image once; another role runs its forward, an image at a time.
    """
    sam = whole(module)
    if sam is None:
        return _by_image(module, batch, rows, boxes, at_once)
    embedding = embedded(sam, batch)
    answers: list[tuple[Tensor, Tensor]] = []
    for some, corners in zip(rows.split(at_once), boxes.split(at_once), strict=True):
        prompt = prompted(sam.prompt_encoder, {"boxes_prompt": corners})
        found = decoded(sam.mask_decoder, {"embedding": embedding[some], **prompt})
        answers.append(best(found))
    return torch.cat([a for a, _ in answers]), torch.cat([b for _, b in answers])


def _by_image(
    module: nn.Module, batch: Tensors, rows: Tensor, boxes: Tensor, at_once: int
) -> tuple[Tensor, Tensor]:
    """`predict_from_boxes` of a module that answers as `SamNetwork` does."""
    places: list[Tensor] = []
    answers: list[tuple[Tensor, Tensor]] = []
    for image in rows.unique():
        one = {name: batch[name][image][None] for name in ("images", "sizes")}
        for some in (rows == image).nonzero().squeeze(1).split(at_once):
            points, labels = box_prompts(boxes[some][None])
            found = module({**one, "point_coords": points, "point_labels": labels})
            answers.append(best({name: found[name][0] for name in ("logits", "iou")}))
            places.append(some)
    order = torch.cat(places).argsort()
    return torch.cat([a for a, _ in answers])[order], torch.cat([b for _, b in answers])[order]


def predict_from_points(
    sam: Sam,
    embedding: Float[Tensor, "P C G G"],
    points: Int64[Tensor, "P K 2"],
    labels: Int64[Tensor, "P K"],
) -> tuple[Float[Tensor, "P L L"], Float[Tensor, " P"]]:
    """Logits and predicted IoU of the answers to K points each, cells (x, y) of the masks; label 1
    of the object, 0 not.
    """
    cells = 4 * embedding.shape[-1]
    placed = in_frame(points, sam.image_encoder.img_size / cells)
    prompt = prompted(sam.prompt_encoder, {"points": placed, "labels": labels})
    return best(decoded(sam.mask_decoder, {"embedding": embedding, **prompt}))


def enlarged(
    logits: Float[Tensor, "P L L"],
    *,
    frame: int,
    size: tuple[int, int],
    original: tuple[int, int],
) -> Float[Tensor, "P H W"]:
    """Logits at an image's own height and width, as `Sam.postprocess_masks` has them: to the
    frame, without its padding (`size` is the real part's height and width), to `original`.
    """
    x = functional.interpolate(logits[:, None], (frame, frame), mode="bilinear")
    x = x[..., : size[0], : size[1]]
    return functional.interpolate(x, original, mode="bilinear")[:, 0]
