"""`report`, `compare`, `export` and `predict`: what finished runs are good for."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from stillhouse.cli.completing import recipes
from stillhouse.cli.listing import Json

if TYPE_CHECKING:
    from stillhouse.cli.target import Target

Finished = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE[@VARIANT]",
        help="As it was last run here; without @VARIANT, @tiny.",
        autocompletion=recipes,
    ),
]

Device = Annotated[
    str, typer.Option(help="auto, cpu, cuda or cuda:1; auto is the GPU if there is one.")
]
Open = Annotated[bool, typer.Option("--open", help="Show the report in the browser.")]
WIDTH = 80


def report(
    recipe: Finished,
    partial: Annotated[bool, typer.Option(help="Also when some stages have not run.")] = False,
    open_: Open = False,
    publish: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write there what may be committed.")
    ] = None,
    images: Annotated[
        bool, typer.Option(help="Publish images of predictions, too: mind the data's licence.")
    ] = False,
) -> None:
    """Write the report of a finished run."""
    from stillhouse.cli.target import last_target

    target = last_target(recipe)
    target.need_run()
    page = print_report(target, partial=partial)
    if publish is not None:
        from stillhouse.report import publish as publish_report

        print(f"Published: {publish_report(page.parent, publish, images=images)}")
    if open_:
        open_page(page)


def diagnose(
    recipe: Finished,
    device: Device = "auto",
) -> None:
    """Say what may hold back a student that is no better than alone."""
    from stillhouse.cli.running import choose_device
    from stillhouse.cli.target import last_target
    from stillhouse.report.build import build
    from stillhouse.report.measured import measure

    target = last_target(recipe)
    target.need_run()
    runs = target.runs(device=choose_device(device))
    document = build(target.recipe, runs.recipe, runs.root, runs.folder)
    print(document.headline.text)
    found = (*document.diagnosis, *measure(document, target.recipe, runs))
    for finding in found:
        print(f"\n{finding.check.capitalize()}\n  {finding.figure}\n  Try: {finding.remedy}")
    if not found:
        print("\nNothing was found that holds a gain back.")


def print_report(target: "Target", *, partial: bool = False) -> Path:
    """Write the report, print its table and where it is; returns the path of report.html."""
    from stillhouse.cli.tables import print_table
    from stillhouse.report import brief, legend, load
    from stillhouse.report import report as write_report

    page = write_report(target.recipe, target.runs(), partial=partial)
    document = load(page)
    table = brief(document)
    numbers = range(1, len(table.head))
    print_table(table.title, table.head, table.rows, width=WIDTH, numbers=numbers)
    for text in (legend(document), document.headline.text, *document.costlier):
        if text:
            print(text)
    print(f"Report: {page}")
    return page


def json_report(target: "Target") -> Path:
    """As `print_report`, but what is printed is one line of JSON."""
    import json

    from stillhouse.report import load
    from stillhouse.report import report as write_report

    page = write_report(target.recipe, target.runs())
    document = load(page)
    record = {
        "recipe": target.name,
        "variant": target.variant,
        "report": str(page),
        "headline": document.headline.text,
        "primary": document.primary,
        "rows": {
            row.name: {name: summary.mean for name, summary in row.scores.items()}
            for row in document.rows
        },
    }
    print(json.dumps(record), flush=True)
    return page


def open_page(page: Path) -> None:
    """Show a page in the browser, or say that there is none."""
    import webbrowser

    if not webbrowser.open(page.as_uri()):
        print(f"No browser found here. Open {page.as_uri()}", file=sys.stderr)


def compare(
    reports: Annotated[
        list[str],
        typer.Argument(
            metavar="A B", help="RECIPE[@VARIANT] as last run here, or a report.json or its folder."
        ),
    ],
    json: Json = False,
) -> None:
    """Finished reports side by side."""
    from stillhouse.cli.tables import print_json, print_table
    from stillhouse.report import compare as compare_reports

    compared = compare_reports([_report_of(name) for name in reports])
    if json:
        print_json(compared)
        return
    for table in compared.tables():
        print_table(table.title, table.head, table.rows)


def overview(
    reports: Annotated[
        list[Path],
        typer.Argument(metavar="FOLDER", help="Folders of reports, or report.json files."),
    ],
    publish: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write README.md and its plot there.")
    ] = None,
) -> None:
    """What the methods of finished reports gained, one line a report."""
    from stillhouse.cli.tables import print_table
    from stillhouse.report.overview import PAGE
    from stillhouse.report.overview import overview as make_overview

    table = make_overview(reports, page=publish)
    print_table(table.title, table.head, table.rows, width=WIDTH)
    if publish is not None:
        print(f"Published: {publish / PAGE}")


def _report_of(name: str) -> Path:
    from stillhouse.cli.target import last_target

    if Path(name).exists():
        return Path(name)
    target = last_target(name)
    target.need_run()
    return target.runs().folder / "report"


def export(
    recipe: Finished,
    to: Annotated[Literal["onnx", "openvino", "safetensors"], typer.Option(help="The format.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A new folder for the files.")
    ] = None,
) -> None:
    """Copy the exported student of a finished run, with its model card."""
    from stillhouse.cli.exporting import export_student
    from stillhouse.cli.target import last_target

    target = last_target(recipe)
    target.need_run()
    default = Path(f"{target.name.replace('/', '-')}-{target.variant}-{to}")
    for file in export_student(target, to, default if out is None else out):
        print(file)


def predict(
    student: Annotated[
        str,
        typer.Argument(
            metavar="STUDENT",
            help="RECIPE[@VARIANT], the folder of an exported model, or its ONNX file.",
        ),
    ],
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Files, folders of them, or texts; and options of the domain, as in --labels a,b.",
        ),
    ] = [],  # noqa: B006
    form: Annotated[
        Literal["table", "json", "csv"], typer.Option("--format", help="How rows are printed.")
    ] = "table",
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the rows there: a .json or .csv file."),
    ] = None,
) -> None:
    """Print or write a student's predictions for files, a row each."""
    from stillhouse.cli.predicting import as_text, heads, predictions
    from stillhouse.cli.tables import print_table
    from stillhouse.errors import BadSetting
    from stillhouse.files import write_text

    if out is not None and out.suffix not in (".json", ".csv"):
        raise BadSetting(f"--out {out}: give a file that ends in .json or .csv")
    rows = predictions(student, inputs)
    if out is not None:
        write_text(out, as_text(rows, out.suffix[1:]))
        print(f"{len(rows)} rows: {out}")
    elif form != "table":
        print(as_text(rows, form), end="")
    else:
        head = heads(rows)
        print_table("", head, [[str(row.get(name, "")) for name in head] for row in rows])
