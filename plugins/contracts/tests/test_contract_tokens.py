import re

import numpy as np
import pytest

from stillhouse.errors import BadSetting
from stillhouse_contracts import group_of, normalise
from stillhouse_contracts.excerpts import IS_KEY, excerpt, rows_of_tokens
from stillhouse_contracts.samples import contracts
from stillhouse_contracts.tokens import (
    ADDRESS,
    BIG,
    DECLARES,
    FIXED,
    HEX,
    IDS,
    NAMES,
    NUMBER,
    OPERATORS,
    SIZED,
    TEXT,
    UNKNOWN,
    VOCABULARY,
    encode,
    lexemes,
    tokens,
)

PAY = """function pay(uint256 amount) public { // pay out
    require(balances[msg.sender] >= amount, "too little");
    msg.sender.call{value: amount}("");
    balances[msg.sender] -= amount; /* at last */
}"""


def test_names_are_numbered_and_the_language_kept() -> None:
    assert normalise(PAY) == (
        "function FUN0 ( uint VAR0 ) public { require ( VAR1 [ msg . sender ] >= VAR0 , STR ) ; "
        "msg . sender . call { value : VAR0 } ( STR ) ; VAR1 [ msg . sender ] -= VAR0 ; }"
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("uint8 x", "uint VAR0"),
        ("bytes32 x", "bytes VAR0"),
        ("x = 0xAB;", "VAR0 = HEX ;"),
        ("0x" + "0" * 40, "ADDR"),
        ("1 2 10 7 1000000000 1e18 .5 0", "1 2 10 NUM BIG BIG NUM 0"),
        ("a >>>= b >>= c => d", "VAR0 >>>= VAR1 >>= VAR2 => VAR3"),
        ("hex\"00ff\" unicode'x' \"a//b\" 'it\\'s'", "STR STR STR STR"),
        ("x /* no end", "VAR0"),
        ('"no end\nx', "STR VAR0"),
        ("x § y", "VAR0 <unk> VAR1"),
        ("emit Done; Done(x)", "emit FUN0 ; FUN0 ( VAR0 )"),
        ("a / b // c", "VAR0 / VAR1"),
        ("", ""),
    ],
)
def test_literals_operators_and_comments(source: str, expected: str) -> None:
    assert normalise(source) == expected


def test_names_beyond_the_last_number_share_it() -> None:
    source = " ".join(f"name{n}" for n in range(40))
    assert tokens(source)[30:34] == ["VAR30", "VAR31", "VAR31", "VAR31"]


def test_every_token_is_in_the_vocabulary_once() -> None:
    assert len(set(VOCABULARY)) == len(VOCABULARY)
    assert IDS["<pad>"] == 0
    assert 0 not in encode(PAY)
    assert [VOCABULARY[i] for i in encode(PAY)] == tokens(PAY)


def test_a_group_is_the_same_for_other_names_comments_and_numbers_only() -> None:
    other = PAY.replace("amount", "sum").replace("// pay out", "").replace("pay(", "withdraw(")
    assert group_of(other) == group_of(PAY)
    assert group_of(PAY.replace("-=", "+=")) != group_of(PAY)


def test_a_long_function_keeps_its_head_and_what_is_near_a_key_statement() -> None:
    dull, key = IDS[";"], IDS["delegatecall"]
    ids = [dull] * 10
    ids[8] = key
    ids[9] = IDS["}"]
    # a head of 4 // 4 tokens, then places 8, 7 and 9
    assert excerpt(ids, 4) == [dull, dull, key, IDS["}"]]
    assert excerpt([1, 2, 3, 4, 5], 3) == [1, 2, 3]
    assert excerpt([1, 2, 3], 3) == [1, 2, 3]


def test_the_earlier_of_two_as_near_is_kept() -> None:
    key = IDS["origin"]
    # 3 // 4 tokens of head; the key, and of its neighbours first the earlier
    assert excerpt([1, 2, 3, key, 5, 6], 2) == [3, key]


def test_rows_end_in_padding() -> None:
    assert rows_of_tokens(["x;", ""], 3).tolist() == [[IDS["VAR0"], IDS[";"], 0], [0, 0, 0]]
    with pytest.raises(BadSetting, match="at least"):
        rows_of_tokens(["x"], 0)


ODD = (
    "",
    " \n\t ",
    "// a comment alone",
    "x // to the end",
    "x /* to the end",
    "/* one */ x /* two\n */ // three\n/**/ y   ",
    "a / b /= c //d\n / e",
    "'x // no comment' \"/* nor\" this */ z",
    'hex"00" hex\'ff\' hex "00" hexa unicode"\u00e9" unicode x',
    "\"broken\n\" 'x\\' y' 'z",
    "1.5e-3 1_000 0xF_f 0x 1.e .5 1..2 a.1 1e 1e+3",
    ">>>= >>= >>> >> >= > <<= == => = -> -= -- - := ::",
    "\u00e9t\u00e9 caf\u00e9 _a $b a$ \u00a7 \\ # @ ` \u2003 x",
    "f(a) g{value: a}(b) function h modifier m emit E event E2 f",
)


def test_tokens_are_those_of_a_plain_reading_character_by_character() -> None:
    """By a reader that takes one token after another, without anything that makes it fast."""
    sources = [*ODD, *contracts()["sources"].tolist()[:30]]
    assert len(sources) > 40
    for source in sources:
        written = _written(source)
        assert lexemes(source) == written
        assert tokens(source) == _normalised(written)
        assert [VOCABULARY[place] for place in encode(source)] == tokens(source)


def _written(source: str) -> list[str]:
    number = re.compile(r"0[xX][0-9a-fA-F_]+|(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE]-?\d+)?")
    text = re.compile(r"(hex|unicode)?(\"(\\[\s\S]|[^\"\\\n])*\"?|'(\\[\s\S]|[^'\\\n])*'?)")
    name = re.compile(r"[A-Za-z_$][\w$]*")
    found: list[str] = []
    at = 0
    while at < len(source):
        rest = source[at:]
        if rest[0].isspace():
            at += 1
        elif rest.startswith("//"):
            at += re.search(r"[\n\r]|\Z", rest).start()  # pyright: ignore[reportOptionalMemberAccess]
        elif rest.startswith("/*"):
            end = rest.find("*/", 2)
            at += len(rest) if end < 0 else end + 2
        else:
            operator = next((each for each in OPERATORS if rest.startswith(each)), rest[0])
            read = text.match(rest) or name.match(rest) or number.match(rest)
            found.append(read[0] if read else operator)
            at += len(found[-1])
    return found


def _normalised(written: list[str]) -> list[str]:
    known: dict[str, str] = {}
    counts = {"FUN": 0, "VAR": 0}
    for place, text in enumerate(written):
        if text in known:
            continue
        sized = SIZED.fullmatch(text)
        if text in FIXED:
            known[text] = text
        elif sized:
            known[text] = sized[1]
        elif text[0] in "'\"" or text[-1] in "'\"":
            known[text] = TEXT
        elif text[0].isalpha() or text[0] in "_$":
            around = (written[place - 1 : place], written[place + 1 : place + 2])
            called = around[1] in (["("], ["{"]) or (place > 0 and around[0][0] in DECLARES)
            kind = "FUN" if called else "VAR"
            known[text] = f"{kind}{min(counts[kind], NAMES - 1)}"
            counts[kind] += 1
        elif text[:2].lower() == "0x":
            known[text] = ADDRESS if len(text) == 42 else HEX
        elif text[0].isdigit() or text[0] == ".":
            known[text] = BIG if len(text) > 9 or "e" in text.lower() else NUMBER
        else:
            known[text] = UNKNOWN
    return [known[text] for text in written]


@pytest.mark.parametrize("length", [2, 7, 40, 64])
def test_excerpts_are_those_of_every_distance_measured(length: int) -> None:
    rng = np.random.default_rng(length)
    for share in (0.0, 0.02, 0.3):
        for _ in range(20):
            ids = rng.integers(1, len(IDS), rng.integers(1, 150))
            ids[IS_KEY[ids]] = IDS[";"]
            ids[rng.random(len(ids)) < share] = IDS["call"]
            keys = np.flatnonzero(ids == IDS["call"]).tolist()
            far = [min((abs(place - key) for key in keys), default=0) for place in range(len(ids))]
            if keys:
                far[: min(16, length // 4)] = [-1] * len(far[: min(16, length // 4)])
            near = sorted(sorted(range(len(ids)), key=far.__getitem__)[:length])
            assert excerpt(ids.tolist(), length) == [int(ids[place]) for place in near]
