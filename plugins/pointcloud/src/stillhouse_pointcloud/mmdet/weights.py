"""Weights of mmdetection3d's detectors that others trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.artifact import Built, Model
from stillhouse.errors import BadData
from stillhouse.weights import import_checkpoint
from stillhouse.work import Work
from stillhouse_pointcloud.mmdet.network import Detector
from stillhouse_pointcloud.mmdet.outputs import config_of, outputs


@dataclass(frozen=True, kw_only=True)
class LoadDetector:
    """A `convert`: the port "checkpoint" as the detector `model` (see `configs.model`).

    The port is a checkpoint as mmdetection3d's runner writes them (.pth; read without running code
    in it, every tensor accounted for), or a folder with model.json, which keeps its own spec and
    must find the same classes in the same voxels, and give what `model` gives in as many channels,
    which students' losses are made for. Raises BadData.
    """

    model: Model

    def __call__(
        self,
        inputs: Mapping[str, Any],  # Any: Built or Path
        out: Path,
        *,
        work: Work,
    ) -> None:
        name = self.model.kwargs["name"]
        given = inputs["checkpoint"]
        import_checkpoint(given, out, spec=self.model, check=self._check, inside="net", about=name)

    def _check(self, source: Built) -> None:
        wanted = self.model.new()
        assert isinstance(wanted, Detector)
        _check_detector(source, wanted)
        _check_outputs(source, self.model)


def _check_detector(source: Built, wanted: Detector) -> None:
    found = source.module
    if not isinstance(found, Detector):
        raise BadData(
            f"checkpoint: a {type(found).__name__}, not a detector of mmdetection3d; give one"
        )
    for what, mine, other in (
        ("classes", found.classes, wanted.classes),
        ("voxels", found.grid, wanted.grid),
    ):
        if mine != other:
            raise BadData(
                f"checkpoint: the given detector has {what} {mine}, {wanted.name} {other}; give "
                "one with the same"
            )


def _check_outputs(source: Built, wanted: Model) -> None:
    mine, other = (_channels(spec) for spec in (source.spec, wanted))
    for output, channels in other.items():
        if output not in mine:
            raise BadData(f"checkpoint: the given detector gives no '{output}'; give one that does")
        if mine[output] != channels:
            raise BadData(
                f"checkpoint: the given detector's '{output}' has {mine[output]} channels, that of "
                f"{wanted.kwargs['name']} {channels}; set teacher_model to what it was built from"
            )


def _channels(spec: Model) -> dict[str, int | None]:
    """Of what the detector gives; None where the configuration does not say."""
    known = outputs(config_of(spec))
    return {name: known[name].channels if name in known else None for name in spec.kwargs["layers"]}
