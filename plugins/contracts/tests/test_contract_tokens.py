import pytest

from stillhouse.errors import BadSetting
from stillhouse_contracts import group_of, normalise
from stillhouse_contracts.excerpts import excerpt, rows_of_tokens
from stillhouse_contracts.tokens import IDS, VOCABULARY, encode, tokens

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
