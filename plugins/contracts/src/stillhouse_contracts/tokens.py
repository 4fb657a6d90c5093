"""Solidity as a closed vocabulary of normalised tokens: nothing in it was learned from contracts.

Identifiers that a user chose are numbered in the order in which they appear, FUN0, FUN1, ... where
they are called or declared as functions, VAR0, VAR1, ... elsewhere, as the line of ReChecker and
VulDeePecker has it: names of contracts and functions leak labels (docs of the recipe). Keywords,
operators and the language's own names are kept.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

PAD, UNKNOWN, NUMBER, BIG, ADDRESS, TEXT, HEX = "<pad>", "<unk>", "NUM", "BIG", "ADDR", "STR", "HEX"
NAMES = 32  # of each kind that are told apart; the others are the last one
FUNCTION, VARIABLE = "FUN", "VAR"
# numbers that mean something of their own
KEPT_NUMBERS = ("0", "1", "2", "10", "100", "256")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


KEYWORDS = _words(
    """
    abstract anonymous as assembly break calldata case catch constant constructor continue contract
    default delete do else emit enum error event external fallback false for from function if
    immutable import indexed interface internal is let library mapping memory modifier new override
    payable pragma private public pure receive return returns revert storage struct switch throw
    true try type unchecked using var view virtual while
    """
)
TYPES = ("address", "bool", "byte", "bytes", "fixed", "int", "string", "ufixed", "uint")
UNITS = _words("wei szabo finney gwei ether seconds minutes hours days weeks years")
# what the language itself defines: globals, and members of addresses, arrays and its own objects
BUILTINS = _words(
    """
    _ abi addmod assert balance block blockhash call callcode callvalue chainid code codehash
    coinbase concat creationCode data decode delegatecall difficulty ecrecover encode
    encodePacked encodeWithSelector encodeWithSignature gas gasleft gaslimit gasprice interfaceId
    keccak256 length max min msg mulmod now number origin pop prevrandao push require ripemd160
    runtimeCode selector selfdestruct send sender sha256 sha3 sig staticcall suicide super this
    timestamp transfer tx unwrap value wrap
    """
)
OPERATORS = _words(
    """
    >>>= >>= <<= ** ++ -- += -= *= /= %= |= &= ^= == != <= >= && || << >> => -> := >>> + - * / % = <
    > ! ~ & | ^ ? : ; , . ( ) [ ] { }
    """
)

LEXEME = re.compile(
    r"(?P<space>\s+|//[^\n\r]*|/\*[\s\S]*?(?:\*/|\Z))"
    r"|(?P<hexadecimal>(?:hex|unicode)?(?:\"(?:\\[\s\S]|[^\"\\\n])*\"?|'(?:\\[\s\S]|[^'\\\n])*'?))"
    r"|(?P<number>0[xX][0-9a-fA-F_]+|(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE]-?\d+)?)"
    r"|(?P<name>[A-Za-z_$][\w$]*)"
    r"|(?P<operator>" + "|".join(re.escape(each) for each in OPERATORS) + r")"
    r"|(?P<other>.)"
)
CALLED = re.compile(r"(?:\s|//[^\n\r]*|/\*[\s\S]*?\*/)*[({]")
SIZED = re.compile(r"(bytes|u?int|u?fixed)\d+(?:x\d+)?")
DECLARES = {"function", "modifier", "event", "constructor", "emit"}


def _numbered(kind: str) -> tuple[str, ...]:
    return tuple(f"{kind}{number}" for number in range(NAMES))


VOCABULARY: tuple[str, ...] = (
    *(PAD, UNKNOWN, NUMBER, BIG, ADDRESS, TEXT, HEX),
    *KEPT_NUMBERS,
    *sorted({*KEYWORDS, *TYPES, *UNITS, *BUILTINS}),
    *OPERATORS,
    *_numbered(FUNCTION),
    *_numbered(VARIABLE),
)
IDS = {token: number for number, token in enumerate(VOCABULARY)}
OWN = {*KEYWORDS, *TYPES, *UNITS, *BUILTINS}


class Token(NamedTuple):
    """A normalised token, and where what it stands for begins in the text."""

    text: str
    start: int


def lexemes(source: str) -> Iterator[Token]:
    """Tokens of Solidity as they are written, without comments; what is no Solidity is one token a
    character.
    """
    for found in LEXEME.finditer(source):
        if found.lastgroup != "space":
            yield Token(found.group(), found.start())


def tokens(source: str) -> list[Token]:
    """The normalised tokens of a piece of Solidity: a function, as a rule. Numbers are given to
    names from 0 on in each piece.
    """
    names: dict[str, str] = {}
    counts = {FUNCTION: 0, VARIABLE: 0}
    found: list[Token] = []
    before = ""
    for match in LEXEME.finditer(source):
        kind, text = match.lastgroup, match.group()
        if kind == "space":
            continue
        if kind == "name":
            normal = text if text in OWN else names.get(text) or _name(text, before, match, counts)
            if text not in OWN:
                names[text] = normal
        elif kind == "operator":
            normal = text
        elif kind == "number":
            normal = _number(text)
        else:
            normal = TEXT if kind == "hexadecimal" else UNKNOWN
        found.append(Token(normal, match.start()))
        before = text
    return found


def _name(text: str, before: str, match: re.Match[str], counts: dict[str, int]) -> str:
    if sized := SIZED.fullmatch(text):
        return sized[1]
    called = before in DECLARES or CALLED.match(match.string, match.end()) is not None
    kind = FUNCTION if called else VARIABLE
    number, counts[kind] = counts[kind], counts[kind] + 1
    return f"{kind}{min(number, NAMES - 1)}"


def _number(text: str) -> str:
    if text in KEPT_NUMBERS:
        return text
    if text[:2] in ("0x", "0X"):
        return ADDRESS if len(text) == 42 else HEX
    return BIG if len(text) > 9 or "e" in text.lower() else NUMBER


def normalise(source: str) -> str:
    """A piece of Solidity as its normalised tokens, separated by spaces: what duplicates share."""
    return " ".join(token.text for token in tokens(source))
