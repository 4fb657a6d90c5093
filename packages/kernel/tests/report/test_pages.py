"""The files of a report: HTML that loads nothing, Markdown, figures, and what is published."""

import base64
import dataclasses
import html
import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest

from stillhouse.report import load, publish, report
from stillhouse.report.render import data_read, escape_markdown, fact_name, linked
from stillhouse.report.tables import other_scores
from stillhouse.runs import Runs

from .written import ONE, THREE, Scored, Story, write_run

VOID = {"meta", "link", "img", "source", "br", "path"}
NASTY = 'student <script>alert(1)</script> & "kd" | a_b *c* $x$'


class Page(HTMLParser):
    """The structure of an HTML page: unclosed tags fail, references and images are kept."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.seen if name == tag]


def made(story: Story, root: Path, **options: bool) -> Path:
    runs = Runs(root=root, recipe="vision/distill", variant="small")
    return report(write_run(story, runs.folder), runs, **options)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(THREE, tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def parsed(page: Path) -> Page:
    return Page(page.read_text())


def test_the_page_loads_nothing(parsed: Page) -> None:
    sources = [a[key] or "" for _, a in parsed.seen for key in ("src", "srcset") if key in a]
    assert len(sources) == 5 + 4  # plots, a picture a row
    assert all(source.startswith("data:image/") for source in sources)
    targets = [a["href"] or "" for tag, a in parsed.seen if "href" in a]
    outside = [t for t in targets if not t.startswith(("#", "data:,"))]
    assert outside == ["https://arxiv.org/abs/1503.02531", "https://example.org/paper?a=1&b=2"]
    assert not parsed.all("script")
    assert "default-src 'none'" in str(parsed.all("meta"))


def test_styles_and_plots_load_nothing_either(page: Path, parsed: Page) -> None:
    style = page.read_text().partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    for source in [str(a.get("src") or a.get("srcset")) for a in parsed.all("img")]:
        head, _, data = source.partition(",")
        if "svg" in head:
            text = base64.b64decode(data).decode()
            references = re.findall(r'(?:href|src)="([^"]*)"|url\(([^)]*)\)', text)
            assert all(target.startswith("#") for pair in references for target in pair if target)


def test_the_page_can_be_read_without_seeing_it(parsed: Page) -> None:
    assert parsed.all("html") == [{"lang": "en"}]
    assert all(image.get("alt") for image in parsed.all("img"))
    assert all(cell.get("scope") in ("row", "col") for cell in parsed.all("th"))
    assert len(parsed.all("h1")) == len(parsed.all("main")) == len(parsed.all("title")) == 1
    targets = {a["href"] for a in parsed.all("a") if (a["href"] or "").startswith("#")}
    assert targets <= {f"#{a['id']}" for _, a in parsed.seen if "id" in a}
    scores = next(i["alt"] for i in parsed.all("img") if "by model" in (i["alt"] or ""))
    assert "student + kd 88.75 %" in (scores or "")


def test_every_number_of_the_main_table_is_in_the_page_and_the_markdown(page: Path) -> None:
    for text in (html.unescape(page.read_text()), page.with_name("report.md").read_text()):
        for number in ("88.75", "88.45 to 89.05", "+1.58", "272 k", "41.0 M", "1.06", "52.4"):
            assert number in text


def test_made_twice_is_the_same_bytes(page: Path) -> None:
    before = {p: p.read_bytes() for p in sorted(page.parent.rglob("*")) if p.is_file()}
    runs = Runs(root=page.parents[5], recipe="vision/distill", variant="small")
    assert report(THREE.recipe(), runs) == page
    after = {p: p.read_bytes() for p in sorted(page.parent.rglob("*")) if p.is_file()}
    assert len(before) == 3 + 5
    assert after == before


def test_figures_are_well_formed(page: Path) -> None:
    figures = sorted(page.with_name("figures").iterdir())
    assert [f.name for f in figures] == [
        "accuracy-latency-b1-ms.svg",
        "accuracy-macs.svg",
        "differences.svg",
        "losses.svg",
        "scores.svg",
    ]
    for figure in figures:
        texts = ElementTree.fromstring(figure.read_text()).itertext()
        assert figure.name.startswith("losses") or "student + kd" in " ".join(texts)


def test_markdown_links_to_files_that_are_there(page: Path) -> None:
    text = page.with_name("report.md").read_text()
    links = re.findall(r'(?:src|srcset)="([^"]+)"|!\[[^\]]*\]\(([^)]+)\)', text)
    assert len(links) == 5 + 4
    assert all((page.parent / (one or other)).is_file() for one, other in links)


def test_markdown_tables_are_whole(page: Path) -> None:
    lines = page.with_name("report.md").read_text().splitlines()
    blocks = "\n".join(line if line.startswith("|") else "" for line in lines).split("\n\n")
    for block in filter(None, (b.strip("\n") for b in blocks)):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block


def test_what_users_write_is_escaped(tmp_path: Path) -> None:
    rows = (
        Scored(row="student", prefix="plain", accuracy=(0.87, 0.88)),
        Scored(row=NASTY, prefix="kd", accuracy=(0.9, 0.92)),
    )
    story = Story(rows=rows, reference="<b>R & D</b>", notes=("</style><img src=x>",), method=NASTY)
    page = made(story, tmp_path)
    text, parsed = page.read_text(), Page(page.read_text())
    assert not parsed.all("script")
    assert "&lt;b&gt;R &amp; D&lt;/b&gt;" in text
    assert all((image["src"] or "").startswith("data:") for image in parsed.all("img"))
    assert NASTY in html.unescape(text)
    plain = page.with_name("report.md").read_text()
    assert "<script>" not in re.sub(r"\\<script\\>", "", plain)
    svg = page.with_name("figures") / "scores.svg"
    drawn = "".join(ElementTree.fromstring(svg.read_text()).itertext())
    assert "".join(NASTY.split()) in "".join(drawn.split())


def test_markdown_escapes_are_taken_back_by_a_parser() -> None:
    from markdown_it import MarkdownIt

    rendered = MarkdownIt().renderInline(escape_markdown(NASTY))
    assert html.unescape(rendered) == NASTY


def test_links_are_made_of_urls_and_arxiv_numbers() -> None:
    assert str(linked("see https://a.b/c.")) == (
        'see <a href="https://a.b/c" rel="noreferrer">https://a.b/c</a>.'
    )
    assert 'href="https://arxiv.org/abs/2203.08679"' in linked("DKD, arXiv:2203.08679")
    assert str(linked("javascript:alert(1) <i>")) == "javascript:alert(1) &lt;i&gt;"


def test_a_partial_report_says_so(tmp_path: Path) -> None:
    runs = Runs(root=tmp_path, recipe="vision/distill", variant="small")
    recipe = write_run(THREE, runs.folder, without=("export",))
    page = report(recipe, runs, partial=True)
    Page(page.read_text())
    assert "1 of 22 stages have not run" in page.read_text()
    assert "> **Unfinished.** 1 of 22 stages have not run: export." in (
        page.with_name("report.md").read_text()
    )


def test_of_many_stages_that_have_not_run_the_first_are_named(tmp_path: Path) -> None:
    runs = Runs(root=tmp_path, recipe="vision/distill", variant="small")
    names = tuple(stage.name for stage in THREE.recipe().stages)
    page = report(write_run(THREE, runs.folder, without=names[2:]), runs, partial=True)
    for text in (page.read_text(), page.with_name("report.md").read_text()):
        assert "20 of 22 stages have not run" in text
        assert f"{names[13]} and 8 more." in text
        assert f"{names[14]}," not in text.partition("and 8 more")[0]


def test_nothing_finished_still_gives_a_page(tmp_path: Path) -> None:
    runs = Runs(root=tmp_path, recipe="vision/distill", variant="small")
    names = tuple(stage.name for stage in ONE.recipe().stages)
    page = report(write_run(ONE, runs.folder, without=names), runs, partial=True)
    assert "Nothing has been evaluated yet." in page.read_text()
    Page(page.read_text())


def test_a_failed_report_leaves_the_old_one(tmp_path: Path) -> None:
    page = made(ONE, tmp_path)
    before = page.read_bytes()
    runs = Runs(root=tmp_path, recipe="vision/distill", variant="small")
    recipe = dataclasses.replace(ONE, notes=("lone surrogate \ud800",)).recipe()
    with pytest.raises(UnicodeEncodeError):  # raised while the files are written
        report(recipe, runs)
    assert page.read_bytes() == before
    assert [p.name for p in runs.folder.glob(".report*")] == []


def test_publishing_leaves_the_pictures_behind(page: Path, tmp_path: Path) -> None:
    target = tmp_path / "docs" / "vision-distill"
    target.mkdir(parents=True)
    (target / "notes.txt").write_text("mine")
    published = publish(page.parent, target)
    files = sorted(p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file())
    assert [f for f in files if not f.startswith("figures/")] == [
        "notes.txt",
        "report.json",
        "report.md",
    ]
    assert {Path(f).suffix for f in files if f.startswith("figures/")} == {".svg"}
    assert "predictions" not in published.read_text()
    kept, made = load(target), load(page)
    assert dataclasses.replace(kept, curves=made.curves) == dataclasses.replace(made, pictures=())
    for curve, whole in zip(kept.curves, made.curves, strict=True):
        assert curve.columns["step"] == whole.columns["step"]
        assert curve.columns["loss"] == pytest.approx(whole.columns["loss"], rel=5e-5)
    drawn = page.with_name("figures")
    assert all(
        (target / "figures" / f.name).read_bytes() == f.read_bytes() for f in drawn.iterdir()
    )


def test_what_is_published_names_no_place_of_this_machine(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))
    root, file = page.parents[5], page.with_name("report.json")
    record = json.loads(file.read_text())
    record["notes"] = [
        f"{root}/data/set: 3 file(s) not read",
        f"{tmp_path}/home/packages/x",
        "/my/own",
    ]
    file.write_text(json.dumps(record))
    target = tmp_path / "docs"
    publish(page.parent, target)
    assert load(target).notes == ("data/set: 3 file(s) not read", "packages/x", "/my/own")
    for written in target.rglob("*.*"):
        assert str(root) not in written.read_text()


def test_publishing_with_pictures_takes_them_along(page: Path, tmp_path: Path) -> None:
    target = tmp_path / "built-in"
    text = publish(page.parents[1], target, images=True).read_text()
    links = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    pictures = [target / link for link in links if not link.endswith(".svg")]
    assert len(pictures) == 4
    assert all(each.read_bytes().startswith(b"\x89PNG") for each in pictures)
    assert json.loads((target / "report.json").read_text())["pictures"]


def test_notes_stand_below_the_results_with_their_code_as_code(tmp_path: Path) -> None:
    note = "`more_clicks` is <ours>, arXiv 2306.14289."
    page = made(dataclasses.replace(ONE, notes=(note,)), tmp_path)
    text, plain = page.read_text(), page.with_name("report.md").read_text()
    assert "<li><code>more_clicks</code> is &lt;ours&gt;, <a href=" in text
    assert text.index('id="results"') < text.index('id="notes"') < text.index('id="training"')
    assert "\n- `more_clicks` is \\<ours\\>, arXiv 2306.14289.\n" in plain
    assert plain.index("## Results") < plain.index("## Notes") < plain.index("## Training")
    Page(text)


def test_a_caution_stands_below_the_headline(tmp_path: Path) -> None:
    runs = Runs(root=tmp_path, recipe="vision/distill", variant="small")
    recipe = dataclasses.replace(
        write_run(ONE, runs.folder), caution="Chance; see `--set seeds=3`."
    )
    page = report(recipe, runs)
    title = re.search(r"<h1>(.*?)</h1>", page.read_text())
    assert title is not None
    assert "Chance" not in title[1]
    assert "Chance; see <code>--set seeds=3</code>." in page.read_text()
    assert "\n> Chance; see `--set seeds=3`.\n" in page.with_name("report.md").read_text()
    headline = load(page).headline
    assert headline.text == f"{headline.sentence} Chance; see `--set seeds=3`."


def test_one_seed_has_no_columns_without_values(tmp_path: Path) -> None:
    page = made(ONE, tmp_path)
    lines = page.with_name("report.md").read_text().splitlines()
    head = next(line for line in lines if line.startswith("| Model |"))
    assert head.startswith("| Model | Accuracy, % | Difference, points | Teacher agreement, % |")
    assert "One seed a model, so no interval." in page.read_text()
    costs = next(line for line in lines if line.startswith("| Stage | Time"))
    assert costs.endswith("| Memory, MiB | Notes |")  # the teacher's cache


def test_what_was_read_is_taken_from_the_stages(tmp_path: Path) -> None:
    page = made(ONE, tmp_path)
    document = load(page)
    assert data_read(document) == "data:photos"
    inside = [dataclasses.replace(stage, inputs={}) for stage in document.stages]
    alone = dataclasses.replace(document, stages=tuple(inside))
    assert data_read(alone) == "none from outside the recipe"
    assert data_read(dataclasses.replace(document, stages=())) == "not recorded"


def test_rows_without_other_scores_are_left_out_there(tmp_path: Path) -> None:
    document = load(made(ONE, tmp_path))
    assert [line.head for line in other_scores(document).lines] == [
        "teacher",
        "student",
        "student + kd",
    ]
    bare = dataclasses.replace(
        document.rows[2], scores={"accuracy": document.rows[2].scores["accuracy"]}
    )
    fewer = dataclasses.replace(document, rows=(*document.rows[:2], bare))
    assert [line.head for line in other_scores(fewer).lines] == ["teacher", "student"]


def test_units_of_measured_facts_keep_their_case() -> None:
    names = [fact_name(key) for key in ("memory_gib", "cpu", "python", "vector_flags")]
    assert names == ["Memory, GiB", "CPU", "Python", "Vector flags"]


CARD = """# A student

```python
print("prepare" if 1 < 2 else "")
```

or with torch and Stillhouse:

```python
from stillhouse import load_model
```

Then:

```python
print("read")
```
"""


def test_the_report_says_how_the_student_is_used_without_stillhouse(tmp_path: Path) -> None:
    runs = Runs(root=tmp_path, recipe="vision/distill", variant="small")
    recipe = write_run(THREE, runs.folder)
    assert "Use the student" not in report(recipe, runs).read_text()
    (runs.folder / "export/model/README.md").write_text(CARD)
    page = report(recipe, runs)
    (exported,) = load(page).exported
    assert exported.use == 'print("prepare" if 1 < 2 else "")\n\nprint("read")'
    text, markdown = page.read_text(), page.with_name("report.md").read_text()
    assert html.escape(exported.use, quote=True).replace("&quot;", "&#34;") in text
    assert f"```python\n{exported.use}\n```" in markdown
    for written in (text, markdown):
        assert "runs/vision/distill/small/export/model" in written
        assert "stillhouse predict vision/distill@small FILE" in written
        assert "load_model" not in written


def test_lineage_and_many_stages_are_folded(parsed: Page) -> None:
    assert [tag for tag, _ in parsed.seen].count("details") == 4
