"""Published two-tower models, opened from files in their real formats, at toy sizes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.artifact import Built, load_model, save_model
from stillhouse.errors import BadData, MissingData, StillhouseError
from stillhouse.work import Work
from stillhouse_clip.exporting import export_text
from stillhouse_clip.open_models import LoadTowers, opened
from stillhouse_clip.text_side import text_side
from stillhouse_clip.tokens import ASSET, tokenized, trained_tokenizer

WORDS, LENGTH = 300, 24
TEXT = {
    "vocab_size": WORDS, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": LENGTH,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip


def transformers_model(kind: str) -> Any:
    import transformers

    torch.manual_seed(0)
    match kind:
        case "clip":
            text = {**TEXT, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
            config = transformers.CLIPConfig(
                text_config=text, vision_config=VISION, projection_dim=12
            )
            return transformers.CLIPModel(config)
        case "siglip":
            text = {**TEXT, "pad_token_id": 0, "projection_size": 16}
            config = transformers.SiglipConfig(text_config=text, vision_config=VISION)
            return transformers.SiglipModel(config)
        case _:
            text = {**TEXT, "max_position_embeddings": LENGTH + 2, "pad_token_id": 1}
            text |= {"project_dim": 16, "type_vocab_size": 1}
            config = transformers.AltCLIPConfig(
                text_config=text, vision_config=VISION, projection_dim=12
            )
            return transformers.AltCLIPModel(config)


def saved(kind: str, folder: Path) -> Any:
    model = transformers_model(kind).eval()
    model.save_pretrained(folder)
    trained_tokenizer(["a photo of a red disc", "kugape"], WORDS).save(
        str(folder / "tokenizer.json")
    )
    shown = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    (folder / "preprocessor_config.json").write_text(json.dumps(shown))
    return model


def batch(tokenizer: Path) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    images = torch.rand(2, 3, 32, 32)
    return {
        "images": images,
        **tokenized(tokenizer, ["a red disc", "kugape of a photo"], length=LENGTH),
    }


@pytest.mark.parametrize("kind", ["clip", "siglip", "altclip"])
def test_a_folder_of_transformers_gives_what_transformers_gives(kind: str, tmp_path: Path) -> None:
    model = saved(kind, tmp_path)
    built = opened(tmp_path)
    given = batch(built.assets[ASSET])
    found = built.module.eval()(given)
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.4, 0.5, 0.6], [0.2, 0.3, 0.4]))
    pixels = (given["images"] - mean) / std
    with torch.no_grad():
        if kind == "siglip":
            padded = torch.nn.functional.pad(
                given["tokens"], (0, LENGTH - given["tokens"].shape[1])
            )
            both = model(input_ids=padded, pixel_values=pixels)
        else:
            both = model(
                input_ids=given["tokens"], attention_mask=given["mask"], pixel_values=pixels
            )
    for ours, theirs in (("embedding", both.image_embeds), ("text", both.text_embeds)):
        unit = torch.nn.functional.normalize(found[ours])
        assert torch.allclose(unit, theirs, atol=1e-5), ours


@pytest.mark.parametrize("kind", ["clip", "siglip", "altclip"])
def test_it_is_kept_as_a_model_and_its_text_side_alone(kind: str, tmp_path: Path) -> None:
    saved(kind, tmp_path / "given")
    LoadTowers(dim=16 if kind == "siglip" else 12)(
        {"source": tmp_path / "given"}, tmp_path / "model", work=Work()
    )
    built = load_model(tmp_path / "model")
    given = batch(built.assets[ASSET])
    text = built.module(given)["text"]
    side = text_side(built)
    save_model(tmp_path / "text", side)
    again = load_model(tmp_path / "text")
    tokens = {name: given[name] for name in ("tokens", "mask")}
    assert torch.equal(again.module(tokens)["text"], text)
    assert not any("vision" in name for name in again.module.state_dict())


def test_a_folder_of_open_clip_gives_what_open_clip_gives(tmp_path: Path) -> None:
    from open_clip.model import CLIP

    torch.manual_seed(0)
    config = {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
        "text_cfg": {
            "context_length": LENGTH,
            "vocab_size": WORDS,
            "width": 16,
            "heads": 2,
            "layers": 2,
        },
    }
    model = CLIP(**config).eval()
    write_open_clip(tmp_path, config, model)
    built = opened(tmp_path)
    given = batch(built.assets[ASSET])
    found = built.module.eval()(given)
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.5] * 3, [0.25] * 3))
    padded = torch.nn.functional.pad(given["tokens"], (0, LENGTH - given["tokens"].shape[1]))
    with torch.no_grad():
        assert torch.allclose(
            found["embedding"], model.encode_image((given["images"] - mean) / std), atol=1e-5
        )
        assert torch.allclose(found["text"], model.encode_text(padded), atol=1e-5)
    export_text(text_side(built), tmp_path / "text.onnx", opset=18, tolerance=1e-3)


def write_open_clip(folder: Path, config: dict[str, Any], model: torch.nn.Module) -> None:
    shown = {"mean": [0.5] * 3, "std": [0.25] * 3}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": shown})
    )
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    trained_tokenizer(["a photo of a red disc", "kugape"], WORDS).save(
        str(folder / "tokenizer.json")
    )


def test_the_text_side_of_clip_runs_by_onnx_runtime_alone(tmp_path: Path) -> None:
    saved("clip", tmp_path)
    export_text(text_side(opened(tmp_path)), tmp_path / "text.onnx", opset=18, tolerance=1e-3)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / "text.onnx"))
    assert [i.name for i in session.get_inputs()] == ["tokens", "mask"]


def test_what_is_wrong_is_one_line(tmp_path: Path) -> None:
    saved("clip", tmp_path / "clip")
    load, out = LoadTowers(dim=7), tmp_path / "out"
    cases: list[tuple[Any, str]] = [
        (tmp_path / "clip", "embeds into 12 numbers, not dim=7; set dim=12"),
        (tmp_path, "neither config.json nor open_clip_config.json"),
    ]
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    cases.append((tmp_path / "bert", "type 'bert'; expected clip, siglip, altclip"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    cases.append((tmp_path / "broken", "config.json: not JSON"))
    for source, message in cases:
        with pytest.raises(StillhouseError, match=message) as caught:
            load({"source": source}, out, work=Work())
        assert "\n" not in str(caught.value)
    (tmp_path / "clip" / "tokenizer.json").unlink()
    with pytest.raises(MissingData, match="no tokenizer.json; save the tokenizer there"):
        opened(tmp_path / "clip")
    weights = tmp_path / "clip" / "model.safetensors"
    weights.unlink()
    with pytest.raises(MissingData, match="no model.safetensors or pytorch_model.bin"):
        opened(tmp_path / "clip")
    saved("siglip", tmp_path / "other")
    weights.write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    with pytest.raises(BadData, match="does not fit the model"):
        opened(tmp_path / "clip")


def test_a_model_of_ours_may_be_the_teacher(tmp_path: Path) -> None:
    saved("clip", tmp_path / "clip")
    save_model(tmp_path / "ours", opened(tmp_path / "clip"))
    built: Built = load_model(tmp_path / "ours")
    LoadTowers(dim=12)({"source": built}, tmp_path / "out", work=Work())
    assert (tmp_path / "out" / "model.json").is_file()
