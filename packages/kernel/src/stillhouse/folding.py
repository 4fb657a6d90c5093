"""A frozen network with each BatchNorm folded into the convolution before it, found by running it
once: whatever its forward does, and without a change to the network itself.
"""

import contextlib
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
Pairs = Mapping[str, str]  # the name of a BatchNorm -> that of its convolution


def pairs_of(module: nn.Module, forward: Callable[[], Mapping[str, Tensor]]) -> Pairs:
    """The BatchNorms of a module in eval mode that can be folded: their input is the output of a
    convolution, which nothing else reads, neither a hook nor another layer nor whoever is given the
    outputs; each runs once in a `forward`.
    """
    names = {part: name for name, part in module.named_modules()}
    seen = _Seen()
    with seen.watching(names), seen:
        outputs = forward()
    for value in outputs.values():
        seen.read(value)
    alone = [
        (norm, conv)
        for norm, conv in seen.pairs
        if seen.calls[norm] == 1 == seen.calls[conv] and conv not in seen.read_elsewhere
    ]
    return {names[norm]: names[conv] for norm, conv in alone}


def fold(module: nn.Module, pairs: Pairs) -> None:
    """Give each convolution the weights of it and its BatchNorm together, which becomes an
    identity; in place. The convolutions' tensors are new ones.
    """
    parts = dict(module.named_modules())
    norms = {parts[norm]: parts[conv] for norm, conv in pairs.items()}
    for norm, conv in norms.items():
        assert isinstance(conv, CONVOLUTIONS)
        assert isinstance(norm, NORMS)
        _fold_pair(conv, norm)
    for name, part in [*module.named_modules(remove_duplicate=False)]:
        if part in norms:
            module.set_submodule(name, nn.Identity())


def _fold_pair(conv: Convolution, norm: Norm) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    kind = conv.weight.dtype
    weight, bias = fuse_conv_bn_weights(
        conv.weight.double(),  # one rounding, in the end
        None if conv.bias is None else conv.bias.double(),
        norm.running_mean.double(),
        norm.running_var.double(),
        norm.eps,
        None if norm.weight is None else norm.weight.double(),  # pyright: ignore[reportUnnecessaryComparison]
        None if norm.bias is None else norm.bias.double(),  # pyright: ignore[reportUnnecessaryComparison]
    )
    conv.weight = nn.Parameter(weight.detach().to(kind), requires_grad=False)
    conv.bias = nn.Parameter(bias.detach().to(kind), requires_grad=False)


def foldable(part: nn.Module) -> bool:
    """Whether a layer is of torch's own kind, in eval mode, and nobody listens to it."""
    listened = part._forward_hooks or part._forward_pre_hooks  # pyright: ignore[reportPrivateUsage]
    if listened or part.training:
        return False
    if isinstance(part, NORMS) and type(part) in NORMS:
        return part.track_running_stats
    return type(part) in CONVOLUTIONS


# what depends on nothing of a tensor's values
SHAPE = frozenset({"shape", "dtype", "device", "ndim", "is_cuda", "layout", "requires_grad"})
SIZES = frozenset({"dim", "size", "ndimension", "numel", "is_contiguous", "__len__"})


@dataclass
class _Seen(TorchFunctionMode):
    """Who reads the outputs of convolutions in a forward."""

    made: dict[int, tuple[nn.Module, Tensor]] = field(
        default_factory=dict[int, tuple[nn.Module, Tensor]]
    )
    calls: dict[nn.Module, int] = field(default_factory=dict[nn.Module, int])
    pairs: list[tuple[nn.Module, nn.Module]] = field(
        default_factory=list[tuple[nn.Module, nn.Module]]
    )
    read_elsewhere: set[nn.Module] = field(default_factory=set[nn.Module])
    within: bool = False  # a BatchNorm that a pair was found for

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self,
        func: Any,  # Any: of any function of torch
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if not self.within and not _of_shape(func):
            for value in (*args, *(kwargs or {}).values()):
                self.read(value)
        return func(*args, **(kwargs or {}))

    def read(self, value: object) -> None:
        if isinstance(value, (list, tuple)):
            for one in value:  # pyright: ignore[reportUnknownVariableType]
                self.read(one)  # pyright: ignore[reportUnknownArgumentType]
        elif id(value) in self.made:
            self.read_elsewhere.add(self.made[id(value)][0])

    @contextlib.contextmanager
    def watching(self, parts: Iterable[nn.Module]) -> Generator[None]:
        """Notes which convolution made what and which BatchNorm takes it, for a while."""
        handles: list[Any] = []  # Any: torch's handles of hooks
        for part in [part for part in parts if foldable(part)]:
            if isinstance(part, CONVOLUTIONS):
                handles.append(part.register_forward_hook(self._made))
            else:
                handles.append(part.register_forward_pre_hook(self._taken))
                handles.append(part.register_forward_hook(self._left))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _made(self, conv: nn.Module, _given: object, output: Tensor) -> None:
        self.made[id(output)] = (conv, output)  # kept, so that no other tensor gets its id
        self.calls[conv] = self.calls.get(conv, 0) + 1

    def _taken(self, norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        self.calls[norm] = self.calls.get(norm, 0) + 1
        if found := self.made.get(id(given[0])):
            self.pairs.append((norm, found[0]))
            self.within = True

    def _left(self, _norm: nn.Module, _given: object, _output: object) -> None:
        self.within = False


def _of_shape(func: Any) -> bool:  # Any: a function of torch, or the getter of an attribute
    owner = getattr(func, "__self__", None)
    name: str = getattr(func, "__name__", "")
    return name in SIZES or (name == "__get__" and getattr(owner, "__name__", "") in SHAPE)
