"""Images, masks and boxes are mirrored together, and the padding stays."""

import torch
from torch import Tensor

from stillhouse.training import Augment
from stillhouse_sam.augment import Flip, mirrored
from stillhouse_sam.prompts import boxes_of, pack_masks, unpack_masks

SIDE, LOW = 64, 16


def batch(view: int, widths: tuple[int, ...] = (64, 40)) -> dict[str, Tensor]:
    """Images whose every channel is 255 on the object, in steps of a mask's cell."""
    rng = torch.Generator().manual_seed(0)
    count = len(widths)
    masks = torch.rand(count, 2, LOW, LOW, generator=rng) < 0.3
    for row, width in enumerate(widths):
        masks[row, ..., width // 4 :] = False
    masks[:, 1] = False
    pixels = masks.repeat_interleave(4, -1).repeat_interleave(4, -2)
    return {
        "id": torch.arange(count),
        "view": torch.full((count,), view),
        "images": (pixels[:, :1] * 255).byte().repeat(1, 3, 1, 1),
        "sizes": torch.tensor([(SIDE, width) for width in widths]),
        "masks": pack_masks(masks),
        "mask_valid": masks.flatten(2).any(-1),
        "boxes": boxes_of(pixels),
    }


def test_it_is_an_augmentation() -> None:
    assert isinstance(Flip(), Augment)


def test_even_views_are_unchanged() -> None:
    for view in (0, 2):
        before = batch(view)
        after = Flip()(before)
        assert all(torch.equal(after[name], before[name]) for name in before)


def test_pixels_masks_and_boxes_stay_together() -> None:
    before = batch(1)
    after = Flip()(before)
    pixels = after["images"][:, :1] > 0
    masks = unpack_masks(after["masks"])
    assert torch.equal(masks[:, :1].repeat_interleave(4, -1).repeat_interleave(4, -2), pixels)
    assert torch.equal(after["boxes"][:, :1], boxes_of(pixels))
    assert torch.equal(after["boxes"][:, 1], torch.zeros(2, 4))
    assert not torch.equal(after["images"], before["images"])


def test_twice_is_once_less() -> None:
    before = batch(1)
    after = Flip()(Flip()(before))
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_by_hand_the_padding_stays_right() -> None:
    row = torch.tensor([1, 2, 3, 9, 8])[None, None, None]
    assert mirrored(row, torch.tensor([3])).flatten().tolist() == [3, 2, 1, 9, 8]
    # 2.5 cells are real: the mirrored centres 2, 1 and 0 lie in the cells 2, 1 and 0
    cells = torch.tensor([True, False, False, True, True])[None, None, None]
    turned = mirrored(cells, torch.tensor([2.5]), beyond=False)
    assert turned.flatten().tolist() == [False, False, True, False, False]


def test_a_view_is_mixed_row_by_row_and_nothing_is_written_into() -> None:
    before = batch(0)
    before["view"] = torch.tensor([0, 1])
    kept = {name: column.clone() for name, column in before.items()}
    after = Flip()(before)
    assert torch.equal(after["images"][0], before["images"][0])
    assert torch.equal(after["images"][1], Flip()(batch(1))["images"][1])
    assert all(torch.equal(kept[name], before[name]) for name in before)


def test_images_alone_will_do() -> None:
    whole = batch(1)
    part = {name: whole[name] for name in ("id", "view", "images", "sizes")}
    assert torch.equal(Flip()(part)["images"], Flip()(whole)["images"])
