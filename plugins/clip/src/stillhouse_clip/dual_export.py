"""Export of two towers: what `stillhouse.export` writes of the image tower, and beside it the text
tower as ONNX, a class bank, and the text encoder as a folder that transformers opens.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillhouse.artifact import Built
from stillhouse.card import Card
from stillhouse.errors import BadData
from stillhouse.export import Export, check_onnx, write_onnx
from stillhouse.work import Work
from stillhouse_clip.bert_tower import BertTower
from stillhouse_clip.languages import templates_of, text_embeddings
from stillhouse_clip.objectives.distillation import zero_shot_rows
from stillhouse_clip.recipes.own_teacher import text_column
from stillhouse_clip.tokens import ASSET, tokenized
from stillhouse_clip.vocabulary import pad_id, read_tokenizer

TEXT_ONNX, BANK, ENCODER = "text.onnx", "bank.safetensors", "text-encoder"


@dataclass(frozen=True, kw_only=True)
class DualExport:
    """A `convert`: the port "student" as model.json, model.safetensors, model.onnx (the image
    tower: images -> embedding), text.onnx (tokens [B, context] -> text), bank.safetensors (rows
    [C, D], the classes in its metadata) and text-encoder/ (a BertModel with its tokenizer).

    Checked against torch on the ports "data" (images) and "texts", whose texts of the language
    `place` and source `named` are the classes of the bank.
    """

    context: int
    language: str
    place: int = 0
    named: int = 0
    card: Card | None = None
    templates: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    opset: int = 18
    tolerance: float = 1e-3

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        # Any: what the ports' openers return
        ports = {name: inputs[name] for name in ("student", "data", "scores") if name in inputs}
        images = Export(
            outputs=("embedding",), card=self.card, opset=self.opset, tolerance=self.tolerance
        )
        images(ports, out, work=work)
        student: Built = inputs["student"]
        tower = student.module.get_submodule("text")
        names = self._names(inputs["texts"])
        tokens = padded(student, names, self.context)
        batch = {"tokens": tokens[:8]}
        write_onnx(tower, batch, ("text",), out / TEXT_ONNX, opset=self.opset)
        check_onnx(out / TEXT_ONNX, tower, batch, ("text",), tolerance=self.tolerance)
        rows = class_bank(
            student, names, templates_of(self.language, self.templates), context=self.context
        )
        write_bank(out / BANK, names, rows, language=self.language)
        if isinstance(tower, BertTower):
            write_encoder(out / ENCODER, tower, student.assets[ASSET])

    def _names(self, texts: Any) -> list[str]:  # Any: RowData
        every, columns = text_column(texts, "text"), texts.columns
        chosen = (columns["language"] == self.place) & (columns["source"] == self.named)
        first: dict[int, str] = {}
        for row in chosen.nonzero().flatten().tolist():
            first.setdefault(int(columns["labels"][row]), every[row])
        if not first:
            raise BadData(f"export: no text in {self.language} names a class")
        return [first[label] for label in sorted(first)]


def padded(student: Built, texts: Sequence[str], context: int) -> Tensor:
    """Tokens of the texts by the student's tokenizer, [N, context]."""
    file = student.assets[ASSET]
    found = tokenized(file, texts, length=context, where="texts")["tokens"]
    pad = pad_id(read_tokenizer(file))
    return torch.nn.functional.pad(found, (0, context - found.shape[1]), value=pad)


def class_bank(
    student: Built, names: Sequence[str], templates: Sequence[str], *, context: int
) -> Tensor:
    """The bank's row of each class name, [C, D], by the student's own text tower: for new labels it
    is made again, and nothing is trained.
    """
    prompts = [template.replace("{}", name) for name in names for template in templates]
    flat = text_embeddings(student.module, padded(student, prompts, context), device="cpu")
    return zero_shot_rows(flat.unflatten(0, (len(names), len(templates))))


def write_bank(path: Path, names: Sequence[str], rows: Tensor, *, language: str) -> None:
    """Rows, and the classes they are of as metadata: JSON of the names, and their language."""
    from safetensors.torch import save

    about = {"classes": json.dumps(list(names), ensure_ascii=False), "language": language}
    raw = save({"rows": rows.contiguous()}, metadata=about)
    # the library writes metadata in any order: sorted, the same bank has the same bytes
    size = int.from_bytes(raw[:8], "little")
    header = json.dumps(json.loads(raw[8 : 8 + size]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + size :])


def write_encoder(folder: Path, tower: BertTower, tokenizer: Path) -> None:
    """The text encoder as transformers' BertModel: config.json, model.safetensors, tokenizer.json.
    What follows it, the mean over tokens and the linear map `head.weight`, `head.bias`, is in
    head.safetensors.
    """
    from safetensors.torch import save_file
    from transformers import BertConfig

    folder.mkdir()
    BertConfig(**tower.spec.bert()).save_pretrained(folder)
    state = {name: value.contiguous() for name, value in tower.bert.state_dict().items()}
    save_file(state, str(folder / "model.safetensors"), metadata={"format": "pt"})
    head = {name: value.contiguous() for name, value in tower.head.state_dict().items()}
    if head:
        save_file(head, str(folder / "head.safetensors"))
    shutil.copyfile(tokenizer, folder / "tokenizer.json")
