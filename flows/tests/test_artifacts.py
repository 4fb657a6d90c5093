"""What of a report goes into Prefect's UI."""

import base64
from pathlib import Path

from stillhouse_flows.runs.artifacts import LARGEST, embedded


def test_plots_go_along_and_pictures_of_data_stay(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "a.svg").write_text("<svg/>")
    (tmp_path / "figures" / "large.svg").write_text(" " * (LARGEST + 1))
    text = tmp_path / "report.md"
    text.write_text(
        "![by a \\[b\\]](figures/a.svg)\n![too large](figures/large.svg)\n![faces](../x/faces.png)\n"
    )
    inside = base64.b64encode(b"<svg/>").decode()
    assert embedded(text).splitlines() == [
        f"![by a \\[b\\]](data:image/svg+xml;base64,{inside})",
        "*too large*",
        "![faces](../x/faces.png)",
    ]
