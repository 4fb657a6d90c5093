"""BERT-like encoders of other people, by a folder of transformers, and fresh ones."""

import json
import tempfile
import zipfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stillhouse.artifact import Built, Model, save_model
from stillhouse.errors import BadData, MissingData
from stillhouse.training import mix
from stillhouse.work import Work
from stillhouse_language.architecture import Architecture
from stillhouse_language.encoder import Encoder
from stillhouse_language.readers import read_texts
from stillhouse_language.tokenizing import (
    ASSET,
    FILE,
    check_tokenizer,
    model_tokenizer,
    new_tokenizer,
    open_tokenizer,
    padded,
    padding_of,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG = "config.json"
PROBE = ("a small probe of the encoder", "its outputs must be those that transformers gives")
POSITIONS = "embeddings.position_embeddings.weight"
CLOSE = 1e-4  # of outputs that are normalized: about 1 each
GEOMETRY = ("layers", "width", "inner", "heads", "head_width", "vocabulary", "positions", "types")


@dataclass(frozen=True, kw_only=True)
class NewEncoder:
    """A `convert`: an encoder of fresh weights, with a tokenizer made of the texts of the port
    "source" (`new_tokenizer` of `architecture.vocabulary` tokens).
    """

    architecture: Architecture
    dropout: float = 0.1

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        tokenizer = new_tokenizer(texts_of(inputs["source"]), size=self.architecture.vocabulary)
        kwargs = {"architecture": self.architecture.record(), "dropout": self.dropout}
        spec = Model(build=Encoder, kwargs=kwargs)
        with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(mix(work.seed))
            tokenizer.save(str(Path(folder) / FILE))
            save_model(out, Built(spec=spec, module=spec.new(), assets={ASSET: Path(folder)}))


def texts_of(source: Any, *, column: str = "text") -> list[str]:  # Any: a Path, or arrays by name
    """The texts of a file, a folder or a built-in set; raises BadData, MissingData."""
    if isinstance(source, Path):
        return list(read_texts(source, column=column))
    if column not in source:
        raise BadData(f"built-in data without '{column}' (they have {', '.join(source)})")
    return [str(text) for text in source[column]]


@dataclass(frozen=True, kw_only=True)
class LoadEncoder:
    """A `convert`: the encoder of the port "checkpoint", a folder that transformers opens (or a zip
    of one, or a Stillhouse model), as an `Encoder` of the `expected` architecture.

    Any encoder with BERT's layers and names will do (BERT, RoBERTa, ELECTRA, XLM-R, CamemBERT ...):
    what it computes is compared with what transformers computes, and refused where it differs. The
    port "tokenizer", if there is one, gives the tokenizer that the folder lacks. Raises BadData for
    another architecture, activation or tokenizer.
    """

    expected: Architecture
    dropout: float = 0.1

    def __call__(self, inputs: Mapping[str, Any], out: Path, *, work: Work) -> None:
        source = inputs["checkpoint"]
        if isinstance(source, Built):
            self._own(source, out)
            return
        with unpacked(source) as folder, tempfile.TemporaryDirectory() as place:
            tokenizer = Path(place) / ASSET
            save_tokenizer(inputs.get("tokenizer", folder), tokenizer)
            model = opened(folder)
            check_tokenizer(open_tokenizer(tokenizer), model.config.vocab_size, where=str(source))
            self._check(geometry(model), str(source))
            spec, module = self._read(model, tokenizer, str(source))
            save_model(out, Built(spec=spec, module=module, assets={ASSET: tokenizer}))

    def _own(self, source: Built, out: Path) -> None:
        if not isinstance(source.module, Encoder):
            raise BadData(f"teacher: a {type(source.module).__name__} is no Encoder")
        a = source.module.architecture
        self._check({name: getattr(a, name) for name in GEOMETRY}, "teacher")
        check_tokenizer(model_tokenizer(source.assets, "teacher"), a.vocabulary, where="teacher")
        save_model(out, source)

    def _check(self, found: Mapping[str, int], where: str) -> None:
        """Raises BadData where the settings' architecture is another one."""
        wrong = {name: n for name, n in found.items() if n != getattr(self.expected, name)}
        if wrong:
            expected = ", ".join(f"{name} {getattr(self.expected, name)}" for name in wrong)
            names = ", ".join(f"{name}: {value}" for name, value in found.items())
            raise BadData(
                f"{where}: an encoder of another architecture than the settings' ({expected}); "
                f'say --set "architecture={{{names}}}"'
            )

    def _read(self, model: "PreTrainedModel", tokenizer: Path, where: str) -> tuple[Model, Encoder]:
        """The weights in an Encoder that computes what transformers does."""
        config: Any = model.config  # Any: of any model type
        kwargs = {
            "architecture": self.expected.record(),
            "epsilon": config.layer_norm_eps,
            "dropout": self.dropout,
        }
        spec = Model(build=Encoder, kwargs=kwargs)
        module = spec.new()
        assert isinstance(module, Encoder)
        state = {**model.state_dict()}
        if (first := first_position(model)) and POSITIONS in state:
            state[POSITIONS] = state[POSITIONS][first:]
        _load_tensors(module, state, where)
        if not (gap := difference(module, model, tokenizer)) < CLOSE:
            raise BadData(
                f"{where}: a {type(model).__name__} computes otherwise than BERT's layers do (its "
                f"last hidden states differ by {gap:.1e}); BERT, RoBERTa, ELECTRA and their kin "
                "are read"
            )
        return spec, module


def first_position(model: "PreTrainedModel") -> int:
    """The row of the position table that the first token has: 0 of BERT's, behind the padding's in
    RoBERTa's.
    """
    table: Any = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    padding: int | None = getattr(table, "padding_idx", None)  # Any: an nn.Embedding
    return 0 if padding is None else padding + 1


def _load_tensors(module: Encoder, state: Mapping[str, torch.Tensor], where: str) -> None:
    """The tensors that the module has; raises BadData where one is missing."""
    wanted = module.state_dict()
    for name, value in wanted.items():
        if name not in state or state[name].shape != value.shape:
            found = list(state[name].shape) if name in state else "missing"
            raise BadData(
                f"{where}: no encoder with BERT's layers: '{name}' is {found}, {list(value.shape)} "
                "are needed"
            )
    module.load_state_dict({name: state[name].float() for name in wanted})


def difference(module: Encoder, model: "PreTrainedModel", tokenizer: Path) -> float:
    """The largest difference of the last hidden states of real tokens, on two short texts."""
    words, length = open_tokenizer(tokenizer), min(24, module.architecture.positions)
    rows = [words.encode(text).ids[:length] for text in PROBE]
    batch = padded(rows, length=max(map(len, rows)), padding=padding_of(words))
    ours, theirs = module.eval(), model.eval()
    with torch.no_grad():
        found = ours(batch)["hidden"]
        other = theirs(input_ids=batch["tokens"], attention_mask=batch["mask"]).last_hidden_state
    return float((found - other)[batch["mask"].bool()].abs().max())


def geometry(model: "PreTrainedModel") -> dict[str, int]:
    """The architecture that a model of transformers has; `positions` are those that a text may
    have. Raises BadData for an activation or positions that `Encoder` has not.
    """
    config: Any = model.config  # Any: of any model type
    act = getattr(config, "hidden_act", "")
    if act != "gelu":
        raise BadData(f"teacher: hidden_act is '{act}'; encoders with exact 'gelu' are read")
    kind = getattr(config, "position_embedding_type", None) or "absolute"
    if kind != "absolute":
        raise BadData(f"teacher: positions are '{kind}'; encoders with absolute ones are read")
    try:
        width, heads = config.hidden_size, config.num_attention_heads
        return {
            "layers": config.num_hidden_layers,
            "width": width,
            "inner": config.intermediate_size,
            "heads": heads,
            "head_width": width // heads,
            "vocabulary": config.vocab_size,
            "positions": config.max_position_embeddings - first_position(model),
            "types": config.type_vocab_size,
        }
    except AttributeError as error:
        raise BadData(
            f"teacher: '{config.model_type}' is no BERT-like encoder ({error})"
        ) from error


def opened(folder: Path) -> "PreTrainedModel":
    """The encoder of a folder by transformers, on the CPU in float32; no code of the folder runs.
    Raises MissingData, BadData.
    """
    import transformers

    if not (folder / CONFIG).is_file():
        raise MissingData(f"{folder}: no {CONFIG}; give a folder that transformers opens")
    bar = transformers.utils.logging
    shown = bar.is_progress_bar_enabled()
    bar.disable_progress_bar()
    try:
        return transformers.AutoModel.from_pretrained(
            str(folder), local_files_only=True, dtype=torch.float32
        )
    except Exception as error:  # whatever a folder of anyone's makes transformers raise
        reason = " ".join(str(error).split())[:200]
        raise BadData(f"{folder}: transformers cannot open it ({reason})") from error
    finally:
        if shown:
            bar.enable_progress_bar()


def save_tokenizer(source: Path, target: Path) -> None:
    """tokenizer.json, and what a transformers folder says beside it, in the new folder `target`;
    one that has other files alone is read by transformers. Raises MissingData, BadData.
    """
    target.mkdir(parents=True)
    folder = source if source.is_dir() else source.parent
    names = (FILE, "tokenizer_config.json", "special_tokens_map.json")
    if (folder / FILE).is_file():
        for name in names:
            if (folder / name).is_file():
                (target / name).write_bytes((folder / name).read_bytes())
    else:
        _converted(folder, target)
    open_tokenizer(target)


def _converted(folder: Path, target: Path) -> None:
    import transformers

    try:
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(  # Any: no complete types
            str(folder), local_files_only=True
        )
        tokenizer.save_pretrained(str(target))
    except Exception as error:  # as of a model
        reason = " ".join(str(error).split())[:200]
        raise MissingData(f"{folder}: no {FILE}, and no tokenizer beside it ({reason})") from error
    for file in target.iterdir():
        if file.suffix not in (".json", ".txt", ".jinja", ".model"):
            file.unlink()


@contextmanager
def unpacked(source: Path) -> Generator[Path]:
    """The folder itself; of a zip, a folder with its files while the block runs; or BadData."""
    if source.is_dir():
        yield source
        return
    if not zipfile.is_zipfile(source):
        raise BadData(f"{source}: neither a folder nor a zip of one")
    with tempfile.TemporaryDirectory() as place, zipfile.ZipFile(source) as archive:
        # by name into one folder: a path in the archive leads nowhere
        inside = [i for i in archive.infolist() if not i.is_dir()]
        roots = [i.filename.rpartition("/")[0] for i in inside if i.filename.endswith(CONFIG)]
        root = min(roots, key=len, default="")
        for info in inside:
            if info.filename.rpartition("/")[0] == root:
                name = Path(info.filename).name
                with archive.open(info) as file, (Path(place) / name).open("wb") as copy:
                    while block := file.read(1 << 20):
                        copy.write(block)
        yield Path(place)


def tokenizer_config(folder: Path) -> dict[str, Any]:  # Any: JSON values
    """tokenizer_config.json of an asset, or what stands for it where there is none."""
    file = folder / "tokenizer_config.json"
    if file.is_file():
        return json.loads(file.read_text())
    tokenizer = open_tokenizer(folder)
    marks = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    known = {f"{k}_token": v for k, v in marks.items() if tokenizer.token_to_id(v) is not None}
    return {"tokenizer_class": "PreTrainedTokenizerFast", **known}
