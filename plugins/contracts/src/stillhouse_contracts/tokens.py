"""Solidity as a closed vocabulary of normalised tokens: nothing in it was learned from contracts.

Identifiers that a user chose are numbered in the order in which they appear, FUN0, FUN1, ... where
they are called or declared as functions, VAR0, VAR1, ... elsewhere, as the line of ReChecker and
VulDeePecker has it: names of contracts and functions leak labels (docs of the recipe). Keywords,
operators and the language's own names are kept.
"""

import functools
import re
from collections.abc import Sequence

PAD, UNKNOWN, NUMBER, BIG, ADDRESS, TEXT, HEX = "<pad>", "<unk>", "NUM", "BIG", "ADDR", "STR", "HEX"
NAMES = 32  # of each kind that are distinguished; the others are the last one
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

# white space and comments before a token are read with it. The alternatives begin with other
# characters each, what is most frequent first, and a number before its point. Operators of one
# character that begin no longer one stand second; the others, and what is no Solidity, are the last
# but one; the last is the end
LEXEME = re.compile(
    r"\s*+(?:(?://[^\n\r]*|/\*[\s\S]*?(?:\*/|\Z))\s*+)*+("
    r"(?!(?:hex|unicode)[\"'])[A-Za-z_$][\w$]*"
    r"|[;,()\[\]{}~?]"
    r"|0[xX][0-9a-fA-F_]+|(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE]-?\d+)?"
    r"|(?:hex|unicode)?(?:\"(?:\\[\s\S]|[^\"\\\n])*\"?|'(?:\\[\s\S]|[^'\\\n])*'?)"
    r"|" + "|".join(re.escape(each) for each in OPERATORS if len(each) > 1) + r"|\S|\Z)"
)
SIZED = re.compile(r"(bytes|u?int|u?fixed)\d+(?:x\d+)?")
DECLARES = {"function", "modifier", "event", "constructor", "emit"}
CALLED = ("(", "{")
QUOTES = ('"', "'")
ADDRESS_LENGTH = 42  # 0x and 20 bytes
LONGEST_SMALL = 9  # digits of a number that is no BIG


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
FIXED = {token: IDS[token] for token in (*OWN, *OPERATORS, *KEPT_NUMBERS)}
FIRST_FUNCTION, FIRST_VARIABLE = IDS[f"{FUNCTION}0"], IDS[f"{VARIABLE}0"]


def lexemes(source: str) -> list[str]:
    """Tokens of Solidity as they are written, without comments; what is no Solidity is one token a
    character.
    """
    found: list[str] = LEXEME.findall(source)
    while found and not found[-1]:  # the end, after what stands before it, and alone
        found.pop()
    return found


def tokens(source: str) -> list[str]:
    """The normalised tokens of a piece of Solidity: a function, as a rule. Numbers are given to
    names from 0 on in each piece.
    """
    return [VOCABULARY[place] for place in encode(source)]


def encode(source: str) -> list[int]:
    """The places in the vocabulary of the normalised tokens."""
    written = lexemes(source)
    places = dict.fromkeys(written, 0)  # in the order of their first places
    functions = variables = 0
    for text in places:
        place = _fixed(text)
        if place is None and _of_function(written, written.index(text)):
            place = FIRST_FUNCTION + min(functions, NAMES - 1)
            functions += 1
        elif place is None:
            place = FIRST_VARIABLE + min(variables, NAMES - 1)
            variables += 1
        places[text] = place
    return [places[text] for text in written]


def normalise(source: str) -> str:
    """A piece of Solidity as its normalised tokens, separated by spaces: what duplicates share."""
    return " ".join(tokens(source))


@functools.lru_cache(maxsize=1 << 16)  # contracts repeat their words
def _fixed(text: str) -> int | None:
    """The place of a text that is the same in every piece; None for a name that a user chose."""
    if text in FIXED:
        return FIXED[text]
    if not (text[0].isalpha() or text[0] in "_$"):
        return IDS[_literal(text)]
    if sized := SIZED.fullmatch(text):
        return IDS[sized[1]]
    return IDS[TEXT] if text.endswith(QUOTES) else None  # hex"00"


def _of_function(written: Sequence[str], place: int) -> bool:
    """Whether the name at this place is called or declared as a function."""
    if place > 0 and written[place - 1] in DECLARES:
        return True
    return place + 1 < len(written) and written[place + 1] in CALLED


def _literal(text: str) -> str:
    if text[0] in QUOTES:
        return TEXT
    if not (text[0].isdigit() or text[0] == "."):
        return UNKNOWN
    if text[:2] in ("0x", "0X"):
        return ADDRESS if len(text) == ADDRESS_LENGTH else HEX
    return BIG if len(text) > LONGEST_SMALL or "e" in text.lower() else NUMBER
