"""Networks of other people's files as towers, and the teacher that is joined of two."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

from stillhouse.artifact import load_model
from stillhouse.errors import BadData
from stillhouse.work import Work
from stillhouse_clip.pretrained import LoadText
from stillhouse_clip.tokens import trained_tokenizer

SIZES = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}


@pytest.fixture
def bert(tmp_path: Path) -> BertModel:
    """A BERT with its pooler, as sentence encoders are published; its files in `tmp_path`."""
    torch.manual_seed(0)
    config = BertConfig(**SIZES)
    model = BertModel(config, add_pooling_layer=True).eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["embeddings.position_ids"] = torch.arange(32)[None]  # of older versions
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**SIZES, "model_type": "bert"}))
    tokenizer = trained_tokenizer(["a red square", "a blue circle"], size=60)
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_str())
    return model


def loaded(folder: Path) -> torch.nn.Module:
    inputs = {
        "weights": folder / "model.safetensors",
        "config": folder / "config.json",
        "tokenizer": folder / "tokenizer.json",
    }
    LoadText(length=16)(inputs, folder / "tower", work=Work())
    return load_model(folder / "tower").module.eval()


def test_a_sentence_encoder_gives_the_mean_that_transformers_gives(
    bert: BertModel, tmp_path: Path
) -> None:
    tower = loaded(tmp_path)
    tokens = torch.tensor([[5, 6, 7, 0], [8, 9, 0, 0]])
    mask = tokens > 0
    with torch.no_grad():
        hidden = bert(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
        found = tower({"tokens": tokens, "mask": mask.long()})["text"]
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    torch.testing.assert_close(
        torch.nn.functional.normalize(found), torch.nn.functional.normalize(mean)
    )


def test_a_file_of_another_network_is_one_line(bert: BertModel, tmp_path: Path) -> None:
    state = {f"encoder.{name}": value.clone() for name, value in bert.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(BadData, match="model.safetensors: does not fit the model"):
        loaded(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**SIZES, "model_type": "gpt2"}))
    with pytest.raises(BadData, match="a model of type 'gpt2', expected 'bert'"):
        loaded(tmp_path)
