"""Students: the same layers with fewer channels.

"r x compression" of PointDistiller (arXiv 2205.11098, table 1) is r times fewer parameters and
operations, so every inner width is divided by the square root of r, rounded down. What a layer
takes from the data and gives as boxes keeps its width. Where a layer takes what several give, laid
end to end, its width is the sum of theirs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stillhouse.errors import BadSetting

Config = dict[str, Any]  # Any: JSON values, and tuples
Divide = Callable[[int], int]
# of a part of a model's configuration, and of the whole: what differs in the student's
Narrow = Callable[[Config, Divide, Config], Config]


def narrowed(config: Config, ratio: float, *, where: str) -> Config:
    """The model with about `ratio` times fewer parameters; raises BadSetting for a part that it
    does not know, or that would have no channel left.
    """
    if not ratio >= 1:
        raise BadSetting(f"{where}: the ratio of parameters must be >= 1 (got {ratio:g})")
    if ratio == 1:
        return config

    def divide(width: int) -> int:
        # 1e-9: a root that is whole stays so
        left = math.floor(width / math.sqrt(ratio) + 1e-9)
        if left < 1:
            raise BadSetting(f"{where}: a layer of {width} channels has none left at 1/{ratio:g}")
        return left

    made = dict(config)
    for name, part in config.items():
        if isinstance(part, dict) and "type" in part and name != "data_preprocessor":
            made[name] = part | _found(name, part["type"], where)(part, divide, config)
    return made


def _found(name: str, kind: str, where: str) -> Narrow:
    kind = kind.rpartition(".")[2]
    if kind not in PARTS:
        raise BadSetting(
            f"{where}: no narrower {kind} ({name}) is known here; known: {', '.join(PARTS)}. "
            "Write the student's own configuration to a file and give its path"
        )
    return PARTS[kind]


def _divided(value: Any, divide: Divide) -> Any:  # Any: a width, or sequences of them
    if isinstance(value, Sequence):
        return [_divided(one, divide) for one in value]
    return divide(value)


def _other(whole: Config, name: str) -> Config:
    """The part `name`, or as detectors of several sensors call it."""
    return whole.get(name) or whole.get(f"pts_{name}") or {}


def _total(widths: Any, divide: Divide) -> int:  # Any: a sequence of widths
    return sum(divide(width) for width in widths)


def _pillars(part: Config, divide: Divide, whole: Config) -> Config:  # noqa: ARG001
    return {"feat_channels": _divided(part.get("feat_channels", (64,)), divide)}


def _same(part: Config, divide: Divide, whole: Config) -> Config:  # noqa: ARG001
    return {}


def _scatter(part: Config, divide: Divide, whole: Config) -> Config:  # noqa: ARG001
    return {"in_channels": divide(part["in_channels"])}


def _sparse(part: Config, divide: Divide, whole: Config) -> Config:  # noqa: ARG001
    # mmdetection3d's own widths where the configuration names none
    stages = ((16,), (32, 32, 32), (64, 64, 64), (64, 64, 64))
    return {
        "base_channels": divide(part.get("base_channels", 16)),
        "output_channels": divide(part.get("output_channels", 128)),
        "encoder_channels": _divided(part.get("encoder_channels", stages), divide),
    }


def _second(part: Config, divide: Divide, whole: Config) -> Config:
    encoder, inside = _other(whole, "middle_encoder"), part["in_channels"]
    # a sparse encoder's levels of height, laid end to end
    one = encoder.get("output_channels", 128 if "sparse_shape" in encoder else inside)
    return {
        "in_channels": inside // one * divide(one),
        "out_channels": _divided(part["out_channels"], divide),
    }


def _neck(part: Config, divide: Divide, whole: Config) -> Config:  # noqa: ARG001
    return {name: _divided(part[name], divide) for name in ("in_channels", "out_channels")}


def _anchor_head(part: Config, divide: Divide, whole: Config) -> Config:
    inside = _total(_other(whole, "neck")["out_channels"], divide)
    return {"in_channels": inside, "feat_channels": divide(part["feat_channels"])}


def _center_head(part: Config, divide: Divide, whole: Config) -> Config:
    separate = part["separate_head"]
    return {
        "in_channels": _total(_other(whole, "neck")["out_channels"], divide),
        "share_conv_channel": divide(part.get("share_conv_channel", 64)),
        "separate_head": separate | {"head_conv": divide(separate.get("head_conv", 64))},
    }


def _point_backbone(part: Config, divide: Divide, whole: Config) -> Config:  # noqa: ARG001
    if any(width is not None for width in part.get("aggregation_channels", ())):
        raise BadSetting("PointNet2SAMSG: no narrower one with aggregation_channels is known here")
    return {"sa_channels": _divided(part["sa_channels"], divide)}


def _point_neck(part: Config, divide: Divide, whole: Config) -> Config:
    backbone = _other(whole, "backbone")
    # what each set abstraction gives: its scales' last widths; the first is given the points
    gives = [_total([s[-1] for s in scales], divide) for scales in backbone["sa_channels"]]
    before, skips = gives[-1], [*reversed(gives[:-1]), backbone["in_channels"] - 3]
    made: list[list[int]] = []
    for module, skip in zip(part["fp_channels"], skips, strict=True):
        made.append([before + skip, *_divided(module[1:], divide)])
        before = made[-1][-1]
    return {"fp_channels": made}


def _rpn_head(part: Config, divide: Divide, whole: Config) -> Config:  # noqa: ARG001
    return {"pred_layer_cfg": _layers(part["pred_layer_cfg"], divide)}


def _roi_head(part: Config, divide: Divide, whole: Config) -> Config:  # noqa: ARG001
    head = part["bbox_head"]
    # its in_channels are coordinates, score and depth
    widths = {name: _divided(head[name], divide) for name in ("mlp_channels", "sa_channels")}
    layers = _layers(head["pred_layer_cfg"], divide)
    return {"bbox_head": head | widths | {"pred_layer_cfg": layers}}


def _layers(layers: Mapping[str, Any], divide: Divide) -> Config:  # Any: widths, flags
    return {k: _divided(v, divide) if "channels" in k else v for k, v in layers.items()}


# by mmdetection3d's name of the part
PARTS: Mapping[str, Narrow] = {
    "PillarFeatureNet": _pillars,
    "HardSimpleVFE": _same,
    "PointPillarsScatter": _scatter,
    "SparseEncoder": _sparse,
    "SECOND": _second,
    "SECONDFPN": _neck,
    "Anchor3DHead": _anchor_head,
    "CenterHead": _center_head,
    "PointNet2SAMSG": _point_backbone,
    "PointNetFPNeck": _point_neck,
    "PointRPNHead": _rpn_head,
    "PointRCNNRoIHead": _roi_head,
}
