"""`stillhouse data`: the pinned data sets, what of them is here, and getting or pinning them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillhouse.errors import BadData, MissingData, StillhouseError, UnknownName

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stillhouse_flows.data.pinned import Pin

app = typer.Typer(
    name="data",
    help=__doc__,
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.command()
def status() -> None:
    """Show the pinned data version, what of it is here and unchanged, and the DVC remote."""
    from stillhouse_flows.data.pinned import datasets, pin, remote

    root = _root()
    pinned, place = pin(root), remote(root)
    if pinned is None:
        print(
            "data.dvc: none, so no data version. Put files into data/ and run: stillhouse data add"
        )
    else:
        print(f"version {pinned.md5}: {pinned.files} files, {pinned.size / 2**20:.1f} MiB")
    print(f"remote  {f'{place[0]} ({place[1]})' if place else 'none configured'}")
    rows = datasets(root)
    for row in rows:
        print(f"  {row.name:<28} {row.files:>6} files  {row.words()}")
    if not rows:
        print("data/ is not here. Recipes at scale tiny need none; to get it: stillhouse data pull")


@app.command()
def add(
    replace: Annotated[
        bool, typer.Option("--replace", help="Also when pinned data sets are not in data/ now.")
    ] = False,
) -> None:
    """Pin data/ as it is now: a new data version in data.dvc, its files in DVC's cache."""
    from dvc.repo import Repo

    from stillhouse_flows.data.pinned import check_links, datasets, pin
    from stillhouse_flows.processes.hush import hush_dvc
    from stillhouse_flows.processes.local import settle

    settle()
    hush_dvc()
    root = _root()
    if not any(path.is_file() for path in (root / "data").rglob("*")):
        raise MissingData(f"{root / 'data'} is empty or not there; put your files there first")
    check_links(root / "data")
    before = pin(root)
    absent = [row.name for row in datasets(root) if not row.here]
    if absent and not replace:
        raise BadData(
            f"the new version would lose {', '.join(absent)}; "
            "run stillhouse data pull first, or give --replace"
        )
    with Repo(str(root), _wait_for_lock=True) as opened:
        repo: Any = opened  # Any: DVC binds its methods in a way no checker sees
        repo.add(str(root / "data"))
    _say_change(before, pin(root))


def _say_change(before: "Pin | None", after: "Pin | None") -> None:
    assert after is not None
    if before == after:
        print(f"unchanged: version {after.md5}")
    else:
        print(
            f"version {before.md5 if before else 'none'} -> {after.md5}; commit data.dvc to keep it"
        )


@app.command()
def pull(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Data sets; without, all.")
    ] = None,
) -> None:
    """Get the pinned data, or some of its data sets, from DVC's cache or the remote."""
    from stillhouse_flows.data.pinned import pin
    from stillhouse_flows.processes.hush import hush_dvc
    from stillhouse_flows.processes.local import settle

    settle()
    hush_dvc()
    root = _root()
    pinned = pin(root)
    if pinned is None:
        raise MissingData(f"{root / 'data.dvc'} not found: there is no data version to pull")
    _pull(root, pinned, names or [])
    print(f"data/ has {', '.join(names) if names else 'everything'} of version {pinned.short}")
    if names:
        print("Before `dvc repro`, pull the rest too: DVC would pin what is here as a new version.")


@app.command()
def fetch(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="A public data set; without, they are listed.")
    ] = "",
    mirror: Annotated[
        str, typer.Option(metavar="URL", help="Another place that has the same files.")
    ] = "",
) -> None:
    """Get a public data set from its home into data/NAME, its checksums compared."""
    from stillhouse.homes import data_homes, fetch_data

    if not name:
        for each, found in data_homes().items():
            here = "" if found.fetch else f"  get it yourself: {found.page}"
            print(f"  {each:<16} {found.mib:>5} MiB  {found.summary}; {found.license}{here}")
        return
    folder = fetch_data(name, _root(), mirror=mirror)
    print(f"{folder}: read it with --set data=data:{name}; stillhouse data add pins it")


def _pull(root: Path, pinned: "Pin", names: "Sequence[str]") -> None:
    from dvc.exceptions import CheckoutError, DvcException
    from dvc.repo import Repo

    from stillhouse_flows.data.pinned import remote

    _check_names(root, pinned, names)
    place = remote(root)
    targets = [str(root / "data" / name) for name in names] or [str(root / "data.dvc")]
    try:
        with Repo(str(root), _wait_for_lock=True) as repo:
            repo.pull(targets) if place else repo.checkout(targets)
    except CheckoutError as error:
        _check_names(root, pinned, names)
        if place is None:
            raise MissingData(
                f"version {pinned.short} is not in DVC's cache and no DVC remote is configured. "
                "Run: dvc remote add --local -d NAME URL"
            ) from error
        raise MissingData(
            f"remote '{place[0]}' ({place[1]}) lacks {', '.join(names) or 'files'} "
            f"of version {pinned.short}; ask who pinned it to run: dvc push data.dvc"
        ) from error
    except DvcException as error:
        _check_names(root, pinned, names)
        raise StillhouseError(f"dvc: {' '.join(str(error).split())}") from error


def _check_names(root: Path, pinned: "Pin", names: "Sequence[str]") -> None:
    from stillhouse_flows.data.pinned import below, listing
    from stillhouse_flows.workspace.worktree import shared_cache

    known = listing(shared_cache(root), pinned)
    for name in names if known else ():
        if not below(known or (), name):
            valid = {path.partition("/")[0] for path in known or ()}
            raise UnknownName("data set", name, valid)


def _root() -> Path:
    from stillhouse.places import project_root

    return project_root()
