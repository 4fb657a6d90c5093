"""Drawn scenes: every combination once, the same everywhere, told apart by their looks alone."""

import hashlib

import numpy as np

from stillhouse_clip.scenes import COLOURS, SHAPES, TEST, TEXTURES, TRAIN, classes, drawn, scenes


def test_every_combination_is_a_class_with_a_name_of_its_own() -> None:
    known = classes()
    assert len(known) == len(SHAPES) * len(COLOURS) * len(TEXTURES) == 120
    assert len({scene.name for scene in known}) == 120
    assert len({scene.description for scene in known}) == 120
    for scene in known:
        for part in (scene.shape, scene.colour, scene.texture):
            assert part in scene.description
            assert part not in scene.name


def test_scenes_are_images_with_labels_in_the_order_of_the_classes() -> None:
    found = scenes()
    assert found["train_images"].shape == (120 * TRAIN, 3, 32, 32)
    assert found["test_images"].shape == (120 * TEST, 3, 32, 32)
    assert np.bincount(found["train_labels"]).tolist() == [TRAIN] * 120
    assert found["description"].tolist() == [scene.description for scene in classes()]
    # no test image is a training image
    rows = {image.tobytes() for image in found["train_images"]}
    assert len(rows) == 120 * TRAIN
    assert not rows & {image.tobytes() for image in found["test_images"]}


def test_the_same_scenes_are_drawn_again() -> None:
    first = [drawn(classes()[7], np.random.default_rng(3)) for _ in range(2)]
    assert np.array_equal(*first)
    total = hashlib.sha256("".join(scene.name for scene in classes()).encode()).hexdigest()
    assert total == TOTAL


def test_a_class_looks_as_its_description_says() -> None:
    """Mean colour inside the shape, over scenes of a class: that of the class leads."""
    rng = np.random.default_rng(0)
    for scene in classes():
        if scene.texture == "plain" and scene.colour in ("red", "green", "blue"):
            image = np.mean([drawn(scene, rng) for _ in range(8)], axis=0)
            excess = image.mean((1, 2)) - image.mean()
            assert ("red", "green", "blue")[int(excess.argmax())] == scene.colour


TOTAL = "89511567f3bfa335d191103726fc0d35187347cfd69405a3614e64f33fc2bef7"
