"""The table a run prints: 80 columns wide, and what is printed around it."""

import webbrowser
from pathlib import Path

import pytest

from stillhouse.cli.results import open_page
from stillhouse.cli.tables import print_table
from stillhouse.report import brief, legend
from stillhouse.report.build import build
from stillhouse.report.document import Document

from .written import ONE, Scored, Story, write_run

KD3 = "student, KD3"
STORY = Story(
    rows=(
        Scored(row="student, KD on all web images", prefix="plain", accuracy=(0.47, 0.48, 0.46)),
        Scored(
            row="student, KD on the teacher's most confident", prefix="kd", accuracy=(0.44,) * 3
        ),
        Scored(row=KD3, prefix="kd3", accuracy=(0.30, 0.31, 0.28)),
    ),
    method=KD3,
)


def document_of(story: Story, root: Path) -> Document:
    return build(write_run(story, root / "small"), "vision/kd3", root, root / "small")


def printed(document: Document, capsys: pytest.CaptureFixture[str]) -> str:
    table = brief(document)
    numbers = range(1, len(table.head))
    print_table(table.title, table.head, table.rows, width=80, numbers=numbers)
    return capsys.readouterr().out


def test_the_table_fits_80_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(document_of(STORY, tmp_path), capsys)
    assert max(map(len, text.splitlines())) <= 80
    lines = {line[:22].strip(): line.split() for line in text.splitlines()}
    minus, pm = "\N{MINUS SIGN}", "\N{PLUS-MINUS SIGN}"
    # gaps of -17, -17 and -18 points: t of 4.303 times a standard error of a third of a point
    assert lines[KD3][2:6] == ["29.67", f"{minus}17.33", f"{pm}1.43", "*"]
    assert "baseline" in text
    assert "Params" in text
    assert "MACs" in text
    assert "Latency, ms" in text


def test_the_line_below_says_how_to_read_it(tmp_path: Path) -> None:
    assert legend(document_of(STORY, tmp_path)) == (
        "Difference to student, KD on all web images, 95 % interval; * p < 0.05."
    )
    assert legend(document_of(ONE, tmp_path / "one")) == (
        "Difference to student; one seed, so no interval."
    )


def test_a_table_never_breaks_a_path(capsys: pytest.CaptureFixture[str]) -> None:
    path = "/" + "/".join(["a-long-folder"] * 8)
    print_table("", ("file", "what"), [(path, "words " * 30)], width=60)
    assert path in capsys.readouterr().out
    print_table("", ("file", "what"), [("x", "words " * 30)], width=60)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 60


def test_a_page_without_a_browser_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "report.html"
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(webbrowser, "_tryorder", None)
    open_page(page)
    assert capsys.readouterr().err == f"No browser found here. Open {page.as_uri()}\n"
    shown = tmp_path / "shown"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {shown}\n')
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{browser} %s")
    monkeypatch.setattr(webbrowser, "_tryorder", None)
    open_page(page)
    assert shown.read_text() == f"{page.as_uri()}\n"
