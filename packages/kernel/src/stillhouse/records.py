"""stage.json: what a finished stage says of itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stillhouse.artifact import Artifact, Kind
from stillhouse.digest import known_digest
from stillhouse.json_files import read_json

FILE = "stage.json"


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """The key, and the outputs by port."""

    key: str
    outputs: Mapping[str, Artifact]

    @property
    def whole(self) -> bool:
        """Whether its outputs are there; a damaged one is an error where it is read."""
        return all(artifact.path.exists() for artifact in self.outputs.values())


@dataclass(frozen=True, kw_only=True)
class _OutputFile:
    """An output in stage.json."""

    kind: Kind
    path: str
    digest: str
    opener: str

    def artifact(self, folder: Path) -> Artifact:
        return Artifact(
            kind=self.kind, path=folder / self.path, digest=self.digest, opener=self.opener
        )


@dataclass(frozen=True, kw_only=True)
class _StageFile:
    """What is read of stage.json."""

    key: str
    outputs: dict[str, _OutputFile]


def record_of(folder: Path) -> StageRecord | None:
    """The record of the stage in `folder`; None where none has run there. Raises CorruptArtifact
    for one that cannot be read.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    redo = f"delete the folder {folder} and run again"
    record = read_json(file, _StageFile, redo=redo)
    outputs = {port: output.artifact(folder) for port, output in record.outputs.items()}
    return StageRecord(key=record.key, outputs=outputs)


def differs(artifact: Artifact) -> bool:
    """Whether an output is missing, or has other bytes than its digest says."""
    return not artifact.path.exists() or known_digest(artifact.path) != artifact.digest
