"""report.html in headless Chromium: no console messages, both modes, no sideways scrolling."""

import html
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from stillhouse.report import report
from stillhouse.runs import Runs

from .written import THREE, Scored, Story, write_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--enable-logging=stderr", "--v=0"),
)
DARK = "--blink-settings=preferredColorScheme=0"
LONG = Story(
    rows=(
        Scored(row="a student without teacher, trained as long", prefix="plain", accuracy=(0.8,)),
        Scored(row="aVeryLongRowNameThatHasNoPlaceToBreakAtAll" * 2, prefix="kd", accuracy=(0.9,)),
    ),
    reference="https://example.org/" + "a" * 120,
    method="aVeryLongRowNameThatHasNoPlaceToBreakAtAll" * 2,
)


def browse(page: Path, profile: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def console(done: subprocess.CompletedProcess[str]) -> Sequence[str]:
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = Runs(root=tmp_path_factory.mktemp("page"), recipe="vision/distill", variant="small")
    return report(write_run(THREE, runs.folder), runs)


@pytest.mark.parametrize(("width", "height"), [(1280, 1600), (390, 844)])
@pytest.mark.parametrize("mode", ["light", "dark"])
def test_the_page_draws_in_both_modes_without_a_console_message(
    page: Path, tmp_path: Path, width: int, height: int, mode: str
) -> None:
    shot = tmp_path / "shot.png"
    flags = [f"--screenshot={shot}", f"--window-size={width},{height}"]
    done = browse(page, tmp_path / "profile", *flags, *([DARK] if mode == "dark" else []))
    assert console(done) == []
    picture = matplotlib.image.imread(shot)[..., :3]
    assert picture.shape[:2] == (height, width)
    paper = float(np.median(picture))
    assert paper > 0.9 if mode == "light" else paper < 0.2
    assert picture.std() > 0.05  # something is drawn on it


def test_a_console_message_would_be_seen(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<script>nothing.here()</script>")
    assert console(browse(page, tmp_path / "profile", f"--screenshot={tmp_path / 'shot.png'}"))


@pytest.mark.parametrize("story", [THREE, LONG], ids=["usual", "long names"])
@pytest.mark.parametrize("width", [390, 320])
def test_a_phone_scrolls_tables_not_the_page(tmp_path: Path, story: Story, width: int) -> None:
    runs = Runs(root=tmp_path, recipe="vision/distill", variant="small")
    page = report(write_run(story, runs.folder), runs)
    frame = tmp_path / "frame.html"
    inside = html.escape(page.read_text(), quote=True)
    frame.write_text(
        f'<iframe style="border:0;width:{width}px;height:800px" srcdoc="{inside}"></iframe>'
        "<script>onload = () => { const d = document.querySelector('iframe').contentDocument;"
        "document.title = 'width ' + d.documentElement.scrollWidth + ' tables ' +"
        "[...d.querySelectorAll('.scroll')].filter(t => t.scrollWidth > t.clientWidth).length }"
        "</script>"
    )
    text = browse(frame, tmp_path / "profile", "--dump-dom").stdout
    found = re.search(r"<title>width (\d+) tables (\d+)</title>", text)
    assert found is not None
    assert int(found[1]) == width
    assert int(found[2]) > 0
