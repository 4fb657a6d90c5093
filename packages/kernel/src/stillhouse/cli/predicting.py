"""`predict`: the domain's own table for a student and some files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stillhouse.artifact import SPEC, Built, load_model
from stillhouse.domain import Domain, domains, load_function
from stillhouse.errors import BadSetting, MissingData, PluginError, UnknownName


def predictions(student: str, inputs: Sequence[Path]) -> Sequence[Mapping[str, Any]]:
    """A row an input, or more, as the domain likes; Any: what a cell shows."""
    for path in inputs:
        if not path.exists():
            raise MissingData(f"{path} is not there; give existing files")
    folder = Path(student)
    if (folder / SPEC).is_file():
        built = load_model(folder)
        name = _domain_of(built, folder)
    else:
        name, built = student.partition("/")[0], _finished(student)
    found = _installed(name)
    if not found.predict:
        raise BadSetting(
            f"domain '{name}' has no predictions to print; its students can be exported"
        )
    return load_function(found.predict, where=f"domain '{name}'")(built, inputs)


def _finished(student: str) -> Built:
    from stillhouse.cli.exporting import student_of
    from stillhouse.cli.target import last_target

    if Path(student).is_dir():
        raise MissingData(f"{student}: no {SPEC} in this folder; export one with --to safetensors")
    target = last_target(student)
    target.need_run()
    return student_of(target).open()


def _domain_of(built: Built, folder: Path) -> str:
    """The domain whose package builds the model."""
    # of a converted model: what it was converted from
    source = built.spec.kwargs.get("source", {}).get("build", built.spec.build.__module__)
    package = source.partition(":")[0].partition(".")[0]
    for name, domain in domains().items():
        if isinstance(domain, Domain) and _package(domain) == package:
            return name
    raise PluginError(
        f"{folder}: built by '{package}', which is no installed domain; name the recipe instead"
    )


def _package(domain: Domain) -> str:
    return domain.predict.partition(":")[0].partition(".")[0]


def _installed(name: str) -> Domain:
    every = domains()
    domain = every.get(name)
    if isinstance(domain, Domain):
        return domain
    if domain is None:
        raise UnknownName("domain", name, every)
    raise PluginError(f"plugin '{name}' cannot be loaded: {type(domain).__name__}: {domain}")
