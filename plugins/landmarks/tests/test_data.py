import builtins
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from stillhouse.data import save_data
from stillhouse.data.notes import noted
from stillhouse.errors import BadData, BadSetting, MissingExtra
from stillhouse.work import Work
from stillhouse_landmarks.data import ReadFaces
from stillhouse_landmarks.formats import find_faces, read_pts

Points = NDArray[np.float64]


def ring(points: int, centre: tuple[float, float] = (30.0, 22.0), radius: float = 10.0) -> Points:
    """Points around a circle, in pixels from the edges."""
    angle = np.arange(points) * 2 * np.pi / points
    return np.array(centre) + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def photo(points: Points, size: tuple[int, int] = (60, 48)) -> Image.Image:
    """Grey with a white pixel on the first point."""
    image = Image.new("RGB", size, (90, 90, 90))
    image.putpixel(
        tuple(points[0].astype(int).clip(0, np.array(size) - 1).tolist()), (255, 255, 255)
    )
    return image


def save(image: Image.Image, file: Path) -> None:
    """No two files alike: what follows an image in its file is not read."""
    image.save(file)
    with file.open("ab") as stream:
        stream.write(str(file).encode())


def pts_text(points: Points) -> str:
    rows = "\n".join(f"{x + 0.5:.3f} {y + 0.5:.3f}" for x, y in points)  # counted from 1
    return f"version: 1\nn_points:  {len(points)}\n{{\n{rows}\n}}\n"


def write_face(folder: Path, name: str, points: Points, end: str = ".jpg", **kwargs: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save(photo(points, **kwargs), folder / f"{name}{end}")
    (folder / f"{name}.pts").write_text(pts_text(points))


def write_faces(folder: Path, counts: dict[str, int], points: int = 68) -> None:
    for split, count in counts.items():
        for i in range(count):
            write_face(
                folder / split, f"{split[:2].strip('.') or 'fa'}{i}", ring(points, radius=8.0 + i)
            )


def read(
    source: Path, points: int = 68, size: int = 16, **kwargs: Any
) -> dict[str, dict[str, Tensor]]:
    reader = ReadFaces(points=points, size=size, **kwargs)
    made = reader({"source": source}, work=Work.seeded(0))
    ports: dict[str, dict[str, Tensor]] = {}
    for port, parts in made.items():
        every: list[Any] = [parts] if isinstance(parts, dict) else list(parts)
        ports[port] = {name: torch.cat([part[name] for part in every]) for name in every[0]}
    return ports


@pytest.mark.parametrize("points", [29, 68, 98])
def test_pts_beside_images(tmp_path: Path, points: int) -> None:
    write_faces(tmp_path, {"train": 10, "test": 3}, points)
    made = read(tmp_path, points)
    assert {port: len(columns["images"]) for port, columns in made.items()} == {
        "train": 9, "validation": 1, "test": 3
    }  # fmt: skip
    images, landmarks = made["train"]["images"], made["train"]["landmarks"]
    assert (images.dtype, tuple(images.shape[1:])) == (torch.uint8, (3, 16, 16))
    assert (landmarks.dtype, tuple(landmarks.shape[1:])) == (torch.float32, (2 * points,))
    # the box of the points is the crop's middle, margin 1.5 around it
    low, high = landmarks.unflatten(1, (-1, 2)).aminmax(dim=1)
    assert torch.allclose((low + high) / 2, torch.tensor(0.5), atol=1e-3)
    assert torch.allclose((high - low).amax(1), torch.tensor(1 / 1.5), atol=1e-3)


def test_a_crop_by_hand(tmp_path: Path) -> None:
    # box 20 x 10 at (20, 15): with margin 1.2 the crop is 24 px at (18, 8)
    corners = np.array([[20.0, 15.0], [40.0, 15.0], [40.0, 25.0], [20.5, 20.5]])
    write_face(tmp_path / "train", "a", corners)
    (face,) = find_faces(tmp_path)["train"]
    image, landmarks = ReadFaces(points=4, size=24, margin=1.2).crop(face)
    expected = (corners - [18, 8]) / 24
    assert landmarks.reshape(-1, 2) == pytest.approx(expected, abs=1e-4)
    original = np.asarray(face.photo.open())[8:32, 18:42].transpose(2, 0, 1)
    assert np.array_equal(image, original)


@pytest.mark.parametrize("at", [(30.0, 22.0), (4.0, 6.0), (52.0, 40.0)])
@pytest.mark.parametrize("size", [15, 40])
def test_points_stay_on_their_pixels(tmp_path: Path, at: tuple[float, float], size: int) -> None:
    points = ring(68, at, radius=11.3)
    points[0] = np.floor(at) + 0.5  # the middle of the white pixel
    folder = tmp_path / "train"
    write_face(folder, "a", points, end=".png")
    (face,) = find_faces(tmp_path)["train"]
    image, landmarks = ReadFaces(points=68, size=size, outside=0.5).crop(face)
    light = np.clip(image[0].astype(float) - 90, 0, None)
    centres = np.arange(size) + 0.5
    found = [(light.sum(axis) @ centres) / light.sum() for axis in (0, 1)]
    assert landmarks[:2] * size == pytest.approx(found, abs=0.15)


def test_black_where_the_crop_leaves_the_image(tmp_path: Path) -> None:
    write_face(tmp_path / "train", "a", ring(68, (2.0, 24.0), radius=12.0), end=".png")
    (face,) = find_faces(tmp_path)["train"]
    image, _ = ReadFaces(points=68, size=18, outside=0.3).crop(face)  # 36 px from x = -16
    assert image[:, :, :7].max() == 0
    assert image[:, :, 9:].min() >= 90


def test_validation_is_of_training_and_drawn_by_seed(tmp_path: Path) -> None:
    write_faces(tmp_path, {"train": 20, "test": 4})
    one, again = (read(tmp_path, validation=0.25) for _ in range(2))
    assert len(one["validation"]["landmarks"]) == 5
    assert torch.equal(one["validation"]["landmarks"], again["validation"]["landmarks"])
    other = ReadFaces(points=68, size=16, validation=0.25)(
        {"source": tmp_path}, work=Work.seeded(1)
    )
    parts: Any = other["validation"]
    assert not torch.equal(next(parts)["images"], one["validation"]["images"])


def test_without_a_test_part_one_is_kept(tmp_path: Path) -> None:
    write_faces(tmp_path, {".": 20})
    made = read(tmp_path, held_out=0.3, validation=0.5)
    assert {port: len(columns["images"]) for port, columns in made.items()} == {
        "train": 7, "validation": 7, "test": 6
    }  # fmt: skip


def test_300w_as_published(tmp_path: Path) -> None:
    write_faces(tmp_path, {"helen/trainset": 3, "lfpw/trainset": 2, "afw": 2})
    write_faces(tmp_path, {"helen/testset": 1, "lfpw/testset": 2, "ibug": 1})
    found = find_faces(tmp_path)
    assert {split: len(faces) for split, faces in found.items()} == {"train": 7, "test": 4}


def test_large_data_come_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_faces(tmp_path, {"train": 11, "test": 2})
    whole = read(tmp_path)["train"]
    monkeypatch.setattr("stillhouse_landmarks.data.SHARD_BYTES", 4 * 3 * 16 * 16)
    monkeypatch.setattr("stillhouse.data.shards.SHARD_BYTES", 100)
    made = ReadFaces(points=68, size=16)({"source": tmp_path}, work=Work.seeded(0))
    stored = save_data(tmp_path / "out", made["train"]).open()
    assert torch.equal(torch.as_tensor(stored.columns["landmarks"]), whole["landmarks"])
    assert len(list((tmp_path / "out").glob("*.arrow"))) == 3


def break_pts(change: Callable[[str], str]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "train" / "tr1.pts"
        file.write_text(change(file.read_text()))

    return edit


def missing_pts(folder: Path) -> None:
    (folder / "train" / "tr1.pts").unlink()


def missing_image(folder: Path) -> None:
    (folder / "train" / "tr1.jpg").unlink()


def cut_image(folder: Path) -> None:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (48, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, "JPEG")
    (folder / "train" / "tr1.jpg").write_bytes(stream.getvalue()[: len(stream.getvalue()) // 2])


def junk_image(folder: Path) -> None:
    (folder / "train" / "tr1.jpg").write_bytes(b"junk")


def other_layout(folder: Path) -> None:
    (folder / "train" / "tr1.pts").write_text(pts_text(ring(29)))


def all_the_same(folder: Path) -> None:
    (folder / "train" / "tr1.pts").write_text(pts_text(ring(68, radius=0.0)))


def far_outside(folder: Path) -> None:
    points = ring(68)
    points[4] = (71.0, 20.0)
    (folder / "train" / "tr1.pts").write_text(pts_text(points))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (missing_pts, r"tr1.jpg: there is no tr1.pts beside it; add it or remove the image$"),
        (missing_image, r"tr1.pts: there is no image beside it; add it or remove the points$"),
        (cut_image, r"tr1.jpg: not a whole image \(.*\); replace it$"),
        (junk_image, r"tr1.jpg: not an image of a known format; replace it$"),
        (
            break_pts(lambda text: text.replace("68\n", "67\n", 1)),
            r"tr1.pts: n_points is 67, but it has 68 points; correct it$",
        ),
        (
            break_pts(lambda text: "\n".join(text.splitlines()[:3] + text.splitlines()[4:])),
            r"tr1.pts: n_points is 68, but it has 67 points; correct it$",
        ),
        (
            break_pts(lambda text: "\n".join([*text.splitlines()[:6], "12,5 3", *text.splitlines()[7:]])),
            r"tr1.pts: line 7: '12,5 3' is not 2 numbers; correct it$",
        ),
        (
            break_pts(lambda text: "\n".join([*text.splitlines()[:6], "nan 3.0", *text.splitlines()[7:]])),
            r"tr1.pts: line 7: a coordinate is nan; correct it$",
        ),
        (
            break_pts(lambda text: text.replace("}", "")),
            r"tr1.pts: no points between one { and one }; expected 300-W's .pts$",
        ),
        (
            other_layout,
            r"tr1.pts: 29 points, but .*tr0.pts has 68; keep one layout in a folder$",
        ),
        (all_the_same, r"tr1.pts: all points are the same; correct it$"),
        (
            far_outside,
            r"tr1.pts: point 5 at \(71.0, 20.0\) is outside its image of 60 x 48 pixels; correct it, or set outside \(now 0.1\)$",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", "case"),
)  # fmt: skip
def test_each_broken_input_is_named(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    write_faces(tmp_path, {"train": 4, "test": 1})
    damage(tmp_path)
    with pytest.raises(BadData, match=message):
        read(tmp_path)


def test_points_a_little_outside_are_kept(tmp_path: Path) -> None:
    write_faces(tmp_path, {"train": 3, "test": 1})
    write_face(tmp_path / "test", "edge", ring(68, (56.0, 22.0), radius=9.0))  # to x = 65 of 60
    assert len(read(tmp_path)["test"]["images"]) == 2
    with pytest.raises(BadData, match=r"edge.pts: point 1 at \(65.0, 22.0\) is outside its image"):
        read(tmp_path, outside=0.05)


def test_another_number_of_points_than_the_setting(tmp_path: Path) -> None:
    write_faces(tmp_path, {"train": 3, "test": 1}, points=29)
    with pytest.raises(BadData, match=r"tr0.pts: 29 points, expected 68; set layout="):
        read(tmp_path)


def test_folders_that_hold_no_faces(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"no images; expected train/ and test/ with a .pts"):
        read(tmp_path)
    write_faces(tmp_path, {"test": 2})
    with pytest.raises(BadData, match="there is no face for training; expected some below train"):
        read(tmp_path)
    write_faces(tmp_path, {"other": 1, "train": 2})
    with pytest.raises(
        BadData, match=r"ot0.pts: in no folder of a part \(train, val, test\), as other"
    ):
        read(tmp_path)


def test_too_few_to_keep_some(tmp_path: Path) -> None:
    write_faces(tmp_path, {"train": 1, "test": 1})
    with pytest.raises(
        BadData, match=r"tr0.pts: 1 photo\(s\) for training; keeping some for valid"
    ):
        read(tmp_path)


def test_pts_in_other_hands(tmp_path: Path) -> None:
    file = tmp_path / "a.pts"
    file.write_text("version:1\r\nn_points:2\r\n{\r\n\r\n 1.5  2 \r\n3e1 -4\r\n}\r\n")
    assert read_pts(file).tolist() == [[1.5, 2], [30, -4]]
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadData, match=r"a.pts: cannot be read as text"):
        read_pts(file)


def wflw_line(points: Points, name: str) -> str:
    numbers = [f"{value:.6f}" for value in (points - 0.5).ravel()]  # counted from 0
    return " ".join([*numbers, "10", "10", "50", "40", "0", "0", "1", "0", "0", "0", name])


def write_wflw(folder: Path, lines: dict[str, list[str]]) -> None:
    lists = folder / "WFLW_annotations" / "list_98pt_rect_attr_train_test"
    lists.mkdir(parents=True)
    for split, rows in lines.items():
        (lists / f"list_98pt_rect_attr_{split}.txt").write_text("\n".join(rows) + "\n")
    for i in range(6):
        path = folder / "WFLW_images" / "37--Soccer" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save(photo(ring(98)), path)


def test_wflw_as_published(tmp_path: Path) -> None:
    train = [wflw_line(ring(98, radius=8.0 + i), f"37--Soccer/{i // 2}.png") for i in range(10)]
    write_wflw(tmp_path, {"train": train, "test": [wflw_line(ring(98), "37--Soccer/5.png")]})
    made = read(tmp_path, 98, validation=0.4)
    # two faces a photo: they stay together
    assert [len(made[port]["images"]) for port in ("train", "validation", "test")] == [6, 4, 1]
    (face,) = find_faces(tmp_path)["test"]
    assert face.points == pytest.approx(ring(98), abs=1e-5)
    assert face.where.endswith("list_98pt_rect_attr_test.txt: line 1")


def test_wflw_that_is_broken(tmp_path: Path) -> None:
    good = wflw_line(ring(98), "37--Soccer/0.png")
    write_wflw(tmp_path / "a", {"train": [good, " ".join(good.split()[:-7])]})
    with pytest.raises(BadData, match=r"attr_train.txt: line 2: 200 fields; expected 206 numbers"):
        find_faces(tmp_path / "a")
    write_wflw(tmp_path / "b", {"train": [good, wflw_line(ring(98), "37--Soccer/9.png")]})
    with pytest.raises(BadData, match=r"train.txt: line 2: image .*9.png not found"):
        find_faces(tmp_path / "b")
    write_wflw(
        tmp_path / "c", {"train": [good.replace("0.png", "0.png x").replace(" 10 ", " ten ", 1)]}
    )
    with pytest.raises(BadData, match=r"line 1: '.*\.\.\.' is not 206 numbers"):
        find_faces(tmp_path / "c")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "list_98pt_rect_attr_train.txt").write_text(good)
    with pytest.raises(BadData, match="no folder WFLW_images; unpack it too"):
        find_faces(tmp_path / "d")


def write_cofw(path: Path, split: str, shapes: list[Points], pixels: list[NDArray[Any]]) -> None:
    """As MATLAB 7.3 writes a cell of images and a matrix: HDF5, axes reversed."""
    images, phis = {"train": ("IsTr", "phisTr"), "test": ("IsT", "phisT")}[split]
    with h5py.File(path, "w") as file:
        references = [
            file.create_dataset(f"#refs#/{i}", data=np.ascontiguousarray(image.T)).ref
            for i, image in enumerate(pixels)
        ]
        file.create_dataset(
            images, data=np.array([references], dtype=h5py.ref_dtype), dtype=h5py.ref_dtype
        )
        rows = [np.concatenate([*(p + 0.5).T, np.zeros(29)]) for p in shapes]  # x, y, occluded
        file.create_dataset(phis, data=np.stack(rows).T)
        file.create_dataset(images.replace("Is", "bboxes"), data=np.ones((4, len(rows))))


def test_cofw_as_published(tmp_path: Path) -> None:
    shapes = [ring(29, radius=8.0 + i) for i in range(5)]
    coloured = [np.asarray(photo(p)) for p in shapes]
    grey = [np.asarray(photo(p).convert("L")) for p in shapes[:2]]
    write_cofw(tmp_path / "COFW_train_color.mat", "train", shapes, coloured)
    write_cofw(tmp_path / "COFW_test_color.mat", "test", shapes[:2], grey)
    made = read(tmp_path, 29, validation=0.2)
    assert [len(made[port]["images"]) for port in ("train", "validation", "test")] == [4, 1, 2]
    found = find_faces(tmp_path)
    assert found["train"][3].points == pytest.approx(shapes[3])
    assert np.array_equal(np.asarray(found["train"][3].photo.open()), coloured[3])
    assert np.array_equal(np.asarray(found["test"][1].photo.open())[..., 0], grey[1])


def test_rows_that_cofws_two_files_share_are_counted(tmp_path: Path) -> None:
    shapes = [ring(29, radius=8.0 + i) for i in range(5)]
    pixels = [np.asarray(photo(p)) for p in shapes]
    write_cofw(tmp_path / "COFW_train_color.mat", "train", shapes, [*pixels[:4], pixels[0]])
    write_cofw(tmp_path / "COFW_test_color.mat", "test", shapes[3:], pixels[3:])
    lines: list[str] = []
    with noted(lines.append):
        made = read(tmp_path, 29, validation=0.7)
    train, test = (tmp_path / f"COFW_{part}_color.mat" for part in ("train", "test"))
    assert lines == [
        f"1 image(s) are in two splits with the same bytes ({test}: row 0: {train}: row 3)",
        "2 photo(s) that have copies are not drawn for validation",
    ]
    assert [len(made[port]["images"]) for port in ("train", "validation", "test")] == [3, 2, 2]


def test_cofw_that_is_broken(tmp_path: Path) -> None:
    file = tmp_path / "COFW_train_color.mat"
    file.write_bytes(b"MATLAB 5.0 MAT-file")
    with pytest.raises(BadData, match=r"train_color.mat: cannot be read as MATLAB 7.3 \(.*\); get"):
        find_faces(tmp_path)
    with h5py.File(file, "w") as empty:
        empty["other"] = np.zeros(3)
    with pytest.raises(
        BadData, match=r"color.mat: has other; expected IsTr and phisTr, or IsT and"
    ):
        find_faces(tmp_path)
    shapes = [ring(29) for _ in range(4)]
    write_cofw(file, "train", shapes, [np.zeros((4, 4), np.float32)] * 4)
    with pytest.raises(BadData, match=r"IsTr, row \d: float32 \[4, 4\] is no 8-bit image"):
        read(tmp_path, 29)
    shapes[1][3] = np.nan
    write_cofw(file, "train", shapes, [np.zeros((4, 4), np.uint8)] * 4)
    with pytest.raises(BadData, match=r"color.mat: row 1: a coordinate is not finite"):
        find_faces(tmp_path)
    with h5py.File(file, "a") as changed:
        del changed["phisTr"]
        changed["phisTr"] = np.zeros((58, 2))
    with pytest.raises(BadData, match=r"phisTr is \[58, 2\]; expected \[87, 4\]"):
        find_faces(tmp_path)


def test_cofw_without_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cofw(tmp_path / "COFW_train.mat", "train", [ring(29)], [np.zeros((4, 4), np.uint8)])
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "h5py":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra) as caught:
        find_faces(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/COFW_train.mat: COFW's format needs `h5py`, which is not installed. "
        "Run: uv sync --extra landmarks-cofw"
    )


def arrays(**change: NDArray[Any]) -> dict[str, NDArray[Any]]:
    made: dict[str, NDArray[Any]] = {}
    for split, count in (("train", 10), ("test", 3)):
        made[f"{split}_images"] = np.zeros((count, 3, 8, 8), np.uint8)
        made[f"{split}_landmarks"] = np.linspace(0, 1, count * 6, dtype=np.float32).reshape(-1, 6)
    return {**made, **change}


def test_arrays() -> None:
    made = ReadFaces(points=3, size=8, validation=0.2)({"source": arrays()}, work=Work())
    sizes = {port: len(columns["landmarks"]) for port, columns in made.items()}  # type: ignore[index,call-overload]
    assert sizes == {"train": 8, "validation": 2, "test": 3}
    rows = torch.cat([made[port]["landmarks"] for port in ("train", "validation")])  # type: ignore[index,call-overload]
    expected = torch.from_numpy(arrays()["train_landmarks"])
    assert torch.equal(rows[rows[:, 0].argsort()], expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"train_images": np.zeros((10, 1, 8, 8), np.uint8)},
            r"train_images: torch.uint8 \[1, 8, 8\]; expected torch.uint8 \[3, 8, 8\]",
        ),
        ({"test_landmarks": np.zeros((3, 8))}, r"test_landmarks: \[3, 8\]; expected \[3, 6\]"),
        (
            {"test_landmarks": np.full((3, 6), np.nan)},
            "test_landmarks: row 0: not all are fractions of the crop",
        ),
        ({"train_landmarks": np.full((10, 6), 30.0)}, "train_landmarks: row 0: not all are fract"),
    ],
)
def test_arrays_that_are_broken(change: dict[str, NDArray[Any]], message: str) -> None:
    with pytest.raises(BadData, match=message):
        ReadFaces(points=3, size=8)({"source": arrays(**change)}, work=Work())


def test_settings_out_of_range() -> None:
    with pytest.raises(BadSetting, match=r"margin must be >= 1 \(got 0.5\)"):
        ReadFaces(points=68, size=64, margin=0.5)
    with pytest.raises(BadSetting, match=r"validation must be > 0 and < 1 \(got 0.0\)"):
        ReadFaces(points=68, size=64, validation=0.0)
    with pytest.raises(BadSetting, match=r"points and size must be >= 1 \(got 0, 64\)"):
        ReadFaces(points=0, size=64)
    with pytest.raises(BadData, match="source: a int; expected arrays or a folder of faces"):
        ReadFaces(points=68, size=64)({"source": 3}, work=Work())


def told(source: Path, **kwargs: Any) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    lines: list[str] = []
    with noted(lines.append):
        made = read(source, **kwargs)
    return made, lines


def test_parts_in_any_case_and_a_validation_part_of_its_own(tmp_path: Path) -> None:
    write_faces(tmp_path, {"Train_Set": 6, "VAL": 2, "TEST": 3})
    made, lines = told(tmp_path)
    assert {port: len(columns["images"]) for port, columns in made.items()} == {
        "train": 6, "validation": 2, "test": 3
    }  # fmt: skip
    assert lines == []
    for file in (tmp_path / "TEST").iterdir():
        file.unlink()
    made, lines = told(tmp_path, validation=0.5)
    assert {port: len(columns["images"]) for port, columns in made.items()} == {
        "train": 3, "validation": 3, "test": 2
    }  # fmt: skip
    assert lines == [f"{tmp_path}: no test part: the validation part is tested on instead"]


def test_a_photos_own_name_is_no_part_and_hidden_files_are_none(tmp_path: Path) -> None:
    for i in range(4):
        write_face(tmp_path / "train", f"test_{i}", ring(68, radius=8.0 + i))
    write_faces(tmp_path, {"test": 1})
    (tmp_path / "train" / "._test_0.jpg").write_bytes(b"junk")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "a.jpg").write_bytes(b"junk")
    (tmp_path / "train" / "notes.txt").write_text("")
    made, lines = told(tmp_path)
    assert len(made["train"]["images"]) + len(made["validation"]["images"]) == 4
    assert lines == [f"{tmp_path}: 1 file(s) not read: 1 .txt (first: train/notes.txt)"]


def test_two_images_of_one_stem(tmp_path: Path) -> None:
    write_faces(tmp_path, {"train": 3, "test": 1})
    photo(ring(68)).save(tmp_path / "train" / "tr1.png")
    with pytest.raises(BadData, match=r"tr1.png: .*tr1.jpg has the same stem; keep one of them$"):
        read(tmp_path)


def test_a_photo_in_two_parts(tmp_path: Path) -> None:
    write_faces(tmp_path, {"train": 3, "test": 1})
    copied = tmp_path / "test" / "copy.jpg"
    copied.write_bytes((tmp_path / "train" / "tr1.jpg").read_bytes())
    copied.with_suffix(".pts").write_text(pts_text(ring(68)))
    with pytest.raises(BadData, match=r"test/copy.jpg: has the bytes of .*train/tr1.jpg, in anoth"):
        read(tmp_path)


def test_copies_of_a_photo_are_not_drawn_for_testing(tmp_path: Path) -> None:
    write_faces(tmp_path, {".": 12})
    for i in range(4):
        copied = tmp_path / f"z{i}.jpg"
        copied.write_bytes((tmp_path / f"fa{i}.jpg").read_bytes())
        copied.with_suffix(".pts").write_text(pts_text(ring(68, radius=8.0 + i)))
    made, lines = told(tmp_path, held_out=0.6, validation=0.3)
    images = {
        port: {image.numpy().tobytes() for image in columns["images"]}
        for port, columns in made.items()
    }
    assert sum(len(columns["images"]) for columns in made.values()) == 16
    assert images["train"].isdisjoint(images["test"] | images["validation"])
    assert lines == [
        f"8 photo(s) that have copies are not drawn for {part}" for part in ("test", "validation")
    ]


def test_coordinates_in_fractions(tmp_path: Path) -> None:
    write_faces(tmp_path, {"train": 3, "test": 1})
    before = read(tmp_path)
    for file in tmp_path.rglob("*.pts"):
        points = (read_pts(file) - 0.5) / [60, 48]
        rows = "\n".join(f"{x:.6f} {y:.6f}" for x, y in points)
        file.write_text(f"version: 1\nn_points: 68\n{{\n{rows}\n}}\n")
    message = r"te0.pts: all points are in 0..1; expected pixels, or set fractions=true for fractio"
    with pytest.raises(BadData, match=message):
        read(tmp_path)
    after = read(tmp_path, fractions=True)
    assert torch.allclose(after["test"]["landmarks"], before["test"]["landmarks"], atol=1e-3)
    (tmp_path / "test" / "te0.pts").write_text(pts_text(ring(68)))
    with pytest.raises(BadData, match=r"te0.pts: not all points are fractions in 0..1; set fract"):
        read(tmp_path, fractions=True)


def test_a_photo_that_a_camera_turned_is_refused(tmp_path: Path) -> None:
    write_faces(tmp_path, {"train": 3, "test": 1})
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(ring(68)).save(tmp_path / "train" / "tr1.jpg", exif=exif)
    with pytest.raises(BadData, match=r"tr1.jpg: its camera's orientation tag \(6\) turns or"):
        read(tmp_path)


def test_sixteen_bit_photos_are_scaled(tmp_path: Path) -> None:
    write_face(tmp_path / "train", "a", ring(68), end=".png")
    deep = np.full((48, 60), 32768, dtype=np.uint16)
    deep[0, 0] = 65535
    Image.fromarray(deep).save(tmp_path / "train" / "a.png")
    (face,) = find_faces(tmp_path)["train"]
    image, _ = ReadFaces(points=68, size=16).crop(face)
    assert set(image.ravel().tolist()) == {128}


def test_what_a_crop_would_allocate_is_bounded(tmp_path: Path) -> None:
    points = ring(4, (0.5, 10_000.0), radius=9_900.0)
    points[:, 0] = 0.5
    write_face(tmp_path / "train", "a", points, size=(1, 20_000))
    (face,) = find_faces(tmp_path)["train"]
    with pytest.raises(BadData, match=r"a.pts: 29700 x 29700 pixels, more than the 134,217,728"):
        ReadFaces(points=4, size=16).crop(face)
