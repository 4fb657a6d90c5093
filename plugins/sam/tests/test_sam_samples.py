"""Rendered scenes are repeatable, their masks are what is seen, and they are quick."""

import hashlib
import time

import numpy as np
import pytest
from numpy.typing import NDArray

from stillhouse.errors import BadSetting
from stillhouse_sam.samples import OBJECTS, SMALLEST, noise, outline, render, scene, scenes

SIZE = 96


Drawn = list[tuple[NDArray[np.uint8], list[NDArray[np.bool_]]]]


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    return [scene(size=SIZE, seed=3, index=index) for index in range(80)]


def test_a_scene_depends_on_its_seed_and_index_alone() -> None:
    few, more = render(3, size=64, seed=5), render(5, size=64, seed=5)
    assert all((few[name] == more[name][:3]).all() for name in few)
    other = render(3, size=64, seed=6)
    assert not (few["images"] == other["images"]).all(axis=(1, 2, 3)).any()
    image, _ = scene(size=64, seed=5, index=2)
    height, width = image.shape[:2]
    assert (few["images"][2, :, :height, :width] == image.transpose(2, 0, 1)).all()


def test_scenes_have_several_objects_of_all_sizes(drawn: Drawn) -> None:
    counts = [len(masks) for _, masks in drawn]
    assert 1 <= min(counts) <= 4
    assert max(counts) == OBJECTS
    assert 4 < float(np.mean(counts)) < OBJECTS
    shares = np.array([mask.mean() for _, masks in drawn for mask in masks])
    assert shares.min() >= SMALLEST
    assert np.quantile(shares, 0.1) < 0.02
    assert np.quantile(shares, 0.9) > 0.15


def test_frames_are_filled_one_way(drawn: Drawn) -> None:
    sizes = np.array([image.shape[:2] for image, _ in drawn])
    assert (sizes.max(1) == SIZE).all()
    assert (sizes.min(1) >= 0.55 * SIZE).all()
    for side in (0, 1):
        assert (sizes[:, side] < SIZE).any()


def test_masks_overlap_only_as_part_and_whole(drawn: Drawn) -> None:
    nested = 0
    for _, masks in drawn:
        for back, front in ((a, b) for i, b in enumerate(masks) for a in masks[:i]):
            shared = (back & front).sum()
            # a part is painted on its whole: all of it is within
            assert shared in (0, front.sum())
            nested += int(shared > 0)
    assert nested > 10


def test_an_object_looks_other_than_what_is_around_it(drawn: Drawn) -> None:
    """The mean colour within a mask differs from that of the ring around it."""
    from scipy.ndimage import binary_dilation

    gaps: list[float] = []
    for image, masks in drawn:
        for mask in masks:
            near, far = (np.asarray(binary_dilation(mask, iterations=n)) for n in (1, 4))
            ring = np.logical_and(far, np.logical_not(near))
            gap = image[mask].mean(0) - image[ring].mean(0)
            gaps.append(float(np.abs(gap).max()))
    assert np.median(gaps) > 25
    moved = [np.roll(masks[0], 40, axis=(0, 1)) for _, masks in drawn]
    elsewhere = [
        float(np.abs(image[mask].mean(0) - image[~mask].mean(0)).max())
        for (image, _), mask in zip(drawn, moved, strict=True)
        if mask.any() and not mask.all()
    ]
    assert np.median(elsewhere) < np.median(gaps)


def test_packed_masks_are_those_of_the_scenes() -> None:
    columns = render(4, size=64, seed=1)
    whole = np.unpackbits(columns["masks"], axis=-1).astype(bool)
    assert whole.shape == (4, OBJECTS, 64, 64)
    for row, (height, width) in enumerate(columns["sizes"]):
        _, masks = scene(size=64, seed=1, index=row)
        assert (whole[row, : len(masks), :height, :width] == np.stack(masks)).all()
        assert not whole[row, len(masks) :].any()
        assert not whole[row, :, height:].any()
        assert not whole[row, :, :, width:].any()
        assert not columns["images"][row, :, height:].any()


def test_no_built_in_scene_is_there_twice() -> None:
    arrays = scenes()
    assert {name: array.shape[0] for name, array in arrays.items()} == {
        "train_images": 160, "train_sizes": 160, "train_masks": 160,
        "test_images": 48, "test_sizes": 48, "test_masks": 48,
    }  # fmt: skip
    digests = [hashlib.sha256(image).digest() for image in arrays["train_images"]]
    digests += [hashlib.sha256(image).digest() for image in arrays["test_images"]]
    assert len(set(digests)) == 208


def test_a_scene_takes_milliseconds() -> None:
    times: list[float] = []
    for index in range(20):
        start = time.process_time()
        scene(size=128, seed=0, index=index)
        times.append(time.process_time() - start)
    assert np.median(times) < 0.02  # 4 ms alone on a core


def test_noise_is_smooth_and_centred() -> None:
    rng = np.random.default_rng(0)
    field = noise(rng, 256, 192, cell=16, octaves=1)
    assert field.shape == (256, 192)
    assert abs(field.mean()) < 0.15
    assert 0.3 < field.std() < 0.7
    assert np.abs(np.diff(field, axis=0)).mean() < 0.1
    rough = noise(rng, 256, 192, cell=16, octaves=4)
    assert np.abs(np.diff(rough, axis=0)).mean() > np.abs(np.diff(field, axis=0)).mean()


def test_outlines_are_around_their_middle() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        points = np.concatenate(outline(rng))
        assert 0.25 < np.abs(points).max() < 1.9


@pytest.mark.parametrize("size", [0, 8, 63])
def test_sizes_that_do_not_pack_are_refused(size: int) -> None:
    with pytest.raises(BadSetting, match="multiple of 8 from 16 on"):
        render(1, size=size, seed=0)
