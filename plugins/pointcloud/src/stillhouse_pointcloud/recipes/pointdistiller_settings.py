"""What can be set in pointcloud/pointdistiller, and its presets for the three scales."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field, field_validator, model_validator

from stillhouse.errors import BadSetting
from stillhouse.objectives.objective import Weighted
from stillhouse.objectives.supervised import role_loss
from stillhouse.objectives.term import Term
from stillhouse.recipe import Scale
from stillhouse.settings import Settings
from stillhouse.stages.make import Maker
from stillhouse.training import Augment, Precision
from stillhouse_pointcloud.augment import SceneAugment
from stillhouse_pointcloud.detectors import PillarGrid
from stillhouse_pointcloud.detectors.found import Limits
from stillhouse_pointcloud.distilled import PILLARS, POINTS
from stillhouse_pointcloud.metrics import OVERLAPS
from stillhouse_pointcloud.mmdet.transforms import LibraryAugment
from stillhouse_pointcloud.pasted import ObjectSampling, WithGroundTruthSamples

Student = Literal["alone", "alone16", "fitnets", "at", "local", "reweight", "both"]
STUDENTS: tuple[Student, ...] = get_args(Student)
BASELINE: Student = "alone"
GRAPHS: tuple[Student, ...] = ("local", "reweight", "both")
OWN = "default"
Layer = Literal[
    "default", "voxels", "bev", "backbone.0", "backbone.1", "backbone.2", "neck", "points"
]
Map = Literal["default", "bev", "backbone.0", "backbone.1", "backbone.2", "neck"]
FACTOR = 2.0  # of the released code's loss
CARRIED = 2  # times the objects of a class that a view may paste, a frame carries


class PointDistillerSettings(Settings):
    """Settings of `pointcloud/pointdistiller`; steps are optimizer steps, lengths metres."""

    students: tuple[Student, ...] = Field(
        STUDENTS, description="what each learns from; alone is the baseline"
    )
    teacher_model: str = Field(
        "pillars-64", description="the teacher's detector; pointpillars-kitti: mmdetection3d's"
    )
    check_teacher: bool = Field(
        True, description="try a given teacher on training frames; false: go on if it finds nothing"
    )
    student: str = Field("pillars-32", description="the students' detector, 4 times smaller")
    student16: str = Field("pillars-16", description="that of alone16, 16 times smaller")
    layers: tuple[int, int, int] = Field(
        (3, 5, 5), description="of the backbone's blocks; this and x to max_pillars: of pillars-*"
    )
    momentum: float = Field(0.01, gt=0, lt=1, description="of every BatchNorm of the detectors")
    x: tuple[float, float] = Field((0.0, 69.12), description="where detectors look, to the front")
    y: tuple[float, float] = Field((-39.68, 39.68), description="and to the left")
    cell: float = Field(0.16, gt=0, description="side of a pillar")
    max_points: int = Field(32, ge=1, description="a pillar holds")
    max_pillars: int = Field(40_000, ge=1, description="a cloud has")
    steps: int = Field(1000, ge=1, description="of each student")
    teacher_steps: int = Field(1000, ge=1, description="of the teacher")
    batch: int = Field(4, ge=1, description="scenes of an optimizer step")
    lr: float = Field(3e-3, gt=0, description="highest learning rate of the students")
    teacher_lr: float = Field(3e-3, gt=0, description="highest learning rate of the teacher")
    weight_decay: float = Field(0.01, ge=0, description="decoupled from the loss (AdamW)")
    warmup: float = Field(0.1, ge=0, lt=1, description="fraction in which lr rises")
    clip: float = Field(35.0, gt=0, description="2-norm of a step's gradient")
    views: int = Field(8, ge=1, description="of a scene; all but one are augmented")
    flip: float = Field(0.5, ge=0, le=1, description="how often a scene is mirrored")
    rotation: float = Field(45.0, ge=0, le=180, description="degrees either way")
    zoom: float = Field(0.05, ge=0, lt=1, description="of the scenes' size, either way")
    augmentation: Literal["plain", "mmdet3d"] = Field(
        "plain", description="mmdet3d: by its own transforms (extra pointcloud-mmdet3d)"
    )
    gt_sampling: int = Field(
        0, ge=0, description="fill scenes up to so many of each class with other frames' objects"
    )
    layer: Layer = Field(
        OWN, description="the output whose local graphs are distilled; default: voxels of pillars"
    )
    num: int = Field(6000, ge=1, description="graphs of a cloud at most")
    k: int = Field(128, ge=1, description="items of a graph")
    out_dim: int = Field(32, ge=1, description="channels of the loss's encoders")
    tau: float = Field(0.5, gt=0, description="temperature of the reweighting")
    normalise: bool = Field(True, description="divide points in pillars by the most in a cloud")
    edge: Literal["concat", "subtract"] = Field(
        "concat", description="how an edge of a graph combines its two items"
    )
    graph_batch: Literal["per_sample", "concat"] = Field(
        "per_sample", description="graphs within each cloud, or across those of a batch"
    )
    teacher_encoder: Literal["trained", "frozen"] = Field(
        "trained", description="of the graph loss; frozen: as it was drawn, so targets do not move"
    )
    compat: Literal["paper", "official"] = Field(
        "paper", description="official: the loss as the released code computes it"
    )
    kd_weight: float = Field(1.0, ge=0, description="of the graph loss")
    hint: Map = Field(OWN, description="the map that FitNets and AT compare; default: bev")
    hint_weight: float = Field(3.0, ge=0, description="of FitNets' loss")
    at_weight: float = Field(1.5e6, ge=0, description="of AT's loss")
    scenes: int = Field(0, ge=0, description="rendered training scenes; 0: the data alone")
    held_out: int = Field(100, ge=1, description="rendered scenes that score, where there are some")
    copies: int = Field(1, ge=1, description="of each real training frame beside rendered scenes")
    beams: int = Field(64, ge=2, description="of the rendered scenes' LiDAR")
    overlaps: tuple[float, float, float] = Field(
        OVERLAPS, description="a right box shares with the truth: car, pedestrian, cyclist"
    )
    validation: float = Field(0.1, gt=0, lt=1, description="part of the training frames kept apart")
    scored_on: Literal["test", "validation"] = Field(
        "test", description="validation: the frames to choose settings on"
    )
    precision: Precision = Field("fp32", description="of the arithmetic in training")

    presets: ClassVar[Mapping[Scale, Mapping[str, Any]]] = {
        "tiny": {
            "data": "builtin:stillhouse_pointcloud.samples:scenes",
            "teacher_model": "pillars-16",
            "student": "pillars-8",
            "student16": "pillars-4",
            "layers": (1, 1, 1),
            "momentum": 0.1,
            "x": (0.0, 35.2),
            "y": (-17.6, 17.6),
            "cell": 0.55,
            "max_pillars": 4096,
            "steps": 80,
            "teacher_steps": 240,
            "lr": 0.02,
            "teacher_lr": 0.01,
            "num": 128,
            "k": 16,
            "out_dim": 8,
            "at_weight": 1.5e4,
            "overlaps": (0.3, 0.1, 0.1),
        },
        "small": {
            "data": "data:kitti-mini",
            "teacher_model": "pillars-32",
            "student": "pillars-16",
            "student16": "pillars-8",
            "momentum": 0.1,
            "x": (0.0, 35.2),
            "y": (-17.6, 17.6),
            "cell": 0.275,
            "max_pillars": 16_000,
            "teacher_steps": 1500,
            "num": 512,
            "k": 32,
            "at_weight": 1e5,
            "scenes": 600,
            "held_out": 150,
            "copies": 5,
            "beams": 48,
            "seeds": 3,
        },
        "paper": {
            "data": "file:kitti",
            # 160 epochs of the 3712 training frames in batches of 48
            "steps": 160 * (3712 // 48),
            "teacher_steps": 160 * (3712 // 48),
            "batch": 48,
            # ten times 1e-3, which the authors' cyclic schedule reaches after 40 %
            "lr": 0.01,
            "teacher_lr": 0.01,
            "warmup": 0.4,
            "views": 160,
            "gt_sampling": 15,
            "tau": 0.01,
            "normalise": False,
            "graph_batch": "concat",
            "compat": "official",
            "validation": 0.01,
            "seeds": 3,
        },
    }

    @field_validator("students")
    @classmethod
    def _once(cls, names: tuple[Student, ...]) -> tuple[Student, ...]:
        if BASELINE not in names or len(set(names)) < len(names):
            raise ValueError(f"name each student once, and {BASELINE} among them")
        return names

    @model_validator(mode="after")
    def _whole(self) -> "PointDistillerSettings":
        self.grid()
        if self.normalise and self.layer not in (OWN, PILLARS):
            raise BadSetting(
                f"layer '{self.layer}' is a map, whose importance is no count; set normalise=false"
            )
        return self

    def grid(self) -> PillarGrid:
        return PillarGrid(
            x=self.x,
            y=self.y,
            cell=self.cell,
            max_points=self.max_points,
            max_pillars=self.max_pillars,
        )

    def augment(self, limits: Limits | None) -> Augment:
        """Of detectors that look within `limits`; None: everywhere."""
        changes: dict[str, Any] = {
            "flip": self.flip,
            "rotation": math.radians(self.rotation),
            "scale": self.zoom,
        }
        if self.augmentation == "mmdet3d":
            return LibraryAugment(objects=self.gt_sampling, range=limits, **changes)
        moves = SceneAugment(**changes)
        return ObjectSampling(objects=self.gt_sampling, then=moves) if self.gt_sampling else moves

    def with_samples(self, make: Maker) -> Maker:
        """The maker, with objects to paste where there is pasting."""
        samples = CARRIED * self.gt_sampling
        return WithGroundTruthSamples(make=make, samples=samples) if samples else make

    def graphs(
        self, student: Student, output: str, channels: tuple[int, int]
    ) -> dict[str, Any]:  # Any: JSON values
        """The arguments of `LocalGraphDistillation` for a student of `GRAPHS` and an output, of
        which `channels` are the teacher's and the student's.
        """
        pool = {"pool": "max"} if output == POINTS else {}  # as the paper does with points alone
        return pool | {
            "teacher_dim": channels[0],
            "student_dim": channels[1],
            "out_dim": self.out_dim,
            "k": self.k,
            "num": self.num,
            "tau": self.tau,
            "edge": self.edge,
            "importance": "count" if output == PILLARS else "max",
            "batch": self.graph_batch,
            "compat": self.compat,
            "local": student != "reweight",
            "reweight": student != "local",
            "normalise": self.normalise and output == PILLARS,
            "frozen": self.teacher_encoder == "frozen",
        }

    def graph_loss(self, student: Student, output: str, role: str) -> Weighted:
        """With compat=paper the sum over D channels and K items is brought to twice their mean, the
        size of the released code's, so that the weight does not hang on D and K.
        """
        # of points an edge's items are one, their maximum
        items = self.k if student != "reweight" and output != POINTS else 1
        scaled = FACTOR / (self.out_dim * items) if self.compat == "paper" else 1.0
        return Weighted(term=Term(role_loss, f"{role}.loss"), weight=self.kd_weight * scaled)


def width(detector: str) -> int:
    """That of "pillars-<width>"; 0 for another name, which `detectors.model` refuses."""
    number = detector.rpartition("-")[2]
    return int(number) if number.isdecimal() else 0
