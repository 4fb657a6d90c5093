import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from stillhouse.errors import BadData, BadSetting, MissingData
from stillhouse.work import Work
from stillhouse_contracts.data import PORTS, ReadContracts, conflicts
from stillhouse_contracts.formats import labelled_functions
from stillhouse_contracts.samples import FUNCTIONS, NOVEL, TYPES, contracts
from stillhouse_contracts.solidity import parse
from stillhouse_contracts.splits import check_members, fold_numbers, strata

SOURCE = """contract A {
    uint x = 1;
    function f() public { msg.sender.call(''); }
    function g() public { now; }
}
"""


def folder(tmp_path: Path, labels: str) -> Path:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.sol").write_text(SOURCE)
    (tmp_path / "labels.csv").write_text(f"file,line,type\n{labels}")
    return tmp_path


def test_a_label_is_of_the_function_around_its_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = "deep/a.sol,3,call\ndeep/a.sol,4,time\ndeep/a.sol,4,call\ndeep/a.sol,2,state\n"
    found = labelled_functions(folder(tmp_path, labels))
    assert [(f.function, f.line, sorted(f.types)) for f in found] == [
        ("A.f", 3, ["call"]),
        ("A.g", 4, ["call", "time"]),
    ]
    assert {f.contract for f in found} == {"deep/a.sol"}
    assert "1 label(s) stand outside of any function" in caplog.text


def test_labels_in_the_form_of_smartbugs(tmp_path: Path) -> None:
    (tmp_path / "a.sol").write_text(SOURCE)
    vulnerability = {"lines": [4], "category": "time"}
    record = [{"path": "a.sol", "vulnerabilities": [vulnerability]}]
    (tmp_path / "vulnerabilities.json").write_text(json.dumps(record))
    assert [f.types for f in labelled_functions(tmp_path)] == [frozenset(), {"time"}]
    (tmp_path / "vulnerabilities.json").write_text("{}")
    assert len(labelled_functions(tmp_path)) == 2
    (tmp_path / "vulnerabilities.json").write_text("[1]")
    with pytest.raises(BadData, match="vulnerabilities.json: not in the form"):
        labelled_functions(tmp_path)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ("deep/a.sol,99,call\n", r"deep/a.sol: a label of line 99; the file has 6"),
        ("b.sol,1,call\n", r"b.sol: labelled, and no such file"),
        ("deep/a.sol,x,call\n", r"labels.csv: line 2: expected a file, a line and a type"),
        ("deep/a.sol,3\n", r"labels.csv: line 2: expected"),
    ],
)
def test_labels_that_fit_no_file_are_refused(tmp_path: Path, labels: str, reason: str) -> None:
    with pytest.raises(BadData, match=reason):
        labelled_functions(folder(tmp_path, labels))


def test_files_that_are_no_contracts_are_refused(tmp_path: Path) -> None:
    place = folder(tmp_path, "")
    (place / "b.sol").write_bytes(b" \n")
    with pytest.raises(BadData, match=r"b.sol: empty"):
        labelled_functions(place)
    (place / "b.sol").write_bytes(b"contract \0\1")
    with pytest.raises(BadData, match=r"b.sol: binary"):
        labelled_functions(place)
    (place / "b.sol").unlink()
    (place / "labels.csv").write_text("a,b\n")
    with pytest.raises(BadData, match="the first line must be file,line,type"):
        labelled_functions(place)
    (place / "labels.csv").unlink()
    with pytest.raises(MissingData, match=r"neither labels.csv nor vulnerabilities.json"):
        labelled_functions(place)
    with pytest.raises(MissingData, match="no .sol file in it"):
        labelled_functions(_empty(tmp_path))


def _empty(tmp_path: Path) -> Path:
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def test_parquet_tables(tmp_path: Path) -> None:
    rows: dict[str, list[Any]] = {
        "code": ["function f() {}", "function g() {}"],
        "labels": [["a"], []],
        "contract_id": ["one", "two"],
        "function": ["f", "g"],
        "start_line": [3, 7],
    }
    pq.write_table(pa.table(rows), tmp_path / "functions.parquet")
    for source in (tmp_path, tmp_path / "functions.parquet"):
        found = labelled_functions(source)
        assert [(f.contract, f.function, f.line, set(f.types)) for f in found] == [
            ("one", "f", 3, {"a"}),
            ("two", "g", 7, set()),
        ]
    pq.write_table(pa.table({"code": ["x"]}), tmp_path / "functions.parquet")
    with pytest.raises(BadData, match="no column labels; it has code"):
        labelled_functions(tmp_path)
    (tmp_path / "functions.parquet").write_bytes(b"no parquet")
    with pytest.raises(BadData, match=r"functions.parquet: cannot be read as parquet"):
        labelled_functions(tmp_path)
    (tmp_path / "x.md").write_text("x")
    with pytest.raises(BadData, match=r"x.md: no contracts; give a folder"):
        labelled_functions(tmp_path / "x.md")


def test_arrays_of_other_lengths_are_refused() -> None:
    arrays = dict(contracts())
    with pytest.raises(BadData, match="arrays of labels differ in length"):
        labelled_functions({**arrays, "label_line": arrays["label_line"][:-1]})
    with pytest.raises(BadData, match="no array 'label_type'"):
        labelled_functions({k: v for k, v in arrays.items() if k != "label_type"})
    with pytest.raises(BadData, match="a label of file 120; there are 120"):
        labelled_functions({**arrays, "label_file": arrays["label_file"] * 0 + 120})


def test_built_in_contracts_are_the_same_and_parse() -> None:
    one, two = contracts(), contracts()
    assert all((one[name] == two[name]).all() for name in one)
    assert set(one["label_type"].tolist()) == {*TYPES, NOVEL}
    for source in one["sources"][:20]:
        parsed = parse(str(source))
        assert parsed.error_lines == ()
        assert len(parsed.fragments) == FUNCTIONS
    found = labelled_functions(one)
    assert sum(len(each.types) for each in found) <= len(one["label_type"])
    assert {kind for each in found for kind in each.types} == {*TYPES, NOVEL}


def test_parts_share_no_text_and_public_contracts_have_no_labels() -> None:
    read = ReadContracts(types=TYPES, novel=NOVEL, length=32)
    made = read({"source": contracts()}, work=Work.seeded(0))
    assert tuple(made) == PORTS
    assert "labels" not in made["public"]
    assert "novel" not in made["public"]
    groups = {port: set(_tensor(made, port, "group").tolist()) for port in PORTS}
    rows = {port: len(_tensor(made, port, "tokens")) for port in PORTS}
    assert not groups["train"] & groups["test"]
    assert not groups["train"] & groups["public"]
    assert not groups["public"] & groups["test"]
    assert rows["train"] + rows["public"] + rows["test"] == rows["all"] == 600
    for port in ("train", "test"):
        assert _tensor(made, port, "labels").sum(0).min() > 0
    again = read({"source": contracts()}, work=Work.seeded(0))
    assert torch.equal(_tensor(again, "train", "tokens"), _tensor(made, "train", "tokens"))


def _tensor(made: Any, port: str, name: str) -> torch.Tensor:
    return made[port][name]


def test_a_group_is_of_the_same_tokens() -> None:
    found = labelled_functions(contracts())
    columns = ReadContracts(types=TYPES, length=24).columns(found)
    tokens, groups = columns["tokens"], columns["group"]
    assert isinstance(tokens, torch.Tensor)
    assert isinstance(groups, torch.Tensor)
    for group in groups.unique()[:50]:
        assert len(tokens[groups == group].unique(dim=0)) == 1
    assert len(groups.unique()) == len(tokens.unique(dim=0))


def test_types_that_cannot_be_are_refused() -> None:
    for types, novel, reason in (((), "", "name one"), (("a", "a"), "", "once")):
        with pytest.raises(BadSetting, match=reason):
            ReadContracts(types=types, novel=novel)
    with pytest.raises(BadSetting, match="'a' is among the types"):
        ReadContracts(types=("a",), novel="a")
    with pytest.raises(BadData, match=r"type 'honeypot': no function has it; the data have"):
        ReadContracts(types=("honeypot",))({"source": contracts()}, work=Work.seeded(0))


def test_a_type_with_fewer_functions_than_folds_is_refused_before_anything_is_trained() -> None:
    read = ReadContracts(types=TYPES, length=32, folds=500)
    with pytest.raises(
        BadData, match=r"type 'reentrancy': \d+ distinct functions have it, and 500"
    ):
        read({"source": contracts()}, work=Work.seeded(0))


def test_conflicting_labels_of_a_text_are_found() -> None:
    labels = np.array([[0], [1], [1], [1]], dtype=np.float32)
    assert conflicts(np.array([0, 0, 1, 1]), labels) == [0]
    assert conflicts(np.array([0, 1, 2, 2]), labels) == []


def test_folds_keep_groups_together_and_spread_types() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((200, 2)) < 0.3).astype(np.float32)
    groups = rng.integers(0, 60, 200)
    fold = fold_numbers(labels, groups, folds=4, seed=1)
    assert all(
        len(set(fold[groups == group])) == 1 for group in range(60) if (groups == group).any()
    )
    assert set(fold) == {0, 1, 2, 3}
    random = fold_numbers(labels, None, folds=4, seed=1)
    assert any(len(set(random[groups == group])) > 1 for group in range(60))
    shares = [labels[random == number, 0].mean() for number in range(4)]
    assert max(shares) - min(shares) < 0.1
    assert (fold_numbers(labels, None, folds=4, seed=2) != random).any()


def test_a_row_counts_as_its_rarest_type() -> None:
    labels = np.array([[1, 1], [1, 0], [0, 0]], dtype=np.float32)
    assert strata(labels).tolist() == [2, 1, 0]


def test_folds_that_cannot_be_are_refused() -> None:
    labels, groups = np.array([[1], [1], [0]], dtype=np.float32), np.array([0, 0, 1])
    with pytest.raises(BadSetting, match="two at least"):
        fold_numbers(labels, groups, folds=1, seed=0)
    with pytest.raises(BadData, match=r"2 group\(s\) of functions cannot be split into 3 folds"):
        fold_numbers(labels, groups, folds=3, seed=0)
    with pytest.raises(BadData, match="type 'a': 1 distinct functions have it, and 2 folds need"):
        check_members(labels, groups, ("a",), folds=2)
