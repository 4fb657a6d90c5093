"""Points and boxes drawn from masks, the packing of masks, and mirrored views."""

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from stillhouse.errors import BadData, BadSetting
from stillhouse_sam.augment import Flip
from stillhouse_sam.prompts import (
    boxes_of,
    error_points,
    farthest_click,
    pack_masks,
    points_in,
    sample_hard_points,
    unpack_masks,
)


def masks(seed: int = 0, count: int = 6, side: int = 16) -> Tensor:
    return torch.rand(count, side, side, generator=Generator().manual_seed(seed)) < 0.3


def at(mask: Tensor, points: Tensor) -> list[bool]:
    return [bool(m[y, x]) for m, (x, y) in zip(mask, points.tolist(), strict=True)]


def test_points_lie_in_their_masks_and_reach_all_of_them():
    mask = torch.zeros(1, 4, 5, dtype=torch.bool)
    mask[0, 1, 2] = mask[0, 3, 0] = mask[0, 0, 4] = True
    rng = Generator().manual_seed(0)
    found = {tuple(points_in(mask, rng=rng)[0].tolist()) for _ in range(60)}
    assert found == {(2, 1), (0, 3), (4, 0)}
    with pytest.raises(BadData, match="mask 0 is empty"):
        points_in(torch.zeros_like(mask), rng=rng)


def test_hard_points_are_missed_pixels():
    truth, predicted = masks(1), masks(2)
    predicted[0] = True  # nothing was missed there
    for seed in range(10):
        points = sample_hard_points(truth, predicted, rng=Generator().manual_seed(seed))
        assert all(at(truth, points))
        assert not any(at(predicted, points)[1:])


def test_points_of_an_error_say_whether_it_was_missed_or_wrongly_taken():
    truth, predicted = masks(1), masks(2)
    predicted[0] = truth[0]  # no error there
    labels_seen: set[int] = set()
    for seed in range(10):
        points, labels = error_points(truth, predicted, 3, rng=Generator().manual_seed(seed))
        assert points.shape == (*labels.shape, 2) == (len(truth), 3, 2)
        for k in range(3):
            assert at(truth, points[:, k]) == labels[:, k].bool().tolist()
            wrong = at(truth ^ predicted, points[:, k])
            assert all(wrong[1:])
        assert bool(labels[0].all())
        labels_seen |= set(labels.flatten().tolist())
    assert labels_seen == {0, 1}


def slow_depth(region: np.ndarray) -> np.ndarray:
    """Distance of each pixel to the nearest outside the region, one by one."""
    padded = np.pad(region, 1)
    outside = np.argwhere(~padded)
    depth = np.zeros(region.shape)
    for y, x in np.argwhere(region):
        depth[y, x] = np.sqrt(((outside - (y + 1, x + 1)) ** 2).sum(1)).min()
    return depth


def test_the_next_click_is_the_deepest_pixel_of_the_error():
    truth, predicted = masks(3, side=12), masks(4, side=12)
    truth[0, 2:9, 3:10] = True
    points, labels = farthest_click(truth, predicted)
    for row in range(len(truth)):
        missed = slow_depth((truth[row] & ~predicted[row]).numpy())
        wrong = slow_depth((predicted[row] & ~truth[row]).numpy())
        depth = missed if missed.max() >= wrong.max() else wrong
        x, y = points[row].tolist()
        assert depth[y, x] == depth.max()
        assert int(labels[row]) == int(depth is missed)


def test_boxes_by_hand():
    mask = torch.zeros(2, 5, 6, dtype=torch.bool)
    mask[0, 1:3, 2:6] = True
    assert boxes_of(mask).tolist() == [[2.0, 1.0, 6.0, 3.0], [0.0, 0.0, 0.0, 0.0]]


def test_masks_are_packed_as_numpy_does():
    mask = masks(5)
    assert pack_masks(mask).numpy().tolist() == np.packbits(mask.numpy(), axis=-1).tolist()
    assert torch.equal(unpack_masks(pack_masks(mask)), mask)
    with pytest.raises(BadSetting, match="multiples of 8"):
        pack_masks(mask[..., :9])


def seen(view: int) -> dict[str, Tensor]:
    rng = Generator().manual_seed(7)
    mask = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    mask[0, 0, 2:6, 1:4] = mask[1, 0, 8:12, 5:11] = True
    return {
        "id": torch.arange(2),
        "view": torch.full((2,), view),
        "images": torch.randint(0, 256, (2, 3, 32, 32), generator=rng, dtype=torch.uint8),
        "sizes": torch.tensor([[32, 20], [24, 32]]),
        "masks": pack_masks(mask),
        "boxes": 2 * boxes_of(mask),
    }


def test_even_views_are_left_alone_and_two_mirrors_are_none():
    plain = seen(0)
    assert all(torch.equal(v, plain[k]) for k, v in Flip()(plain).items())
    twice = Flip()(Flip()(seen(1)))
    for name in ("images", "masks", "boxes"):
        assert torch.equal(twice[name], plain[name]), name


def test_mirrored_masks_and_boxes_still_fit_the_pixels():
    plain, turned = seen(0), Flip()(seen(1))
    assert torch.equal(turned["images"][0, :, :, :20], plain["images"][0, :, :, :20].flip(-1))
    assert torch.equal(turned["images"][0, :, :, 20:], plain["images"][0, :, :, 20:])
    assert torch.equal(turned["boxes"], 2 * boxes_of(unpack_masks(turned["masks"])))
    assert turned["boxes"][0, 0].tolist() == [12.0, 4.0, 18.0, 12.0]
