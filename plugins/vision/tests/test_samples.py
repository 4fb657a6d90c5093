import numpy as np
import torch

from stillhouse.work import Work
from stillhouse_vision.data import ReadImages
from stillhouse_vision.models import ImageSpec
from stillhouse_vision.samples import TRAIN_A_CLASS, digits

IMAGES = ImageSpec(size=8, mean=(0.3,), std=(0.37,))


def test_digits_are_split_evenly_and_without_overlap() -> None:
    arrays = digits()
    assert np.bincount(arrays["train_labels"]).tolist() == [TRAIN_A_CLASS] * 10
    assert len(arrays["train_labels"]) + len(arrays["test_labels"]) == 1797
    train = {image.tobytes() for image in arrays["train_images"]}
    assert not train & {image.tobytes() for image in arrays["test_images"]}


def test_digits_are_the_same_every_time() -> None:
    first, second = digits(), digits()
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_digits_use_the_whole_range_and_are_what_the_reader_reads() -> None:
    arrays = digits()
    assert (arrays["train_images"].min(), arrays["train_images"].max()) == (0, 255)
    read = ReadImages(images=IMAGES, classes=10)({"source": arrays}, work=Work())
    assert read["train"]["images"].shape == (10 * TRAIN_A_CLASS, 1, 8, 8)
    assert torch.equal(read["test"]["labels"], torch.from_numpy(arrays["test_labels"]))


def test_mean_and_std_of_the_preset_are_those_of_the_digits() -> None:
    images = digits()["train_images"] / 255
    assert abs(images.mean() - IMAGES.mean[0]) < 0.01
    assert abs(images.std() - IMAGES.std[0]) < 0.01
