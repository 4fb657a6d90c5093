"""A student on its own: the kernel's model folder that is a transformers folder too, and ONNX."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stillhouse.artifact import Built, save_model
from stillhouse.card import Card
from stillhouse.data.data import Ragged, RowData, TensorData
from stillhouse.errors import BadData
from stillhouse.export import Export
from stillhouse.work import Work
from stillhouse_language.causal.model import CausalLM
from stillhouse_language.causal.tokens import ASSET
from stillhouse_language.causal.usage import generator_usage

SHORTEST = 8  # tokens of the rows that the ONNX file is checked on


@dataclass(frozen=True, kw_only=True)
class ExportLM:
    """A `convert`: the student at port "student" as model.json, model.safetensors, config.json and
    the tokenizer's files, which `AutoModelForCausalLM.from_pretrained` opens without Stillhouse,
    and as model.onnx, checked against torch at several lengths: tokens [batch, length] in, logits
    out.

    The port "data" has rows of `tokens` that the ONNX file is checked on. Without `onnx` there is
    no such file nor a card: a model of more than 2 GB does not fit into one.
    """

    card: Card
    onnx: bool = True
    tolerance: float = 1e-2

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        built: Built = inputs["student"]
        if not isinstance(built.module, CausalLM):
            raise BadData(f"export: {type(built.module).__name__} is no causal language model")
        if self.onnx:
            export = Export(
                inputs=("tokens",),
                outputs=("logits",),
                dynamic={"tokens": ("length",)},
                samples=4,
                tolerance=self.tolerance,
                card=self.card,
                usage=generator_usage,
            )
            export({**inputs, "data": short_rows(inputs["data"])}, out, work=work)
        else:
            save_model(out, built)
        add_transformers_files(built, out)


def add_transformers_files(built: Built, out: Path) -> None:
    """Write what transformers reads beside model.safetensors; its tensors have its names."""
    assert isinstance(built.module, CausalLM)
    network = built.module.network
    config = json.loads(network.config.to_json_string(use_diff=True))
    config |= {
        "architectures": [type(network).__name__],
        "dtype": built.spec.kwargs.get("dtype", "float32"),
    }
    config.pop("_name_or_path", None)
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    if ASSET in built.assets:
        for file in sorted(built.assets[ASSET].iterdir()):
            shutil.copyfile(file, out / file.name)


def short_rows(data: RowData) -> TensorData:
    """The first rows' first tokens, cut to one length: [N, S]."""
    column = data.columns["tokens"]
    assert isinstance(column, Ragged)
    lengths = (column.offsets[1:] - column.offsets[:-1]).tolist()
    length = max(min(SHORTEST, *lengths[:4]), 1)
    rows = [
        column.values[first : first + length]
        for first in column.offsets[:4].tolist()[: len(lengths)]
    ]
    return TensorData({"tokens": torch.stack(rows).long()})
