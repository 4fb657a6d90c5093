"""`report` and `publish`: finished stages in, the files of a report out, whole or not at all."""

import dataclasses
import json
import os
from pathlib import Path

from filelock import FileLock

from stillhouse.errors import MissingData
from stillhouse.files import storage, write_text, writing
from stillhouse.places import home
from stillhouse.recipe import Recipe
from stillhouse.report.build import build
from stillhouse.report.document import Curve, Document, dump, load, parse
from stillhouse.report.drawing import Plot
from stillhouse.report.figures import plots
from stillhouse.report.pixels import smaller
from stillhouse.report.render import html, markdown
from stillhouse.runs import Runs

FOLDER, PAGE, TEXT, RECORD = "report", "report.html", "report.md", "report.json"
DIGITS = 5  # of a published curve


def report(recipe: Recipe, runs: Runs, *, partial: bool = False) -> Path:
    """Write the report of a recipe's finished stages beside them; returns report.html's path.

    Raises MissingData naming the stages that have not run; with `partial` the report names them.
    """
    document = build(recipe, runs.recipe, runs.root, runs.folder)
    if document.missing and not partial:
        raise MissingData(_unfinished(document))
    drawn, final = plots(document), runs.folder / FOLDER
    images = {p.path: (runs.folder / p.path).read_bytes() for p in document.pictures}
    places = {path: f"../{path}" for path in images}
    with _lock(runs.folder), writing(final) as out:
        write_figures(drawn, out / "figures")
        (out / RECORD).write_text(dump(document), encoding="utf-8")
        (out / TEXT).write_text(markdown(document, drawn, places), encoding="utf-8")
        (out / PAGE).write_text(html(document, drawn, images), encoding="utf-8")
    return final / PAGE


def publish(folder: Path, target: Path, *, images: bool = False) -> Path:
    """Write what may be committed of a report to `target`; returns report.md's path.

    `folder` is a report's, or the run's that holds it. Numbers, plots and text go; images of
    samples stay behind unless `images`: data of restricted licence must not be spread.
    """
    source = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    document = load(source)
    kept = tuple(p for p in document.pictures if p.plot or images)
    document = _without_places(dataclasses.replace(document, pictures=kept), source)
    places: dict[str, str] = {}
    drawn = plots(document)
    document = dataclasses.replace(document, curves=tuple(map(_rounded, document.curves)))
    with writing(target / "figures") as out:
        write_figures(drawn, out)
        for each in kept:
            suffix, data = smaller((source.parent / each.path).read_bytes())
            name = f"{each.path.removesuffix('.png').replace('/', '-')}{suffix}"
            (out / name).write_bytes(data)
            places[each.path] = f"figures/{name}"
    write_text(target / RECORD, dump(document))
    write_text(target / TEXT, markdown(document, drawn, places))
    return target / TEXT


def _without_places(document: Document, report: Path) -> Document:
    """The document with paths in the project and in the user's own folder relative to these."""
    above = report.resolve().parents  # the variant, recipe and domain, runs, the project
    projects = above[4:5] if len(above) > 4 and above[3].name == "runs" else ()
    text = dump(document)
    for place in (*projects, home()):
        text = text.replace(json.dumps(f"{place}{os.sep}")[1:-1], "")
    return parse(text, where=str(report))


def _rounded(curve: Curve) -> Curve:
    """The curve with as many digits as a plot can show."""
    columns = {
        name: values if name == "step" else tuple(v and float(f"{v:.{DIGITS}g}") for v in values)
        for name, values in curve.columns.items()
    }
    return dataclasses.replace(curve, columns=columns)


def _unfinished(document: Document) -> str:
    names, count = ", ".join(document.missing), len(document.missing)
    what = f"stage {names} has" if count == 1 else f"{count} stages have"
    listed = "" if count == 1 else f": {names}"
    return (
        f"report of {document.title}: {what} not run{listed}. Run: stillhouse run {document.title}"
    )


def _lock(folder: Path) -> FileLock:
    locks = folder / ".locks"
    with storage(locks):
        locks.mkdir(parents=True, exist_ok=True)
    return FileLock(locks / "report.lock")


def write_figures(drawn: tuple[Plot, ...], folder: Path) -> None:
    """The plots as SVG files."""
    folder.mkdir(exist_ok=True)
    for plot in drawn:
        (folder / f"{plot.name}.svg").write_text(plot.svg, encoding="utf-8")
