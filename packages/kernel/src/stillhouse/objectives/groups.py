"""Parameter groups by rule: which parameters of a role decay, and how fast each layer learns."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Protocol, runtime_checkable

from torch import nn

from stillhouse.errors import BadSetting, ContractError


@dataclass(frozen=True, kw_only=True)
class Group:
    """Parameters of a role by name, with a factor of the learning rate and the options of the
    optimizer for them alone; without `trains` they stay as they are.
    """

    names: tuple[str, ...]
    lr_scale: float = 1.0
    trains: bool = True
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])  # Any: the optimizer's own


@runtime_checkable
class Grouping(Protocol):
    """The groups of a role's trainable parameters, each in exactly one; a frozen dataclass or
    module-level function.
    """

    def __call__(self, module: nn.Module) -> Sequence[Group]: ...


def one_group(module: nn.Module) -> Sequence[Group]:
    """All trainable parameters alike."""
    return [Group(names=tuple(_trainable(module)))]


@dataclass(frozen=True, kw_only=True)
class NoDecay:
    """Weight decay for matrices and kernels only: parameters of one dimension or none (biases,
    gains of normalizations) have none, nor have those whose name ends as one of `also` (tokens,
    position embeddings).
    """

    also: tuple[str, ...] = ()

    def __call__(self, module: nn.Module) -> Sequence[Group]:
        undecayed = {
            name: parameter.dim() <= 1 or name.endswith(self.also)
            for name, parameter in _trainable(module).items()
        }
        return [
            Group(names=tuple(name for name, exempt in undecayed.items() if not exempt)),
            Group(
                names=tuple(name for name, exempt in undecayed.items() if exempt),
                options={"weight_decay": 0.0},
            ),
        ]


@dataclass(frozen=True, kw_only=True)
class LayerDecay:
    """A learning rate a layer, as ELECTRA (Clark et al. 2020) fine-tunes: that of layer l of
    0 ... L - 1 is times decay ** (L - 1 - l), so that what is near the input learns slowest.

    `layer_of`, a module-level function, gives the layer of a parameter's name. Each group of `then`
    is split by layer. Raises ContractError for a layer outside 0 ... L - 1.
    """

    decay: float
    layers: int
    layer_of: Callable[[str], int]
    then: Grouping = one_group

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1 or self.layers < 1:
            raise BadSetting(
                "layer decay needs 0 < decay <= 1 and layers >= 1 "
                f"(got {self.decay} and {self.layers})"
            )

    def __call__(self, module: nn.Module) -> Sequence[Group]:
        return [part for group in self.then(module) for part in self._split(group)]

    def _split(self, group: Group) -> list[Group]:
        layers: dict[int, list[str]] = {}
        for name in group.names:
            layer = self.layer_of(name)
            if not 0 <= layer < self.layers:
                raise ContractError(
                    f"layer decay: '{name}' is of layer {layer}, not of 0 ... {self.layers - 1}"
                )
            layers.setdefault(layer, []).append(name)
        return [
            replace(
                group,
                names=tuple(names),
                lr_scale=group.lr_scale * self.decay ** (self.layers - 1 - layer),
            )
            for layer, names in sorted(layers.items())
        ]


@dataclass(frozen=True, kw_only=True)
class Only:
    """Trains the parameters whose names fit one of `patterns` ("*.lora_*", "head.*"), in the groups
    of `then`; the rest of the role stays as it is. Raises BadSetting where none fits.
    """

    patterns: tuple[str, ...]
    then: Grouping = one_group

    def __call__(self, module: nn.Module) -> Sequence[Group]:
        groups = self.then(module)
        chosen = {name for group in groups for name in group.names if self._fits(name)}
        if not chosen:
            names = [name for group in groups for name in group.names]
            raise BadSetting(
                f"no parameter of the {type(module).__name__} fits {', '.join(self.patterns)}; it "
                f"has {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
            )
        return [
            replace(group, names=tuple(n for n in group.names if (n in chosen) == trains), **more)
            for group in groups
            for trains, more in ((True, {}), (False, {"trains": False}))
        ]

    def _fits(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.patterns)


def optimizer_groups(
    grouping: Grouping, role: str, module: nn.Module, lr: float
) -> list[dict[str, Any]]:  # Any: what torch's optimizers take
    """The groups of a role as torch's optimizers take them; empty ones are left out. Raises
    ContractError where a trainable parameter is in no group or in two.
    """
    parameters = _trainable(module)
    groups = [group for group in grouping(module) if group.names]
    counts = Counter(name for group in groups for name in group.names)
    for name in (*parameters, *counts):
        if counts[name] != 1 or name not in parameters:
            raise ContractError(
                f"role '{role}': {type(grouping).__name__} puts '{name}' into "
                f"{counts[name]} groups of trainable parameters; each belongs in one"
            )
    return [
        {
            "params": [parameters[name] for name in group.names],
            "lr": lr * group.lr_scale,
            **group.options,
        }
        for group in groups
        if group.trains
    ]


def _trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}
