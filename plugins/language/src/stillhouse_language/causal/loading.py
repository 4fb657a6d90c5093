"""A causal language model from outside: a transformers folder, or a GGUF file."""

import contextlib
import io
import json
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stillhouse.artifact import Built, Model, save_model
from stillhouse.errors import BadData, MissingData, StillhouseError
from stillhouse.work import Work
from stillhouse_language.causal.model import (
    ATTENTION,
    DTYPES,
    CausalLM,
    Dtype,
    causal_lm,
    config_of,
)
from stillhouse_language.causal.tokens import ASSET, Tokenizer, check_tokenizer

GGUF, MAGIC = ".gguf", b"GGUF"
PROBE = torch.tensor([[1, 2, 3, 4]])
TOLERANCE = 1e-3  # of logits by head and by the model itself


@dataclass(frozen=True, kw_only=True)
class LoadCausalLM:
    """A `convert`: the port "weights", a folder of transformers or a GGUF file, as a model with its
    tokenizer. With a port "tokenizer", a folder, that is taken instead.

    GGUF weights are dequantized. The weights are held in `dtype`. No code that comes with a model
    is run. Raises BadData or MissingData, one line.
    """

    dtype: Dtype = "float32"

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        given = inputs["weights"]
        if isinstance(given, Built):  # a model that this plugin stored
            save_model(out, given)
            return
        network, tokenizer = load_network(Path(given), inputs.get("tokenizer"))
        config = config_of(network)
        module = CausalLM(network.to(DTYPES[self.dtype]))
        with tempfile.TemporaryDirectory() as folder:
            files = tokenizer_files(tokenizer, Path(folder))
            spec = Model(build=causal_lm, kwargs={"config": config, "dtype": self.dtype})
            save_model(out, Built(spec=spec, module=module, assets={ASSET: files}))


def load_network(path: Path, tokenizer: Path | None = None) -> tuple[Any, Tokenizer]:
    """A PreTrainedModel of transformers with its tokenizer; checked that its logits are those of
    its hidden states and head, which the losses compute.
    """
    folder, file = _places(path)
    options: dict[str, Any] = {"trust_remote_code": False}  # Any: of transformers
    if file is not None:
        options["gguf_file"] = file
    with _reading(path):
        network = _model(folder, options)
        found = _tokenizer(folder, options) if tokenizer is None else _tokenizer(tokenizer, {})
    read = Tokenizer(inner=found)
    check_tokenizer(read, network.config, where=str(path))
    _check_head(network.eval(), path)
    return network, read


def tokenizer_files(tokenizer: Tokenizer, folder: Path) -> Path:
    """The tokenizer's files in a new folder of `folder`."""
    target = folder / ASSET
    tokenizer.inner.save_pretrained(str(target))
    for file in target.iterdir():
        if file.suffix == ".json":
            file.write_text(_without_places(file.read_text()))
    return target


def _without_places(text: str) -> str:
    """A tokenizer_config.json that does not say where it was read from."""
    record: Any = json.loads(text)
    if isinstance(record, dict) and "name_or_path" in record:
        record["name_or_path"] = ""
        return json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    return text


def _places(path: Path) -> tuple[Path, str | None]:
    """The folder, and the GGUF file in it where that is what is given."""
    if path.is_file():
        with path.open("rb") as opened:
            magic = opened.read(4)
        if magic != MAGIC:
            raise BadData(
                f"{path}: no GGUF file (it begins with {magic!r}, not {MAGIC!r}); give a GGUF file "
                "or a transformers folder"
            )
        return path.parent, path.name
    if not path.is_dir():
        raise MissingData(f"{path}: not found; give a transformers folder or a GGUF file")
    if (path / "config.json").is_file():
        return path, None
    files = sorted(file.name for file in path.glob(f"*{GGUF}"))
    if len(files) != 1:
        found = f"{len(files)} GGUF files" if files else "no GGUF file"
        raise BadData(f"{path}: no config.json and {found}; give one model's folder or file")
    return _places(path / files[0])


def _model(folder: Path, options: Mapping[str, Any]) -> Any:  # Any: of transformers
    from transformers import AutoModelForCausalLM, GgufConfig

    more: dict[str, Any] = {}
    if "gguf_file" in options:
        # else the weights stay packed, and save_pretrained refuses them
        more["quantization_config"] = GgufConfig(dequantize=True)
    # its bars, and its messages on them
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        network = AutoModelForCausalLM.from_pretrained(
            str(folder), **options, **more, attn_implementation=ATTENTION, dtype=torch.float32
        )
    for name, parameter in network.named_parameters():
        if not parameter.is_floating_point():
            raise BadData(f"its weight '{name}' is packed ({parameter.dtype}), not dequantized")
    return network


def _tokenizer(folder: Path, options: Mapping[str, Any]) -> Any:  # Any: of transformers
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder), **options)


class _reading:  # noqa: N801  a context manager
    """What goes wrong in transformers' loaders, as one line about the path."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        from transformers.utils import logging

        logging.disable_progress_bar()  # pyright: ignore[reportPrivateImportUsage]

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if isinstance(error, Exception):
            text = str(error).splitlines()
            reason = " ".join((text[0] if text else type(error).__name__).split())[:240]
            if isinstance(error, StillhouseError):
                raise BadData(f"{self.path}: {error}") from error
            raise BadData(
                f"{self.path}: no causal language model can be read ({reason})"
            ) from error


def _check_head(network: Any, path: Path) -> None:  # Any: a PreTrainedModel
    tokens = PROBE % network.config.vocab_size
    with torch.no_grad():
        theirs = network(input_ids=tokens).logits
        ours = CausalLM(network)({"tokens": tokens})["logits"]
    gap = float((theirs - ours).abs().max() / theirs.abs().max().clamp_min(1e-6))
    if not gap <= TOLERANCE:
        raise BadData(
            f"{path}: the head of this {type(network).__name__} does more than a product, a scale "
            f"and a soft cap (logits differ by {gap:.1e} of the largest); it cannot be trained here"
        )
