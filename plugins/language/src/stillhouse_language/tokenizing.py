"""Tokenizers as assets of a model, and texts as rows of tokens.

N: texts, S: tokens of a row.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stillhouse.data.notes import note
from stillhouse.errors import BadData, BadSetting, MissingData

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ASSET = "tokenizer"  # the name of the asset: a folder with tokenizer.json
FILE = "tokenizer.json"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# vocabularies are padded to a multiple of this at most; a larger gap is another tokenizer
PADDED = 128


def open_tokenizer(folder: Path) -> "Tokenizer":
    """The tokenizer of a folder or file; it neither cuts nor pads. Raises MissingData, BadData."""
    from tokenizers import Tokenizer

    file = folder / FILE if folder.is_dir() else folder
    if not file.is_file():
        raise MissingData(f"{folder}: no {FILE}; save the tokenizer there (save_pretrained)")
    try:
        found = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises Exception itself
        reason = str(error).splitlines()[0]
        raise BadData(f"{file}: no tokenizer ({reason})") from error
    found.no_padding()
    found.no_truncation()
    return found


def model_tokenizer(assets: Mapping[str, Path], where: str) -> "Tokenizer":
    """That of a model's assets; raises MissingData for a model without one."""
    if ASSET not in assets:
        raise MissingData(f"{where}: a model without a tokenizer; give one that has {FILE}")
    return open_tokenizer(assets[ASSET])


def check_tokenizer(tokenizer: "Tokenizer", vocabulary: int, *, where: str) -> None:
    """Raises BadData for a tokenizer that is not the model's: more tokens than the model embeds, or
    so many fewer that no padding of the vocabulary explains it.
    """
    count = tokenizer.get_vocab_size(with_added_tokens=True)
    if not vocabulary - PADDED < count <= vocabulary:
        raise BadData(
            f"{where}: its tokenizer has {count:,} tokens and its embeddings {vocabulary:,}; give "
            "the tokenizer that the model was trained with"
        )


def special(tokenizer: "Tokenizer", *names: str) -> int:
    """The id of the first of these tokens that there is; raises BadData where there is none."""
    for name in names:
        found = tokenizer.token_to_id(name)
        if found is not None:
            return found
    raise BadData(f"tokenizer: has no token {' or '.join(names)}")


def padding_of(tokenizer: "Tokenizer") -> int:
    return special(tokenizer, "[PAD]", "<pad>")


def encoded(
    tokenizer: "Tokenizer", texts: Sequence[str] | Sequence[tuple[str, str]], *, length: int
) -> dict[str, Tensor]:
    """Texts or pairs of texts as columns "tokens" and "mask", int64 [N, length], with the
    tokenizer's own special tokens; longer ones are cut at the end (the longer of a pair first), and
    a note says how many.
    """
    tokenizer.no_truncation()
    whole = sum(len(each.ids) > length for each in tokenizer.encode_batch(list(texts)))
    if whole:
        note(f"{whole:,} of {len(texts):,} texts are longer than {length} tokens and are cut")
    tokenizer.enable_truncation(length)
    rows = [each.ids for each in tokenizer.encode_batch(list(texts))]
    tokenizer.no_truncation()
    return padded(rows, length=length, padding=padding_of(tokenizer))


def padded(rows: Iterable[Sequence[int]], *, length: int, padding: int) -> dict[str, Tensor]:
    """Rows of ids as "tokens" and "mask", [N, length], padding behind."""
    listed = list(rows)
    tokens = torch.full((len(listed), length), padding)
    mask = torch.zeros(len(listed), length, dtype=torch.int64)
    for number, ids in enumerate(listed):
        tokens[number, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
        mask[number, : len(ids)] = 1
    return {"tokens": tokens, "mask": mask}


def pieces(tokenizer: "Tokenizer", texts: Iterable[str], *, length: int) -> list[list[int]]:
    """Running text in pieces of at most `length` tokens, the special ones at their ends included:
    each text by itself, its last piece shorter. Raises BadSetting for a length under 4.
    """
    tokenizer.no_truncation()
    empty = tokenizer.encode("")
    marks: list[int] = empty.ids
    if length < len(marks) + 2:
        raise BadSetting(f"length must be >= {len(marks) + 2} (got {length})")
    # what stands in front of a text and behind it: [CLS] and [SEP]
    head, tail = marks[: len(marks) - len(marks) // 2], marks[len(marks) - len(marks) // 2 :]
    room, found = length - len(marks), list[list[int]]()
    for each in tokenizer.encode_batch(list(texts), add_special_tokens=False):
        ids: list[int] = each.ids
        for first in range(0, len(ids), room):
            found.append([*head, *ids[first : first + room], *tail])
    return found


def new_tokenizer(texts: Iterable[str], *, size: int) -> "Tokenizer":
    """A WordPiece tokenizer of lower-case text and at most `size` tokens: the special ones, all
    characters, and the most frequent words whole. Equal counts go by the alphabet: the same texts
    give the same tokenizer. Raises BadSetting where the characters alone are more.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    normal, split = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word, _ in split.pre_tokenize_str(normal.normalize_str(text)))
    characters = sorted({c for word in counts for c in word})
    listed = dict.fromkeys([*SPECIAL, *characters, *(f"##{c}" for c in characters)])
    if len(listed) > size:
        raise BadSetting(f"a vocabulary of {size}: the text has {len(listed)} characters alone")
    words = sorted(counts, key=lambda word: (-counts[word], word))
    listed |= dict.fromkeys([word for word in words if word not in listed][: size - len(listed)])
    ids = {token: number for number, token in enumerate(listed)}
    model: Any = models.WordPiece(vocab=ids, unk_token="[UNK]")  # Any: no complete types
    tokenizer = Tokenizer(model)
    tokenizer.normalizer, tokenizer.pre_tokenizer = normal, split
    ends = [(name, ids[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=ends
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer
