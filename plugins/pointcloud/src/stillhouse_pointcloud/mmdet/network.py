"""A detector of mmdetection3d as a role of the kernel.

B: clouds. P: voxels of all clouds.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.errors import BadData, BadSetting
from stillhouse.objectives.objective import Tensors
from stillhouse_pointcloud.detectors.found import Bounds, Found, Held, Picking
from stillhouse_pointcloud.mmdet.clouds import (
    COUNTS,
    NONE,
    OFFSETS,
    POINTS,
    Points,
    bounds_of,
    clouds,
    our_labels,
    truth,
    voxel_columns,
    voxel_inputs,
)
from stillhouse_pointcloud.mmdet.library import imported, quiet
from stillhouse_pointcloud.mmdet.operators import named_operators

# a configuration's types: names of mmdetection3d's registries, never a path to import
SCOPES = ("mmcv", "mmdet", "mmdet3d", "mmengine")
ANCHOR_MAPS = ("cls", "box", "dir")


class Detector(nn.Module):
    """A batch of clouds (points [total, >= 4], points_offsets [B + 1], and where it has been
    `voxelised` their voxels) -> tensors by name:

    the head's maps: of an Anchor3DHead cls, box and dir, of another head.0, head.1, ...;
    what `layers` names, each the output of the module at its path ([P, C] of voxels, [B, C, H, W],
    [B, C, N] of points); of voxels voxel_counts int64 [P], the points in each, and voxel_offsets
    [B + 1];
    in training, where the batch has boxes, mmdetection3d's losses by their own names and `loss`,
    the sum of those whose name has "loss" in it, as mmdetection3d adds them up.

    A detector of two stages (PointRCNN) has no maps: not in training it gives found_boxes,
    found_scores, found_labels and found_offsets. Predictions are `detections` of the outputs.
    `net` is the stock detector; its state has the names of published checkpoints behind "net.".
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        name: str,
        classes: Sequence[str],
        points: Points,
        layers: Mapping[str, str],
    ) -> None:
        super().__init__()
        self.net, self.name = net, name
        self.classes, self.points, self.layers = tuple(classes), points, dict(layers)
        self._shape: Any = None  # Any: see `_flat`
        _check_layers(net, layers, name)

    @property
    def _any(self) -> Any:  # Any: mmdetection3d has no types
        return self.net

    @property
    def two_stages(self) -> bool:
        return hasattr(self.net, "roi_head")

    @property
    def head(self) -> Any:  # Any: mmdetection3d's head
        return (
            self._any.pts_bbox_head if hasattr(self.net, "pts_bbox_head") else self._any.bbox_head
        )

    @property
    def voxel_layer(self) -> Any:  # Any: mmdetection3d's; None where it takes points
        preprocessor = self._any.data_preprocessor
        return preprocessor.voxel_layer if preprocessor.voxel else None

    @property
    def grid(self) -> tuple[Any, ...]:  # Any: numbers
        """What its voxels are: range, size, points a voxel; () where it takes points."""
        layer = self.voxel_layer
        if layer is None:
            return ()
        return tuple(layer.point_cloud_range), tuple(layer.voxel_size), layer.max_num_points

    @property
    def area(self) -> Bounds | None:
        """From where to where it looks; None where its configuration does not say."""
        bounds = self.grid[0] if self.grid else self.points.range
        return bounds_of(bounds)

    def held(self, batch: Tensors) -> Held:
        """The batch with its voxels, and the points in them; BadData where it takes points."""
        seen = self.voxelised(batch)
        if POINTS not in seen:
            raise BadData(f"{self.name}: it has no voxels to draw")
        points, counts = seen[POINTS], seen[COUNTS]
        real = torch.arange(points.shape[1], device=points.device)[None] < counts[:, None]
        return Held(batch=seen, points=points[real], counts=counts, offsets=seen[OFFSETS])

    def voxelised(self, batch: Tensors) -> Tensors:
        """The batch with the voxels that this detector takes (see `clouds.voxel_columns`), of which
        it has a limit in training and another one outside. Detectors of the same `grid` read them
        from there, so that teacher and student see the same.
        """
        if POINTS in batch or self.voxel_layer is None:
            return batch
        given = clouds(batch, self.points)
        with named_operators(self.name), torch.no_grad():
            return {**batch, **voxel_columns(self.voxel_layer, given)}

    def forward(self, batch: Tensors) -> dict[str, Tensor]:
        batch = self.voxelised(batch)
        outputs: dict[str, Tensor] = {}
        with named_operators(self.name), quiet(), self._watched(outputs):
            outputs |= self._two(batch) if self.two_stages else self._one(batch)
        if POINTS in batch:
            outputs |= {COUNTS: batch[COUNTS], OFFSETS: batch[OFFSETS]}
        return outputs

    def _inputs(self, batch: Tensors) -> dict[str, Any]:  # Any: mmdetection3d's
        if self.voxel_layer is None:
            return {"points": clouds(batch, self.points)}
        return {"voxels": voxel_inputs(batch), "points": None, "imgs": None}

    def _samples(self, batch: Tensors) -> list[Any]:  # Any: mmdetection3d's
        numbers = 9 if self._codes() == 9 else 7
        return truth(batch, self.classes, numbers=numbers, bounds=self.points.range)

    def _codes(self) -> int:
        if self.two_stages:
            return 7
        return int(getattr(self.head.bbox_coder, "code_size", 7))

    def _one(self, batch: Tensors) -> dict[str, Tensor]:
        samples = self._samples(batch)
        inputs = self._inputs(batch)
        if hasattr(self.net, "pts_bbox_head"):
            _, features = self._any.extract_feat(inputs, [one.metainfo for one in samples])
        else:
            features = self._any.extract_feat(inputs)
        outs = self.head(features)
        outputs = self._maps(outs)
        if self.training and "boxes" in batch:
            outputs |= _losses(self._head_losses(outs, samples))
        return outputs

    def maps(self, canvas: Tensor) -> dict[str, Tensor]:
        """From the voxels' canvas on: the head's maps."""
        pts = "pts_" if hasattr(self.net, "pts_bbox_head") else ""
        features = getattr(self.net, f"{pts}backbone")(canvas)
        neck = getattr(self.net, f"{pts}neck", None)
        return self._maps(self.head(features if neck is None else neck(features)))

    def _head_losses(self, outs: Any, samples: Sequence[Any]) -> Any:  # Any: mmdetection3d's
        boxes = [one.gt_instances_3d for one in samples]
        if not hasattr(self.head, "prior_generator"):
            return self.head.loss_by_feat(outs, boxes)
        metas = [one.metainfo for one in samples]
        return self.head.loss_by_feat(*outs, boxes, metas, [None for _ in samples])

    def _maps(self, outs: Any) -> dict[str, Tensor]:  # Any: nested lists and mappings of tensors
        leaves: list[Tensor] = []
        self._shape = _flat(outs, leaves)
        anchored = len(leaves) == len(ANCHOR_MAPS) and hasattr(self.head, "prior_generator")
        names = ANCHOR_MAPS if anchored else [f"head.{i}" for i in range(len(leaves))]
        return dict(zip(names, leaves, strict=True))

    def _two(self, batch: Tensors) -> dict[str, Tensor]:
        samples, inputs = self._samples(batch), self._inputs(batch)
        if self.training and "boxes" in batch:
            return _losses(self._any.loss(inputs, samples))
        found = [self._ours(one.pred_instances_3d) for one in self._any.predict(inputs, samples)]
        lengths = torch.tensor([0, *(len(scores) for _, scores, _ in found)])
        return {
            "found_boxes": torch.cat([boxes for boxes, _, _ in found]),
            "found_scores": torch.cat([scores for _, scores, _ in found]),
            "found_labels": torch.cat([labels for _, _, labels in found]),
            "found_offsets": lengths.cumsum(0),
        }

    @torch.no_grad()
    def detections(
        self, outputs: Tensors, settings: Mapping[str, float] | None = None
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Boxes [M, 7] as in `boxes`, scores [M] and labels [M] of each cloud, the most confident
        first, by what `forward` gave; on the CPU.

        Labels are ours, -1 for a class that we have not. `settings` replace some of mmdetection3d's
        test_cfg (of an Anchor3DHead: score_thr, nms_thr, nms_pre, max_num).
        """
        if self.two_stages:
            bounds = outputs["found_offsets"].tolist()
            names = ("found_boxes", "found_scores", "found_labels")
            parts = [
                tuple(outputs[name][start:stop] for name in names)
                for start, stop in pairwise(bounds)
            ]
            return [_sorted(*part) for part in parts]
        with named_operators(self.name), quiet():
            found = self._decoded(outputs, dict(settings or {}))
        return [_sorted(*self._ours(one)) for one in found]

    def _decoded(self, outputs: Tensors, settings: Mapping[str, float]) -> Any:  # Any: mmdet3d's
        head, outs = self.head, self._rebuilt(outputs)
        leaves: list[Tensor] = []
        _flat(outs, leaves)
        samples = truth(
            {"points_offsets": torch.zeros(len(leaves[0]) + 1, dtype=torch.long)},
            self.classes,
            numbers=7,
            bounds=None,
        )
        metas = [one.metainfo for one in samples]
        if not hasattr(head, "prior_generator"):
            return head.predict_by_feat(outs, metas)
        config = imported("mmengine.config").ConfigDict({**head.test_cfg, **settings})
        return head.predict_by_feat(*outs, batch_input_metas=metas, cfg=config)

    def _rebuilt(self, outputs: Tensors) -> Any:  # Any: nested lists and mappings of tensors
        """The head's maps as it gave them."""
        if ANCHOR_MAPS[0] in outputs:
            return tuple([outputs[name]] for name in ANCHOR_MAPS)
        if self._shape is None:
            raise BadSetting(f"{self.name}: detections need the outputs of its own forward")
        return _unflat(self._shape, outputs)

    def _ours(self, found: Any) -> tuple[Tensor, Tensor, Tensor]:  # Any: mmdetection3d's
        boxes = found.bboxes_3d
        centres = torch.cat([boxes.gravity_center, boxes.tensor[:, 3:7]], dim=1)
        labels = torch.tensor([*our_labels(self.classes), NONE], device=centres.device)
        return centres, found.scores_3d, labels[found.labels_3d.long()]

    @torch.no_grad()
    def boxes(self, outputs: Tensors, picking: Picking) -> list[Found]:
        """`detections` as the metrics and figures read them."""
        settings = {
            "score_thr": picking.score,
            "nms_thr": picking.overlap,
            "nms_pre": picking.before,
            "max_num": picking.most,
        }
        made: list[Found] = []
        for boxes, scores, labels in self.detections(outputs, settings):
            kept = (scores >= picking.score) & (labels != NONE)
            rows = kept.nonzero()[: picking.most, 0]
            made.append(Found(boxes=boxes[rows], scores=scores[rows], labels=labels[rows]))
        return made

    @contextmanager
    def _watched(self, outputs: dict[str, Tensor]) -> Generator[None]:
        """Puts what the modules of `layers` give into `outputs`."""

        def watch(name: str, path: str) -> Any:  # Any: torch's handle of a hook
            def keep(module: nn.Module, given: Any, output: Any) -> None:  # noqa: ARG001
                outputs[name] = _tensor(output, f"{self.name}: layer '{name}' ({path})")

            return self.net.get_submodule(path).register_forward_hook(keep)

        handles = [watch(name, path) for name, path in self.layers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _sorted(boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    order = scores.sort(descending=True, stable=True).indices
    return boxes[order].cpu(), scores[order].cpu(), labels[order].cpu()


def _losses(given: Mapping[str, Any]) -> dict[str, Tensor]:  # Any: tensors and lists of them
    tensors: dict[str, Tensor] = {}
    for name, value in given.items():
        leaves: list[Tensor] = []
        _flat(value, leaves)
        tensors[name] = torch.stack([leaf.sum() for leaf in leaves]).sum()
    total = torch.stack([value for name, value in tensors.items() if "loss" in name]).sum()
    return {**tensors, "loss": total}


def _flat(given: Any, leaves: list[Tensor]) -> Any:  # Any: nested lists and mappings of tensors
    """Puts the tensors into `leaves`; the same nest with their numbers in their places."""
    if isinstance(given, Mapping):
        return {key: _flat(value, leaves) for key, value in given.items()}
    if isinstance(given, (list, tuple)):
        return [_flat(value, leaves) for value in given]
    leaves.append(given)
    return len(leaves) - 1


def _unflat(shape: Any, outputs: Tensors) -> Any:  # Any: what `_flat` gave
    if isinstance(shape, int):
        return outputs[f"head.{shape}"]
    if isinstance(shape, dict):
        return {key: _unflat(value, outputs) for key, value in shape.items()}
    return [_unflat(value, outputs) for value in shape]


def _tensor(output: Any, where: str) -> Tensor:  # Any: what a module gives
    while isinstance(output, (list, tuple)) and len(output) == 1:
        output = output[0]
    if not isinstance(output, Tensor):
        raise BadSetting(f"{where} gives a {type(output).__name__}; name a module within it")
    return output


def _check_layers(net: nn.Module, layers: Mapping[str, str], name: str) -> None:
    known = {path for path, _ in net.named_modules() if path}
    for output, path in layers.items():
        if path not in known:
            top = sorted({one for one in known if one.count(".") <= path.count(".")})
            near = ", ".join([one for one in top if one.startswith(path.split(".")[0])] or top)
            raise BadSetting(f"{name}: layer '{output}': it has no module '{path}'; it has {near}")


def detector(
    *,
    name: str,
    config: Mapping[str, Any],  # Any: JSON values, as `configs.plain` gives them
    classes: Sequence[str],
    points: Mapping[str, Any],
    layers: Mapping[str, str],
    momentum: float | None = None,
) -> nn.Module:
    """A stock detector of mmdetection3d with weights as it draws them; `configs.model` makes the
    arguments. `momentum` is every BatchNorm's, where it is not to be the configuration's.
    """
    given = restored(config)
    _check_types(given, name)
    models = imported("mmdet3d.registry").MODELS
    scope = imported("mmengine.registry").DefaultScope
    # its parts look each other up in mmengine's registry unless the scope says otherwise
    with quiet(), scope.overwrite_default_scope("mmdet3d"):
        try:
            net = models.build(imported("mmengine.config").ConfigDict(given))
        except (KeyError, TypeError, ValueError, AssertionError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise BadSetting(f"{name}: mmdetection3d cannot build it ({reason})") from error
        net.init_weights()
    if momentum is not None:
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):  # pyright: ignore[reportPrivateUsage]
                module.momentum = momentum
    return Detector(net, name=name, classes=classes, points=Points.of(points), layers=layers)


def restored(value: Any) -> Any:  # Any: JSON values
    """What `configs.plain` was given."""
    if isinstance(value, Mapping):
        if set(value) == {"tuple"}:
            return tuple(restored(one) for one in value["tuple"])
        return {key: restored(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [restored(one) for one in value]
    return value


def _check_types(value: Any, name: str) -> None:  # Any: a configuration
    """A stored spec must not name code to import, or weights to fetch."""
    if isinstance(value, Mapping):
        kind = value.get("type", "")
        scope, _, short = str(kind).rpartition(".")
        if not isinstance(kind, str) or (scope and scope not in SCOPES):
            raise BadSetting(
                f"{name}: type '{kind}' is no name of mmdetection3d's; custom layers are not read"
            )
        if short == "Pretrained":
            raise BadSetting(
                f"{name}: it starts from '{value.get('checkpoint')}'; take that out of the "
                "configuration and give the weights as a checkpoint"
            )
        for one in value.values():
            _check_types(one, name)
    elif isinstance(value, (list, tuple)):
        for one in value:
            _check_types(one, name)
