"""Public data sets, from where the public has them into data/: `stillhouse data fetch`."""

from collections.abc import Mapping
from pathlib import Path

from stillhouse.domain import DataHome, Domain, domains, load_function
from stillhouse.errors import BadData, MissingData, UnknownName
from stillhouse.files import storage, writing
from stillhouse.places import home


def data_homes() -> Mapping[str, DataHome]:
    """The data sets of all domains that can be loaded, by name."""
    every = (domain for domain in domains().values() if isinstance(domain, Domain))
    return {name: found for domain in every for name, found in sorted(domain.datasets.items())}


def fetch_data(name: str, root: Path, *, mirror: str = "") -> Path:
    """Write the data set `name` to `root`/data/<name>; returns that folder. Downloads are kept
    below the user's own folder, so that a second try begins behind what is there.

    `mirror` is another URL with the same files. Raises UnknownName for a data set that no domain
    has, BadData where the folder is there already or a download has other bytes than it should,
    MissingData where the home cannot be reached, or where the user has to accept terms first,
    StorageError where a folder cannot be written.
    """
    homes = data_homes()
    if name not in homes:
        raise UnknownName("data set", name, homes)
    found, folder = homes[name], root / "data" / name
    if folder.exists():
        raise BadData(f"{folder} is there already; remove it to fetch '{name}' again")
    if not found.fetch:
        raise MissingData(
            f"'{name}' is under terms that you accept yourself ({found.license}): get it from "
            f"{found.page} and put it into {folder}"
        )
    place = mirror or found.home
    downloads = home() / "downloads" / name
    with storage(downloads):
        downloads.mkdir(parents=True, exist_ok=True)
    write = load_function(found.fetch, where=f"data set '{name}'")
    with writing(folder) as aside:
        write(name, aside, place if place.endswith("/") else f"{place}/", downloads)
    return folder
