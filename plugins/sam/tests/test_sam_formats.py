"""Every layout is written with a real image and read back; whatever is wrong is named."""

import copy
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from stillhouse.data.notes import noted
from stillhouse.errors import BadData
from stillhouse_sam.formats import Object, Photo, decoded, encoded
from stillhouse_sam.prompts import boxes_of
from stillhouse_sam.readers import find_photos

HEIGHT, WIDTH = 24, 40
Json = dict[str, Any]


def masks() -> NDArray[np.bool_]:
    """A box, a disc, and a single pixel in the corner: [3, HEIGHT, WIDTH]."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    box = (x >= 2) & (x < 12) & (y >= 3) & (y < 9)
    disc = (x - 26) ** 2 + (y - 13) ** 2 < 64
    corner = (x == WIDTH - 1) & (y == HEIGHT - 1)
    return np.stack([box, disc, corner])


def write_image(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT), seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def coco_image(number: int = 7, **fields: Any) -> Json:
    name = f"{number:012d}.jpg"
    return {"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH, **fields}


def coco(**changed: Any) -> Json:
    """A box as polygon, a disc as compressed run lengths, a crowd as numbers; image 9 has none."""
    _, disc, corner = masks()
    numbers = [HEIGHT * WIDTH - 1, 1]
    assert corner.T.ravel()[-1]
    segmentations: list[Any] = [
        [[2, 3, 12, 3, 12, 9, 2, 9]],
        dict(encoded(disc)),
        {"size": [HEIGHT, WIDTH], "counts": numbers},
    ]
    content: Json = {
        "images": [
            coco_image(9),
            coco_image(7, license=4, flickr_url="http://flickr/7", coco_url="http://coco/7"),
        ],
        "annotations": [
            {"id": 100 + i, "image_id": 7, "category_id": 1 + i, "iscrowd": int(i == 2),
             "segmentation": segmentation}
            for i, segmentation in enumerate(segmentations)
        ],
        "categories": [{"id": 1 + i, "name": n} for i, n in enumerate(("box", "disc", "dot"))],
        "licenses": [{"id": 4, "name": "Attribution License"}],
    }  # fmt: skip
    return {**content, **changed}


def write_coco(folder: Path, content: Json | None = None) -> Path:
    for number in (7, 9):
        write_image(folder / "train2017" / f"{number:012d}.jpg")
    write_json(folder / "annotations" / "instances_train2017.json", content or coco())
    return folder


def segment_ids() -> NDArray[np.int64]:
    return (masks() * np.array([70000, 300, 5])[:, None, None]).sum(0)


def write_panoptic(folder: Path, ids: NDArray[np.int64] | None = None, **changed: Any) -> Path:
    """The box is segment 70000 (more than two bytes), the disc 300, the corner 5."""
    if ids is None:
        ids = segment_ids()
    write_image(folder / "val2017" / f"{7:012d}.jpg")
    png = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    path = folder / "annotations" / "panoptic_val2017" / f"{7:012d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(png).save(path)
    segments = [{"id": n, "category_id": 1, "iscrowd": int(n == 5)} for n in (70000, 300, 5)]
    content: Json = {
        "images": [coco_image(license=4, coco_url="http://coco/7")],
        "annotations": [{"image_id": 7, "file_name": path.name, "segments_info": segments}],
        "categories": [{"id": 1, "name": "thing"}],
    }
    write_json(folder / "annotations" / "panoptic_val2017.json", {**content, **changed})
    return folder


def write_sa1b(folder: Path, **changed: Any) -> Path:
    write_image(folder / "sa_1.jpg")
    content = {
        "image": {"image_id": 1, "file_name": "sa_1.jpg", "height": HEIGHT, "width": WIDTH},
        "annotations": [{"id": 50 + i, "segmentation": encoded(m)} for i, m in enumerate(masks())],
    }
    write_json(folder / "sa_1.json", {**content, **changed})
    return folder


def write_folder(folder: Path, mode: str = "L", seed: int = 0) -> Path:
    write_image(folder / "images" / "a.jpg", seed=seed)
    ids = (masks() * np.array([255, 3, 9])[:, None, None]).sum(0).astype(np.uint8)
    image = Image.fromarray(ids)
    if mode == "P":
        image.putpalette(list(range(256)) * 3)
    elif mode == "RGB":
        image = Image.fromarray(np.stack([ids * 0, ids, ids], axis=-1))
    elif mode == "I;16":
        image = Image.fromarray(ids.astype(np.uint16) * 100)
    (folder / "masks").mkdir()
    image.save(folder / "masks" / "a.png")
    return folder


def only(source: Path, split: str = "train") -> Photo:
    photos = find_photos(source)
    assert list(photos) == [split]
    return photos[split][0]


def found(photo: Photo) -> tuple[list[Object], NDArray[np.bool_]]:
    image, objects = photo.read()
    assert image.mode == "RGB"
    assert image.size == (WIDTH, HEIGHT)
    return objects, np.stack([decoded(thing["rle"]) for thing in objects])


def test_instances_are_read_in_all_their_forms(tmp_path: Path) -> None:
    photos = find_photos(write_coco(tmp_path))["train"]
    assert [photo.place for photo in photos] == [7, 9]
    objects, read = found(photos[0])
    assert (read == masks()).all()
    assert [thing["category"] for thing in objects] == ["box", "disc", "dot"]
    assert [thing["crowd"] for thing in objects] == [0, 0, 1]
    assert [thing["area"] for thing in objects] == masks().sum((1, 2)).tolist()
    assert (photos[0].licence, photos[0].licence_name) == (4, "Attribution License")
    assert photos[0].credit == "http://flickr/7"
    assert [photo.labelled for photo in photos] == [True, False]
    assert photos[1].read()[1] == []
    assert photos[1].licence is None


def test_annotations_are_json(tmp_path: Path) -> None:
    photo = find_photos(write_coco(tmp_path))["train"][0]
    image, objects = photo.read()
    known = json.loads(photo.annotations(image.height, image.width, objects))
    assert known.pop("objects") == objects
    assert known == {
        "name": "000000000007.jpg", "height": HEIGHT, "width": WIDTH, "licence": 4,
        "licence_name": "Attribution License", "credit": "http://flickr/7",
    }  # fmt: skip


def test_several_polygons_are_one_object(tmp_path: Path) -> None:
    content = coco()
    content["annotations"][0]["segmentation"] = [[0, 0, 4, 0, 4, 4, 0, 4], [8, 8, 10, 8, 10, 10]]
    objects, read = found(find_photos(write_coco(tmp_path, content))["train"][0])
    assert read[0, :4, :4].all()
    assert read[0].sum() == objects[0]["area"] > 16
    assert not read[0, 4:8].any()


def test_coco_of_any_name_and_place_is_found(tmp_path: Path) -> None:
    write_json(tmp_path / "train" / "_annotations.coco.json", coco())
    write_json(tmp_path / "valid" / "_annotations.coco.json", coco())
    for seed, split in enumerate(("train", "valid")):
        for number in (7, 9):
            write_image(tmp_path / split / f"{number:012d}.jpg", seed=seed)
    photos = find_photos(tmp_path)
    assert sorted(photos) == ["train", "validation"]
    assert (found(photos["validation"][0])[1] == masks()).all()


def test_panoptic_segments_are_read_and_go_first(tmp_path: Path) -> None:
    write_coco(write_panoptic(tmp_path))
    photo = only(tmp_path)  # a split alone is train
    objects, read = found(photo)
    assert (read == masks()).all()
    assert [thing["crowd"] for thing in objects] == [0, 0, 1]
    assert {thing["category"] for thing in objects} == {"thing"}
    assert photo.credit == "http://coco/7"


def test_sa1b_is_read(tmp_path: Path) -> None:
    photo = only(write_sa1b(tmp_path))
    assert (found(photo)[1] == masks()).all()
    assert photo.name == "sa_1.jpg"


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "I;16"])
def test_mask_folders_are_read(mode: str, tmp_path: Path) -> None:
    _, read = found(only(write_folder(tmp_path, mode)))
    assert (read == masks()[[1, 2, 0]]).all()  # in the order of their values: 3, 9, 255


def test_splits_of_folders(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        write_folder(tmp_path / split, seed=len(split))
    assert sorted(find_photos(tmp_path)) == ["test", "train"]
    for place in ("images", "masks"):
        (tmp_path / "b" / place).mkdir(parents=True)
        for split in ("train", "val"):
            (tmp_path / split if split == "train" else tmp_path / "test").joinpath(place).rename(
                tmp_path / "b" / place / split
            )
    photos = find_photos(tmp_path / "b")
    assert sorted(photos) == ["train", "validation"]
    assert (found(photos["validation"][0])[1] == masks()[[1, 2, 0]]).all()


def test_an_image_named_as_a_split_is_in_none(tmp_path: Path) -> None:
    write_folder(tmp_path)
    for place, end in (("images", "jpg"), ("masks", "png")):
        (tmp_path / place / f"a.{end}").rename(tmp_path / place / f"test_1.{end}")
    assert list(find_photos(tmp_path)) == ["train"]


def save_mask(folder: Path, image: Image.Image) -> NDArray[np.bool_]:
    image.save(write_folder(folder) / "masks" / "a.png")
    return found(only(folder))[1]


def test_vocs_void_is_no_object(tmp_path: Path) -> None:
    box, disc, corner = masks()
    image = Image.fromarray(np.uint8(1 * box + 2 * disc + 255 * corner))
    colours = [0] * 768
    colours[3:9], colours[765:] = [128, 0, 0, 0, 128, 0], [224, 224, 192]
    image.putpalette(colours)
    assert (save_mask(tmp_path, image) == masks()[:2]).all()
    grey = Image.fromarray(np.asarray(image))
    grey.save(tmp_path / "masks" / "a.png")
    assert len(found(only(tmp_path))[1]) == 3
    (photos,) = find_photos(tmp_path, void=frozenset({255})).values()
    assert (found(photos[0])[1] == masks()[:2]).all()


@pytest.mark.parametrize("colour", [0, 255])
def test_an_object_in_the_alpha_channel_is_read(colour: int, tmp_path: Path) -> None:
    disc = masks()[1]
    plain = np.full((HEIGHT, WIDTH, 3), colour, dtype=np.uint8)
    rgba = np.concatenate([plain, np.uint8(255 * disc)[..., None]], axis=-1)
    assert (save_mask(tmp_path, Image.fromarray(rgba)) == disc).all()


def test_colours_of_transparent_surroundings_are_ids(tmp_path: Path) -> None:
    box, disc, _ = masks()
    rgba = np.stack([np.uint8(box * 7), np.uint8(disc * 9), np.uint8(box * 0),
                     np.uint8(255 * (box | disc))], axis=-1)  # fmt: skip
    assert (save_mask(tmp_path, Image.fromarray(rgba)) == np.stack([box, disc])).all()


def test_many_small_objects_are_no_smoothed_mask(tmp_path: Path) -> None:
    ids = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    ids[::4, ::4] = np.arange(1, 61).reshape(6, 10)  # single pixels
    ids[1:4, 33:36] = 200
    assert len(save_mask(tmp_path, Image.fromarray(ids))) == 61


def test_hidden_files_are_not_seen_and_others_are_counted(tmp_path: Path) -> None:
    write_coco(tmp_path)
    write_image(tmp_path / ".thumbs" / "a.jpg")
    write_image(tmp_path / "train2017" / "more.jfif")
    (tmp_path / "notes.txt").write_text("nothing")
    lines: list[str] = []
    with noted(lines.append):
        photos = find_photos(tmp_path)
    assert [len(some) for some in photos.values()] == [2]
    (line,) = lines
    assert line.endswith("2 file(s) not read: 1 .txt, 1 .jfif (first: notes.txt)")


def test_a_folder_around_the_data_says_nothing(tmp_path: Path) -> None:
    write_folder(tmp_path / "test" / "mine")
    assert list(find_photos(tmp_path / "test" / "mine")) == ["train"]


def test_polygon_boxes_are_pixels_edges(tmp_path: Path) -> None:
    _, read = found(find_photos(write_coco(tmp_path))["train"][0])
    assert boxes_of(torch.from_numpy(read))[0].tolist() == [2, 3, 12, 9]


def segmentation(value: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        content = copy.deepcopy(coco())
        content["annotations"][1]["segmentation"] = value
        return write_coco(folder, content)

    return write


def coco_with(**changed: Any) -> Callable[[Path], Path]:
    return lambda folder: write_coco(folder, coco(**changed))


def broken(
    write: Callable[[Path], Path], file: str, content: bytes | None
) -> Callable[[Path], Path]:
    """A folder of which one file is removed, or has other bytes."""

    def broken_folder(folder: Path) -> Path:
        path = write(folder) / file
        path.unlink() if content is None else path.write_bytes(content)
        return folder

    return broken_folder


def resized(write: Callable[[Path], Path], file: str) -> Callable[[Path], Path]:
    def resized_folder(folder: Path) -> Path:
        write_image(write(folder) / file, (WIDTH + 1, HEIGHT))
        return folder

    return resized_folder


def turned(write: Callable[[Path], Path], file: str) -> Callable[[Path], Path]:
    def turned_folder(folder: Path) -> Path:
        path = write(folder) / file
        with Image.open(path) as image:
            tags = image.getexif()
            tags[0x0112] = 6
            image.save(path, exif=tags)
        return folder

    return turned_folder


def with_values(
    write: Callable[[Path], Path], file: str, value: Any, *, remove: str = "images/a.jpg"
) -> Callable[[Path], Path]:
    """A folder with a file of one value in the place of another."""

    def written(folder: Path) -> Path:
        (write(folder) / remove).unlink()
        Image.fromarray(np.full((HEIGHT, WIDTH), value)).save(folder / file)
        return folder

    return written


def mask_of(smooth: Callable[[Image.Image], Image.Image], mode: str) -> Callable[[Path], Path]:
    """A mask of a disc, drawn four times as large and then made smaller."""

    def written(folder: Path) -> Path:
        y, x = np.mgrid[: 4 * HEIGHT, : 4 * WIDTH]
        disc = Image.fromarray(np.uint8(255 * ((x - 104) ** 2 + (y - 52) ** 2 < 1600)))
        smooth(disc.convert(mode)).save(write_folder(folder) / "masks" / "a.png")
        return folder

    return written


def rgb16(mask: NDArray[np.bool_]) -> bytes:
    """A PNG of RGB with 16 bits a channel."""
    rows = np.repeat((mask * np.uint16(300)).astype(">u2")[..., None], 3, axis=-1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def empty(folder: Path) -> Path:
    (folder / "readme.txt").write_text("nothing")
    return folder


def bare(folder: Path) -> Path:
    write_image(folder / "a.png")
    return folder


JPG, PNG = "train2017/000000000007.jpg", "annotations/panoptic_val2017/000000000007.png"
INSTANCES = "annotations/instances_train2017.json"
SHORT = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH - 2, 1]}
OTHER = {"size": [WIDTH, HEIGHT], "counts": [HEIGHT * WIDTH]}
IMAGE = {"file_name": "sa_1.jpg", "height": HEIGHT, "width": WIDTH}

WRONG: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no folder": (lambda folder: folder / "none", "none: not a folder"),
    "no image": (empty, r"no images; expected COCO's"),
    "no masks": (bare, r"1 image\(s\) and no masks; expected COCO's"),
    "broken json": (broken(write_coco, INSTANCES, b"{"), f"{INSTANCES}: cannot be read as JSON"),
    "no text": (broken(write_coco, INSTANCES, b"\xff"), f"{INSTANCES}: cannot be read as JSON"),
    "no record": (broken(write_coco, INSTANCES, b"[]"), f"{INSTANCES}: there is no list 'images'"),
    "no images": (coco_with(images=[]), f"{INSTANCES}: no images in it"),
    "no list": (coco_with(annotations=3), f"{INSTANCES}: there is no list 'annotations'"),
    "odd list": (coco_with(annotations=[3]), f"{INSTANCES}: not every entry of 'annotations'"),
    "no id": (coco_with(images=[{}]), "an image: id is None; expected a whole number"),
    "no name": (coco_with(images=[{"id": 7}, coco_image(9)]), "image 7: file_name is None; .*text"),
    "twice": (coco_with(images=[coco_image(), coco_image()]), "image 7 is there twice"),
    "no such image": (coco_with(images=[coco_image(9)]), "annotation 100: there is no image 7"),
    "image missing": (
        broken(write_coco, JPG, None),
        f"{INSTANCES}: image 7: image 000000000007.jpg not found",
    ),
    "image broken": (broken(write_coco, JPG, b"x"), f"{JPG}: not an image of a known format"),
    "image cut": (
        broken(write_coco, JPG, b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01"),
        f"{JPG}: not a whole image",
    ),
    "image of another size": (
        resized(write_coco, JPG),
        f"{JPG}: 41 x 24 pixels, but 40 x 24 in .*{INSTANCES}: image 7",
    ),
    "no segmentation": (segmentation(None), "annotation 101: segmentation is a NoneType"),
    "no polygon": (segmentation([]), "annotation 101: no polygon; correct it"),
    "two points": (
        segmentation([[1, 1, 5, 5]]),
        f"{INSTANCES}: annotation 101: polygon 1 has 4 numbers; .* 3 points; correct it",
    ),
    "half a point": (segmentation([[1, 1, 5, 5, 9, 9, 3]]), "annotation 101: polygon 1 has 7"),
    "no number": (segmentation([[1, 1, 5, 5, "9", 9]]), "101: polygon 1 has a coordinate"),
    "nan": (segmentation([[1, 1, 5, 5, float("nan"), 9]]), "101: polygon 1 has a coordinate"),
    "flat polygon": (segmentation([1, 1, 5, 5, 9, 9]), "101: polygon 1 has 0 numbers"),
    "rle of another size": (
        segmentation(OTHER),
        r"annotation 101: run lengths of size \[40, 24\]; the image's is \[24, 40\]",
    ),
    "short rle": (segmentation(SHORT), "101: run lengths cover 959 pixels, not the 40 x 24"),
    "short string": (segmentation({**SHORT, "counts": "1"}), "101: run lengths cover 1 pixels"),
    "odd string": (segmentation({**SHORT, "counts": "~"}), "101: counts are no run lengths"),
    "odd numbers": (segmentation({**SHORT, "counts": [1.5]}), "101: counts are not all whole"),
    "no counts": (segmentation({"size": [HEIGHT, WIDTH]}), "101: run lengths without counts"),
    "far outside": (
        segmentation([[1, 1, 50, 1, 50, 20]]),
        f"{INSTANCES}: annotation 101: polygon 1 reaches from x 1 to 50, far outside the 40 x 24 "
        "pixels of its image, as if drawn on one of another size; correct it",
    ),
    "far above": (segmentation([[1, -9, 5, 1, 5, 20]]), "101: polygon 1 reaches from y -9 to 20"),
    "unknown category": (
        coco_with(categories=[{"id": 1, "name": "box"}, {"id": 3, "name": "dot"}]),
        f"{INSTANCES}: annotation 101: category_id 2 is none of 1, 3; correct it",
    ),
    "unknown segment's category": (
        lambda f: write_panoptic(f, categories=[{"id": 6, "name": "x"}]),
        "panoptic_val2017.json: image 7: segment 70000: category_id 1 is none of 6; correct it",
    ),
    "turned by its camera": (
        turned(write_coco, JPG),
        rf"{JPG}: its camera's orientation tag \(6\) turns or mirrors it, and coordinates would",
    ),
    "float image": (
        with_values(write_folder, "images/a.tif", np.float32(300)),
        "images/a.tif: floating values from 300 to 300; expected 0..1",
    ),
    "dark 16 bits": (
        with_values(write_folder, "images/a.png", np.uint16(900)),
        "images/a.png: 16 bits, but no value above 900",
    ),
    "image in two splits": (
        lambda f: write_folder(write_folder(f / "train").parent / "test").parent,
        "train/images/a.jpg: has the bytes of .*test/images/a.jpg, in another split",
    ),
    "jpeg mask": (
        lambda f: (
            Image.open(f / (write_folder(f), "masks/a.png")[1]).save(f / "masks/a.jpg"),
            (f / "masks/a.png").unlink(),
            f,
        )[-1],
        "masks/a.jpg: a mask as JPEG, which changes values beside every edge",
    ),
    "smoothed mask": (
        mask_of(lambda ids: ids.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR), "L"),
        "masks/a.png: .* values lie only on edges, between the values beside them: a smoothed",
    ),
    "smoothed colours": (
        mask_of(lambda ids: ids.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), "RGB"),
        "masks/a.png: .* values lie only on edges",
    ),
    "float mask": (
        with_values(write_folder, "masks/a.tif", np.float32(0.5), remove="masks/a.png"),
        "masks/a.tif: a mask of mode F; expected grey values, a palette or RGB",
    ),
    "16 bits a channel": (
        broken(write_folder, "masks/a.png", rgb16(masks()[1])),
        "masks/a.png: 16 bits a channel, of which only 8 can be read",
    ),
    "colours and transparency": (
        lambda f: (
            Image.fromarray(
                np.stack([np.uint8(masks()[i] * 255) for i in (0, 1, 1, 0)], axis=-1)
            ).save(write_folder(f) / "masks/a.png"),
            f,
        )[-1],
        "masks/a.png: both its colours and its transparency differ",
    ),
    "png missing": (
        broken(write_panoptic, PNG, None),
        r"panoptic_val2017.json: image 7: image 000000000007.png not found",
    ),
    "png of another size": (
        resized(write_panoptic, PNG),
        f"{PNG}: 41 x 24 pixels, but its image has 40 x 24",
    ),
    "segment not in png": (
        lambda f: write_panoptic(f, np.zeros((HEIGHT, WIDTH), dtype=np.int64)),
        f"image 7: has segment 5, which .*{PNG} lacks",
    ),
    "segment not in json": (
        lambda f: write_panoptic(f, segment_ids() + (segment_ids() == 0)),
        f"{PNG}: has segment 1, which .*panoptic_val2017.json: image 7 lacks",
    ),
    "no panoptic annotation": (
        lambda f: write_panoptic(f, annotations=[]),
        "image 7: no annotation has this image_id",
    ),
    "json missing": (
        broken(lambda f: write_sa1b(write_sa1b(f) / "b").parent, "b/sa_1.json", None),
        "b/sa_1.jpg: there is no JSON of its stem",
    ),
    "sa-1b image missing": (
        broken(lambda f: write_sa1b(write_sa1b(f) / "b").parent, "b/sa_1.jpg", None),
        "b/sa_1.json: there is no image of its stem",
    ),
    "sa-1b of another name": (
        lambda f: write_sa1b(f, image={**IMAGE, "file_name": "sa_2.jpg"}),
        "sa_1.json: annotates sa_2.jpg, but sa_1.jpg is beside it",
    ),
    "sa-1b of another size": (
        lambda f: write_sa1b(f, image={**IMAGE, "height": 25}),
        "sa_1.jpg: 40 x 24 pixels, but 40 x 25 in .*sa_1.json",
    ),
    "sa-1b without size": (
        lambda f: write_sa1b(f, image={"file_name": "sa_1.jpg"}),
        "sa_1.json: height is None; expected a whole number",
    ),
    "sa-1b rle": (
        lambda f: write_sa1b(f, annotations=[{"id": 50, "segmentation": OTHER}]),
        r"sa_1.json: annotation 50: run lengths of size \[40, 24\]",
    ),
    "neither": (
        broken(write_sa1b, "sa_1.json", b'{"a": 1}'),
        "sa_1.json: neither COCO's annotations nor SA-1B's",
    ),
    "mask missing": (
        broken(write_folder, "masks/a.png", None),
        r"1 image\(s\) and no masks",
    ),
    "mask of another stem": (
        lambda f: (write_folder(f) / "masks/a.png").rename(f / "masks/b.png").parents[1],
        "images/a.jpg: there is no mask of its stem",
    ),
    "mask too many": (
        lambda f: (write_image(write_folder(f) / "masks/b.png"), f)[1],
        "masks/b.png: there is no image of its stem",
    ),
    "two images": (
        lambda f: (write_image(write_folder(f) / "images/a.png"), f)[1],
        "images/a.png: .*images/a.jpg has the same stem",
    ),
    "mask of another size": (
        resized(write_folder, "masks/a.png"),
        "masks/a.png: 41 x 24 pixels, but its image has 40 x 24",
    ),
    "mask broken": (broken(write_folder, "masks/a.png", b"x"), "masks/a.png: not an image"),
    "in and out of splits": (
        lambda f: write_folder(write_folder(f / "train").parent / "b").parent,
        "in neither train, validation nor test",
    ),
    "nothing for train": (
        lambda f: write_folder(write_folder(f / "val").parent / "test").parent,
        "has test and validation, but no train part; add one",
    ),
}


def read_all(source: Path) -> None:
    for photos in find_photos(source).values():
        for photo in photos:
            photo.read()


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(case: str, tmp_path: Path) -> None:
    write, message = WRONG[case]
    with pytest.raises(BadData, match=message) as caught:
        read_all(write(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
