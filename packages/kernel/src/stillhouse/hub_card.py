"""The model card of an exported student on the Hugging Face hub: its own card, with scores as the
hub indexes them, the rows that it was compared with, and its limits.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from stillhouse.card import CARD
from stillhouse.errors import BadData, MissingData
from stillhouse.metrics.known import guessed
from stillhouse.metrics.scores import Score
from stillhouse.quantize.onnx_network import RECORD

LICENSE = "other"  # the hub's word for one that is not stated or not on its list
TAGS = ("knowledge-distillation", "stillhouse")
OWN = "files of whoever trained it (not published)"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The run that an exported student comes from, as its report has it: RECIPE@VARIANT, the
    headline, the main table with what its differences are, the recipe's notes, what was read from
    outside the recipe, and the versions of code.
    """

    ref: str
    headline: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    legend: str
    notes: Sequence[str]
    read: Sequence[str]
    stillhouse: str
    commit: str | None


def export_record(folder: Path) -> dict[str, Any]:  # Any: JSON values
    """export.json of an exported student's folder; raises MissingData where it is none, BadData for
    one that cannot be read.
    """
    file = folder / RECORD
    if not file.is_file():
        raise MissingData(
            f"{folder}: no {RECORD} in this folder, so no exported student; give one that "
            "`stillhouse export` wrote"
        )
    try:
        record = json.loads(file.read_text())
        if not isinstance(record["outputs"], dict):
            raise TypeError("outputs is no object")
    except (ValueError, KeyError, TypeError) as error:
        raise BadData(f"{file}: not the record of an export ({error}); export it again") from error
    return record


def hub_card(folder: Path, repo: str, *, licence: str = "", origin: Origin | None = None) -> str:
    """README.md for the repository `repo` ("owner/name") of the student exported to `folder`.

    The front matter has the licence (`licence`, else the card's own, else "other"), the task, tags
    and, as model-index, those scores of export.json that have a direction and are no cost. Without
    an `origin` no comparison is known, and the card says so.
    """
    record = export_record(folder)
    own = _own(folder)
    known = own.data.to_dict()
    tags = [*known.pop("tags", ()), *TAGS, *_formats(folder)]
    known["license"] = licence or known.get("license", LICENSE)
    known["library_name"] = "stillhouse"
    data = ModelCardData(
        **known,
        tags=list(dict.fromkeys(tags)),
        model_name=repo.partition("/")[2],
        eval_results=_results(record, known.get("pipeline_tag"), origin) or None,
    )
    top, _, rest = own.text.strip().partition("\n## ")
    parts = [
        top.strip() or f"# {repo}\n\nA student distilled with Stillhouse.",
        _download(repo),
        f"## {rest.strip()}" if rest else "",
        _compared(origin),
        _limits(str(data.license), origin),
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(filter(None, parts)) + "\n"


def _own(folder: Path) -> ModelCard:
    """The card that the export wrote, or an empty one."""
    file = folder / CARD
    text = file.read_text(encoding="utf-8") if file.is_file() else "---\nlicense: other\n---\n"
    try:
        return ModelCard(text)
    except ValueError as error:
        raise BadData(f"{file}: its front matter cannot be read ({error})") from error


def _formats(folder: Path) -> list[str]:
    ends = {"onnx": "*.onnx", "safetensors": "*.safetensors"}
    return [name for name, pattern in ends.items() if next(folder.glob(pattern), None)]


def _results(
    record: Mapping[str, Any], task: str | None, origin: Origin | None
) -> list[EvalResult]:
    """A result a score of the whole model, in the order of their declaration; Any: JSON values."""
    declared = record.get("declared", {})
    known = {entry["name"]: Score(**entry) for entry in declared.get("scores", ())}
    scores: Mapping[str, float] = {
        name: value
        for name, value in record.get("scores", {}).items()
        if name not in declared.get("cells", {})  # of a table, such as the recall of each class
    }
    where = "the run" if origin is None else origin.ref
    found = list[EvalResult]()
    for name in sorted(scores, key=[*known, *scores].index):
        score = known.get(name) or guessed(name)
        if score.cost or not score.directed or not math.isfinite(scores[name]):
            continue
        found.append(
            EvalResult(
                task_type=task or "other",
                dataset_type="custom",
                dataset_name=f"held-out data of {where}",
                metric_type=name,
                metric_value=scores[name],
                metric_name=f"{score.label}{' (lower is better)' if score.lower_is_better else ''}",
            )
        )
    return found


def _download(repo: str) -> str:
    return f"""## Download

```python
from huggingface_hub import snapshot_download

folder = snapshot_download("{repo}")
```"""


def _compared(origin: Origin | None) -> str:
    """The rows of the run's report."""
    if origin is None:
        return """## What it was compared with

Not known here: the folder alone was uploaded, without the report of the run that made it."""
    lines = [f"| {' | '.join(row)} |" for row in (origin.head, *origin.rows)]
    lines.insert(1, f"|{'---|' * len(origin.head)}")
    parts = [f"## What it was compared with\n\nThe report of `{origin.ref}`:", "\n".join(lines)]
    return "\n\n".join(filter(None, [*parts, origin.legend, origin.headline]))


def _limits(licence: str, origin: Origin | None) -> str:
    lines = [
        "- The scores hold for held-out data like those it was trained on, and for nothing else.",
        "- The training and test data are not part of this repository, nor are images of them.",
    ]
    if licence == LICENSE:
        lines.append("- No licence was stated for these weights: contact their owner before use.")
    if origin is not None:
        read = [_named(ref) for ref in origin.read]
        if read:
            lines.append(f"- What the run read: {', '.join(dict.fromkeys(read))}.")
        lines += [f"- {note}" for note in origin.notes]
        made = f"Stillhouse {origin.stillhouse}"
        commit = f", commit `{origin.commit[:12]}`" if origin.commit else ""
        lines.append(f"- Made with {made}{commit}.")
    return "\n".join(["## Limits", "", *lines])


def _named(ref: str) -> str:
    """What a reference outside the recipe names, without a place on the machine of the run."""
    scheme, _, rest = ref.partition(":")
    if scheme == "file":
        return OWN
    if scheme == "builtin":
        return f"the built-in `{rest}`"
    return f"`{ref.partition('#')[0]}`"
