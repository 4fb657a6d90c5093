"""A report.json as older versions wrote it, read as one of today: of schema 1, from before metrics
declared their scores, or under an older name.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from stillhouse.metrics.known import guessed
from stillhouse.metrics.scores import COUNT

Json = Mapping[str, Any]  # Any: JSON values


def renamed(record: Json) -> Json:
    """The record with the names of today: `shipped` became `exported`."""
    if "shipped" not in record:
        return record
    kept = {key: value for key, value in record.items() if key != "shipped"}
    return {"exported": record["shipped"], **kept}


def upgraded(record: Json) -> Json:
    """The record of schema 1 as one of schema 2; raises KeyError or TypeError for another one."""
    return {
        **record,
        "schema_version": 2,
        "scores": [_score(score) for score in record["scores"]],
        "rows": [_row(row) for row in record["rows"]],
        "control": _held(record.get("control")),
        "ceiling": _held(record.get("ceiling")),
        "studies": [_study(study) for study in record.get("studies", ())],
    }


def _score(score: Json) -> Json:
    name, lower = score["name"], score["lower_is_better"]
    return {
        "name": name,
        "better": "lower" if lower else "higher",
        "unit": COUNT if guessed(name).unit == COUNT else score["unit"],
        "label": score["label"],
        "cost": score["cost"],
    }


def _row(row: Json) -> Json:
    kept = {key: value for key, value in row.items() if key != "standing"}
    return {"kind": row["standing"], **kept} if "standing" in row else kept


def _held(held: Json | None) -> Json | None:
    if held is None:
        return None
    counts = {guessed(name).label: value for name, value in held.get("counts", {}).items()}
    return {**held, "counts": counts}


def _study(study: Json) -> Json:
    values: list[Json] = []
    names: dict[str, None] = {}
    for stored, summary in study["scores"].items():
        row, _, name = stored.rpartition("/")
        names[name] = None
        values.append({"row": row, "score": name, "summary": summary})
    scores = [asdict(guessed(name)) for name in names]
    for score in scores:
        ends = tuple(f"{score['name']}_{end}" for end in ("low", "high"))
        score["ends"] = ends if names.keys() >= {*ends} else None
    return {
        "title": study["title"], "stages": study["stages"], "scores": scores, "values": values
    }  # fmt: skip
