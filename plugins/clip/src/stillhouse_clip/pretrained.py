"""A two-tower teacher of an image network and a text network that others trained apart.

Both stay as they are; one linear map from the image network's features to the text network's space
is learned on pairs of images and texts: locked-image tuning turned to the image side, after LiT
(Zhai et al. 2022, arXiv 2111.07991).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.artifact import Built, Model, recorded, save_model, spec_of
from stillhouse.errors import BadData
from stillhouse.weights import as_named, as_ordered, checkpoint_file, load_strictly, read_state
from stillhouse.work import Work
from stillhouse_clip.images import ImageSpec
from stillhouse_clip.tokens import ASSET
from stillhouse_clip.towers import TwoTowers, image_tower


class MeanTextTower(nn.Module):
    """A BERT whose last states are averaged over a text's tokens: tokens, mask -> text [B, D].

    `length` is the most tokens it reads here, at most those of its position embeddings.
    """

    def __init__(self, config: Mapping[str, Any], *, length: int) -> None:
        from transformers import BertConfig, BertModel

        super().__init__()
        made = BertConfig(**config)
        self.length = min(length, int(made.max_position_embeddings))
        self.bert = BertModel(made, add_pooling_layer=False)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        mask = batch["mask"]
        states = self.bert(input_ids=batch["tokens"], attention_mask=mask).last_hidden_state
        weight = mask.to(states.dtype)[..., None]
        mean = (states * weight).sum(1) / weight.sum(1).clamp_min(1)
        return {"text": mean, "text_map": states}


def mean_text_tower(*, config: Mapping[str, Any], length: int = 128) -> nn.Module:
    """A `MeanTextTower` with fresh weights; `config` is that of a BertConfig."""
    return MeanTextTower(config, length=length)


@dataclass(frozen=True, kw_only=True)
class LoadImages:
    """A `convert`: the weights of the port "weights" in the network `name`, without its classes, as
    `towers.image_tower` gives it; its "embedding" are the features.

    The file's names may be another implementation's where its tensors are as many, in the same
    order and of the same shapes. Raises BadData where they are not.
    """

    name: str
    images: ImageSpec
    classes: int = 1000

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        # Any: what the ports' openers return
        file = checkpoint_file(Path(inputs["weights"]))
        state, images = read_state(file), self.images.json()
        whole = image_tower(name=self.name, dim=self.classes, images=images)
        net = whole.get_submodule("net")
        load_strictly(net, as_ordered(state, net.state_dict()), where=str(file))
        spec = Model(build=image_tower, kwargs={"name": self.name, "dim": 0, "images": images})
        module = spec.new()
        kept = {k: v for k, v in whole.state_dict().items() if k in module.state_dict()}
        module.load_state_dict(kept)
        save_model(out, Built(spec=spec, module=module))


UNUSED = re.compile(r"(^|\.)(embeddings\.position_ids|pooler\.dense\.(weight|bias))$")


@dataclass(frozen=True, kw_only=True)
class LoadText:
    """A `convert`: a BERT sentence encoder of the ports "weights" (safetensors), "config"
    (config.json) and "tokenizer" (tokenizer.json), which goes along as an asset.
    """

    length: int = 128

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        # Any: what the ports' openers return
        config = bert_config(Path(inputs["config"]))
        spec = Model(build=mean_text_tower, kwargs={"config": config, "length": self.length})
        module, file = spec.new(), checkpoint_file(Path(inputs["weights"]))
        # the network counts positions itself, and a mean over tokens needs no pooler
        state = {k: v for k, v in read_state(file).items() if not UNUSED.search(k)}
        load_strictly(module.get_submodule("bert"), as_named(state), where=str(file))
        assets = {ASSET: Path(inputs["tokenizer"])}
        save_model(out, Built(spec=spec, module=module, assets=assets))


def bert_config(file: Path) -> dict[str, Any]:  # Any: JSON values
    """What of a config.json says how large a BERT is; raises BadData for another model's."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadData(f"{file}: not JSON ({error}); give the model's config.json") from error
    if config.get("model_type") != "bert":
        raise BadData(f"{file}: a model of type {config.get('model_type')!r}, expected 'bert'")
    sizes = (
        *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
        *("intermediate_size", "hidden_act", "max_position_embeddings", "type_vocab_size"),
        *("layer_norm_eps", "pad_token_id"),
    )
    return {name: config[name] for name in sizes if name in config}


class Projection(nn.Module):
    """features [B, F] of a batch -> embedding [B, D], and the learned scale []."""

    def __init__(self, features: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, dim)
        self.log_scale = nn.Parameter(torch.tensor(2.6592601))  # log(1 / 0.07)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        scale = self.log_scale.exp().clamp_max(100)
        return {"embedding": self.linear(batch["features"]), "scale": scale}


def projection(*, features: int, dim: int) -> nn.Module:
    """A `Projection` with fresh weights."""
    return Projection(features, dim)


class Projected(nn.Module):
    """An image tower behind whose features a projection stands: images -> embedding [B, D]."""

    def __init__(self, tower: nn.Module, projected: nn.Module) -> None:
        super().__init__()
        self.tower, self.projection = tower, projected

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        features = self.tower({"images": batch["images"]})["embedding"]
        return {"embedding": self.projection({"features": features})["embedding"]}


def joined_towers(
    *, image: Mapping[str, Any], projected: Mapping[str, Any], text: Mapping[str, Any]
) -> nn.Module:
    """Two towers of three recorded models."""
    side = Projected(spec_of(image).new(), spec_of(projected).new())
    return TwoTowers(side, spec_of(text).new())


@dataclass(frozen=True, kw_only=True)
class Join:
    """A `convert`: the ports "image", "projection" and "text" as two towers."""

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        # Any: what the ports' openers return
        image, linear, text = (inputs[port] for port in ("image", "projection", "text"))
        kwargs = {"image": recorded(image.spec), "projected": recorded(linear.spec)}
        spec = Model(build=joined_towers, kwargs={**kwargs, "text": recorded(text.spec)})
        module = TwoTowers(Projected(image.module, linear.module), text.module)
        save_model(out, Built(spec=spec, module=module, assets=text.assets))
