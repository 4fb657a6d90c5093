import pytest

from stillhouse_contracts import fragments
from stillhouse_contracts.solidity import parse

BANK = """// SPDX
pragma solidity  ^0.4.24 ;
contract Bank {
    modifier only() { require(msg.sender == owner); _; }
    constructor() public { owner = msg.sender; }
    function() payable {}
    function pay(uint a)
        public
    {
        msg.sender.call.value(a)();
    }
    function none() external;
}
library Sums { function add(uint a) internal returns (uint) { return a; } }
"""


def test_functions_with_a_body_in_their_order_and_place() -> None:
    parsed = parse(BANK)
    assert [
        (f.kind, f.contract, f.function, f.start_line, f.end_line) for f in parsed.fragments
    ] == [
        ("modifier", "Bank", "only", 4, 4),
        ("constructor", "Bank", "constructor", 5, 5),
        ("fallback", "Bank", "fallback", 6, 6),
        ("function", "Bank", "pay", 7, 11),
        ("function", "Sums", "add", 14, 14),
    ]
    assert parsed.pragma == "^0.4.24"
    assert parsed.error_lines == ()
    assert not any(f.error for f in parsed.fragments)
    assert parsed.fragments[3].code.startswith("function pay(uint a)\n")


@pytest.mark.parametrize("before", ["", "  \n", "// a comment\n", "/* two\n */ "])
def test_a_function_alone_is_read_as_part_of_a_contract(before: str) -> None:
    (found,) = fragments(f"{before}function f() public {{ x = 1; }}")
    assert (found.function, found.contract, found.error) == ("f", "", False)
    assert found.start_line == 1 + before.count("\n")
    assert found.code == "function f() public { x = 1; }"


def test_a_contract_with_commented_functions_is_no_function_alone() -> None:
    source = "/* one */ contract A { /* two */ function f() public { x = 1; } }"
    parsed = parse(source)
    assert [f.contract for f in parsed.fragments] == ["A"]
    assert parsed.error_lines == ()


@pytest.mark.parametrize(
    "source",
    [
        "pragma solidity ^0.8.20; contract A { function f() public { unchecked { x += 1; } } }",
        "contract A { receive() external payable { emit Got(msg.value); } }",
        "contract A { function f() { throw; } }",
        "contract A { function f() public { (bool ok, ) = a.call{value: 1}(''); } }",
    ],
)
def test_sources_from_04_to_08_are_known(source: str) -> None:
    parsed = parse(source)
    assert len(parsed.fragments) == 1
    assert parsed.error_lines == ()


def test_what_the_grammar_does_not_know_is_named_and_the_rest_is_found() -> None:
    source = (
        "contract A {\n  function f() public { x = 1; }\n  ?? !! ??\n  function g() public {}\n}"
    )
    parsed = parse(source)
    assert [f.function for f in parsed.fragments] == ["f", "g"]
    assert parsed.error_lines[0] == 3


def test_bytes_of_no_encoding_do_not_stop_it() -> None:
    assert fragments("contract A { function f() public { s = '\udcff'; } }")[0].function == "f"
    assert fragments("") == []
