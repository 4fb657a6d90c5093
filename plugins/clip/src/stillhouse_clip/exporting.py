"""Export of an open-vocabulary student: image tower, class bank, a text tower for new labels."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.artifact import Built, save_model
from stillhouse.export import Export, check_onnx, write_onnx
from stillhouse.files import write_text
from stillhouse.quantize.onnx_network import RECORD
from stillhouse.work import Work
from stillhouse_clip.text_side import text_side
from stillhouse_clip.tokens import ASSET
from stillhouse_clip.towers import context_length

TEXT_TOWER, TEXT_ONNX = "text-tower", "text.onnx"


@dataclass(frozen=True, kw_only=True)
class ExportTowers:
    """A `convert`: `image` of the port "student", with the text tower of the port "teacher" beside
    it: as the asset "text-tower", a model folder with its tokenizer, and as text.onnx.

    model.onnx holds the image tower and the bank: embedding, and logits over the bank's classes.
    text.onnx maps tokens and mask [batch, context] to the embedding of a text; texts are padded to
    the context. So other labels need no training: their embeddings are rows of another bank.
    """

    image: Export = field(default_factory=Export)
    tolerance: float = 1e-3

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        # Any: what the ports' openers return
        text = text_side(inputs["teacher"])
        with tempfile.TemporaryDirectory(prefix="stillhouse-text-") as folder:
            place = Path(folder) / TEXT_TOWER
            save_model(place, text)
            student: Built = inputs["student"]
            assets = {**student.assets, TEXT_TOWER: place}
            assets.pop(ASSET, None)
            given = {**inputs, "student": replace(student, assets=assets)}
            self.image(given, out, work=work)
        export_text(text, out / TEXT_ONNX, opset=self.image.opset, tolerance=self.tolerance)
        record = json.loads((out / RECORD).read_text())
        record["text"] = {
            "file": TEXT_ONNX,
            "context": context_length(text.module),
            "tokenizer": f"assets/{TEXT_TOWER}/assets/{text.assets[ASSET].name}",
        }
        write_text(out / RECORD, json.dumps(record, indent=1, sort_keys=True) + "\n")


def export_text(text: Built, file: Path, *, opset: int, tolerance: float) -> None:
    """Write and check the text tower as ONNX. Raises ContractError where both disagree."""
    module = OnlyText(text.module)
    length = context_length(text.module)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 100, (3, length), generator=generator)
    mask = (torch.arange(length) < torch.tensor([[length], [5], [9]])).long()
    batch = {"tokens": tokens * mask, "mask": mask}
    write_onnx(module, batch, ("text",), file, opset=opset)
    check_onnx(file, module, batch, ("text",), tolerance=tolerance)


class OnlyText(nn.Module):
    """A tower of two, of which the text tower alone runs."""

    def __init__(self, towers: nn.Module) -> None:
        super().__init__()
        self.towers = towers

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"text": self.towers(batch)["text"]}
