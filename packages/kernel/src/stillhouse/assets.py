"""Assets: the files and folders that go with a model's weights, such as a tokenizer's. Data only:
nothing in them is called.

They lie in `assets/` of the model's folder; model.json has their names and digests.
"""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from stillhouse.artifact import SPEC, Artifact
from stillhouse.digest import known_digest, path_digest
from stillhouse.errors import BadData, BadRecipe, CorruptArtifact
from stillhouse.files import share, tree
from stillhouse.inputs import OPEN_PATH
from stillhouse.json_files import brief, read_json

FOLDER = "assets"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
MOST = 1 << 30  # bytes of all assets of a model
# formats that are read as data; .jinja: templates of chats, which transformers renders in a sandbox
SUFFIXES = (
    *(".json", ".jsonl", ".txt", ".model", ".vocab", ".bpe", ".tiktoken", ".jinja"),
    *(".tsv", ".csv", ".yaml", ".md", ".safetensors", ".parquet"),
)
AGAIN = "run the stage that made it again"

Assets = Mapping[str, Path]  # by name: a file, or a folder of files


def copy_assets(assets: Assets, folder: Path) -> dict[str, dict[str, str]]:
    """Copy assets into the model's new folder; what model.json says of them.

    Raises BadData for what is no data, is missing, or is too much.
    """
    entries: dict[str, dict[str, str]] = {}
    for name, source in sorted(assets.items()):
        where = f"asset '{name}' ({source})"
        if not NAME.fullmatch(name):
            raise BadData(f"{where}: a name has only letters, digits, '-' and '_'")
        if not source.exists():
            raise BadData(f"{where}: not found")
        file = name + source.suffix.lower() if source.is_file() else name
        if problem := _problem(source):
            raise BadData(f"{where}: {problem}")
        target = folder / FOLDER / file
        _copy(source, target)
        entries[name] = {"file": file, "digest": path_digest(target)}
    if (size := sum(_size(folder / FOLDER / entry["file"]) for entry in entries.values())) > MOST:
        raise BadData(f"assets {', '.join(entries)}: {size:,} bytes; at most {MOST:,} go along")
    return entries


def read_assets(record: object, folder: Path) -> dict[str, Path]:
    """The assets that model.json says are in the model's folder, each checked. Raises
    CorruptArtifact.
    """
    if not isinstance(record, Mapping):
        raise CorruptArtifact(f"{folder}: assets: {brief(record)} is no mapping; {AGAIN}")
    entries = cast("Mapping[str, Any]", record)  # Any: JSON values
    return {name: _checked(name, entry, folder) for name, entry in entries.items()}


def _checked(name: str, entry: Any, folder: Path) -> Path:  # Any: a JSON value
    where = f"{folder}: asset {brief(name)}"
    match entry:
        case {"file": str(file), "digest": str(digest)}:
            files = (name, *(name + end for end in SUFFIXES))
        case _:
            file, digest, files = brief(entry), "", ()
    # a name alone: it leads nowhere else
    if not NAME.fullmatch(name) or file not in files:
        raise CorruptArtifact(f"{where}: {brief(file)} is no file of an asset; {AGAIN}")
    path = folder / FOLDER / file
    if not path.exists():
        raise CorruptArtifact(f"{where}: {FOLDER}/{file} not found; {AGAIN}")
    if (problem := _problem(path)) or _size(path) > MOST:
        raise CorruptArtifact(f"{where}: {problem or f'more than {MOST:,} bytes'}")
    if known_digest(path) != digest:
        raise CorruptArtifact(f"{where}: its bytes differ from the digest in model.json; {AGAIN}")
    return path


def _problem(path: Path) -> str:
    """Why a file or folder is no asset; empty where it is one."""
    for file in _files(path):
        if file.suffix.lower() not in SUFFIXES:
            return (
                f"{file.name} is not known to be data alone, as files that end in "
                f"{', '.join(SUFFIXES)} are"
            )
    return "" if _files(path) else "holds no file"


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [found for found in tree(path) if found.is_file()]


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in _files(path))


def _copy(source: Path, target: Path) -> None:
    for file in _files(source):
        to = target if source.is_file() else target / file.relative_to(source)
        to.parent.mkdir(parents=True, exist_ok=True)
        # not their permissions: a stage's files may be DVC's, which are read-only
        shutil.copyfile(file, to)
    share(target)


def assets_of(port: str, artifact: Artifact) -> Assets:
    """What a port gives: a model's assets, or a file or folder under the port's name. Raises
    BadRecipe for what is neither, CorruptArtifact.
    """
    if artifact.kind == "model":
        record = read_json(artifact.path / SPEC, dict[str, Any], redo=AGAIN)  # Any: JSON values
        return read_assets(record.get("assets", {}), artifact.path)
    if artifact.opener != OPEN_PATH:
        raise BadRecipe(
            f"port '{port}' holds {artifact.kind}: neither a model nor a file or folder"
        )
    return {port: artifact.path}
