"""Stages that variants of a recipe have in common: with two seeds more, or one row more, the others
are what they were. A stage of the same key is taken from the variant that has it.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from stillhouse.errors import CorruptArtifact
from stillhouse.files import writing, writing_file
from stillhouse.records import differs, record_of

LOCKS = ".locks"


def same_elsewhere(folder: Path, stage: str, key: str) -> Iterator[Path]:
    """The folders of the stage in the other variants beside `folder` whose records have the key and
    whose outputs are whole.
    """
    for variant in sorted(folder.parent.iterdir()) if folder.parent.is_dir() else ():
        if variant == folder or variant.name.startswith("."):
            continue
        try:
            record = record_of(variant / stage)
        except CorruptArtifact:  # that variant's own matter
            continue
        if record is None or record.key != key:
            continue
        if not any(differs(artifact) for artifact in record.outputs.values()):
            yield variant / stage


def take(folder: Path, stage: str, key: str) -> str:
    """Bring the stage into the variant's `folder` from another one that has it by the same key,
    with what was measured beside it, as links where the file system has them; the name of that
    variant, "" where none has it or all are in use.
    """
    for source in same_elsewhere(folder, stage, key):
        try:
            with FileLock(source.parent / LOCKS / f"{stage}.lock", timeout=0):
                _bring(source, folder)
        except Timeout:
            continue
        return source.parent.name
    return ""


def _bring(source: Path, folder: Path) -> None:
    with writing(folder / source.name) as aside:
        shutil.copytree(source, aside, copy_function=_linked, dirs_exist_ok=True)
        for file in source.parent.glob(f"{source.name}.*"):
            with writing_file(folder / file.name) as copy:
                shutil.copyfile(file, copy)


def _linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # across file systems, or one without links
        shutil.copy2(source, target)
