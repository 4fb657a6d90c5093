"""HTML and Markdown of a document. The HTML is one file that loads nothing; both escape."""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup, escape

from stillhouse.metrics import units
from stillhouse.report import tables
from stillhouse.report.cards import cards
from stillhouse.report.document import Document, FigureFile
from stillhouse.report.drawing import Plot
from stillhouse.report.lineage import some_of
from stillhouse.report.palette import MODES, THEMES, colours
from stillhouse.report.studies import row_tables, study_tables

if TYPE_CHECKING:
    from stillhouse.report.overview import Entry

TEMPLATES = Path(__file__).with_name("templates")
CODE = re.compile(r"`([^`]+)`")
LINK = re.compile(r"https?://[^\s<>\"')\]]*[^\s<>\"')\].,;]|\barXiv[: ]\s?(\d{4}\.\d{4,5})")
MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#~$])")
SIZE = re.compile(r'<svg [^>]*?width="(?P<width>[\d.]+)pt" height="(?P<height>[\d.]+)pt"')


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A figure ready for the page."""

    figure: FigureFile
    source: str  # a data URI, or a path relative to the report


def html(document: Document, plots: Sequence[Plot], images: Mapping[str, bytes]) -> str:
    """report.html; `images` are the PNG bytes of the document's figures by path."""
    environment = _environment(escaping=True)
    shown = [Shown(figure=p, source=_uri("image/png", images[p.path])) for p in document.pictures]
    return environment.get_template("report.html.jinja").render(
        **_shared(document),
        cards=cards(document),
        css=Markup((TEMPLATES / "report.css").read_text() + _row_colours(document)),
        plots=plots,
        figures=shown,
    )


def markdown(document: Document, plots: Sequence[Plot], images: Mapping[str, str]) -> str:
    """report.md; `images` are the paths of the figures, relative to the file."""
    environment = _environment(escaping=False)
    shown = [Shown(figure=p, source=images[p.path]) for p in document.pictures]
    text = environment.get_template("report.md.jinja").render(
        **_shared(document), cards=cards(document), plots=plots, figures=shown
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def overview_markdown(
    table: tables.Table, entries: Sequence["Entry"], plot: Plot, figures: str
) -> str:
    """README.md of `overview`; `figures` is the plot's folder, relative to the file."""
    template = _environment(escaping=False).get_template("overview.md.jinja")
    text = template.render(table=table, entries=entries, plot=plot, figures=figures)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _shared(document: Document) -> dict[str, object]:
    return {
        "document": document,
        "about_results": about_results(document),
        "data_read": data_read(document),
        "results": tables.results(document),
        "other_scores": tables.other_scores(document),
        "row_tables": row_tables(document),
        "by_seed": tables.by_seed(document),
        "costs": tables.costs(document),
        "sources": tables.sources(document),
        "artifacts": tables.artifacts(document),
        "exported": tables.exported(document),
        "studies": [(study.title, study_tables(study)) for study in document.studies],
        "total": units.duration(tables.total_seconds(document.stages)),
    }


def about_results(document: Document) -> str:
    """How the main table is to be read."""
    name = document.primary or ""
    several = any(len(row.seeds) > 1 for row in document.rows)
    means = "Means over seeds." if several else "One seed a model, so no interval."
    gaps = [_about_gaps(document, name), _about_seeds(document, name)]
    return " ".join(filter(None, [means, *gaps, _bounds(document, name)]))


def _about_gaps(document: Document, name: str) -> str:
    """What the differences of the main table are; "" where it has none."""
    gaps = document.gaps(name)
    if not gaps:
        return ""
    if all(gap.low is None for gap in gaps):
        return f"Differences are to {document.baseline}, without an interval: they may be chance."
    count = sum(gap.corrected is not None for gap in gaps)
    others = (
        f"; p of the {count} rows beside the method is corrected for their number (Holm)"
        if count > 1
        else ""
    )
    return (
        f"Differences are to {document.baseline}, paired seed by seed where the "
        f"rows share their seeds, and starred where p < 0.05{others}. Intervals are Student's t "
        "over training seeds: they do not cover another choice of test data."
    )


def _about_seeds(document: Document, name: str) -> str:
    """Which rows have other seeds than the baseline, and what that means; "" where none has."""
    gaps = {
        r.name: r.differences[name] for r in document.rows if r.compared and name in r.differences
    }
    apart = [f"{row} ({gap.n} shared, {gap.apart} not)" for row, gap in gaps.items() if gap.apart]
    means = [row for row, gap in gaps.items() if gap.how != "paired"]
    found: list[str] = []
    if apart:
        found.append(
            f"Other seeds than {document.baseline}'s: {', '.join(apart)}; only those that both "
            "have are compared."
        )
    if means:
        found.append(
            f"No seed in common with {document.baseline}, so not paired: {', '.join(means)}."
        )
    return " ".join(found)


def _bounds(document: Document, name: str) -> str:
    primary = document.score(name)
    bounds = (("Trivial control", document.control), ("Ceiling", document.ceiling))
    return " ".join(
        f"{what}: {held.name}, {units.quantity(held.value, primary)}{units.counted(held.counts)}."
        for what, held in bounds
        if held is not None and primary is not None
    )


def data_read(document: Document) -> str:
    """What the stages read from outside; where none has finished, nothing was recorded."""
    if not document.stages:
        return "not recorded"
    return ", ".join(document.read) or "none from outside the recipe"


def _environment(*, escaping: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=escaping,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters: dict[str, Any] = {  # Any: functions of one or two arguments
        "prose": prose,
        "md": escape_markdown,
        "md_prose": markdown_prose,
        "code": code_span,
        "words": words,
        "fact_name": fact_name,
        "svg_uri": _svg_uri,
        "svg_size": svg_size,
        "some_of": some_of,
    }
    environment.filters.update(filters)
    return environment


def prose(text: str) -> Markup:
    """Escaped text with its URLs and arXiv numbers as links, and `code` as code."""
    parts = CODE.split(text)  # text and code in turn
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if i % 2 else linked(part)
        for i, part in enumerate(parts)
    )


def linked(text: str) -> Markup:
    """Escaped text with its URLs and arXiv numbers as links."""
    parts: list[Markup] = []
    end = 0
    for match in LINK.finditer(text):
        target = f"https://arxiv.org/abs/{match[1]}" if match[1] else match[0]
        parts.append(escape(text[end : match.start()]))
        parts.append(Markup('<a href="{}" rel="noreferrer">{}</a>').format(target, match[0]))
        end = match.end()
    return Markup("").join([*parts, escape(text[end:])])


def markdown_prose(text: str) -> str:
    """Text on one line that Markdown shows as it is, but `code` as code."""
    parts = CODE.split(" ".join(text.split()))
    return "".join(f"`{part}`" if i % 2 else _escaped(part) for i, part in enumerate(parts))


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _escaped(" ".join(text.split()))


def _escaped(text: str) -> str:
    return MARKDOWN.sub(r"\\\1", text)


def code_span(text: str) -> str:
    """Text as Markdown code, safe within a table."""
    return f"`{' '.join(text.replace('`', chr(39)).split())}`".replace("|", "\\|")


def words(value: object) -> str:
    """A setting or a measured fact as a person writes it."""
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case list() | tuple():
            return ", ".join(words(v) for v in value)  # pyright: ignore[reportUnknownVariableType]
        case dict():
            return ", ".join(f"{k} {words(v)}" for k, v in value.items())  # pyright: ignore[reportUnknownVariableType]
        case _:
            return str(value)


def fact_name(key: str) -> str:
    """The name of a measured fact as a person writes it: "memory_gib" is "Memory, GiB"."""
    if key in ("cpu", "gpu"):
        return key.upper()
    text = key.replace("_gib", ", GiB").replace("_", " ")
    return text[:1].upper() + text[1:]


def svg_size(svg: str) -> tuple[int, int]:
    """Width and height of an SVG in pixels, so that the page does not jump when it is drawn."""
    match = SIZE.search(svg)
    assert match is not None  # matplotlib writes both
    return round(float(match["width"]) * 4 / 3), round(float(match["height"]) * 4 / 3)


def _svg_uri(plot: Plot) -> str:
    return _uri("image/svg+xml", plot.svg.encode())


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _row_colours(document: Document) -> str:
    rules = {
        mode: "".join(f"--row{i}:{c};" for i, c in enumerate(colours(document.rows, THEMES[mode])))
        for mode in MODES
    }
    dark = f"@media screen and (prefers-color-scheme:dark){{:root{{{rules['dark']}}}}}"
    return f":root{{{rules['light']}}}\n{dark}\n"
