"""Texts as tokens: a tokenizer of one's own, and those that came with a model.

A tokenizer is an asset of the model, "tokenizer": a file tokenizer.json, or a folder that
transformers opens.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stillhouse.errors import BadData

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ASSET = "tokenizer"
SPECIAL = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")


def trained_tokenizer(texts: Iterable[str], size: int) -> "Tokenizer":
    """A byte-pair tokenizer of at most `size` tokens, learned from the texts; in lower case, with
    [BOS] before a text and [EOS] behind it. It can write any text in any language. [PAD] is 0.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers.trainers import BpeTrainer

    made = Tokenizer(models.BPE(unk_token=SPECIAL[1]))
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(sorted(set(texts)), trainer)
    made.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]",
        special_tokens=[(name, made.token_to_id(name)) for name in SPECIAL[2:]],
    )
    return made


def tokenized(
    tokenizer: Path, texts: Sequence[str], *, length: int, truncate: bool = False, where: str = ""
) -> dict[str, Tensor]:
    """tokens and mask, int64 [N, L], L the longest text's, at most `length`.

    A longer text is refused by BadData, which names it, or cut where `truncate`. Raises BadData for
    a tokenizer that cannot be read.
    """
    rows, pad = (_of_folder if tokenizer.is_dir() else _of_file)(tokenizer, texts)
    for text, row in zip(texts, rows, strict=True):
        if len(row) > length and not truncate:
            short = text if len(text) <= 60 else f"{text[:57]}..."
            raise BadData(
                f"{where or 'text'}: '{short}' has {len(row)} tokens, more than the {length} of "
                "the text tower; shorten it, or set truncate=true"
            )
    # the last token, which ends a text, stays
    cut = [row if len(row) <= length else [*row[: length - 1], row[-1]] for row in rows]
    most = max((len(row) for row in cut), default=0)
    tokens = torch.full((len(cut), most), pad)
    mask = torch.zeros(len(cut), most, dtype=torch.int64)
    for number, row in enumerate(cut):
        tokens[number, : len(row)] = torch.tensor(row)
        mask[number, : len(row)] = 1
    return {"tokens": tokens, "mask": mask}


def _of_file(file: Path, texts: Sequence[str]) -> tuple[list[list[int]], int]:
    """Tokens of each text, and that of padding."""
    from tokenizers import Tokenizer

    try:
        opened = Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust library raises Exception itself
        raise BadData(f"{file}: not a tokenizer.json ({str(error).splitlines()[0]})") from error
    opened.no_padding()
    opened.no_truncation()
    pad = next((i for i in map(opened.token_to_id, ("[PAD]", "<pad>")) if i is not None), 0)
    return [encoded.ids for encoded in opened.encode_batch(list(texts))], pad


def _of_folder(folder: Path, texts: Sequence[str]) -> tuple[list[list[int]], int]:
    from transformers import AutoTokenizer

    try:
        opened: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise BadData(f"{folder}: no tokenizer that transformers opens ({reason})") from error
    return [opened(text, truncation=False)["input_ids"] for text in texts], int(
        opened.pad_token_id or 0
    )
