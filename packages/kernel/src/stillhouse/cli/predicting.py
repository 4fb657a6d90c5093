"""`predict`: the domain's own table for a student and some files."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stillhouse.artifact import SPEC, Built, load_model
from stillhouse.cli.given import Given
from stillhouse.domain import Domain, domains, load_function
from stillhouse.errors import BadSetting, MissingData, PluginError, UnknownName
from stillhouse.quantize.onnx_network import ONNX, load_onnx


def predictions(student: str, words: Sequence[str]) -> Sequence[Mapping[str, Any]]:
    """A row an input, or more, as the domain likes. `words` are inputs and, as "--name value" or
    "--name=value", options that the domain's function takes by name. Any: what a cell shows.
    """
    given = Given.of(words)
    path = Path(student)
    built = _exported(path)
    if built is not None:
        name = _domain_of(built, path)
    else:
        name, built = student.partition("/")[0], _finished(student)
    found = _installed(name)
    if not found.predict:
        raise BadSetting(
            f"domain '{name}' has no predictions to print; its students can be exported"
        )
    where = f"domain '{name}'"
    return given.call(load_function(found.predict, where=where), built, where)


def _exported(path: Path) -> Built | None:
    """The model of an exported folder or ONNX file; None for what is neither."""
    if (path / SPEC).is_file():
        return load_model(path)
    file = path / ONNX if path.is_dir() else path
    if file.suffix == ".onnx" and file.is_file():
        return load_onnx(file)
    return None


def as_text(rows: Sequence[Mapping[str, Any]], form: str) -> str:
    """Rows as the text of a JSON or CSV file; Any: what a cell shows."""
    if form == "json":
        return json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
    text = io.StringIO()
    writer = csv.DictWriter(text, heads(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def heads(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns of rows in order; Any: what a cell shows."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _finished(student: str) -> Built:
    from stillhouse.cli.exporting import student_of
    from stillhouse.cli.target import last_target

    if Path(student).is_dir():
        raise MissingData(
            f"{student}: neither {SPEC} nor {ONNX} in this folder; give one that "
            "`stillhouse export` wrote"
        )
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
