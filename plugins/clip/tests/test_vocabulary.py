import json
import math
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.errors import BadData
from stillhouse_clip.vocabulary import (
    Trimmed,
    opened,
    read_tokenizer,
    size_of,
    trimmed,
    unigram,
    write_tokenizer,
)

Json = dict[str, Any]
ENGLISH = ["a dog runs over the green grass", "two children play ball", "a dog on the grass"]
CHINESE = ["一只狗在草地上跑", "两个孩子在玩球", "草地上的狗"]
OTHERS = ["собака бежит по траве", "कुत्ता घास पर", "γάτα στην αυλή", "de hond rënt över gräs"]
# none of these words is in a text above; their letters and scripts are
HELD_OUT = [
    "the grand old opera house",
    "ball games",
    "猫坐在沙发上",
    "草原",
    "玩具 and games 123!",
]
SPECIAL = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}


def of_unigram() -> Json:
    """Characters, and every piece of two or three of them, as XLM-R's Unigram."""
    counts: dict[str, int] = {}
    for text in [*ENGLISH, *CHINESE, *OTHERS, *HELD_OUT]:
        for word in text.split():
            marked = f"\u2581{word}"
            for n in (1, 2, 3, 5):
                for i in range(len(marked) - n + 1):
                    piece = marked[i : i + n]
                    counts[piece] = counts.get(piece, 0) + 1
    total = sum(counts.values())
    pieces = [(name, 0.0) for name in SPECIAL]
    pieces += [(piece, math.log(n * len(piece) / total)) for piece, n in counts.items()]
    return unigram(pieces, SPECIAL, [{"type": "NFKC"}])


def of_bytes() -> Json:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from tokenizers.trainers import BpeTrainer

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=700, special_tokens=["[PAD]", "[BOS]"], initial_alphabet=alphabet
    )
    made.train_from_iterator(2 * [*ENGLISH, *CHINESE, *OTHERS, *HELD_OUT], trainer)
    made.post_processor = processors.TemplateProcessing(
        single="[BOS] $A", special_tokens=[("[BOS]", 1)]
    )
    return json.loads(made.to_str())


def of_characters() -> Json:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.trainers import BpeTrainer

    made = Tokenizer(models.BPE(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = BpeTrainer(vocab_size=500, special_tokens=["[PAD]", "[UNK]"])
    made.train_from_iterator(2 * [*ENGLISH, *CHINESE, *OTHERS, *HELD_OUT], trainer)
    return json.loads(made.to_str())


def of_words() -> Json:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from tokenizers.trainers import WordPieceTrainer

    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = WordPieceTrainer(vocab_size=500, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    made.train_from_iterator(2 * [*ENGLISH, *CHINESE, *OTHERS, *HELD_OUT], trainer)
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return json.loads(made.to_str())


KINDS = pytest.mark.parametrize("made", [of_unigram, of_bytes, of_characters, of_words])


def tokens(tokenizer: Json, text: str) -> list[int]:
    return opened(tokenizer).encode(text).ids


def as_before(found: Trimmed, text: str) -> list[int]:
    return found.rows[torch.tensor(tokens(found.tokenizer, text))].tolist()


@KINDS
def test_trimmed_by_alphabet_no_text_in_it_changes_its_tokens(made: Callable[[], Json]) -> None:
    whole = made()
    found = trimmed(whole, [*ENGLISH, *CHINESE], keep="alphabet")
    assert len(found.rows) == size_of(found.tokenizer)
    assert len(found.rows) < 0.9 * size_of(whole)
    for text in [*ENGLISH, *CHINESE, *HELD_OUT]:
        assert as_before(found, text) == tokens(whole, text), text


@KINDS
def test_trimmed_by_use_the_texts_keep_their_tokens(made: Callable[[], Json]) -> None:
    whole = made()
    found = trimmed(whole, [*ENGLISH, *CHINESE], keep="used")
    less = trimmed(whole, [*ENGLISH, *CHINESE], keep="alphabet")
    assert len(found.rows) < len(less.rows)
    for text in [*ENGLISH, *CHINESE]:
        assert as_before(found, text) == tokens(whole, text), text
    changed = [text for text in HELD_OUT if as_before(found, text) != tokens(whole, text)]
    assert changed  # that is the price; none of it becomes unknown:
    for text in HELD_OUT:
        was, now = opened(whole).encode(text), opened(found.tokenizer).encode(text)
        unknown = {"<unk>", "[UNK]"}
        assert unknown.isdisjoint(now.tokens)
        if made is of_unigram:
            joined = "".join(now.tokens[1:-1]).replace("\u2581", " ")
            assert joined == "".join(was.tokens[1:-1]).replace("\u2581", " ")


@KINDS
def test_the_embedding_goes_with_the_vocabulary(made: Callable[[], Json]) -> None:
    whole = made()
    found = trimmed(whole, CHINESE, keep="alphabet")
    table = torch.randn(size_of(whole), 4)
    for text in CHINESE:
        before = table[torch.tensor(tokens(whole, text))]
        after = table[found.rows][torch.tensor(tokens(found.tokenizer, text))]
        assert torch.equal(before, after)


def test_what_is_of_another_script_is_gone_and_comes_out_as_unknown() -> None:
    found = trimmed(of_unigram(), [*ENGLISH, *CHINESE], keep="alphabet")
    vocab = {piece for piece, _ in found.tokenizer["model"]["vocab"]}
    scripts = {unicodedata.name(c, "").partition(" ")[0] for piece in vocab for c in piece}
    assert not scripts & {"CYRILLIC", "GREEK", "DEVANAGARI"}
    unknown = found.tokenizer["model"]["unk_id"]
    assert unknown in tokens(found.tokenizer, "собака")
    assert found.rows[unknown] == 3


def test_the_whole_vocabulary_is_left_as_it_is() -> None:
    whole = of_unigram()
    found = trimmed(whole, ENGLISH, keep="whole")
    assert found.tokenizer is whole
    assert torch.equal(found.rows, torch.arange(size_of(whole)))


def test_a_tokenizer_is_written_and_read_and_another_file_is_named(tmp_path: Path) -> None:
    whole = of_unigram()
    assert read_tokenizer(write_tokenizer(tmp_path / "tokenizer.json", whole)) == whole
    assert read_tokenizer(tmp_path) == whole
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(BadData, match="other.json: no tokenizer"):
        read_tokenizer(tmp_path / "other.json")
    with pytest.raises(BadData, match="a vocabulary of WordLevel is not trimmed"):
        trimmed({"model": {"type": "WordLevel", "vocab": {"a": 0}}}, ["a"], keep="used")
