"""AltCLIP (Chen et al. 2022, arXiv 2211.06679) as a teacher: an image tower and a multilingual text
tower.

B: samples. N: places of the image's grid or tokens of the text. D: width of the shared space.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.artifact import Built, Model, save_model
from stillhouse.errors import BadData
from stillhouse.work import Work
from stillhouse_clip.dual import WHOLE, forget, written
from stillhouse_clip.images import OPENAI, ImageSpec, Normalized
from stillhouse_clip.recipes.own_teacher import text_column
from stillhouse_clip.tokens import ASSET
from stillhouse_clip.towers import MOST
from stillhouse_clip.vocabulary import Keep, pad_id, read_tokenizer, trimmed

EMBEDDING = "text_model.roberta.embeddings.word_embeddings"


class AltClip(nn.Module):
    """transformers' AltCLIPModel under the names of this plugin: images -> embedding [B, D] and map
    [B, N, C] without the class token; tokens -> text [B, D], text_map and text_mask.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        from transformers import AltCLIPConfig, AltCLIPModel

        super().__init__()
        made: Any = AltCLIPConfig(**config)  # Any: transformers' attributes are not typed
        self.length = int(made.text_config.max_position_embeddings) - 2
        self.pad = int(made.text_config.pad_token_id)
        self.normalized = Normalized(ImageSpec(size=int(made.vision_config.image_size), **OPENAI))
        self.net: Any = AltCLIPModel(made)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {"scale": self.net.logit_scale.exp().clamp_max(MOST)}
        if "images" in batch:
            seen = self.net.vision_model(pixel_values=self.normalized(batch["images"]))
            found["embedding"] = self.net.visual_projection(seen.pooler_output)
            found["map"] = seen.last_hidden_state[:, 1:]
        if "tokens" in batch:
            mask = batch["tokens"] != self.pad
            read = self.net.text_model(input_ids=batch["tokens"], attention_mask=mask.long())
            found["text"] = self.net.text_projection(read.pooler_output)
            found["text_map"], found["text_mask"] = read.last_hidden_state, mask
        return found


def altclip(*, config: Mapping[str, Any]) -> nn.Module:  # Any: arguments of an AltCLIPConfig
    """An AltCLIP with fresh weights."""
    return AltClip(config)


@dataclass(frozen=True, kw_only=True)
class ReadAltClip:
    """A `convert`: the folder of the port "teacher", as transformers saves an AltCLIP with its
    tokenizer.json, with vocabulary and embedding trimmed to the texts of the port "texts".
    Raises BadData for another model.
    """

    keep: Keep

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        # Any: what the ports' openers return
        folder = Path(inputs["teacher"])
        model, whole = loaded(folder), read_tokenizer(folder)
        less = trimmed(whole, text_column(inputs["texts"], "text"), keep=self.keep)
        pad = pad_id(less.tokenizer)
        if pad != model.config.text_config.pad_token_id:
            raise BadData(f"{folder}: its tokenizer pads with {pad}, its text tower does not")
        table: Any = model.get_submodule(EMBEDDING)
        weight = table.weight.detach()[less.rows]
        model.config.text_config.vocab_size = len(less.rows)
        spec = Model(build=altclip, kwargs={"config": config_of(model)})
        module = spec.new()
        state = {f"net.{name}": value for name, value in model.state_dict().items()}
        module.load_state_dict({**state, f"net.{EMBEDDING}.weight": weight})
        assets = written(out, {ASSET: less.tokenizer, WHOLE: whole})
        save_model(out, Built(spec=spec, module=module, assets=assets))
        forget(out)


def loaded(folder: Path) -> Any:  # Any: an AltCLIPModel, which is not typed
    """The AltCLIP of a folder; raises BadData for another model's."""
    from transformers import AltCLIPModel

    file = folder / "config.json"
    try:
        kind = json.loads(file.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise BadData(f"{file}: no config of a model ({error})") from error
    if kind != "altclip":
        raise BadData(f"{file}: a model of type {kind!r}, expected 'altclip'")
    try:
        return AltCLIPModel.from_pretrained(str(folder), local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError) as error:
        raise BadData(f"{folder}: no AltCLIP ({str(error).splitlines()[0]})") from error


def config_of(model: Any) -> dict[str, Any]:  # Any: JSON values
    """The sizes of both towers, as arguments of an AltCLIPConfig."""
    found: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    kept = {"projection_dim": found["projection_dim"]}
    for side in ("text_config", "vision_config"):
        kept[side] = {k: v for k, v in found[side].items() if _plain(v) and not k.startswith("_")}
    return kept


def _plain(value: object) -> bool:
    return isinstance(value, int | float | str | bool)
