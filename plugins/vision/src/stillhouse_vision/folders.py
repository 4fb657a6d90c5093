"""Where labelled images lie: parquet files of parts, or folders of classes, in folders of parts."""

from pathlib import Path

from stillhouse.data.sources import visible_files, visible_folders
from stillhouse.data.splits import Split, child_splits, split_named, split_of
from stillhouse.errors import BadData

EXPECTED = (
    "expected train.parquet and test.parquet, or train/<class>/*.png and test/<class>/*.png, "
    "or <class>/*.png"
)


def parquet_files(source: Path) -> dict[Split, list[Path]]:
    """Parquet files by part, {} where there are none; all are "train" where none is named as a
    part. Of several, those that are no part's are left out.
    """
    files = [file for file in visible_files(source) if file.suffix.lower() == ".parquet"]
    if source.is_file():
        return {"train": files} if files else {}
    found: dict[Split, list[Path]] = {}
    for file in files:
        split = split_of(file, source)
        if split is not None:
            found.setdefault(split, []).append(file)
    if found and "train" not in found:
        first = next(iter(found.values()))[0]
        raise BadData(f"{source}: there is no train*.parquet beside {first.name}")
    return found or ({"train": files} if files else {})


def class_folders(source: Path) -> dict[Split, Path]:
    """The folder of class folders of each part; the source itself is "train" where it has no parts.

    Raises BadData for a layout that is none of these.
    """
    if not source.is_dir():
        raise BadData(f"{source}: neither a folder nor parquet; {EXPECTED}")
    children = visible_folders(source)
    found = _parts_of(source, children)
    if not found and len(children) == 1:  # unpacked into a folder of its own
        found = _parts_of(children[0], visible_folders(children[0]))
    if found:
        if "train" not in found:
            names = " and ".join(sorted(folder.name for folder in found.values()))
            raise BadData(f"{source}: has {names}, but no train part; {EXPECTED}")
        return found
    if not children:
        raise BadData(f"{source}: neither train*.parquet nor folders of images; {EXPECTED}")
    _check_are_classes(children)
    return {"train": source}


def _parts_of(folder: Path, children: list[Path]) -> dict[Split, Path]:
    # a class may be called "train"; what holds no folders is a class
    return child_splits(folder, [child for child in children if visible_folders(child)])


def _check_are_classes(children: list[Path]) -> None:
    if all(split_named(child.name) for child in children):
        raise BadData(f"{children[0]}: no class folders in this part of the data; {EXPECTED}")
    for child in children:
        inner = child_splits(child, visible_folders(child))
        if inner:
            first = next(iter(inner.values()))
            raise BadData(f"{first}: a part of the data within a class; {EXPECTED}")


def class_names(folder: Path) -> tuple[str, ...]:
    """The classes of a folder of class folders, in order."""
    return tuple(path.name for path in visible_folders(folder))
