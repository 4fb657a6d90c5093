"""What a network reads of a function: its tokens, or those around its key statements where it is
longer than the network's length.
"""

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
KEY_IDS = frozenset(IDS[key] for key in KEYS)
SHARE_OF_HEAD = 4  # a quarter of the length is the function's head, at most
HEAD = 16  # tokens


def excerpt(ids: Sequence[int], length: int) -> list[int]:
    """At most `length` of a function's tokens, in their order: its head (signature, modifiers),
    then those nearest to a key statement, the earlier of two as near; the first ones where it has
    none. Inferred: the paper says fragments, the line it follows slices around such statements.
    """
    if len(ids) <= length:
        return list(ids)
    places = np.arange(len(ids))
    keys = np.array([place for place, token in enumerate(ids) if token in KEY_IDS], dtype=np.int64)
    if len(keys) == 0:
        return list(ids[:length])
    after = np.searchsorted(keys, places).clip(max=len(keys) - 1)
    before = (after - 1).clip(min=0)
    far = np.minimum(np.abs(keys[after] - places), np.abs(keys[before] - places))
    far[: min(HEAD, length // SHARE_OF_HEAD)] = -1
    kept = np.sort(np.argsort(far, kind="stable")[:length])
    return [ids[place] for place in kept]


def rows_of_tokens(codes: Sequence[str], length: int) -> NDArray[np.int64]:
    """A row of tokens a function, [N, length], zeros behind its end. Raises BadSetting."""
    if length < 1:
        raise BadSetting(f"length: a network reads a token at least (got {length})")
    rows = np.zeros((len(codes), length), dtype=np.int64)
    for row, code in zip(rows, codes, strict=True):
        ids = excerpt(encode(code), length)
        row[: len(ids)] = ids
    return rows


def group_of(text: str) -> str:
    """The digest of a function's normalised tokens: functions of one group are the same but for
    names, numbers, comments and layout.
    """
    return text_digest(normalise(text))
