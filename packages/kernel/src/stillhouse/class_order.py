"""Whether a model that others trained knows a run's classes in the run's order: by the names it
brings, and by what it says of labelled samples.

K: classes. N: samples.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Integer
from torch import Generator, Tensor

from stillhouse.errors import BadData

LISTS = ("classes", "class_names", "names", "categories", "CLASSES", "label_names")
NUMBERED = ("class_to_idx",)  # name -> number
NAMED = ("idx_to_class", "id2label", "names")  # number -> name
WITHIN = ("meta", "dataset_meta", "pretrained_cfg", "hyper_parameters")
PLACEHOLDER = re.compile(r"LABEL_\d+")  # transformers' own, where nobody gave names
CONFIG = "config.json"
SAMPLES, LEAST = 1000, 4  # of all classes, of each
SIGMAS, MARGIN = 3.0, 0.05  # above chance; the margin is of what there is above chance
SHOWN = 200  # characters of a list of names

Labels = Integer[Tensor, " N"]


def class_names(source: Path) -> tuple[str, ...]:
    """The names that a checkpoint file, or the config.json of its folder, has for its outputs, in
    their order; () where it has none, or cannot be read safely.
    """
    folder = source if source.is_dir() else source.parent
    files = [source] if source.is_file() else sorted(folder.glob("*.safetensors"))
    records = [_stored(file) for file in files]
    if source.is_dir():
        records.append(_json(folder / CONFIG))
    return next((names for record in records if (names := _names(record))), ())


def check_names(
    given: Sequence[str],
    wanted: Sequence[str],
    *,
    go_on: str,
    reorder: str = "take the model's order as names",
) -> None:
    """Raises BadData where a model's names for its outputs are not the run's, in this order;
    nothing where one of them has none. `reorder` says what to do about the order alone, `go_on`
    ends the message.
    """
    ours, theirs = [_plain(name) for name in wanted], [_plain(name) for name in given]
    if not given or not wanted or theirs == ours:
        return
    same = sorted(theirs) == sorted(ours)
    what = "in another order" if same else "others"
    do = reorder if same else "give a model of the run's classes"
    raise BadData(
        f"the given model's classes are {what}: its {_listed(given)}; "
        f"the run's {_listed(wanted)}; {do}, or {go_on}"
    )


def balanced_rows(labels: Labels, *, rng: Generator) -> Tensor:
    """Row numbers of about `SAMPLES` samples, as many of each class, drawn by `rng`."""
    classes = labels.unique()
    each = max(LEAST, -(-SAMPLES // max(1, len(classes))))
    order = torch.randperm(len(labels), generator=rng)
    shuffled = labels[order]
    return torch.cat([order[shuffled == label][:each] for label in classes])


def check_predictions(
    predicted: Labels,
    labels: Labels,
    names: Sequence[str],
    *,
    classes: int,
    causes: str,
    go_on: str,
) -> None:
    """Raises BadData where a model's classes, of `balanced_rows`, are another order of the run's,
    or right no more than near chance: 1/K, three standard errors, and 5 % of the rest.

    The order is found on every other sample, as the best matching of outputs to classes, and
    believed where on the others it is right more than twice as often.
    """
    right, chance = float((predicted == labels).float().mean()), 1 / classes
    limit = chance + MARGIN * (1 - chance)
    limit += SIGMAS * math.sqrt(chance * (1 - chance) / len(labels))
    found = f"the given model is right for {right:.1%} of {len(labels)} training samples"
    if order := _other_order(predicted, labels, classes, limit):
        renumbered = torch.tensor([order.get(output, output) for output in range(classes)])
        then = float((renumbered[predicted] == labels).float().mean())
        raise BadData(
            f"{found}, and would be for {then:.1%} were its classes in another order: "
            f"{_moves(order, names)}; give the run its order as names, or {go_on}"
        )
    if right <= limit:
        raise BadData(
            f"{found}, which is near chance ({chance:.1%}); likely its classes are in another "
            f"order than {_listed(names) or 'the labels'}, or it was trained with another "
            f"preprocessing than {causes}; set these, or {go_on}"
        )


def _other_order(predicted: Labels, labels: Labels, classes: int, limit: float) -> dict[int, int]:
    """Output -> class where they differ in a matching that holds on the other half."""
    from scipy.optimize import linear_sum_assignment

    fit, held = (_confusion(predicted[half::2], labels[half::2], classes) for half in (0, 1))
    truth, outputs = linear_sum_assignment(-fit.numpy())
    moved = {int(o): int(t) for t, o in zip(truth, outputs, strict=True) if t != o}
    rows = sum(int(held[t].sum()) for t in moved.values())
    here = sum(int(held[t, t]) for t in moved.values())
    there = sum(int(held[t, o]) for o, t in moved.items())
    believed = there > 2 * here and there - here > SIGMAS * math.sqrt(there + here)
    if not believed or there <= limit * rows:
        return {}
    return {o: t for o, t in moved.items() if fit[t, o] > 0}  # the others are arbitrary


def _confusion(predicted: Labels, labels: Labels, classes: int) -> Tensor:
    """Samples by class and output, [K, K]."""
    flat = torch.bincount(labels * classes + predicted, minlength=classes * classes)
    return flat.reshape(classes, classes)


def _moves(order: Mapping[int, int], names: Sequence[str]) -> str:
    def word(number: int) -> str:
        return f"'{names[number]}'" if names else f"class {number}"

    some = [f"its output {output} is {word(label)}" for output, label in sorted(order.items())[:3]]
    more = len(order) - len(some)
    return ", ".join(some) + (f" and {more} more" if more else "")


def _plain(name: str) -> str:
    """Without what differs between files of the same names."""
    return re.sub(r"[\s_-]+", " ", name.casefold()).strip()


def _listed(names: Sequence[str]) -> str:
    text = ", ".join(names)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(names)})"


def _stored(file: Path) -> Mapping[str, Any]:  # Any: what the file holds
    """The entries of a torch checkpoint, or the metadata of a safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        if file.suffix != ".safetensors":
            content = torch.load(file, map_location="meta", weights_only=True)
            return content if isinstance(content, dict) else {}
        with safe_open(str(file), "pt") as opened:
            texts: Mapping[str, str] = opened.metadata() or {}
    except (OSError, SafetensorError):
        return {}
    except Exception:  # damaged bytes can fail anywhere; who reads the weights says so
        return {}
    return {key: _parsed(text) for key, text in texts.items()}


def _parsed(text: str) -> Any:  # Any: JSON
    try:
        return json.loads(text)
    except ValueError:
        return text


def _json(file: Path) -> Mapping[str, Any]:  # Any: JSON
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _names(record: Mapping[str, Any]) -> tuple[str, ...]:  # Any: what a file holds
    for key in (*NUMBERED, *NAMED, *LISTS):
        if found := _of_entry(key, record.get(key)):
            return found
    inner = [record[key] for key in WITHIN if isinstance(record.get(key), Mapping)]
    return next((names for entry in inner if (names := _names(entry))), ())


def _of_entry(key: str, value: Any) -> tuple[str, ...]:  # Any: as above
    names: list[Any] = []
    if isinstance(value, Mapping) and value:
        pairs = [(v, k) if key in NUMBERED else (k, v) for k, v in value.items()]  # pyright: ignore[reportUnknownVariableType]
        numbers = [int(n) if str(n).isdecimal() else -1 for n, _ in pairs]  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        if sorted(numbers) == list(range(len(pairs))):
            names = [name for _, (_, name) in sorted(zip(numbers, pairs, strict=True))]
    elif isinstance(value, (list, tuple)) and key in LISTS:
        names = list(value)  # pyright: ignore[reportUnknownArgumentType]
    texts = tuple(name for name in names if isinstance(name, str))
    whole = texts and len(texts) == len(names)
    return () if not whole or all(map(PLACEHOLDER.fullmatch, texts)) else texts
