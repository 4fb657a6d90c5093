"""How far a loss of a few kept classes is from the loss of all: measured on the first batches when
a cache is filled, recorded, and refused where it is too far.

There is no student yet, so two stand in: one that knows nothing (equal logits), and one near the
teacher (its logits plus noise of deviation 1). The error of KL is relative and signed (of sampled
targets the root of the mean square over draws, as they have no bias); the cosine is that of the
gradients with respect to the student's logits, over all measured rows. The worst of both stands.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from stillhouse.errors import BadSetting
from stillhouse.files import write_text
from stillhouse.objectives.inputs import named
from stillhouse.objectives.logits import kd_loss
from stillhouse.objectives.sparse import sampled_kd_loss, sparse_kd_loss
from stillhouse.packing import Output, Storage, StoredType, name_of, pack, unpack
from stillhouse.sparse import TopK

ROWS = 256  # that are measured, at most
NUMBERS = 1 << 24  # of their logits, at most
DRAWS = 4  # of sampled targets
ERROR = 0.05  # of KL, that whole logits made of `top_k` may have
TEMPERATURES = (1.0, 4.0)  # at which they are looked at: nothing declares where they are read
FILE = "fidelity.json"

Record = dict[str, Any]  # Any: JSON
Loss = Callable[[Tensor], Tensor]  # of a student's logits


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A form of storage with its numbers chosen."""

    outputs: tuple[Output, ...] = ()
    dtype: StoredType = "fp32"
    top_k: int | None = None


def settled(
    storage: Storage,
    folder: Path,
    first: Callable[[], Iterable[Mapping[str, Tensor]]],
    *,
    where: str,
) -> tuple[tuple[Output, ...], Record]:
    """The outputs with every k chosen, and for each of which few classes are kept its k and errors.

    `first` gives a role's outputs batch by batch; it is read where `folder` holds no measurement
    yet. Raises BadSetting, with what was found and what would do, for an error that is too large.
    """
    wanted = {
        name_of(output): output
        for output in storage.outputs
        if not isinstance(output, str) or (storage.top_k is not None and output == "logits")
    }
    if not wanted:
        return tuple(storage.outputs), {}
    record = _read(folder / FILE)
    if record is None or {*record} != {*wanted}:
        rows = _first_rows(first(), wanted, where=where)
        record = {
            name: _chosen(output, rows[name], storage, where=where)
            for name, output in wanted.items()
        }
        write_text(folder / FILE, json.dumps(record, indent=1))
    outputs = tuple(
        output if isinstance(output, str) else replace(output, k=record[output.output]["k"])
        for output in storage.outputs
    )
    return outputs, record


def _read(path: Path) -> Record | None:
    try:
        found = json.loads(path.read_text())
        return found if all(isinstance(one["k"], int) for one in found.values()) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _first_rows(
    batches: Iterable[Mapping[str, Tensor]], wanted: Mapping[str, Output], *, where: str
) -> dict[str, Tensor]:
    """Rows [n, V] of each output: all of the first batches, or spread over the first."""
    parts: dict[str, list[Tensor]] = {name: [] for name in wanted}
    for outputs in batches:
        for name, found in parts.items():
            rows = named(outputs, name, what="output", where=where).detach().flatten(0, -2)
            left = min(ROWS, max(1, NUMBERS // rows.shape[1])) - sum(map(len, found))
            places = torch.linspace(0, len(rows) - 1, max(0, min(left, len(rows)))).long()
            found.append(rows[places.to(rows.device)].float().cpu())
        if all(not len(found[-1]) for found in parts.values()):
            break
    return {name: torch.cat(found) for name, found in parts.items()}


def _chosen(output: Output, logits: Tensor, storage: Storage, *, where: str) -> Record:
    """The k of an output with its errors. Raises BadSetting where they are too large."""
    classes = logits.shape[1]
    allowed = ERROR if isinstance(output, str) else output.error
    given = storage.top_k if isinstance(output, str) else output.k
    assert given is not None
    looked = _Looked(output=output, logits=logits, dtype=storage.dtype)
    if given != "auto":
        found = looked.at(min(given, classes))
        if abs(found["kl_error"]) <= allowed:
            return found
    better = looked.least(allowed)
    if given == "auto" and better is not None:
        return better
    name = name_of(output)
    advice = f"k = {better['k']} would do" if better else "no k of a half of them or less would do"
    if isinstance(output, str) and better:
        advice = f"top_k={better['k']} would do"
    if better is None:
        advice += f": keep it whole, as '{name}'"
    elif isinstance(output, str):
        advice += ", or a TopK or Sampled at one temperature"
    errors = "" if given == "auto" else f" {looked.text(min(given, classes))};"
    raise BadSetting(
        f"{where}: {_form(output, given)} of {classes} classes of '{name}':{errors} {advice}"
    )


def _form(output: Output, k: object) -> str:
    return f"top_k={k}" if isinstance(output, str) else f"{type(output).__name__}(k={k})"


class _Looked:
    """The errors of one output at any k; each is measured once."""

    def __init__(self, *, output: Output, logits: Tensor, dtype: StoredType) -> None:
        self.output, self.logits = output, logits
        self.dtype: StoredType = dtype
        noise = torch.randn(logits.shape, generator=Generator().manual_seed(0))
        self.students = {"knows nothing": torch.zeros_like(logits), "near": logits + noise}
        self.seen: dict[int, Record] = {}

    def least(self, allowed: float) -> Record | None:
        """The first power of two, up to a half of the classes, that errs by no more."""
        k = 1
        while k <= self.logits.shape[1] // 2:
            if abs(self.at(k)["kl_error"]) <= allowed:
                return self.at(k)
            k *= 2
        return None

    def at(self, k: int) -> Record:
        if k not in self.seen:
            self.seen[k] = self._measured(k)
        return self.seen[k]

    def text(self, k: int) -> str:
        found = self.at(k)
        return (
            f"KL errs by {100 * found['kl_error']:+.3g} % at T = {found['temperature']:g} "
            f"(gradient cosine {found['gradient_cosine']:.2f})"
        )

    def _measured(self, k: int) -> Record:
        several = TEMPERATURES if isinstance(self.output, str) else (self.output.temperature,)
        rows = [
            {"k": k, "temperature": t, **_errors(dense, losses, student)}
            for t in several
            for dense, losses in [(self._dense(self.logits, t), self._kept(k, t))]
            for student in self.students.values()
        ]
        worst = max(rows, key=lambda row: abs(row["kl_error"]))
        cosine = min(row["gradient_cosine"] for row in rows)
        measured = {"rows": len(self.logits), "classes": self.logits.shape[1]}
        return {**worst, "gradient_cosine": cosine, **measured}

    def _dense(self, logits: Tensor, temperature: float) -> Loss:
        return lambda student: kd_loss(student, logits, temperature=temperature)

    def _kept(self, k: int, temperature: float) -> list[Loss]:
        """The losses of what would be read back: one, or one a draw."""
        if isinstance(self.output, str):
            kept = Kept(outputs=(self.output,), dtype=self.dtype, top_k=k)
            return [self._dense(self._read_back(kept, 0)[self.output], temperature)]
        kept = Kept(outputs=(replace(self.output, k=k),), dtype=self.dtype)
        if isinstance(self.output, TopK):
            return [self._sparse(sparse_kd_loss, self._read_back(kept, 0), temperature)]
        return [
            self._sparse(sampled_kd_loss, self._read_back(kept, view), temperature)
            for view in range(DRAWS)
        ]

    def _sparse(
        self, loss: Callable[..., Tensor], read: Mapping[str, Tensor], temperature: float
    ) -> Loss:
        return lambda student: loss(student, *read.values(), temperature=temperature)

    def _read_back(self, kept: Kept, view: int) -> dict[str, Tensor]:
        ids = torch.arange(len(self.logits))
        (output,) = kept.outputs
        return unpack(pack(output, self.logits, kept, ids=ids, view=view), kept)


def _errors(dense: Loss, kept: Sequence[Loss], student: Tensor) -> Record:
    """Of KL, relative (one: signed; several: root of the mean square), and the least cosine."""
    value, gradient = _graded(dense, student)
    found = [_graded(loss, student) for loss in kept]
    errors = [other / max(value, 1e-6) - 1 for other, _ in found]
    error = errors[0] if len(errors) == 1 else math.sqrt(sum(e * e for e in errors) / len(errors))
    cosine = min(float(torch.cosine_similarity(gradient, one, dim=0)) for _, one in found)
    return {"kl_error": error, "gradient_cosine": cosine}


def _graded(loss: Loss, student: Tensor) -> tuple[float, Tensor]:
    with torch.enable_grad():
        x = student.clone().requires_grad_()
        value = loss(x)
        (gradient,) = torch.autograd.grad(value, x)
    return float(value.detach()), gradient.flatten()
