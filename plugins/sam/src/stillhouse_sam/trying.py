"""A pretrained SAM, tried on training photos before anything learns from it."""

import torch
from torch import Tensor, nn

from stillhouse.data.data import Data, TensorData, rows_of
from stillhouse.data.notes import note
from stillhouse.errors import BadData
from stillhouse.work import Work
from stillhouse_sam.metrics import COLUMNS, FilledBoxIou, box_ious

PHOTOS = 8  # labelled ones that a SAM is tried on
TRIED = 64  # photos among which they are looked for


def check_boxes(sam: nn.Module, data: Data, *, go_on: str) -> None:
    """Raises BadData where a SAM that is prompted by true boxes is no better than the boxes,
    filled, on the first labelled photos of `data`; a line where none is labelled. `go_on` ends the
    message.
    """
    photos = _labelled(data)
    if photos is None:
        note("teacher: no labelled training photo to try it on")
        return
    found = float(box_ious({"student": sam}, photos, batch=1).mean())
    filled = FilledBoxIou()({}, photos, work=Work())["box_miou"]
    if not found > filled:
        raise BadData(
            f"checkpoint: on {len(photos)} training photos, prompted by true boxes, this SAM has a "
            f"box mIoU of {100 * found:.1f} %, the boxes themselves, filled, {100 * filled:.1f} %: "
            "weights that are not trained or of another network, another number of heads, or masks "
            f"that do not fit their photos; give another teacher, or {go_on}"
        )


def _labelled(data: Data) -> TensorData | None:
    rows: list[dict[str, Tensor]] = []
    seen = 0
    for batch in data.batches(PHOTOS, rng=None):
        place = batch["mask_valid"].any(1).nonzero().squeeze(1)
        some = rows_of(batch, place[: PHOTOS - sum(len(r["sizes"]) for r in rows)])
        rows.append({name: some[name] for name in COLUMNS})
        seen += len(batch["sizes"])
        if seen >= TRIED or sum(len(r["sizes"]) for r in rows) == PHOTOS:
            break
    found = {name: torch.cat([row[name] for row in rows]) for name in COLUMNS}
    return TensorData(found) if len(found["sizes"]) else None
