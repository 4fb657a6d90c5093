"""Images of exported one-step students, by class."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor

from stillhouse.artifact import Built
from stillhouse.errors import BadData, BadSetting
from stillhouse.files import writing_file
from stillhouse_diffusion.sampling import RoutedStudents

FOLDER = Path("images")
MOST = 100_000  # images of one call
BATCH = 250


def predict(
    model: Built,
    *,
    classes: tuple[int, ...] = (),
    count: int = 1,
    seed: int = 0,
) -> Sequence[Mapping[str, Any]]:
    """A row an image that is made: its class, the student that made it, and its file in ./images.

    `count` images in all, of each of `classes` in turn (every class where none is named), from
    noise by `seed`: image i is the same whatever `count` is. Points of a plane get no file: their
    row has x and y. Raises BadData for another model, BadSetting for a class that there is none of.
    """
    students = model.module
    if not isinstance(students, RoutedStudents):
        name = model.spec.build.__qualname__
        raise BadData(f"{name}: no students of this plugin; give a folder with model.json")
    owner = students.owner.tolist()
    chosen = classes or tuple(range(len(owner)))
    for label in chosen:
        if not 0 <= label < len(owner):
            raise BadSetting(f"--classes: {label} is not in 0..{len(owner) - 1}")
    if not 1 <= count <= MOST:
        raise BadSetting(f"--count must be 1 to {MOST} (got {count})")
    shape = [int(side) for side in model.spec.kwargs["shape"]]
    labels = torch.tensor([chosen[i % len(chosen)] for i in range(count)])
    rows: list[Mapping[str, Any]] = []
    for index in torch.arange(count).split(BATCH):
        noise = torch.stack([_noise(shape, seed, int(i)) for i in index])
        with torch.no_grad():
            images = students({"noise": noise, "labels": labels[index]})["images"]
        for number, label, image in zip(
            index.tolist(), labels[index].tolist(), images, strict=True
        ):
            row = {"class": label, "student": owner[label]}
            rows.append(row | _kept(image, f"class{label}-{number:05d}-seed{seed}"))
    return rows


def _noise(shape: Sequence[int], seed: int, number: int) -> Tensor:
    # of each image by itself, so that more of them leave the first ones as they are
    return torch.randn(*shape, generator=Generator().manual_seed(seed * 1_000_003 + number))


def _kept(image: Tensor, name: str) -> dict[str, Any]:  # Any: what a cell shows
    if image.shape[1:] == (1, 1):
        x, y = image.flatten().tolist()[:2]
        return {"x": round(x, 4), "y": round(y, 4)}
    if len(image) not in (1, 3):
        raise BadData(f"images of {len(image)} channels have no file format; use the ONNX files")
    pixels = ((image + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    file = FOLDER / f"{name}.png"
    with writing_file(file) as aside:
        Image.fromarray(np.squeeze(pixels, 2) if len(image) == 1 else pixels).save(aside, "PNG")
    return {"file": str(file)}
