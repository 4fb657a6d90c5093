"""Which part of data a file belongs to: one rule for all domains.

A part is named by the file's own word, else by the folder nearest to it, of those below the source
(what the source itself is called says nothing). Case does not count, nor do an added set, split,
data or images, or a number: Train, TEST, train_set, val2017, validation-00000-of-00002.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from stillhouse.data.notes import note
from stillhouse.errors import BadData

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
WORDS: Mapping[str, Split] = {
    "train": "train", "training": "train",
    "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
_NAME = re.compile(
    rf"({'|'.join(WORDS)})([-_ ]?(set|split|part|data|images|imgs))?([-_. ]?\d.*)?", re.IGNORECASE
)
_WORD = re.compile(rf"(?<![a-z])({'|'.join(WORDS)})(set)?(?![a-z])", re.IGNORECASE)
NO_WORDS: Mapping[str, Split] = {}

T = TypeVar("T")


def split_named(name: str, more: Mapping[str, Split] = NO_WORDS) -> Split | None:
    """The part that a folder's name, or a file's without its suffix, stands for; None for another.

    `more`: a format's own names (lower case), as 300-W's afw.
    """
    match = _NAME.fullmatch(name)
    return WORDS[match[1].lower()] if match else more.get(name.lower())


def split_within(name: str) -> Split | None:
    """The part that a word within a name stands for, the last of several: instances_train2017."""
    words: list[tuple[str, str]] = _WORD.findall(name)
    return WORDS[words[-1][0].lower()] if words else None


def split_of(file: Path, source: Path, more: Mapping[str, Split] = NO_WORDS) -> Split | None:
    """The part of a file of many samples below `source`; None where neither its name nor a
    folder's is a part's. Raises BadData as `folder_split`.
    """
    own = split_named(file.stem.split(".")[0], more)
    return own if own is not None else folder_split(file, source, more)


def folder_split(file: Path, source: Path, more: Mapping[str, Split] = NO_WORDS) -> Split | None:
    """The part that the folders of a file below `source` name, whatever it is itself called: a
    photo may be called test_1.jpg. Raises BadData where it is in folders of two parts.
    """
    named: dict[str, Split] = {}
    for folder in file.relative_to(source).parts[:-1]:
        split = split_named(folder, more)
        if split is not None:
            named[folder] = split
    if len(set(named.values())) > 1:
        raise BadData(
            f"{file}: in {' and in '.join(named)}, which are two parts of the data; move it"
        )
    return next(iter(named.values()), None)


def child_splits(folder: Path, children: Iterable[Path]) -> dict[Split, Path]:
    """Those of the folders in `folder` that are parts; BadData for two of one part."""
    found: dict[Split, Path] = {}
    for child in children:
        split = split_named(child.name)
        if split and (first := found.setdefault(split, child)) != child:
            raise BadData(
                f"{folder}: {first.name} and {child.name} are both the {split} part; keep one"
            )
    return found


def parts(
    found: Mapping[Split, Sequence[T]], source: Path, *, validates: bool
) -> dict[Split, Sequence[T]]:
    """The parts that a reader uses, "train" always among them; parts are never mixed.

    train and test: as they are. A validation part beside a test part is returned where the reader
    `validates` by one, else left out, which a line says. Without a test part the validation part is
    the test part, which a line says. BadData where there is nothing for training.
    """
    some: dict[Split, Sequence[T]] = {s: found[s] for s in SPLITS if found.get(s)}
    if "train" not in some:
        names = " and ".join(sorted(some)) or "nothing"
        raise BadData(f"{source}: has {names}, but no train part; add one, as a folder train/")
    if "validation" not in some:
        return some
    if "test" not in some:
        note(f"{source}: no test part: the validation part is tested on instead")
        some["test"] = some.pop("validation")
    elif not validates:
        note(f"{source}: the validation part is not read; train and test are")
        del some["validation"]
    return some


def check_classes(classes: Mapping[Split, Iterable[str]], source: Path) -> list[str]:
    """The names of the train part's classes, in order: they number the classes of every part.

    Raises BadData naming a class that one part has and another lacks.
    """
    train = sorted(set(classes["train"]))
    for split, names in classes.items():
        if odd := set(names) ^ set(train):
            name = min(odd)
            has, lacks = (split, "train") if name in set(names) else ("train", split)
            near = next(
                (n for n in {*train, *names} if n != name and n.lower() == name.lower()), ""
            )
            hint = f" (but '{near}': rename one)" if near else ""
            raise BadData(
                f"{source}: class '{name}' is in the {has} part and not in the {lacks} part{hint}; "
                "give each part the same classes"
            )
    return train
