"""What a network reads of a function: its tokens, or those around its key statements where it is
longer than the network's length.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stillhouse.digest import text_digest
from stillhouse.errors import BadSetting
from stillhouse_contracts.tokens import IDS, encode, normalise

# calls, time, loops and arithmetic, as the line of ReChecker names them, and whoever sent
KEYS = (
    *("call", "callcode", "delegatecall", "staticcall", "send", "transfer"),
    *("selfdestruct", "suicide", "timestamp", "now", "number", "blockhash", "origin"),
    *("for", "while", "do", "unchecked", "assembly"),
    *("+", "-", "*", "**", "++", "--", "+=", "-=", "*="),
)
IS_KEY = np.isin(np.arange(len(IDS)), [IDS[key] for key in KEYS])
SHARE_OF_HEAD = 4  # a quarter of the length is the function's head, at most
HEAD = 16  # tokens


def excerpt(ids: Sequence[int], length: int) -> list[int]:
    """At most `length` of a function's tokens, in their order: its head (signature, modifiers),
    then those nearest to a key statement, the earlier of two as near; the first ones where it has
    none. Inferred: the paper says fragments, the line it follows slices around such statements.
    """
    if len(ids) <= length:
        return list(ids)
    whole = np.array(ids)
    keys = IS_KEY[whole].nonzero()[0]
    if len(keys) == 0:
        return list(ids[:length])
    places = np.arange(len(ids))
    # up to the middle between two key statements the earlier one is the nearest
    nearest = keys[np.searchsorted((keys[1:] + keys[:-1]) // 2, places)]
    far = np.abs(places - nearest)
    far[: min(HEAD, length // SHARE_OF_HEAD)] = -1
    kept = np.sort(np.argsort(far, kind="stable")[:length])
    return whole[kept].tolist()


def rows_of_tokens(codes: Sequence[str], length: int) -> NDArray[np.int64]:
    """A row of tokens a function, [N, length], zeros behind its end. Raises BadSetting."""
    if length < 1:
        raise BadSetting(f"length: a network reads a token at least (got {length})")
    known: dict[str, list[int]] = {}  # contracts repeat what they copied from one another
    for code in codes:
        if code not in known:
            known[code] = excerpt(encode(code), length)
    texts = [known[code] for code in codes]
    rows = np.zeros((len(texts), length), dtype=np.int64)
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    inside = np.arange(length) < lengths[:, None]
    rows[inside] = np.fromiter(itertools.chain.from_iterable(texts), np.int64, int(lengths.sum()))
    return rows


def distinct(rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The distinct rows of [N, L], in the order of their first places, [M, L]; and for each of the
    N its place among them, int64 [N]: a network need not read a copy again.
    """
    known: dict[bytes, int] = {}
    places = [known.setdefault(row.tobytes(), len(known)) for row in rows]
    inverse = np.array(places, dtype=np.int64)
    first = np.zeros(len(known), dtype=np.int64)
    first[inverse[::-1]] = np.arange(len(rows))[::-1]
    return rows[first], inverse


def group_of(text: str) -> str:
    """The digest of a function's normalised tokens: functions of one group are the same but for
    names, numbers, comments and layout.
    """
    return text_digest(normalise(text))
