"""Built-in contracts: Solidity written from templates, each with a flaw or with its remedy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONTRACTS, FUNCTIONS = 120, 5  # of each contract
TYPES = ("reentrancy", "timestamp", "overflow")
NOVEL = "unchecked_call"
SEED = 20241217
NAMES = (
    *("alpha", "beta", "gamma", "delta", "vault", "pool", "share"),
    *("stake", "claim", "round", "token", "gate", "lot", "fund"),
)
# what stands before and behind: none of it has a flaw
FILLERS = (
    "require({v} != 0);",
    'require(bytes(note).length < 64, "{w}");',
    "emit Done(msg.sender, {v});",
    "address {w} = msg.sender;",
    "uint256 {w} = {v};",
    "if ({v} == {n}) {{ return; }}",
    "owners[{v}] = msg.sender;",
    "last{w} = {v};",
)
# flaw and remedy by type: the same words as far as possible, in another order or under a guard
FLAWS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "reentrancy": (
        (
            '(bool ok{w}, ) = msg.sender.call{{value: {m}[msg.sender]}}(""); require(ok{w});\n'
            "        {m}[msg.sender] = 0;",
            "uint256 sum{w} = {m}[msg.sender]; {m}[msg.sender] = 0;\n"
            '        (bool ok{w}, ) = msg.sender.call{{value: sum{w}}}(""); require(ok{w});',
        ),
        (
            "require(msg.sender.call.value({v})());\n        {m}[msg.sender] -= {v};",
            "{m}[msg.sender] -= {v};\n        msg.sender.transfer({v});",
        ),
    ),
    "timestamp": (
        (
            "if (block.timestamp % {n} == 0) {{ payable(msg.sender).transfer({v}); }}",
            "if (block.timestamp > end{w}) {{ payable(msg.sender).transfer({v}); }}",
        ),
        (
            "uint256 seed{w} = uint256(keccak256(abi.encode(now))) % {n};",
            "uint256 seed{w} = uint256(keccak256(abi.encode({v}))) % {n};",
        ),
    ),
    "overflow": (
        (
            "uint256 cost{w} = {v} * {n}; {m}[msg.sender] -= cost{w};",
            "uint256 cost{w} = {v}.mul({n}); {m}[msg.sender] = {m}[msg.sender].sub(cost{w});",
        ),
        (
            "{m}[msg.sender] += {v}; total{w} += {v};",
            "require({m}[msg.sender] + {v} >= {v}); {m}[msg.sender] = {m}[msg.sender].add({v});",
        ),
    ),
    NOVEL: (
        ("msg.sender.send({v});", "require(msg.sender.send({v}));"),
        ('{w}.call("");', '(bool sent{w}, ) = {w}.call(""); require(sent{w});'),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Written:
    """A contract's text and its flaws, as pairs of line and type."""

    source: str
    flaws: tuple[tuple[int, str], ...]


def contracts() -> Mapping[str, NDArray[Any]]:  # Any: numbers or texts
    """Arrays in the form of `formats.ARRAYS`: the same everywhere."""
    rng = np.random.default_rng(SEED)
    written = [write_contract(rng, number) for number in range(CONTRACTS)]
    flaws = [(i, line, kind) for i, each in enumerate(written) for line, kind in each.flaws]
    return {
        "sources": np.array([each.source for each in written]),
        "label_file": np.array([flaw[0] for flaw in flaws]),
        "label_line": np.array([flaw[1] for flaw in flaws]),
        "label_type": np.array([flaw[2] for flaw in flaws]),
    }


def write_contract(rng: np.random.Generator, number: int) -> Written:
    """A contract of `FUNCTIONS` functions; each has a flaw, a remedy or neither."""
    lines = [
        f"pragma solidity ^0.{rng.integers(4, 9)}.{rng.integers(0, 20)};",
        f"contract Sample{number} {{",
        "    mapping(address => uint256) balances;",
    ]
    flaws: list[tuple[int, str]] = []
    for place in range(FUNCTIONS):
        lines.append(f"    function {_pick(rng, NAMES)}{place}(uint256 amount) public {{")
        for statement, kind in _statements(rng):
            if kind:
                flaws.append((len(lines) + 1, kind))
            lines += f"        {statement}".split("\n")
        lines.append("    }")
    return Written(source="\n".join([*lines, "}", ""]), flaws=tuple(flaws))


def _statements(rng: np.random.Generator) -> list[tuple[str, str]]:
    """Statements in order, each with the type of its flaw, or "": fillers around two patterns."""
    found: list[tuple[str, str]] = []
    for kind in rng.permutation([*TYPES, NOVEL])[:2]:
        found += [(_filled(_pick(rng, FILLERS), rng), "") for _ in range(int(rng.integers(0, 3)))]
        flaw, remedy = FLAWS[str(kind)][int(rng.integers(len(FLAWS[str(kind)])))]
        chance = rng.random()
        if chance < 0.45:
            found.append((_filled(flaw, rng), str(kind)))
        elif chance < 0.9:
            found.append((_filled(remedy, rng), ""))
    return found or [(_filled(FILLERS[0], rng), "")]


def _filled(text: str, rng: np.random.Generator) -> str:
    word, number = _pick(rng, NAMES).capitalize(), int(rng.integers(3, 90))
    return text.format(v="amount", w=word, m="balances", n=number)


def _pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]
