"""The list files of VLM-OOD: which images are for what, and by which words classes are called.

    train_data.txt, val_on_train_data.txt, val_data.txt  <part>/<class folder>/<image>, a line each
    label2text.txt   <class folder> <number> <name_with_underscores>
    chatgpt.txt      the description of label2text.txt's line of the same number
    captions.txt     <part>/<class folder>/<image><tab><caption>

The classes of train_data.txt are trained on, those of val_data.txt never seen in training. Both are
sorted by folder, as the published code numbers them. Without lists, images are those of the folders
train, val-on-train and val; without label2text.txt, a class is called as its folder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stillhouse.data.images import IMAGE_SUFFIXES
from stillhouse.data.sources import visible_files
from stillhouse.errors import BadData, MissingData
from stillhouse_clip.images import Sample

# a part, its list, and the folder of its images
PARTS = {
    "train": ("train_data.txt", "train"),
    "validation": ("val_on_train_data.txt", "val-on-train"),
    "unseen": ("val_data.txt", "val"),
}
LABELS, DESCRIPTIONS, CAPTIONS = "label2text.txt", "chatgpt.txt", "captions.txt"


@dataclass(frozen=True, kw_only=True)
class ClassText:
    """Name of a class, and a description of its looks; "" without one."""

    folder: str
    name: str
    description: str = ""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Classes that are trained on, classes that are not, and the images of each part; a label is
    the place among the part's own classes.
    """

    known: tuple[ClassText, ...]
    unseen: tuple[ClassText, ...]
    parts: Mapping[str, Sequence[Sample]]


def read_lists(root: Path) -> Split:
    """The split that a folder holds. Raises MissingData or BadData, which name the file."""
    lines = {part: _lines(root, part) for part in PARTS}
    folders = {part: sorted({line.split("/")[-2] for line in each}) for part, each in lines.items()}
    known, unseen = folders["train"], folders["unseen"]
    for part, names in (("validation", known), ("unseen", unseen)):
        wrong = [n for n in folders[part] if n not in names]
        if wrong:
            raise BadData(
                f"{root / PARTS[part][0]}: class '{wrong[0]}' is not trained on; "
                "an image of it belongs in val_data.txt"
            )
    if both := sorted({*known} & {*unseen}):
        raise BadData(f"{root}: class '{both[0]}' is both trained on and among the unseen")
    texts, captions = class_texts(root, [*known, *unseen]), _captions(root)
    place = {name: i for names in (known, unseen) for i, name in enumerate(names)}
    return Split(
        known=tuple(texts[name] for name in known),
        unseen=tuple(texts[name] for name in unseen),
        parts={
            part: [
                Sample(
                    line,
                    _image(root, part, line),
                    place[line.split("/")[-2]],
                    captions.get(line, ""),
                )
                for line in each
            ]
            for part, each in lines.items()
        },
    )


def _lines(root: Path, part: str) -> list[str]:
    """<part>/<class>/<image> of each image, in order."""
    name, folder = PARTS[part]
    if (root / name).is_file():
        found = [line.strip() for line in _text(root / name).split("\n") if line.strip()]
        for number, line in enumerate(found, 1):
            if line.count("/") < 2:
                raise BadData(f"{root / name}: line {number}: expected <part>/<class>/<image>")
    elif (root / folder).is_dir():
        files = [f for f in visible_files(root / folder) if f.suffix.lower() in IMAGE_SUFFIXES]
        found = [f.relative_to(root).as_posix() for f in files]
        found = [line for line in found if line.count("/") == 2]
    else:
        raise MissingData(
            f"{root}: neither {name} nor a folder {folder}/<class>/ of images; see the plugin's "
            "README for how data are laid out"
        )
    if not found:
        raise BadData(f"{root}: {name} or {folder}/ names no image")
    return sorted(found)


def _image(root: Path, part: str, line: str) -> Path:
    """Where an image lies: as its line says, or in a folder of all classes."""
    below = "/".join(line.split("/")[-2:])
    places = [root / line, root / PARTS[part][1] / below, root / "images" / below, root / below]
    for place in places:
        if place.is_file():
            return place
    raise MissingData(
        f"{root / line}: not found, nor {below} in images/ or the folder itself; put the images of "
        "the data set there"
    )


def class_texts(root: Path, folders: Sequence[str]) -> dict[str, ClassText]:
    """The text of each class by its folder. Raises BadData for a class that label2text.txt lacks
    and for descriptions that are not one a line of it.
    """
    labels, described = root / LABELS, root / DESCRIPTIONS
    if not labels.is_file():
        if described.is_file():
            raise MissingData(
                f"{labels} not found; {DESCRIPTIONS} describes its lines: write "
                "<class folder> <number> <name> a line"
            )
        return {name: ClassText(folder=name, name=plain_name(name)) for name in folders}
    rows = [line.split() for line in _text(labels).split("\n") if line.strip()]
    for number, row in enumerate(rows, 1):
        if len(row) != 3:
            raise BadData(f"{labels}: line {number}: expected <class folder> <number> <name>")
    texts = [""] * len(rows)
    if described.is_file():
        texts = [line.strip() for line in _text(described).strip("\n").split("\n")]
        if len(texts) != len(rows):
            raise BadData(
                f"{described}: {len(texts)} lines, and {LABELS} has {len(rows)}: line i describes "
                "the class of line i"
            )
        if "" in texts:
            raise BadData(f"{described}: line {texts.index('') + 1} is empty; describe its class")
    found = {
        row[0]: ClassText(folder=row[0], name=plain_name(row[2]), description=text)
        for row, text in zip(rows, texts, strict=True)
    }
    if missing := [name for name in folders if name not in found]:
        raise BadData(
            f"{labels}: {len(found)} classes, but not '{missing[0]}', one of the {len(folders)} "
            "that images are of; add its line"
        )
    return found


def plain_name(name: str) -> str:
    return " ".join(name.replace("_", " ").split())


def _captions(root: Path) -> dict[str, str]:
    file = root / CAPTIONS
    if not file.is_file():
        return {}
    rows = [line.split("\t") for line in _text(file).split("\n") if line.strip()]
    for number, row in enumerate(rows, 1):
        if len(row) != 2:
            raise BadData(f"{file}: line {number}: expected <image>, a tab, <caption>")
    return {image: caption.strip() for image, caption in rows}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadData(f"{file}: not UTF-8 text ({error.reason}); save it as UTF-8") from error
