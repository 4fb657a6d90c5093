"""ReChecker's text files: read by path, and refused where they have another form."""

from pathlib import Path

import pytest
from torch import Tensor

from stillhouse.errors import BadData
from stillhouse.settings import make_recipe, make_settings
from stillhouse.stages import Make
from stillhouse.work import Work
from stillhouse_contracts.data import ReadContracts
from stillhouse_contracts.formats import labelled_functions
from stillhouse_contracts.snippets import read_snippets, type_of

RULER = "-" * 33
TEXT = f"""1 0x23a9.sol
contract Bank {{
    function pay() public {{

        msg.sender.call.value(1)();
    }}
}}
1
{RULER}
2 0x23a9.sol
function dull() public {{ }}
0
{RULER}
3 other file.sol
function wait() public {{ now; }}
0
"""


def test_snippets_are_read_with_their_file_and_label(tmp_path: Path) -> None:
    file = tmp_path / "reentrancy_code_snippets_2000.txt"
    file.write_text(TEXT)
    for source in (file, tmp_path):
        found = labelled_functions(source)
        assert [(each.contract, set(each.types), each.line) for each in found] == [
            ("0x23a9.sol", {"reentrancy"}, 1),
            ("0x23a9.sol", set(), 10),
            ("other file.sol", set(), 14),
        ]
    assert found[0].code.splitlines()[3] == "        msg.sender.call.value(1)();"
    assert found[1].code == "function dull() public { }"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("reentrancy_code_snippets_2000.txt", "reentrancy"),
        ("infinite_loop_1317.txt", "infinite_loop"),
        ("dataset_Integeroverflow.txt", "overflow"),
        ("dataset_delegate.txt", "delegatecall"),
        ("timestamp.txt", "timestamp"),
    ],
)
def test_the_type_is_that_of_the_files_name(name: str, kind: str) -> None:
    assert type_of(Path(name)) == kind


def test_files_of_several_types_are_rows_of_one_table(tmp_path: Path) -> None:
    for name in ("reentrancy_2000", "infinite_loop_1317"):
        (tmp_path / f"{name}.txt").write_text(_many())
    settings = make_settings(
        "contracts/af_stip",
        "paper",
        {"data": f"file:{tmp_path}", "types": ["reentrancy", "infinite_loop"]},
    )
    stage = make_recipe("contracts/af_stip", settings).stage("data")
    assert isinstance(stage, Make)
    assert isinstance(stage.make, ReadContracts)
    made = stage.make({"source": tmp_path}, work=Work.seeded(0))
    labels, contracts = made["all"]["labels"], made["all"]["contract"]
    assert isinstance(contracts, Tensor)
    assert len(labels) == 40
    assert len({*contracts.tolist()}) == 5, "a file's snippets are one contract's"


def _many() -> str:
    return f"{RULER}\n".join(
        f"{n} {n % 5}.sol\nfunction f() {{ x = {'+ '.join(['y'] * (n + 1))}; }}\n{n % 2}\n"
        for n in range(20)
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (TEXT.replace("2 0x23a9.sol\n", ""), "line 10: expected a number and a file"),
        (TEXT.replace("\n0\n", "\n2\n", 1), "line 10: expected"),
        (TEXT.replace("function dull() public { }\n", ""), "line 10: expected"),
        ("", "empty"),
        ("1 a.sol\n\0\n1\n", "binary"),
    ],
)
def test_other_forms_are_one_line(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "reentrancy.txt"
    file.write_text(text)
    with pytest.raises(BadData, match=rf"reentrancy.txt: {reason}") as error:
        read_snippets(file)
    assert "\n" not in str(error.value)
