"""`stillhouse pointcloud`: a KITTI folder's files for mmdetection3d."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="pointcloud",
    help=__doc__,
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def pointcloud() -> None:
    """A KITTI folder's files for mmdetection3d."""


@app.command()
def kitti_infos(
    folder: Annotated[Path, typer.Argument(help="KITTI: training/ and ImageSets/.")],
    out: Annotated[
        Path | None, typer.Option(help="Where the files go; default: into the folder itself.")
    ] = None,
) -> None:
    """Write mmdetection3d's info files and its database of cut out objects."""
    from stillhouse_pointcloud.stock import write_infos

    place = out or folder
    for name, count in write_infos(folder, place).items():
        what = "objects" if "dbinfos" in name else "frames"
        print(f"{place / name}: {count} {what}")
