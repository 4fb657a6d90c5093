"""How well images and texts of several languages find each other.

I: images. T: texts. C: classes. P: templates. D: width of the space. Labels say what belongs
together: several texts may describe one image, several images be of one class.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from stillhouse.batching import each_batch
from stillhouse.data.data import Data, RowData
from stillhouse.errors import BadData
from stillhouse.metrics import Metric, Score
from stillhouse.objectives.inputs import named
from stillhouse.objectives.objective import Models, Tensors
from stillhouse.work import Work
from stillhouse_clip.objectives.distillation import unit, zero_shot_rows
from stillhouse_clip.pairing import Part, of_part
from stillhouse_clip.recipes.own_teacher import text_column
from stillhouse_clip.tokens import ASSET, tokenized
from stillhouse_clip.vocabulary import Keep, opened, read_tokenizer, size_of, trimmed

AT = (1, 5, 10)
ROWS = 512  # texts at a time
TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "en": ("{}", "a photo of {}", "a picture of {}"),
    "zh": ("{}", "{}的照片", "一张{}的图片"),
}
PLAIN = ("{}",)


def recall(
    queries: Float[Tensor, "I D"],
    found: Float[Tensor, "T D"],
    labels: Int64[Tensor, " I"],
    found_labels: Int64[Tensor, " T"],
    *,
    k: int,
) -> float:
    """R@k: the fraction of queries of which one of the k nearest, by cosine, has their label.

    Raises BadData without queries, or where a query's label is nowhere among what may be found.
    """
    if not len(queries) or not len(found):
        raise BadData("recall: nothing to look for, or nothing to find")
    there = torch.isin(labels, found_labels)
    if not bool(there.all()):
        raise BadData(f"recall: nothing has the label of query {int((~there).nonzero()[0, 0])}")
    hits: list[Tensor] = []
    for first in range(0, len(queries), ROWS):
        near = unit(queries[first : first + ROWS]) @ unit(found).mT
        best = near.topk(min(k, near.shape[1]), dim=1).indices
        hits.append((found_labels[best] == labels[first : first + ROWS, None]).any(dim=1))
    return float(torch.cat(hits).float().mean())


def both_ways(
    images: Tensor, texts: Tensor, labels: Tensor, text_labels: Tensor
) -> dict[str, float]:
    """R@1, 5 and 10 of texts for images and of images for texts, and their mean."""
    found: dict[str, float] = {}
    for k in AT:
        found[f"image_to_text_r{k}"] = recall(images, texts, labels, text_labels, k=k)
        found[f"text_to_image_r{k}"] = recall(texts, images, text_labels, labels, k=k)
    return {"mean_recall": sum(found.values()) / len(found), **found}


def templates_of(language: str, given: Mapping[str, Sequence[str]]) -> Sequence[str]:
    """The templates of a language: those given, those that are known, or the name alone."""
    return given.get(language) or TEMPLATES.get(language, PLAIN)


def read_templates(file: Path) -> Mapping[str, tuple[str, ...]]:
    """A JSON file of templates by language; raises BadData for one without "{}"."""
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadData(f"{file}: no JSON of templates by language ({error})") from error
    if not isinstance(found, dict) or not found:
        raise BadData(f'{file}: expected {{"en": ["a photo of {{}}", ...], ...}}')
    return templates_in(found, where=f"{file}")


def templates_in(found: Any, *, where: str) -> Mapping[str, tuple[str, ...]]:
    """Templates by language of a JSON value; raises BadData for one without "{}"."""
    templates = texts_by_language(found, where=where)
    for language, texts in templates.items():
        if bare := [text for text in texts if "{}" not in text]:
            raise BadData(
                f"{where}: {language}: a list of texts with {{}} in each ('{bare[0]}' has no {{}})"
            )
    return templates


def texts_by_language(found: Any, *, where: str) -> Mapping[str, tuple[str, ...]]:
    """Lists of texts by language of a JSON value; raises BadData for another."""
    if not isinstance(found, dict):
        raise BadData(f"{where}: expected lists of texts by language")
    texts: dict[str, tuple[str, ...]] = {}
    for language, each in found.items():  # pyright: ignore[reportUnknownVariableType]
        if not isinstance(each, list) or not each:
            raise BadData(f"{where}: {language}: expected a list of texts")
        texts[str(language)] = tuple(map(str, each))  # pyright: ignore[reportUnknownArgumentType]
    return texts


def text_embeddings(
    module: nn.Module, tokens: Int64[Tensor, "T L"], *, device: str
) -> Float[Tensor, "T D"]:
    """The text tower's embeddings, on the CPU."""
    parts: list[Tensor] = []
    with torch.no_grad():
        for part in tokens.split(ROWS // 4):
            parts.append(module({"tokens": part.to(device)})["text"].float().cpu())
    return torch.cat(parts)


def image_embeddings(module: nn.Module, data: Data, *, device: str) -> Tensor:
    """The image tower's embeddings of all rows, on the CPU."""

    def compute(batch: Tensors) -> Tensor:
        return module({"images": batch["images"].to(device)})["embedding"].float().cpu()

    found = list(each_batch(data, compute, most=128, device=device))
    if not found:
        raise BadData("the evaluation data hold no image")
    return torch.cat(found)


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """What a model makes of images and texts: embeddings, and the columns that go with them."""

    images: Tensor
    image_labels: Tensor
    image_source: Tensor
    texts: Tensor
    text_labels: Tensor
    text_source: Tensor
    language: Tensor

    def of(self, language: int | None, source: int, keep: Tensor | None = None) -> tuple[Any, ...]:
        """Images, texts and their labels of one source (any for -1), texts of one language; of the
        labels `keep` alone where given.
        """
        images = self.image_source == source if source >= 0 else self.image_source >= 0
        texts = self.text_source == source if source >= 0 else self.text_source >= 0
        if language is not None:
            texts &= self.language == language
        if keep is not None:
            images, texts = (
                images & torch.isin(self.image_labels, keep),
                texts & torch.isin(self.text_labels, keep),
            )
        return (
            self.images[images],
            self.texts[texts],
            self.image_labels[images],
            self.text_labels[texts],
        )


@dataclass(frozen=True, kw_only=True)
class Languages(Metric):
    """A metric of two towers on the data ports `images` and `texts` (`bilingual.ReadPairs`).

    `languages` are those of the data in their order; the first two are what the paper reports.
    """

    languages: tuple[str, ...]
    role: str = "student"
    context: int = 32
    images: str = "images"
    texts: str = "texts"

    def embedded(self, models: Models, work: Work, *, first: int | None = None) -> Embedded:
        """Embeddings by the role's towers, of texts of the `first` languages or of all; texts are
        tokenized by its asset. Raises BadData.
        """
        module = named(models, self.role, what="role", where="languages")
        images, texts = (rows_at(work.data, port) for port in (self.images, self.texts))
        columns = {name: _column(images, name) for name in ("labels", "source")}
        more = {name: _column(texts, name) for name in ("labels", "source", "language")}
        every = text_column(texts, "text")
        if first is not None:
            kept = more["language"] < first
            more = {name: column[kept] for name, column in more.items()}
            every = [every[row] for row in kept.nonzero().flatten().tolist()]
        tokens = self.tokens(every, work)
        return Embedded(
            images=image_embeddings(module, images, device=work.device),
            image_labels=columns["labels"],
            image_source=columns["source"],
            texts=text_embeddings(module, tokens, device=work.device),
            text_labels=more["labels"],
            text_source=more["source"],
            language=more["language"],
        )

    def tokens(self, texts: Sequence[str], work: Work) -> Tensor:
        """Texts as the role's tokenizer has them."""
        assets = work.assets.get(self.role, {})
        if ASSET not in assets:
            raise BadData(f"role '{self.role}' has no asset '{ASSET}', which texts are read by")
        return tokenized(assets[ASSET], texts, length=self.context, where="texts")["tokens"]


def rows_at(data: Mapping[str, Data], port: str) -> RowData:
    """The rows of a data port; raises as `named` does, BadData for data without places."""
    found = named(data, port, what="data port", where="languages")
    if not isinstance(found, RowData):
        raise BadData(f"data port '{port}': rows by place are needed")
    return found


def _column(data: RowData, name: str) -> Tensor:
    found = data.columns.get(name)
    if not isinstance(found, Tensor):
        raise BadData(f"the data have no column '{name}' of numbers")
    return found


@dataclass(frozen=True, kw_only=True)
class Aligned(Languages):
    """The scores of a row: mean recall (R@1, 5, 10 both ways, over the sources and the first two
    languages), each language's, the gap between the two, zero-shot accuracy of the source `named`
    in both by templates, and the cosine of the first two languages' texts of one label and of
    different ones.

    Classes of the source are its labels, each with its first text as its name.
    """

    named: int = 0
    templates: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    @property
    def two(self) -> tuple[str, ...]:
        return self.languages[:2]

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        found = self.embedded(models, work, first=len(self.two))
        scores = self.recalls(found)
        for place, language in enumerate(self.two):
            scores[f"zero_shot_{language}"] = self.zero_shot(models, found, place, work)
        return {**scores, **(self.cosines(found) if len(self.two) == 2 else {})}

    def recalls(self, found: Embedded) -> dict[str, float]:
        """Mean recall, that of either language, and their gap."""
        sources = sorted(set(found.image_source.tolist()))
        by = {
            f"recall_{language}": sum(
                both_ways(*found.of(place, source))["mean_recall"] for source in sources
            )
            / len(sources)
            for place, language in enumerate(self.two)
        }
        scores, each = {"mean_recall": sum(by.values()) / len(by), **by}, list(by.values())
        if len(each) == 2:
            scores["language_gap_error"] = abs(each[0] - each[1])
        return scores

    def zero_shot(self, models: Models, found: Embedded, place: int, work: Work) -> float:
        """The fraction of the source's images whose class is the nearest row of the bank."""
        labels, _, bank = self.bank(models, place, work)
        images, _, image_labels, _ = found.of(place, self.named)
        return recall(images, bank, image_labels, labels, k=1)

    def bank(self, models: Models, place: int, work: Work) -> tuple[Tensor, list[str], Tensor]:
        """Of the source's classes in a language: labels [C], names, and rows [C, D] of the bank."""
        texts = rows_at(work.data, self.texts)
        every, first = text_column(texts, "text"), dict[int, str]()
        source, language, label = (
            _column(texts, name) for name in ("source", "language", "labels")
        )
        where = (source == self.named) & (language == place)
        for row in where.nonzero().flatten().tolist():
            first.setdefault(int(label[row]), every[row])
        labels = sorted(first)
        templates = templates_of(self.languages[place], self.templates)
        prompts = [t.replace("{}", first[label]) for label in labels for t in templates]
        module = named(models, self.role, what="role", where="languages")
        flat = text_embeddings(module, self.tokens(prompts, work), device=work.device)
        rows = zero_shot_rows(flat.unflatten(0, (len(labels), len(templates))))
        return torch.tensor(labels), [first[label] for label in labels], rows

    def cosines(self, found: Embedded) -> dict[str, float]:
        """Mean cosine of the two languages' texts: of one label, and of any two labels."""
        sides = [found.language == place for place in (0, 1)]
        labels = [found.text_labels[side] for side in sides]
        near = unit(found.texts[sides[0]]) @ unit(found.texts[sides[1]]).mT
        same = labels[0][:, None] == labels[1][None]
        return {
            "cross_cosine": float(near[same].mean()),
            "other_cosine": float(near[~same].mean()),
        }

    def scores(self) -> Sequence[Score]:
        names = {"en": "English", "zh": "Chinese"}
        each = [(language, names.get(language, language)) for language in self.two]
        return (
            Score(name="mean_recall", better="higher", unit="%", label="Mean recall"),
            *(
                Score(
                    name=f"recall_{code}", better="higher", unit="%", label=f"Mean recall, {name}"
                )
                for code, name in each
            ),
            *(
                Score(
                    name=f"zero_shot_{code}", better="higher", unit="%", label=f"Zero-shot, {name}"
                )
                for code, name in each
            ),
            Score(name="language_gap_error", better="lower", unit="%", label="Gap of languages"),
            Score(name="cross_cosine", better="neither", label="Cosine across languages"),
            Score(name="other_cosine", better="neither", label="Cosine of other texts"),
        )


@dataclass(frozen=True, kw_only=True)
class Retrieval(Languages):
    """A table: R@1, 5 and 10 both ways, a row a language (of each source, where there are two)."""

    sources: tuple[str, ...] = ()

    def __call__(
        self, models: Models, data: Data, *, work: Work
    ) -> Mapping[tuple[str, str], float]:
        found = self.embedded(models, work)
        return {
            (row, name): value
            for row, place, source in self._rows()
            if bool(((found.language == place) & (found.text_source == source)).any())
            for name, value in both_ways(*found.of(place, source)).items()
        }

    def _rows(self) -> Iterator[tuple[str, int, int]]:
        for source in range(max(1, len(self.sources))):
            for place, language in enumerate(self.languages):
                name = f"{self.sources[source]}, {language}" if self.sources else language
                yield name, place, source

    def scores(self) -> Sequence[Score]:
        ways = [f"{way}_r{k}" for k in AT for way in ("image_to_text", "text_to_image")]
        labels = [way.replace("_r", " R@").replace("_", " ") for way in ways]
        return (
            Score(name="mean_recall", better="higher", unit="%", label="Mean recall"),
            *(
                Score(name=name, better="higher", unit="%", label=label[0].upper() + label[1:])
                for name, label in zip(ways, labels, strict=True)
            ),
        )


@dataclass(frozen=True, kw_only=True)
class Lacking(Languages):
    """A table of the concepts that a share of the pairs covers and of those that it lacks:
    zero-shot accuracy of images among the concepts of either part, by the source `named`'s texts as
    they are, the mean of the first two languages.
    """

    share: float = 0.5
    named: int = 0

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        found = self.embedded(models, work)
        parts: tuple[Part, ...] = ("covered", "lacking")
        scores: dict[str, float] = {}
        every = found.image_labels[found.image_source == self.named].unique()
        for part in parts:
            keep = every[of_part(every, part, self.share)]
            values = [
                recall(images, texts, labels, text_labels, k=1)
                for place in range(len(self.languages[:2]))
                for images, texts, labels, text_labels in [found.of(place, self.named, keep)]
            ]
            scores[f"{part}_accuracy"] = sum(values) / len(values)
        return scores

    def scores(self) -> Sequence[Score]:
        return (
            Score(name="covered_accuracy", better="higher", unit="%", label="Concepts with pairs"),
            Score(
                name="lacking_accuracy", better="higher", unit="%", label="Concepts without pairs"
            ),
        )


@dataclass(frozen=True, kw_only=True)
class Vocabulary(Languages):
    """A table of the tokenizer that the role's was trimmed of (its asset "whole-tokenizer"), whole
    and trimmed to the training texts of the port `seen`: tokens, parameters of an embedding `width`
    wide, and the fraction of the texts of the port `texts` whose tokens stay as they were.
    """

    width: int
    seen: str = "seen"

    def __call__(
        self, models: Models, data: Data, *, work: Work
    ) -> Mapping[tuple[str, str], float]:
        assets = work.assets.get(self.role, {})
        whole = read_tokenizer(named(assets, "whole-tokenizer", what="asset", where=self.role))
        seen, held_out = (
            text_column(rows_at(work.data, port), "text") for port in (self.seen, self.texts)
        )
        before = [encoded.ids for encoded in opened(whole).encode_batch(held_out)]
        scores: dict[tuple[str, str], float] = {("whole", "tokens"): float(size_of(whole))}
        scores["whole", "embedding_parameters"] = float(size_of(whole) * self.width)
        scores["whole", "unchanged"] = 1.0
        ways: tuple[tuple[Keep, str], ...] = (("alphabet", "by alphabet"), ("used", "by use"))
        for keep, row in ways:
            less = trimmed(whole, seen, keep=keep)
            after = opened(less.tokenizer).encode_batch(held_out)
            same = [
                less.rows[torch.tensor(new.ids)].tolist() == old
                for new, old in zip(after, before, strict=True)
            ]
            scores[row, "tokens"] = float(len(less.rows))
            scores[row, "embedding_parameters"] = float(len(less.rows) * self.width)
            scores[row, "unchanged"] = sum(same) / len(same)
        return scores

    def scores(self) -> Sequence[Score]:
        return (
            Score(name="tokens", better="neither", unit="count", label="Tokens"),
            Score(
                name="embedding_parameters",
                better="neither",
                unit="count",
                label="Parameters of the embedding",
            ),
            Score(name="unchanged", better="higher", unit="%", label="Held-out texts unchanged"),
        )
