"""Detectors by name or by the path of an mmdetection3d configuration, as specs of JSON values."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillhouse.artifact import Model
from stillhouse.errors import BadSetting, MissingData, UnknownName
from stillhouse.objectives.inputs import fraction
from stillhouse_pointcloud.mmdet.library import configs, imported, quiet
from stillhouse_pointcloud.mmdet.narrow import Config, narrowed
from stillhouse_pointcloud.mmdet.network import detector

STUDENT = re.compile(r"(.+)/(\d+(?:\.\d+)?)")
# below mmdetection3d's own folder of configurations
NAMED: Mapping[str, str] = {
    "pointpillars-kitti": "pointpillars/pointpillars_hv_secfpn_8xb6-160e_kitti-3d-3class.py",
    "second-kitti": "second/second_hv_secfpn_8xb6-80e_kitti-3d-3class.py",
    "pointrcnn-kitti": "point_rcnn/point-rcnn_8xb2_kitti-3d-3class.py",
    # pillars, and circles in place of rotated boxes when it suppresses doubles
    "centerpoint-nuscenes": (
        "centerpoint/centerpoint_pillar02_second_secfpn_head-circlenms_8xb4-cyclic-20e_nus-3d.py"
    ),
}
# what PointDistiller distils, by type of detector and backbone; module paths
LAYERS: Mapping[tuple[str, str], Mapping[str, str]] = {
    ("VoxelNet", "PillarFeatureNet"): {"voxels": "voxel_encoder"},
    ("VoxelNet", "HardSimpleVFE"): {
        "backbone.0": "backbone.blocks.0",
        "backbone.1": "backbone.blocks.1",
    },
    ("PointRCNN", ""): {"points": "neck.FP_modules.3"},
    # the authors' nuScenes network is another, with this map distilled
    ("CenterPoint", "PillarFeatureNet"): {"neck": "pts_neck"},
    ("CenterPoint", "HardSimpleVFE"): {"neck": "pts_neck"},
}


def is_stock(name: str) -> bool:
    """Whether `model` knows the name, or takes it for a configuration's path."""
    found = base(name)
    return found in NAMED or found.endswith(".py")


def model(
    name: str, *, layers: Mapping[str, str] | None = None, momentum: float | None = None
) -> Model:
    """The spec of a detector: a name of `NAMED` or the path of a configuration file (.py, which is
    run), with "/r" behind it a student of about r times fewer parameters ("second-kitti/4"; see
    `narrow`).

    `layers`: output names and the modules whose outputs they are ("voxels": "voxel_encoder");
    without them what PointDistiller distils of that detector. `momentum`: of every BatchNorm, in
    place of the configuration's. The spec holds the whole configuration of the model, so that a
    changed file is another spec. Raises UnknownName, MissingData, BadSetting; MissingExtra without
    mmdetection3d.
    """
    config, kwargs = _resolved(name)
    if momentum is not None:
        fraction("momentum", momentum)
        kwargs["momentum"] = momentum
    return Model(
        build=detector,
        kwargs={
            "name": name,
            "config": plain(config),
            **kwargs,
            "layers": dict(default_layers(config, name) if layers is None else layers),
        },
    )


def default_layers(config: Mapping[str, Any], name: str) -> Mapping[str, str]:
    """What PointDistiller distils of such a detector (Any: a configuration); BadSetting for one
    that it has not.
    """
    encoder = config.get("voxel_encoder") or config.get("pts_voxel_encoder") or {}
    found = LAYERS.get((config["type"], encoder.get("type", "")))
    if found is None:
        raise BadSetting(
            f"{name}: no layer to distil is known for a {config['type']}; give layers, such as "
            '{"neck": "neck"}; {} for none'
        )
    return found


def base(name: str) -> str:
    """The name without its ratio: of "second-kitti/4" "second-kitti"."""
    found = STUDENT.fullmatch(name)
    return found[1] if found else name


def _resolved(name: str) -> tuple[Config, dict[str, Any]]:  # Any: JSON values
    """The model's configuration, narrowed, and the arguments classes and points."""
    found = STUDENT.fullmatch(name)
    ratio = float(found[2]) if found else 1.0
    file = _file(base(name))
    whole = _read(file)
    if "model" not in whole:
        raise BadSetting(f"{file}: it has no `model`; give an mmdetection3d configuration")
    config = narrowed(whole["model"], ratio, where=name)
    return config, {"classes": _classes(whole, file), "points": _points(whole)}


def _file(name: str) -> Path:
    if name in NAMED:
        return configs() / NAMED[name]
    if not name.endswith(".py"):
        raise UnknownName("detector", name, [*NAMED, "<configuration>.py"])
    if not Path(name).is_file():
        raise MissingData(f"{name}: no such configuration file; give its path, or a known name")
    return Path(name)


def _read(file: Path) -> Config:
    config = imported("mmengine.config").Config
    try:
        with quiet():
            return config.fromfile(str(file)).to_dict()
    except Exception as error:  # the file is code: it may fail in any way
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise BadSetting(f"{file}: not an mmdetection3d configuration ({reason})") from error


def _classes(whole: Config, file: Path) -> list[str]:
    names = whole.get("class_names") or whole.get("metainfo", {}).get("classes")
    if not names:
        raise BadSetting(f"{file}: neither class_names nor metainfo names the classes")
    return [str(name) for name in names]


def _points(whole: Config) -> dict[str, Any]:  # Any: JSON values
    """channels: numbers a point; range: x, y, z from and to, metres; sample: how many points a
    cloud must have, of which those further than `far` metres are kept; None where it does not say.
    """
    steps = {step["type"]: step for step in whole.get("train_pipeline", ())}
    used = steps.get("LoadPointsFromFile", {}).get("use_dim", 4)
    bounds = steps.get("PointsRangeFilter", {}).get("point_cloud_range")
    sample = steps.get("PointSample", {})
    return {
        "channels": used if isinstance(used, int) else len(used),
        "range": None if bounds is None else [float(bound) for bound in bounds],
        "sample": sample.get("num_points"),
        "far": sample.get("sample_range"),
    }


def plain(value: Any) -> Any:  # Any: a configuration, as JSON values
    """The same in JSON values: tuples, which some layers insist on, become {"tuple": [...]}."""
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, tuple):
        return {"tuple": [plain(one) for one in value]}
    if isinstance(value, list):
        return [plain(one) for one in value]
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise BadSetting(f"configuration: a {type(value).__name__} cannot be kept in a model's spec")
