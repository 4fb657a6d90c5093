import subprocess
import sys

import pytest
import torch
from torch import Tensor

from stillhouse.errors import BadSetting
from stillhouse.training import Augment
from stillhouse_vision.augment import CropFlip, Randomised

EVERY: list[Augment] = [
    CropFlip(),
    CropFlip(padding=1, flip=False, seed=3),
    Randomised(transform="trivial"),
    Randomised(transform="auto-cifar10"),
    Randomised(transform="color-jitter", seed=2),
    Randomised(transform="resized-crop", first=CropFlip(padding=0)),
]


def batch(count: int = 12, view: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=rng)
    ids = torch.arange(count)
    return {"id": ids, "view": torch.full_like(ids, view), "images": images, "labels": ids}


@pytest.mark.parametrize("augment", EVERY, ids=str)
def test_a_sample_looks_the_same_in_any_batch_and_order(augment: Augment) -> None:
    whole = augment(batch())["images"]
    rng = torch.Generator().manual_seed(1)
    for size in (1, 5, 12):
        rows = torch.randperm(12, generator=rng)[:size]
        torch.rand(7)  # the global generator's state must not matter
        part = augment({name: value[rows] for name, value in batch().items()})
        assert torch.equal(part["images"], whole[rows])


@pytest.mark.parametrize("augment", EVERY, ids=str)
def test_views_and_samples_differ_and_the_rest_is_left_alone(augment: Augment) -> None:
    first, second = augment(batch(view=0)), augment(batch(view=1))
    assert not torch.equal(first["images"], second["images"])
    assert torch.equal(first["labels"], batch()["labels"])
    same = {**batch(), "images": batch()["images"][:1].expand(12, -1, -1, -1)}
    assert len(torch.unique(augment(same)["images"], dim=0)) > 3


@pytest.mark.parametrize("augment", EVERY, ids=str)
def test_input_and_global_generator_are_not_touched(augment: Augment) -> None:
    given = batch()
    before, state = given["images"].clone(), torch.get_rng_state()
    augment(given)
    assert torch.equal(given["images"], before)
    assert torch.equal(torch.get_rng_state(), state)


def test_crops_are_windows_of_the_padded_image() -> None:
    padding = 2
    padded = torch.nn.functional.pad(batch()["images"], [padding] * 4)
    found = CropFlip(padding=padding)(batch())["images"]
    mirrored = 0
    for image, source in zip(found, padded, strict=True):
        windows = [
            (top, left, source[:, top : top + 16, left : left + 16])
            for top in range(2 * padding + 1)
            for left in range(2 * padding + 1)
        ]
        plain = [w for _, _, w in windows if torch.equal(w, image)]
        flipped = [w for _, _, w in windows if torch.equal(w.flip(-1), image)]
        assert len(plain) + len(flipped) == 1
        mirrored += len(flipped)
    assert 0 < mirrored < 12


def test_places_and_mirrors_are_even() -> None:
    count = 4000
    ids = torch.arange(count)
    images = torch.zeros(count, 1, 3, 3, dtype=torch.uint8)
    images[:, 0, 1, 0] = 1  # left of the centre: its place tells the crop and the mirror
    given = {"id": ids, "view": torch.zeros_like(ids), "images": images}
    rows = CropFlip(padding=1, flip=False)(given)["images"].flatten(1).argmax(1)
    seen = CropFlip(padding=1, flip=False)(given)["images"].flatten(1).sum(1) > 0
    # the mark leaves the image when the crop starts one column to the right of it: 3 of 9 places
    assert 1 - seen.float().mean().item() == pytest.approx(3 / 9, abs=0.03)
    shares = torch.bincount(rows[seen], minlength=9)[[0, 1, 3, 4, 6, 7]] / count
    assert shares.tolist() == pytest.approx([1 / 9] * 6, abs=0.02)


def test_no_padding_and_no_flip_is_the_image() -> None:
    assert torch.equal(CropFlip(padding=0, flip=False)(batch())["images"], batch()["images"])


def test_another_seed_is_another_augmentation() -> None:
    one, two = (CropFlip(seed=seed)(batch())["images"] for seed in (0, 1))
    assert not torch.equal(one, two)


def test_negative_padding_is_refused() -> None:
    with pytest.raises(BadSetting, match=r"padding must be >= 0 \(got -1\)"):
        CropFlip(padding=-1)


def test_a_crop_imports_no_transforms_of_torchvision() -> None:
    """They take seconds, in each process that reads batches."""
    code = """
import sys
import torch
from stillhouse_vision.augment import CropFlip
zeros = torch.zeros(2, dtype=torch.long)
CropFlip()({"images": torch.zeros(2, 3, 8, 8).byte(), "id": zeros, "view": zeros})
print("torchvision" in sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
