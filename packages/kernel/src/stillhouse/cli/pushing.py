"""`push`: an exported student on the Hugging Face hub."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stillhouse.cli.completing import recipes
from stillhouse.cli.listing import Json

if TYPE_CHECKING:
    from stillhouse.cli.target import Target
    from stillhouse.hub import Upload
    from stillhouse.hub_card import Origin


def push(
    student: Annotated[
        str,
        typer.Argument(
            metavar="STUDENT",
            help="RECIPE[@VARIANT], or the folder of an exported model.",
            autocompletion=recipes,
        ),
    ],
    repo: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="The repository on the Hugging Face hub.")
    ],
    private: Annotated[
        bool, typer.Option("--private", help="Make a repository that only its owner sees.")
    ] = False,
    update: Annotated[
        bool, typer.Option("--update", help="Add a commit to a repository that is there already.")
    ] = False,
    license_: Annotated[
        str,
        typer.Option(
            "--license", metavar="NAME", help="Of these weights, as the hub names it: apache-2.0."
        ),
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the model card and the files; send nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Upload an exported student, with its model card, to the Hugging Face hub."""
    from stillhouse.hub import check_name, planned
    from stillhouse.hub_card import hub_card

    check_name(repo)
    folder, origin = _student(student)
    upload = planned(folder, repo, hub_card(folder, repo, licence=license_, origin=origin))
    if dry_run:
        _show(upload, json=json)
        return
    _send(upload, private=private, update=update, json=json)


def _show(upload: "Upload", *, json: bool) -> None:
    from stillhouse.cli.tables import print_json

    if json:
        print_json(
            {
                "repo": upload.repo,
                "files": upload.sizes,
                "left_out": upload.left,
                "card": upload.card,
            }
        )
        return
    print(upload.card)
    print(f"Would be uploaded to {upload.repo}:")
    for name, size in upload.sizes.items():
        print(f"  {name}  {size:,} bytes")
    _print_left(upload)


def _send(upload: "Upload", *, private: bool, update: bool, json: bool) -> None:
    import sys

    from huggingface_hub.utils import disable_progress_bars

    from stillhouse.cli.tables import print_json
    from stillhouse.hub import push as send

    if json or not sys.stderr.isatty():
        disable_progress_bars()
    pushed = send(upload, private=private, update=update)
    if json:
        record = {"repo": upload.repo, "url": pushed.url, "commit": pushed.commit}
        print_json({**record, "files": upload.sizes, "left_out": upload.left})
        return
    print(f"{len(upload.sizes)} files: {pushed.url}")
    _print_left(upload)


def _print_left(upload: "Upload") -> None:
    if upload.left:
        print(f"Left out, no files of a model: {', '.join(upload.left)}")


def _student(student: str) -> "tuple[Path, Origin | None]":
    """The folder of an exported model, and the run that it comes from where a recipe was named."""
    from stillhouse.cli.exporting import student_of
    from stillhouse.cli.target import last_target

    if Path(student).is_dir():
        return Path(student), None
    target = last_target(student)
    target.need_run()
    return student_of(target).path, _origin(target)


def _origin(target: "Target") -> "Origin":
    from stillhouse.hub_card import Origin
    from stillhouse.report import brief, legend
    from stillhouse.report.build import build

    runs = target.runs()
    document = build(target.recipe, runs.recipe, runs.root, runs.folder)
    table = brief(document)
    return Origin(
        ref=document.title,
        headline=document.headline.text,
        head=table.head,
        rows=table.rows,
        legend=legend(document),
        notes=document.notes,
        read=document.read,
        stillhouse=document.lineage.stillhouse,
        commit=document.lineage.commit,
    )
