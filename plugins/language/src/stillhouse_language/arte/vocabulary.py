"""A tokenizer of whole words, single digits and signs, made of the texts that it must know."""

from collections.abc import Iterable
from typing import Any

from stillhouse_language.causal.tokens import Tokenizer

END, UNKNOWN, PAD = "<end>", "<unknown>", "<pad>"
# a tag, a word with the space before it, a digit or a sign with a space or without
PIECE = r"</?[A-Za-z_]+\d*>| ?[A-Za-z']+| ?\d| ?[^\sA-Za-z\d]|\s"


def word_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """The tokenizer of all pieces of `texts`, and of any digit and sign of arithmetic, alone and
    behind a space; what it has not seen is "<unknown>". A text of known pieces comes back as it
    was.
    """
    from tokenizers import Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Inner
    from transformers import PreTrainedTokenizerFast

    split: Any = pre_tokenizers.Split(Regex(PIECE), behavior="isolated")
    signs = [space + sign for space in ("", " ") for sign in "0123456789+-*=?.,:()"]
    known = dict.fromkeys([END, UNKNOWN, PAD, "\n", " ", *signs])
    for text in texts:
        known |= dict.fromkeys(piece for piece, _ in split.pre_tokenize_str(text))
    vocabulary = {piece: place for place, piece in enumerate(known)}
    inner: Any = Inner(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    inner.pre_tokenizer, inner.decoder = split, decoders.Fuse()
    wrapped: Any = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token=END, unk_token=UNKNOWN, pad_token=PAD
    )
    return Tokenizer(inner=wrapped)
