"""`stillhouse flow clean | gc`: what old runs have left, and what nothing names any more."""

from pathlib import Path
from typing import Annotated

import typer


def clean(
    older_than: Annotated[
        str, typer.Option(help="What has not changed for so long: 30m, 12h, 30d, 8w.")
    ] = "30d",
    branches: Annotated[
        bool, typer.Option("--branches", help="Their branches runs/* too, so also their history.")
    ] = False,
    prefect: Annotated[
        bool, typer.Option("--prefect", help="Runs of that age in Prefect's database too.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be removed.")
    ] = False,
) -> None:
    """Remove workspaces of old runs, never of one that goes or was promoted.

    Of runs of a recipe that failed for one reason only the newest stays, whatever their age.
    Results stay in DVC's cache while a branch or tag names them: see `flow gc`.
    """
    from stillhouse.cli.cleaning import seconds
    from stillhouse.cli.tables import size
    from stillhouse.places import project_root
    from stillhouse_flows.upkeep.cleaning import clean as remove

    age, freed = seconds(older_than), 0
    verb = "would remove" if dry_run else "removed"
    for left in remove(project_root(), seconds=age, branches=branches, dry=dry_run):
        freed += left.size
        what = [*(["workspace"] if left.folder else [])]
        what += ["branch"] if left.branch and (branches or left.repeated) else []
        print(f"{verb} {size(left.size):>10}  {' and '.join(what)} of {left.run}")
    if prefect:
        print(f"{verb} of Prefect's runs: {_forget(age, dry=dry_run)}")
    print(f"{'Would free' if dry_run else 'Freed'} {size(freed)}.")


def _forget(age: float, *, dry: bool) -> int:
    from stillhouse_flows.cli.foreground import one_line
    from stillhouse_flows.processes.local import settle
    from stillhouse_flows.server.serving import ensure_api

    settle()
    with one_line():
        ensure_api()
        from stillhouse_flows.upkeep.cleaning import clean_prefect

        return clean_prefect(age, dry=dry)


def gc(
    project: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="Another project on the same cache; may be repeated.", exists=True
        ),
    ] = None,
) -> None:
    """Free DVC's cache of what no branch, tag, workspace or working tree names.

    `dvc gc` by itself does not know the workspaces of runs, nor what is not committed there.
    """
    from stillhouse.cli.tables import size
    from stillhouse.places import project_root
    from stillhouse_flows.processes.hush import hush_dvc
    from stillhouse_flows.processes.local import settle
    from stillhouse_flows.upkeep.cleaning import collect

    settle()
    hush_dvc()
    print(f"Freed {size(collect(project_root(), project or ()))} of DVC's cache.")
