"""Images and their texts in several languages: drawn scenes, and folders of parquet files.

A label stands for what an image shows: of scenes a class, of photos the photo itself. Every text
has the label of what it describes, and a language.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stillhouse.data.data import Columns
from stillhouse.data.parquet import open_parquet, parquet_rows
from stillhouse.errors import BadData, BadSetting
from stillhouse.objectives.inputs import named
from stillhouse.work import Work
from stillhouse_clip.images import pixels
from stillhouse_clip.scenes import COLOURS, SHAPES, TEXTURES, classes, scenes

PORTS = ("images", "texts", "test_images", "test_texts")
PARTS = (("train", ""), ("test", "test_"))
# of the drawn scenes, by word of scenes.py; French and Russian are there to be trimmed away
KEYS = (*SHAPES, *COLOURS, *TEXTURES)
# the words of scenes.py, in its order
WORDS: Mapping[str, tuple[str, ...]] = {
    "zh": (
        *("圆盘", "方块", "三角形", "十字", "圆环"),
        *("红色", "绿色", "蓝色", "黄色", "紫色", "白色"),
        *("纯色", "条纹", "圆点", "格子"),
    ),
    "fr": (
        *("disque", "carré", "triangle", "croix", "anneau"),
        *("rouge", "vert", "bleu", "jaune", "violet", "blanc"),
        *("uni", "rayé", "pointillé", "à carreaux"),
    ),
    "ru": (
        *("диск", "квадрат", "треугольник", "крест", "кольцо"),
        *("красный", "зелёный", "синий", "жёлтый", "фиолетовый", "белый"),
        *("гладкий", "полосатый", "пятнистый", "клетчатый"),
    ),
}
SENTENCES = {
    "zh": "灰色背景上的{colour}{texture}{shape}",
    "fr": "un {shape} {texture} {colour} sur fond gris",
    "ru": "{colour} {texture} {shape} на сером фоне",
}


def bilingual_scenes() -> Mapping[str, NDArray[Any]]:
    """The drawn scenes of `scenes.scenes` with a sentence a class in English, Chinese, French and
    Russian: "text_<language>" [120] beside images and labels.
    """
    found = {k: v for k, v in scenes().items() if k.endswith(("_images", "_labels"))}
    return found | {f"text_{each}": np.array(sentences(each)) for each in ("en", *WORDS)}


def sentences(language: str) -> list[str]:
    """A sentence on each class of scenes; raises UnknownName for a language that has none."""
    if language == "en":
        return [scene.description for scene in classes()]
    words = dict(zip(KEYS, named(WORDS, language, what="language", where="scenes"), strict=True))
    return [
        SENTENCES[language].format(
            colour=words[scene.colour], texture=words[scene.texture], shape=words[scene.shape]
        )
        for scene in classes()
    ]


@dataclass(frozen=True, kw_only=True)
class ReadPairs:
    """A `make`: the ports "source" and, where it is wired, "more" to images and texts of training
    and of the test.

    images, test_images: uint8 [N, 3, size, size], labels, source (0 or 1). texts, test_texts: text,
    labels, language (its place in `languages`), source. Labels begin at 0 in each of both parts.

    A source is arrays as `bilingual_scenes` gives them, or a folder with train.parquet and
    test.parquet: image, and for each language a list captions_<language> or a text
    name_<language>. A source may lack languages, but not all; BadData names a language that none
    has, a file and what of it cannot be read.
    """

    size: int
    languages: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.languages or len(set(self.languages)) < len(self.languages):
            raise BadSetting(f"languages: name each once, at least one (got {self.languages})")

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        # Any: arrays by name, or a Path
        found: dict[str, Columns] = {}
        missing = set(self.languages)
        for split, ahead in PARTS:
            images, texts, label = _Images(), _Texts(), 0
            for number, port in enumerate(port for port in ("source", "more") if port in inputs):
                for row in self._rows(inputs[port], split):
                    images.add(row.pixels, label + row.label, number)
                    for language, text in row.texts:
                        texts.add(text, label + row.label, self.languages.index(language), number)
                        missing.discard(language)
                label = images.next_label
            found |= {f"{ahead}images": images.columns(), f"{ahead}texts": texts.columns()}
        if missing:
            listed = ", ".join(sorted(missing))
            raise BadData(f"no text in {listed} in the data; take it out of languages")
        return found

    def _rows(self, source: Any, split: str) -> Iterator["_Row"]:  # Any: arrays, or a Path
        if isinstance(source, Mapping):
            return self._of_arrays(source, split)
        if not isinstance(source, Path) or not source.is_dir():
            raise BadData(f"{source}: expected a folder with train.parquet and test.parquet")
        return self._of_file(source / f"{split}.parquet")

    def _of_arrays(self, arrays: Mapping[str, Any], split: str) -> Iterator["_Row"]:
        there = [each for each in self.languages if f"text_{each}" in arrays]
        if not there:
            raise BadData(f"the arrays have no text_<language> of {', '.join(self.languages)}")
        texts = {each: [str(text) for text in arrays[f"text_{each}"]] for each in there}
        labels = np.asarray(arrays[f"{split}_labels"]).tolist()
        if labels and not 0 <= min(labels) <= max(labels) < len(texts[there[0]]):
            raise BadData(f"{split}_labels: {max(labels)}, but {len(texts[there[0]])} texts")
        seen: set[int] = set()
        for image, label in zip(arrays[f"{split}_images"], labels, strict=True):
            first = label not in seen
            seen.add(label)
            array = torch.as_tensor(np.asarray(image))
            if array.shape != (3, self.size, self.size):
                raise BadData(f"{split}_images: {list(array.shape)}; expected 3 and twice size")
            yield _Row(
                pixels=array,
                label=label,
                texts=[(each, texts[each][label]) for each in there] if first else [],
            )

    def _of_file(self, file: Path) -> Iterator["_Row"]:
        opened = open_parquet(file)
        names = opened.schema_arrow.names
        columns = {
            column: language
            for language in self.languages
            for column in (f"captions_{language}", f"name_{language}")
            if column in names
        }
        if "image" not in names or not columns:
            raise BadData(
                f"{file}: needs image and captions_<language> or name_<language> of "
                f"{', '.join(self.languages)}; it has {', '.join(names)}"
            )
        for label, row in enumerate(parquet_rows(opened, ("image", *columns))):
            where = f"{file}: row {label}"
            yield _Row(
                pixels=pixels(row["image"]["bytes"], self.size, where),
                label=label,
                texts=[
                    (language, text)
                    for column, language in columns.items()
                    for text in _several(row[column], f"{where}: {column}")
                ],
            )


@dataclass(frozen=True, kw_only=True)
class _Row:
    """An image, its label within its source, and texts with their language."""

    pixels: torch.Tensor
    label: int
    texts: Sequence[tuple[str, str]]


def _several(value: object, where: str) -> list[str]:
    """A text, or a list of texts, none of them empty."""
    found = value if isinstance(value, list) else [value]
    texts = [str(each) for each in found if isinstance(each, str) and each.strip()]  # pyright: ignore[reportUnknownVariableType]
    if not texts or len(texts) < len(found):  # pyright: ignore[reportUnknownArgumentType]
        raise BadData(f"{where}: an empty text; correct it, or leave the language out")
    return texts


class _Images:
    """Columns of images that grow."""

    def __init__(self) -> None:
        self.images, self.labels, self.sources = list[torch.Tensor](), list[int](), list[int]()

    def add(self, image: torch.Tensor, label: int, source: int) -> None:
        self.images.append(image)
        self.labels.append(label)
        self.sources.append(source)

    @property
    def next_label(self) -> int:
        return max(self.labels, default=-1) + 1

    def columns(self) -> Columns:
        if not self.images:
            raise BadData("the data hold no image")
        return {
            "images": torch.stack(self.images),
            "labels": torch.tensor(self.labels),
            "source": torch.tensor(self.sources),
        }


class _Texts:
    """Columns of texts that grow."""

    def __init__(self) -> None:
        self.texts, self.numbers = list[str](), list[tuple[int, int, int]]()

    def add(self, text: str, label: int, language: int, source: int) -> None:
        self.texts.append(text)
        self.numbers.append((label, language, source))

    def columns(self) -> Columns:
        numbers = torch.tensor(self.numbers).reshape(-1, 3)
        names = ("labels", "language", "source")
        return {"text": self.texts, **{n: numbers[:, i].clone() for i, n in enumerate(names)}}
