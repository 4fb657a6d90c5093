"""A bound of the memory that building a stored model may take: its file of arguments may request
any width.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stillhouse.errors import CorruptArtifact

ONLY_HERE = ("generator", "pin_memory")  # what the meta device does not take
FACTOR, SLACK = 4, 1 << 30  # bytes: of what is stored; for what a builder makes and drops


class Bounded(TorchDispatchMode):
    """While entered, the tensors made, taken together, have at most `FACTOR` times `stored` bytes
    and `SLACK`; else CorruptArtifact, before the one that is too many is allocated.
    """

    def __init__(self, stored: int) -> None:
        super().__init__()
        self.stored, self.made = stored, 0

    def __torch_dispatch__(
        self,
        func: Any,  # Any: torch gives it no type; the arguments are the operator's
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        on_meta = given.get("device") == torch.device("meta")  # takes no room
        if not on_meta and any(each.name == "device" for each in func._schema.arguments):
            self.made += _size(func, args, given)
            if self.made > FACTOR * self.stored + SLACK:
                raise CorruptArtifact(
                    f"its arguments need {self.made:,} bytes and more, but the weights have "
                    f"{self.stored:,}; give the arguments that the weights were saved with"
                )
        return func(*args, **given)


def _size(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:  # Any: as above
    """Bytes of the tensor that an operator would make, by making it on the meta device."""
    rest = {name: value for name, value in kwargs.items() if name not in ONLY_HERE}
    made = func.overloadpacket(*args, **{**rest, "device": torch.device("meta")})
    return made.nbytes if isinstance(made, Tensor) else 0
