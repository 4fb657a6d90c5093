"""What makes an exported folder one that transformers opens: config, tokenizer, code."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.artifact import Built
from stillhouse.errors import ContractError
from stillhouse.export import Export
from stillhouse.work import Work
from stillhouse_language.classifier import Classifier
from stillhouse_language.encoders import CONFIG, tokenizer_config
from stillhouse_language.tokenizing import ASSET, FILE, open_tokenizer, padding_of

CODE = "modeling_sliced_bert.py"
CONFIG_CLASS, MODEL, CLASSES = (
    "SlicedBertConfig", "SlicedBertModel", "SlicedBertForSequenceClassification",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ExportClassifier:
    """A `convert`: what `export` writes of a `Classifier`, and beside it a transformers folder of
    the same weights: config.json, the tokenizer's files, and the code of the network where BERT's
    own is another.

    `AutoModel.from_pretrained(folder)` opens the encoder without Stillhouse where heads times their
    width are the width; where they are not, as in most subnets, it needs
    trust_remote_code=True and reads the file of code in the folder, which needs transformers alone.
    """

    export: Export

    @property
    def role(self) -> str:
        return self.export.role

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        built: Built = inputs[self.role]
        if not isinstance(built.module, Classifier):
            raise ContractError(f"export: a Classifier is needed (got {type(built.module)})")
        self.export(inputs, out, work=work)
        write_folder(built, built.module, out)


def write_folder(built: Built, module: Classifier, out: Path) -> None:
    """Add to a folder with model.safetensors what transformers needs to open it."""
    tokenizer = built.assets[ASSET]
    config = config_of(module, padding=padding_of(open_tokenizer(tokenizer)))
    (out / CONFIG).write_text(_json(config))
    (out / FILE).write_bytes((tokenizer / FILE).read_bytes())
    (out / "tokenizer_config.json").write_text(
        _json(
            {**tokenizer_config(tokenizer), "model_max_length": config["max_position_embeddings"]}
        )
    )
    if "auto_map" in config:
        source = Path(__file__).with_name(CODE)
        (out / CODE).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")


def native(module: Classifier) -> bool:
    """Whether BERT of transformers itself is the encoder."""
    a = module.bert.architecture
    return a.attention == a.width


def config_of(module: Classifier, *, padding: int) -> dict[str, Any]:  # Any: JSON values
    """config.json of a classifier."""
    a, names = module.bert.architecture, module.names
    own = {"AutoModelForSequenceClassification": CLASSES}
    whole = native(module) and module.pool == "first"  # BertForSequenceClassification itself
    config: dict[str, Any] = {
        "model_type": "bert" if native(module) else "sliced_bert",
        "architectures": ["BertForSequenceClassification" if whole else CLASSES],
        "vocab_size": a.vocabulary,
        "hidden_size": a.width,
        "num_hidden_layers": a.layers,
        "num_attention_heads": a.heads,
        "intermediate_size": a.inner,
        "hidden_act": "gelu",
        "hidden_dropout_prob": module.bert.dropout,
        "attention_probs_dropout_prob": module.bert.dropout,
        "max_position_embeddings": a.positions,
        "type_vocab_size": a.types,
        "layer_norm_eps": module.bert.embeddings.LayerNorm.eps,
        "pad_token_id": padding,
        "head_width": a.head_width,
        "pool": module.pool,
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
        "dtype": "float32",
    }
    if not native(module):
        own |= {"AutoConfig": CONFIG_CLASS, "AutoModel": MODEL}
    if not whole:
        stem = CODE.removesuffix(".py")
        config["auto_map"] = {auto: f"{stem}.{name}" for auto, name in sorted(own.items())}
    return config


def _json(value: Any) -> str:  # Any: JSON values
    return json.dumps(value, indent=1, sort_keys=True) + "\n"
