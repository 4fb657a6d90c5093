"""Where points, clicks and boxes lie."""

import numpy as np
import pytest
import torch
from torch import Tensor

from stillhouse.errors import BadData, BadSetting
from stillhouse_sam.prompts import (
    boxes_of,
    farthest_click,
    pack_masks,
    points_in,
    sample_hard_points,
    unpack_masks,
)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_masks(*shape: int, seed: int = 0, share: float = 0.5) -> Tensor:
    return torch.rand(*shape, generator=rng(seed)) < share


def mask(*rows: str) -> Tensor:
    return torch.tensor([[c == "#" for c in row] for row in rows])[None]


def at(masks: Tensor, points: Tensor) -> Tensor:
    return masks[torch.arange(len(masks)), points[:, 1], points[:, 0]]


def test_a_point_is_x_then_y() -> None:
    only = mask("....", "...#", "....")
    assert points_in(only, rng=rng()).tolist() == [[3, 1]]
    everything = mask("####", "####", "####")
    assert sample_hard_points(everything, everything ^ only, rng=rng()).tolist() == [[3, 1]]


def test_hard_points_lie_in_what_was_missed() -> None:
    truth, predicted = random_masks(200, 9, 13, seed=1), random_masks(200, 9, 13, seed=2)
    points = sample_hard_points(truth, predicted, rng=rng())
    assert bool(at(truth & ~predicted, points).all())


def test_where_nothing_was_missed_the_point_is_in_the_truth() -> None:
    truth = random_masks(50, 8, 8, seed=1, share=0.2)
    points = sample_hard_points(truth, torch.ones_like(truth), rng=rng())
    assert bool(at(truth, points).all())


def test_points_are_uniform() -> None:
    area = mask("#..#", ".##.", "...#").expand(5000, -1, -1)
    points = points_in(area, rng=rng(3))
    counts = torch.zeros(3, 4).index_put((points[:, 1], points[:, 0]), torch.ones(5000), True)
    assert bool((counts[~area[0]] == 0).all())
    # 1000 expected, standard deviation 28
    assert bool(((counts[area[0]] - 1000).abs() < 120).all())


def test_the_same_seed_gives_the_same_points_and_the_draws_of_a_row_are_its_own() -> None:
    truth, predicted = random_masks(6, 8, 8, seed=1), random_masks(6, 8, 8, seed=2)
    one = sample_hard_points(truth, predicted, rng=rng(5))
    assert torch.equal(one, sample_hard_points(truth, predicted, rng=rng(5)))
    predicted[0] = True  # another fallback, the same numbers drawn
    assert torch.equal(one[1:], sample_hard_points(truth, predicted, rng=rng(5))[1:])


def test_empty_masks_are_named() -> None:
    truth = torch.stack([torch.ones(4, 4), torch.zeros(4, 4)]).bool()
    with pytest.raises(BadData, match="mask 1 is empty"):
        points_in(truth, rng=rng())
    with pytest.raises(BadData, match="mask 1 is empty"):
        farthest_click(truth, truth)


def test_clicks_by_hand() -> None:
    truth = mask("#####..", "#####..", "#####..", "#####..", "#####..")
    nothing = torch.zeros_like(truth)
    points, labels = farthest_click(truth, nothing)
    assert (points.tolist(), labels.tolist()) == ([[2, 2]], [1])
    points, labels = farthest_click(nothing, truth)
    assert (points.tolist(), labels.tolist()) == ([[2, 2]], [0])
    # no error: the middle of the truth
    points, labels = farthest_click(truth, truth)
    assert (points.tolist(), labels.tolist()) == ([[2, 2]], [1])
    # missed and wrongly taken equally far: the missed one
    points, labels = farthest_click(mask("##."), mask(".##"))
    assert (points.tolist(), labels.tolist()) == ([[0, 0]], [1])


def nearest_outside(region: Tensor, x: int, y: int) -> float:
    """The distance from (x, y) to the nearest place outside the region, a frame included."""
    height, width = region.shape
    outside = [
        (u, v)
        for u in range(-1, width + 1)
        for v in range(-1, height + 1)
        if not (0 <= u < width and 0 <= v < height and bool(region[v, u]))
    ]
    return min(((u - x) ** 2 + (v - y) ** 2) ** 0.5 for u, v in outside)


def test_clicks_against_the_obvious_version() -> None:
    truth = random_masks(12, 7, 9, seed=1, share=0.7)
    predicted = random_masks(12, 7, 9, seed=2, share=0.4)
    predicted[6:], truth[6:] = truth[6:].clone(), predicted[6:].clone()
    points, labels = farthest_click(truth, predicted)
    for row in range(len(truth)):
        best: tuple[float, list[int], int] = (0.0, [], -1)
        for region, label in (
            (truth[row] & ~predicted[row], 1),
            (predicted[row] & ~truth[row], 0),
        ):
            for y in range(7):
                for x in range(9):
                    deep = nearest_outside(region, x, y)
                    if bool(region[y, x]) and deep > best[0] + 1e-9:
                        best = (deep, [x, y], label)
        assert (points[row].tolist(), int(labels[row])) == best[1:]
    assert labels.unique().tolist() == [0, 1]


def test_boxes() -> None:
    masks = torch.cat(
        [
            mask("....", ".#..", "..#."),
            mask("....", "....", "...."),
            ~mask("....") | torch.ones(3, 1).bool(),
        ]
    )
    assert boxes_of(masks).tolist() == [[1, 1, 3, 3], [0, 0, 0, 0], [0, 0, 4, 3]]
    assert boxes_of(masks[None]).shape == (1, 3, 4)


def test_packing_is_numpys() -> None:
    masks = random_masks(3, 5, 16, seed=4)
    packed = pack_masks(masks)
    assert np.array_equal(packed.numpy(), np.packbits(masks.numpy(), axis=-1))
    assert torch.equal(unpack_masks(packed), masks)
    with pytest.raises(BadSetting, match="12 pixels wide"):
        pack_masks(random_masks(1, 12, 12))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_device_makes_no_difference() -> None:
    truth, predicted = random_masks(20, 16, 16, seed=1), random_masks(20, 16, 16, seed=2)
    there = sample_hard_points(truth.cuda(), predicted.cuda(), rng=rng(1))
    assert torch.equal(there.cpu(), sample_hard_points(truth, predicted, rng=rng(1)))
