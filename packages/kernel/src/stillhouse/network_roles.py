"""Networks of a program as roles: called with a tensor or columns, they give named tensors."""

import contextlib
import inspect
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from stillhouse.data.datasets import ID, INPUTS, LABELS
from stillhouse.errors import BadSetting, ContractError, UnknownName
from stillhouse.objectives.objective import Tensors

STUDENT, TEACHER, VIEW = "student", "teacher", "view"


class NetworkRole(nn.Module):
    """A network as a role: a batch in, its outputs by name out."""

    def __init__(self, network: nn.Module, role: str, layers: Mapping[str, str]) -> None:
        super().__init__()
        self.network, self.role, self.layers = network, role, dict(layers)
        self._takes: tuple[str, ...] | None = _parameters(network.forward)
        self._seen: dict[str, Any] = {}  # Any: what modules give

    def forward(self, batch: Tensors) -> dict[str, Tensor]:
        self._seen.clear()
        found = self._called(batch)
        outputs = self._outputs(found)
        for name, value in self._seen.items():
            if not isinstance(value, Tensor):
                raise ContractError(
                    f"{self.role}: layer '{self.layers[name]}' gives a {type(value).__name__}, not "
                    "a tensor; name a module inside it"
                )
            outputs[name] = value
        self._seen.clear()
        return outputs

    def watch(self) -> list[RemovableHandle]:
        """Hooks that keep what the layers give."""

        def keeper(name: str) -> Callable[[nn.Module, Any, Any], None]:  # Any: inputs and output
            def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
                self._seen[name] = output

            return keep

        modules = dict(self.network.named_modules())
        for path in self.layers.values():
            if path not in modules or not path:
                raise UnknownName("layer", path, filter(None, modules), where=self.role)
        return [modules[p].register_forward_hook(keeper(n)) for n, p in self.layers.items()]

    def _called(self, batch: Tensors) -> Any:  # Any: what a network gives
        if INPUTS in batch:
            return self.network(batch[INPUTS])
        named = {
            name: value
            for name, value in batch.items()
            if name not in (LABELS, ID, VIEW) and (self._takes is None or name in self._takes)
        }
        if not named:
            columns = ", ".join(sorted(set(batch) - {ID, VIEW}))
            raise ContractError(
                f"{self.role}: its forward takes {', '.join(self._takes or ())}, and a batch has "
                f"{columns}; give samples as pairs, or columns by those names"
            )
        return self.network(**named)

    def _outputs(self, found: Any) -> dict[str, Tensor]:  # Any: what a network gives
        if isinstance(found, Tensor):
            return {"logits": found}
        if isinstance(found, Mapping):
            given = cast("Mapping[str, Any]", found)
            tensors = {str(n): value for n, value in given.items() if isinstance(value, Tensor)}
            if tensors:
                return tensors
        raise ContractError(
            f"{self.role}: its forward gives a {type(found).__name__}; it must give a tensor, the "
            "logits, or a mapping of names to tensors"
        )


def _parameters(forward: Callable[..., Any]) -> tuple[str, ...] | None:
    """Names that a forward takes; None where it takes any."""
    found = inspect.signature(forward).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in found):
        return None
    return tuple(p.name for p in found if p.kind not in (p.VAR_POSITIONAL, p.POSITIONAL_ONLY))


@contextlib.contextmanager
def as_role(network: nn.Module, role: str, layers: Mapping[str, str]) -> Generator[NetworkRole]:
    own: dict[str, str] = {}
    for name, path in layers.items():
        owner, _, output = name.partition(".")
        if owner not in (STUDENT, TEACHER) or not output:
            raise BadSetting(
                f"layers: '{name}' names no output; say 'student.<name>' or 'teacher.<name>'"
            )
        if owner == role:
            own[output] = path
    made = NetworkRole(network, role, own)
    handles = made.watch()
    try:
        yield made
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, kw_only=True)
class State:
    """Where a network was and what of it required gradients, to be put back."""

    network: nn.Module
    device: torch.device
    training: bool
    required: Sequence[tuple[nn.Parameter, bool]]

    @classmethod
    def of(cls, network: nn.Module) -> "State":
        values = list(network.parameters())
        return cls(
            network=network,
            device=values[0].device if values else torch.device("cpu"),
            training=network.training,
            required=[(value, value.requires_grad) for value in values],
        )

    def restore(self) -> None:
        self.network.to(self.device).train(self.training)
        for value, required in self.required:
            value.requires_grad_(required)
