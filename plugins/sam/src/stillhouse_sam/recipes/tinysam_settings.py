"""What can be set in sam/tinysam, and its presets for the three scales."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field, field_validator, model_validator

from stillhouse.recipe import Scale
from stillhouse.settings import Input, Settings
from stillhouse.training import Precision
from stillhouse_sam.everything import EverythingSettings
from stillhouse_sam.models import Shape

Student = Literal["alone", "embedding", "stages", "prompts", "weighting"]
STUDENTS: tuple[Student, ...] = get_args(Student)
BASELINE: Student = "embedding"
# everything mode's photos for the data of a preset: their masks cover whole photos
PHOTOS: Mapping[str, str] = {
    "data:coco-mini": "data:coco-panoptic-val100",
    "file:sa-1b": "data:coco-panoptic-val100",
}


class TinySamSettings(Settings):
    """Settings of `sam/tinysam`; steps are optimizer steps.

    `teacher` is a checkpoint as segment_anything publishes them, of the architecture
    `teacher_model`, or an exported SAM.
    """

    students: tuple[Student, ...] = Field(
        STUDENTS,
        description="one each: trained alone, by embeddings, + tokens and output, + hard prompts, "
        "+ hard mask weighting; embedding is the baseline",
    )
    student: str = Field("tiny_vit_5m_224", description="the students' image encoder")
    teacher_model: str = Field("vit_h", description="the teacher's image encoder")
    check_teacher: bool = Field(
        True, description="refuse a given teacher that is no better than filled boxes on these data"
    )
    photos: Input = Field(
        "",
        description="for everything mode: data:, file: or builtin:; empty: those of data that are "
        "tested on, for the data of a preset COCO's panoptic photos",
    )
    everything: int = Field(10, ge=1, description="photos of everything mode")
    size: int = Field(1024, ge=16, description="side of the frame in pixels")
    grid: int = Field(64, ge=2, description="side of the embedding")
    channels: int = Field(256, ge=8, description="of the embedding")
    heads: int = Field(8, ge=1, description="of the mask decoder")
    mlp: int = Field(2048, ge=1, description="hidden width of the mask decoder")
    masks: int = Field(8, ge=1, description="kept of an image: its largest")
    void: tuple[int, ...] = Field(
        (), description="values of mask files that are no object, beside 0 and VOC's 255"
    )
    scenes: int = Field(0, ge=0, description="rendered scenes added to the training photos")
    validation: float = Field(0.1, gt=0, lt=1, description="part of the training photos kept apart")
    held_out: float = Field(
        0.2, gt=0, lt=1, description="part kept for testing where the data have none"
    )
    scored_on: Literal["test", "validation"] = Field(
        "test", description="validation: the photos to choose settings on"
    )
    steps: int = Field(1000, ge=1, description="of each student")
    teacher_steps: int = Field(1000, ge=1, description="of the teacher")
    box_steps: int = Field(
        0, ge=0, description="of the teacher's decoder alone before, which learns to fill boxes"
    )
    batch: int = Field(8, ge=1, description="images of an optimizer step")
    lr: float = Field(1e-3, gt=0, description="of the students' encoder")
    decoder_lr: float = Field(1e-4, gt=0, description="of the students' decoder")
    teacher_lr: float = Field(1e-3, gt=0, description="of the teacher")
    box_lr: float = Field(4e-3, gt=0, description="of the decoder that fills boxes")
    weight_decay: float = Field(0.01, ge=0, description="decoupled from the loss (AdamW)")
    clip_norm: float = Field(1.0, gt=0, description="most 2-norm of a step's gradient")
    warmup: float = Field(0.05, ge=0, lt=1, description="fraction in which lr rises")
    train_decoder: bool = Field(
        True, description="the decoder, which begins as the teacher's, learns too"
    )
    prompts_per_image: int = Field(4, ge=1, description="masks prompted for in an image in a step")
    box_share: float = Field(0.5, ge=0, lt=1, description="of the prompts that are boxes")
    hard_rounds: int = Field(9, ge=1, description="most rounds of hard prompt sampling")
    more_clicks: int = Field(
        0, ge=0, description="most points given together with a prompt, where its mask errs"
    )
    alpha: float = Field(1.0, ge=0, description="weight of the embedding term")
    beta: float = Field(1.0, ge=0, description="weight of the token term")
    gamma: float = Field(1.0, ge=0, description="weight of the output term")
    focal: float = Field(20.0, ge=0, description="weight of the focal loss; that of dice is 1")
    eps: float = Field(1e-3, gt=0, description="of hard mask weighting")
    bits: tuple[int, ...] = Field((8, 6, 4), description="of the quantized students, a row each")
    compared: bool = Field(True, description="compare the ways to search the scales, first seed")
    calibration: int = Field(8, ge=1, description="training photos that set the scales")
    candidates: int = Field(100, ge=2, description="scales tried of each tensor")
    rounds: int = Field(3, ge=1, description="of the scale search")
    int8: bool = Field(True, description="score and time the int8 ONNX file")
    clicks: tuple[int, ...] = Field((1, 3, 5, 9), description="at which point mIoU is read")
    points_per_side: int = Field(32, ge=1, description="of everything mode's grid")
    pred_iou_thresh: float = Field(0.88, description="everything mode: least predicted IoU")
    stability_score_thresh: float = Field(0.95, description="everything mode: least stability")
    stability_score_offset: float = Field(
        1.0, gt=0, description="everything mode: logits that a mask's edge is moved by"
    )
    high_confidence: float | None = Field(
        None, description="a logit; none: calibrated on training photos"
    )
    lost: float = Field(
        0.01, ge=0, description="of mIoU that high_confidence may cost on training photos"
    )
    confident_photos: int = Field(10, ge=1, description="training photos that calibrate it")
    precision: Precision = Field("fp32", description="of the arithmetic in training")

    presets: ClassVar[Mapping[Scale, Mapping[str, Any]]] = {
        "tiny": {
            "data": "builtin:stillhouse_sam.samples:scenes",
            "everything": 3,
            "student": "cnn4",
            "teacher_model": "sam-64x2",
            "size": 64,
            "grid": 8,
            "channels": 32,
            "heads": 2,
            "mlp": 64,
            "masks": 4,
            "steps": 40,
            "teacher_steps": 200,
            "box_steps": 20,
            "teacher_lr": 5e-3,
            "focal": 1.0,
            "hard_rounds": 3,
            "more_clicks": 2,
            "lr": 4e-3,
            "decoder_lr": 1e-3,
            "candidates": 10,
            "rounds": 1,
            "bits": (8, 4),
            "clicks": (1, 3),
            "points_per_side": 8,
            "pred_iou_thresh": 0.0,
            "stability_score_thresh": 0.0,
            "confident_photos": 5,
        },
        "small": {
            "data": "data:coco-mini",
            "student": "cnn24",
            "teacher_model": "sam-128x4",
            "size": 128,
            "grid": 16,
            "channels": 64,
            "heads": 4,
            "mlp": 256,
            "scenes": 3000,
            "steps": 400,
            "teacher_steps": 2500,
            "box_steps": 5000,
            "box_lr": 2e-3,
            "more_clicks": 8,
            "lr": 2e-3,
            "decoder_lr": 5e-4,
            "points_per_side": 32,
            "pred_iou_thresh": 0.2,
            "stability_score_thresh": 0.6,
            "stability_score_offset": 0.1,
            "seeds": 3,
        },
        "paper": {
            "data": "file:sa-1b",
            "everything": 100,
            "masks": 64,
            "prompts_per_image": 64,
            # 8 epochs of 1 % of SA-1B's 11 million photos
            "steps": 8 * 110_000 // 8,
            "warmup": 0.01,
            "high_confidence": 8.5,
            "seeds": 3,
        },
    }

    @field_validator("students")
    @classmethod
    def _once(cls, names: tuple[Student, ...]) -> tuple[Student, ...]:
        if BASELINE not in names or len(set(names)) < len(names):
            raise ValueError(f"name each student once, and {BASELINE} among them")
        return names

    @field_validator("bits")
    @classmethod
    def _known(cls, bits: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(bits)) < len(bits) or not all(2 <= count <= 8 for count in bits):
            raise ValueError("name each number of bits once, from 2 to 8")
        return bits

    @field_validator("high_confidence")
    @classmethod
    def _logit(cls, value: float | None) -> float | None:
        if value is not None and not value > -math.inf:
            raise ValueError("give a logit, or inf to skip nothing")
        return value

    @field_validator("clicks")
    @classmethod
    def _counted(cls, clicks: tuple[int, ...]) -> tuple[int, ...]:
        if not clicks or min(clicks) < 1 or len(set(clicks)) < len(clicks):
            raise ValueError("give one or more numbers of clicks, each once and >= 1")
        return clicks

    @model_validator(mode="after")
    def _whole(self) -> "TinySamSettings":
        if self.int8 and 8 not in self.bits:
            raise ValueError("int8 needs the scales of 8 bits; add 8 to bits, or set int8=false")
        return self

    def everything_photos(self) -> str:
        """Where the photos of everything mode come from."""
        return self.photos or PHOTOS.get(self.data, self.data)

    def shape(self) -> Shape:
        """What the parts of teacher and students have in common."""
        return Shape(
            size=self.size,
            grid=self.grid,
            channels=self.channels,
            heads=self.heads,
            mlp=self.mlp,
        )

    def everything_mode(self) -> EverythingSettings:
        """Everything mode's settings; `high_confidence` is calibrated unless it is given."""
        settings = EverythingSettings(
            points_per_side=self.points_per_side,
            pred_iou_thresh=self.pred_iou_thresh,
            stability_score_thresh=self.stability_score_thresh,
            stability_score_offset=self.stability_score_offset,
        )
        if self.high_confidence is None:
            return settings
        return settings.with_confidence(self.high_confidence)
