"""Tokenizers as the JSON of `tokenizers`, and how one of many languages is made small.

A trimmed vocabulary keeps some tokens in their order, so that the rows of an embedding go with it:
`embedding[rows]`. Two ways of choosing them, for Unigram, BPE (of characters or of bytes) and
WordPiece:

by alphabet: what can be made of the texts' characters: of Latin letters those seen (what separates
its many languages apart), of any other script that is seen all, and what is no letter. A token that
holds another character matches no text in these, so that every such text keeps its tokens, seen or
not. by use: what the texts given are made of, what BPE merges on the way there, and single
characters of the alphabet, so that nothing becomes unknown. The texts keep their tokens; another
text may fall into smaller ones.
"""

import copy
import functools
import json
import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from jaxtyping import Int64
from torch import Tensor

from stillhouse.errors import BadData

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Json = dict[str, Any]  # Any: JSON values
Keep = Literal["whole", "alphabet", "used"]
METASPACE, CONTINUED = "\u2581", "##"
CONTINUING, LEADING = 0x80, 0xC0  # bytes of UTF-8 in between go on with a character
PADS = ("<pad>", "[PAD]")
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")


@dataclass(frozen=True, kw_only=True)
class Trimmed:
    """A tokenizer, and for each of its ids the one that the token had before."""

    tokenizer: Json
    rows: Int64[Tensor, " V"]


def read_tokenizer(path: Path) -> Json:
    """The JSON of a tokenizer.json, or of a folder that holds one; raises BadData."""
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        found: object = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadData(f"{file}: no tokenizer of `tokenizers` ({error})") from error
    if not isinstance(found, dict) or "model" not in found:
        raise BadData(f"{file}: no tokenizer of `tokenizers` (it has no 'model')")
    return cast("Json", found)


def write_tokenizer(path: Path, tokenizer: Json) -> Path:
    """Write the JSON as `path`; the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    return path


def opened(tokenizer: Json) -> "Tokenizer":
    """The tokenizer that the JSON describes; raises BadData."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(json.dumps(tokenizer))
    except Exception as error:  # the library raises plain Exceptions
        raise BadData(f"tokenizer: {error}") from error


def pad_id(tokenizer: Json) -> int:
    """The id of the padding token; raises BadData where there is none."""
    ids = _ids(tokenizer)
    for name in PADS:
        if name in ids:
            return ids[name]
    raise BadData(f"tokenizer: has no padding token (looked for {', '.join(PADS)})")


def size_of(tokenizer: Json) -> int:
    """How many rows an embedding of its ids has."""
    return max(_ids(tokenizer).values()) + 1


def unigram(
    pieces: Sequence[tuple[str, float]], special: Mapping[str, int], normalizers: Sequence[Json]
) -> Json:
    """A Unigram tokenizer as XLM-R's: words split at white space, each begun by U+2581; a text is
    <s> its tokens </s>. `special` are the ids of <s>, <pad>, </s> and <unk>.
    """
    start, _, end, unknown = (special[name] for name in SPECIAL)
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": number, "content": content, **plain, "special": True}
        for content, number in sorted(special.items(), key=lambda item: item[1])
    ]
    mark = {"type": "Metaspace", "replacement": METASPACE, "prepend_scheme": "always"}
    piece = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    last = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    whole = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": list(normalizers)},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "WhitespaceSplit"}, {**mark, "split": True}],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [piece, whole, last],
            "pair": [piece, whole, last, last, {"Sequence": {"id": "B", "type_id": 0}}, last],
            "special_tokens": {
                "<s>": {"id": "<s>", "ids": [start], "tokens": ["<s>"]},
                "</s>": {"id": "</s>", "ids": [end], "tokens": ["</s>"]},
            },
        },
        "decoder": {**mark, "split": True},
        "model": {
            "type": "Unigram",
            "unk_id": unknown,
            "vocab": [list(piece) for piece in pieces],
            "byte_fallback": False,
        },
    }


def counted_unigram(texts: Sequence[str], *, most: int = 4000, longest: int = 6) -> Json:
    """A small Unigram tokenizer of texts in any languages: their characters, and of the pieces of
    2 to `longest` characters and the whole words that come twice or more the `most` that fill most
    of the texts; a piece's score is the log of its share. The same on every machine.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        for word in unicodedata.normalize("NFKC", text).split():
            marked = METASPACE + word
            places = range(len(marked))
            spans = {
                (i, j) for i in places for j in range(i + 1, min(i + longest, len(marked)) + 1)
            }
            counts.update(marked[i:j] for i, j in spans | {(0, len(marked))})
    total = sum(counts.values())
    ranked = sorted(counts.items(), key=lambda item: (-item[1] * len(item[0]), item[0]))
    chosen = [item for item in ranked if len(item[0]) > 1 and item[1] > 1][:most]
    pieces = [(name, 0.0) for name in SPECIAL]
    pieces += [(piece, math.log(count * len(piece) / total)) for piece, count in chosen]
    pieces += [(piece, math.log(n / total) - 5) for piece, n in ranked if len(piece) == 1]
    return unigram(pieces, {name: i for i, name in enumerate(SPECIAL)}, [{"type": "NFKC"}])


def trimmed(tokenizer: Json, texts: Iterable[str], *, keep: Keep) -> Trimmed:
    """The tokenizer with fewer tokens: by the alphabet of the texts, or by use in them.

    Special and added tokens stay. Raises BadData for a kind of model that is not known.
    """
    model, every = tokenizer["model"], list(texts)
    ids = _ids(tokenizer)
    if keep == "whole":
        return Trimmed(tokenizer=tokenizer, rows=torch.arange(size_of(tokenizer)))
    kind = model["type"]
    if kind not in ("Unigram", "BPE", "WordPiece"):
        raise BadData(f"tokenizer: a vocabulary of {kind} is not trimmed; Unigram, BPE, WordPiece")
    alphabet = _Alphabet.of(tokenizer, every)
    chosen = _special(tokenizer)
    if keep == "alphabet":
        fits = _fits(tokenizer, alphabet)
        chosen |= {token for token in ids if fits(token)}
    else:
        chosen |= _used(tokenizer, every)
        chosen |= {token for token in ids if _single(token, alphabet, tokenizer)}
    if kind == "Unigram":
        # an unknown character costs ten more than the worst piece
        chosen.add(min(model["vocab"], key=lambda piece: piece[1])[0])
    if kind == "BPE":
        chosen |= _ancestors(tokenizer, chosen)
    return _rebuilt(tokenizer, chosen)


def _ids(tokenizer: Json) -> dict[str, int]:
    vocab = tokenizer["model"]["vocab"]
    if isinstance(vocab, dict):
        found = dict(cast("dict[str, int]", vocab))
    else:
        pieces = cast("list[tuple[str, float]]", vocab)
        found = {piece: number for number, (piece, _) in enumerate(pieces)}
    for added in tokenizer.get("added_tokens", []):
        found[added["content"]] = int(added["id"])
    return found


def _special(tokenizer: Json) -> set[str]:
    model = tokenizer["model"]
    found = {str(added["content"]) for added in tokenizer.get("added_tokens", [])}
    if isinstance(model.get("unk_token"), str):
        found.add(model["unk_token"])
    if model["type"] == "Unigram" and model.get("unk_id") is not None:
        found.add(str(model["vocab"][model["unk_id"]][0]))
    return found


def _byte_level(tokenizer: Json) -> bool:
    return '"ByteLevel"' in json.dumps(tokenizer.get("pre_tokenizer"))


def _normalized(tokenizer: Json, texts: Sequence[str]) -> Iterable[str]:
    normalizer = opened(tokenizer).normalizer
    return texts if normalizer is None else (normalizer.normalize_str(text) for text in texts)


@dataclass(frozen=True, kw_only=True)
class _Alphabet:
    """Characters that certain texts are written in: those seen, all of their scripts but Latin, and
    what is no letter.
    """

    seen: frozenset[str]
    scripts: frozenset[str]

    @classmethod
    def of(cls, tokenizer: Json, texts: Sequence[str]) -> "_Alphabet":
        seen = {chr(code) for code in range(32, 127)}
        for text in _normalized(tokenizer, texts):
            seen.update(text)
        scripts = frozenset(map(_script, seen)) - {"LATIN"}
        return cls(seen=frozenset(seen), scripts=scripts | {""})

    def holds(self, text: str) -> bool:
        """Whether all characters of a text are of it."""
        return all(_script(each) in self.scripts or each in self.seen for each in text)


@functools.cache
def _script(character: str) -> str:
    """The first word of a letter's or mark's name, "LATIN" or "CJK"; "" of any other character."""
    if unicodedata.category(character)[0] not in "LM":
        return ""
    return unicodedata.name(character, "?").partition(" ")[0]


def _bytes_of(token: str) -> bytes | None:
    """What a token of byte-level BPE stands for; None where it holds another character."""
    table = _byte_table()
    if any(character not in table for character in token):
        return None
    return bytes(table[character] for character in token)


@functools.cache
def _byte_table() -> dict[str, int]:
    """GPT-2's printable stand-ins of the 256 bytes, by character."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    stand = {chr(byte): byte for byte in plain}
    return stand | {chr(256 + place): byte for place, byte in enumerate(others)}


def _fits(tokenizer: Json, alphabet: _Alphabet) -> Callable[[str], bool]:
    """Whether a token can be a part of a text in the alphabet."""
    if not _byte_level(tokenizer):
        return lambda token: alphabet.holds(token.removeprefix(CONTINUED))
    return lambda token: (found := _whole_characters(token)) is not None and alphabet.holds(found)


def _whole_characters(token: str) -> str | None:
    """The characters of a token of bytes, without the parts of one at its ends; None for none."""
    found = _bytes_of(token)
    if found is None:
        return None
    begin = next((i for i, byte in enumerate(found) if not CONTINUING <= byte < LEADING), None)
    if begin is None:
        return ""
    for end in range(len(found), max(begin, len(found) - 4), -1):
        try:
            return found[begin:end].decode()
        except UnicodeDecodeError:
            continue
    return "" if len(found) - begin < 4 else None


def _single(token: str, alphabet: _Alphabet, tokenizer: Json) -> bool:
    """Whether a token is one character of the alphabet, or one byte."""
    if _byte_level(tokenizer):
        return len(token) == 1
    bare = token.removeprefix(CONTINUED) or token
    return len(bare) == 1 and alphabet.holds(bare)


def _used(tokenizer: Json, texts: Sequence[str]) -> set[str]:
    engine = opened(tokenizer)
    engine.no_padding()
    engine.no_truncation()
    found: set[str] = set()
    for start in range(0, len(texts), 4096):
        for encoded in engine.encode_batch(list(texts[start : start + 4096])):
            found.update(encoded.tokens)
    return found & _ids(tokenizer).keys()


def _merges(tokenizer: Json) -> list[tuple[str, str]]:
    """The merges of BPE in order; older files have each as one text."""
    pairs: list[tuple[str, str]] = []
    for merge in tokenizer["model"]["merges"]:
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        pairs.append((left, right))
    return pairs


def _merged(tokenizer: Json, left: str, right: str) -> str:
    prefix = tokenizer["model"].get("continuing_subword_prefix") or ""
    return left + right.removeprefix(prefix)


def _ancestors(tokenizer: Json, chosen: set[str]) -> set[str]:
    """What the chosen tokens of BPE are merged of, down to characters."""
    found = set(chosen)
    for left, right in reversed(_merges(tokenizer)):
        if _merged(tokenizer, left, right) in found:
            found |= {left, right}
    return found


def _rebuilt(tokenizer: Json, chosen: set[str]) -> Trimmed:
    ids = _ids(tokenizer)
    kept = sorted((number, token) for token, number in ids.items() if token in chosen)
    new = {token: place for place, (_, token) in enumerate(kept)}
    moved = {number: new[token] for number, token in kept}
    found = copy.deepcopy(tokenizer)
    model = found["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [piece for piece in model["vocab"] if piece[0] in chosen]
        listed = [piece[0] for piece in model["vocab"]]
        if listed != [token for _, token in kept[: len(listed)]]:
            raise BadData("tokenizer: its added tokens lie between its pieces; it is not trimmed")
        if model.get("unk_id") is not None:
            model["unk_id"] = moved[model["unk_id"]]
    else:
        model["vocab"] = {token: new[token] for token in model["vocab"] if token in chosen}
    if model["type"] == "BPE":
        model["merges"] = [
            [left, right]
            for left, right in _merges(tokenizer)
            if {left, right, _merged(tokenizer, left, right)} <= chosen
        ]
    for added in found.get("added_tokens", []):
        added["id"] = moved[added["id"]]
    _renumber(found.get("post_processor"), moved)
    if isinstance(found.get("padding"), dict):
        found["padding"]["pad_id"] = moved[found["padding"]["pad_id"]]
    return Trimmed(tokenizer=found, rows=torch.tensor([number for number, _ in kept]))


def _renumber(processor: Any, moved: Mapping[int, int]) -> None:  # Any: JSON values
    """New ids where a post-processor names special tokens by theirs."""
    match processor:
        case {"type": "Sequence", "processors": processors}:
            for each in processors:
                _renumber(each, moved)
        case {"special_tokens": special}:
            for entry in special.values():
                entry["ids"] = [moved[number] for number in entry["ids"]]
        case {"sep": _, "cls": _}:
            for name in ("sep", "cls"):
                processor[name][1] = moved[processor[name][1]]
        case _:
            pass
