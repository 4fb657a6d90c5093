"""Two-tower models that others published, opened from their own files.

transformers: CLIP, SigLIP and AltCLIP, a folder with config.json, weights and a tokenizer, as the
model hub has them. open_clip: a folder with open_clip_config.json and weights. Weights are read
with our own reader (no pickled code), names and shapes all accounted for.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from stillhouse.artifact import Built, Model, save_model
from stillhouse.errors import BadData, MissingData
from stillhouse.weights import as_named, load_strictly, read_state
from stillhouse.work import Work
from stillhouse_clip.images import OPENAI, ImageSpec, Normalized
from stillhouse_clip.tokens import ASSET

Library = Literal["transformers", "open_clip"]
Part = Literal["both", "text"]
TYPES = ("clip", "siglip", "altclip")
OPEN_CLIP = "open_clip_config.json"
WEIGHTS = {
    "transformers": ("model.safetensors", "pytorch_model.bin"),
    "open_clip": ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
}


class OpenTowers(nn.Module):
    """images -> embedding [B, D]; tokens, mask -> text [B, D], as the published model computes
    them, none of unit length. `part` "text": without the image side.
    """

    def __init__(
        self, library: Library, config: Mapping[str, Any], images: ImageSpec, part: Part
    ) -> None:
        super().__init__()
        self.library, self.part = library, part
        self.normalized = Normalized(images)
        self.model: Any = _transformers(config) if library == "transformers" else _open_clip(config)
        self.length = _length(library, config, self.model)
        # SigLIP was trained on texts padded to its length, and looks at the padding
        self.masked = config.get("model_type") != "siglip"
        if part == "text":
            self._drop_images()

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = dict[str, Tensor]()
        if "images" in batch:
            found["embedding"] = self._image(self.normalized(batch["images"]))
        if "tokens" in batch:
            found["text"] = self._text(batch["tokens"], batch["mask"])
        return found

    def _image(self, pixels: Tensor) -> Tensor:
        if self.library == "open_clip":
            return self.model.encode_image(pixels)
        return _vector(self.model.get_image_features(pixel_values=pixels))

    def _text(self, tokens: Tensor, mask: Tensor) -> Tensor:
        if self.library == "open_clip":
            return self.model.encode_text(self._padded(tokens, 0))
        if not self.masked:
            pad = int(self.model.config.text_config.pad_token_id or 0)
            return _vector(self.model.get_text_features(input_ids=self._padded(tokens, pad)))
        return _vector(self.model.get_text_features(input_ids=tokens, attention_mask=mask))

    def _padded(self, tokens: Tensor, pad: int) -> Tensor:
        return nn.functional.pad(tokens, (0, self.length - tokens.shape[1]), value=pad)

    def _drop_images(self) -> None:
        for name in ("vision_model", "visual_projection", "visual"):
            if hasattr(self.model, name):
                setattr(self.model, name, nn.Identity())

    def only_text(self) -> nn.Module:
        """This module without its image side, which is lost."""
        self._drop_images()
        return self.eval()


def _vector(found: Any) -> Tensor:  # Any: transformers 5 gives an output object, 4 a tensor
    return found if isinstance(found, Tensor) else found.pooler_output


def _transformers(config: Mapping[str, Any]) -> nn.Module:
    from transformers import AutoConfig, AutoModel

    return AutoModel.from_config(AutoConfig.for_model(**config))


def _open_clip(config: Mapping[str, Any]) -> nn.Module:
    from open_clip.model import CLIP, CustomTextCLIP

    kwargs = {k: v for k, v in config.items() if k != "custom_text"}
    custom = config.get("custom_text") or "hf_model_name" in config.get("text_cfg", {})
    return (CustomTextCLIP if custom else CLIP)(**kwargs)


def _length(library: Library, config: Mapping[str, Any], model: nn.Module) -> int:
    if library == "open_clip":
        return int(config["text_cfg"].get("context_length", 77))
    text: Any = cast("Any", model).config.text_config  # Any: transformers' configurations
    length = int(text.max_position_embeddings)
    # RoBERTa counts positions from behind its padding
    return length - 2 if config.get("model_type") == "altclip" else length


def open_towers(
    *,
    library: Library,
    config: Mapping[str, Any],
    images: Mapping[str, Any],
    part: Part = "both",
) -> nn.Module:
    """An `OpenTowers` with fresh weights."""
    return OpenTowers(library, config, ImageSpec.of(images), part)


@dataclass(frozen=True, kw_only=True)
class LoadTowers:
    """A `convert`: the published model of the port "source", a folder, or a two-tower model of our
    own. Raises BadData where it embeds into another width than `dim`, is of an unknown kind, or has
    weights that do not fit its configuration.
    """

    dim: int

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        # Any: what the port's opener returns
        source = inputs["source"]
        built = source if isinstance(source, Built) else opened(Path(source))
        module = built.module.eval()
        size = (
            ImageSpec.of(built.spec.kwargs["images"]).size if "images" in built.spec.kwargs else 32
        )
        with torch.no_grad():
            found = module({"images": torch.zeros(1, 3, size, size)})["embedding"].shape[1]
        if found != self.dim:
            raise BadData(
                f"the teacher embeds into {found} numbers, not dim={self.dim}; set dim={found}"
            )
        if ASSET not in built.assets:
            raise BadData("the teacher has no tokenizer, which class texts are read by")
        save_model(out, built)


def opened(folder: Path) -> Built:
    """The model of a folder, with its tokenizer as an asset. Raises BadData or MissingData."""
    if not folder.is_dir():
        raise BadData(f"{folder}: expected a folder with config.json or {OPEN_CLIP}")
    library: Library = "open_clip" if (folder / OPEN_CLIP).is_file() else "transformers"
    file = folder / (OPEN_CLIP if library == "open_clip" else "config.json")
    if not file.is_file():
        raise MissingData(f"{folder}: neither config.json nor {OPEN_CLIP}; give the model's folder")
    record = _json(file)
    config, images = (_of_open_clip if library == "open_clip" else _of_transformers)(folder, record)
    kwargs = {"library": library, "config": config, "images": images.json()}
    spec = Model(build=open_towers, kwargs=kwargs)
    module = spec.new()
    assert isinstance(module, OpenTowers)
    weights = _weights(folder, library)
    inner = cast("nn.Module", module.model)
    if library == "open_clip":
        load_strictly(inner, as_named(read_state(weights)), where=str(weights))
    else:
        inner.load_state_dict(_state_of_transformers(folder, weights))
    return Built(spec=spec, module=module, assets={ASSET: _tokenizer(folder)})


def _state_of_transformers(folder: Path, weights: Path) -> Mapping[str, Tensor]:
    """The weights under the names of the installed transformers, which differ from a file's (its
    reader runs no code of the file). Raises BadData where any is missing, left over or of another
    shape.
    """
    from transformers import AutoModel

    try:
        found, info = AutoModel.from_pretrained(
            str(folder), local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    except RuntimeError as error:  # tensors of other shapes
        raise BadData(
            f"{weights}: does not fit the model of config.json; choose the files that belong "
            "together"
        ) from error
    except (OSError, ValueError, KeyError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise BadData(f"{weights}: cannot be read ({reason[:200]}); get the model again") from error
    for what in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        # counted by networks of today themselves
        wrong = [str(k) for k in sorted(map(str, info[what])) if not k.endswith("position_ids")]
        if wrong:
            raise BadData(
                f"{weights}: does not fit the model of config.json: {what.replace('_', ' ')}, as "
                f"'{wrong[0]}'; choose the files that belong together"
            )
    return found.state_dict()


def _of_transformers(
    folder: Path, record: Mapping[str, Any]
) -> tuple[dict[str, Any], ImageSpec]:  # Any: JSON values
    from transformers import AutoConfig

    kind = record.get("model_type")
    if kind not in TYPES:
        raise BadData(
            f"{folder}: a model of type {kind!r}; expected {', '.join(TYPES)}, or a folder of "
            "open_clip"
        )
    config = AutoConfig.from_pretrained(str(folder), local_files_only=True).to_dict()
    file, found = folder / "preprocessor_config.json", dict[str, Any]()
    if file.is_file():
        found = _json(file)
    size = int(config["vision_config"]["image_size"])
    return _plain(config), ImageSpec(
        size=size,
        mean=tuple(found.get("image_mean", OPENAI["mean"])),
        std=tuple(found.get("image_std", OPENAI["std"])),
    )


def _of_open_clip(
    folder: Path, record: Mapping[str, Any]
) -> tuple[dict[str, Any], ImageSpec]:  # Any: JSON values
    if not isinstance(record.get("model_cfg"), dict):
        raise BadData(f"{folder / OPEN_CLIP}: no model_cfg; give a folder that open_clip wrote")
    config, shown = record["model_cfg"], record.get("preprocess_cfg", {})
    size = config["vision_cfg"].get("image_size", 224)
    return config, ImageSpec(
        size=int(size[0] if isinstance(size, list) else size),
        mean=tuple(shown.get("mean", OPENAI["mean"])),
        std=tuple(shown.get("std", OPENAI["std"])),
    )


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as JSON values, without where and by what it was written."""
    left = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures"}
    return {k: v for k, v in json.loads(json.dumps(config, default=str)).items() if k not in left}


def _weights(folder: Path, library: Library) -> Path:
    for name in WEIGHTS[library]:
        if (folder / name).is_file():
            return folder / name
    raise MissingData(f"{folder}: no {' or '.join(WEIGHTS[library])}; get the model's weights")


def _tokenizer(folder: Path) -> Path:
    """A tokenizer.json, or a new folder with a tokenizer's other files."""
    if (folder / "tokenizer.json").is_file():
        return folder / "tokenizer.json"
    raise MissingData(
        f'{folder}: no tokenizer.json; save the tokenizer there: python -c "from transformers '
        f"import AutoTokenizer; AutoTokenizer.from_pretrained('{folder.name}')"
        f".save_pretrained('{folder.name}')\""
    )


def _json(file: Path) -> Any:  # Any: JSON values
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadData(f"{file}: not JSON ({error}); get the model again") from error
