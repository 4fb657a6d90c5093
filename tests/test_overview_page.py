"""docs/results/README.md says what the reports beside it say."""

from pathlib import Path

from stillhouse.report.overview import overview

RESULTS = Path(__file__).parent.parent / "docs" / "results"
AGAIN = "stillhouse overview docs/results --publish docs/results"


def test_the_page_is_that_of_the_reports(tmp_path: Path) -> None:
    files = sorted(RESULTS.rglob("report.json"))
    for file in files:
        copy = tmp_path / file.relative_to(RESULTS)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    overview([tmp_path], page=tmp_path)
    written, kept = ((at / "README.md").read_text() for at in (tmp_path, RESULTS))
    assert written == kept, f"write it again with: {AGAIN}"
    assert len(files) == sum(line.startswith("| [") for line in kept.splitlines())
