"""What a checkpoint of segment_anything was made of, as the settings that read it."""

import re
from collections.abc import Mapping

from torch import Tensor

from stillhouse.weights import unwrapped
from stillhouse_sam.models.named import HEAD, META, META_SHAPE, Shape

BLOCK = re.compile(r"image_encoder\.blocks\.(\d+)\.attn\.rel_pos_h")
POSITION, PATCH = "image_encoder.pos_embed", "image_encoder.patch_embed.proj.weight"
NECK, MLP = "image_encoder.neck.0.weight", "mask_decoder.transformer.layers.0.mlp.lin1.weight"


def lines_of(name: str, shape: Shape) -> str:
    """The options that choose a teacher of this encoder and shape."""
    chosen = {"teacher_model": name, "size": shape.size, "grid": shape.grid}
    chosen |= {"channels": shape.channels, "heads": shape.heads, "mlp": shape.mlp}
    return " ".join(f"--set {key}={value}" for key, value in chosen.items())


def described(state: Mapping[str, Tensor], shape: Shape) -> str:
    """What reads a checkpoint that did not fit: the options to set, or why there are none.

    The number of the decoder's heads is in no tensor: Meta's is taken with Meta's widths, else that
    of `shape`.
    """
    state = unwrapped(state)
    if not {POSITION, PATCH, NECK, MLP} <= state.keys():
        return (
            "it holds no whole SAM with segment_anything's ViT; give such a checkpoint, as "
            "sam_vit_b_01ec64.pth, or a folder that Stillhouse exported"
        )
    grid, width, patch = state[POSITION].shape[1], state[POSITION].shape[-1], state[PATCH].shape[-1]
    channels, mlp = len(state[NECK]), len(state[MLP])
    meta = (channels, mlp) == (META_SHAPE.channels, META_SHAPE.mlp)
    heads = META_SHAPE.heads if meta else shape.heads
    found = Shape(size=grid * patch, grid=grid, channels=channels, heads=heads, mlp=mlp)
    positions = [value for key, value in state.items() if BLOCK.fullmatch(key)]
    depth = len(positions)
    known = [name for name, (w, d, _, _) in META.items() if (w, d) == (width, depth)]
    if known and found == META_SHAPE:
        return f"it is SAM's {known[0]}; run with {lines_of(known[0], found)}"
    whole = all(len(value) == 2 * grid - 1 for value in positions)
    per_head = {value.shape[-1] for value in positions}
    if whole and per_head == {width // max(1, width // HEAD)}:
        name = f"sam-{width}x{depth}"
        return f"it is a SAM as {name}; run with {lines_of(name, found)}"
    return (
        f"its ViT (width {width}, depth {depth}, {grid} x {grid} patches) has windows or heads "
        "that no name builds; export it with Stillhouse, or give one of Meta's"
    )
