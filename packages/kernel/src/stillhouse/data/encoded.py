"""Columns of encoded bytes, such as images as they were given, and what decodes a row of them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor


class Decoder(ABC):
    """Makes the tensor of a row of its encoded bytes; a frozen dataclass whose fields are JSON
    values, defined in `stillhouse` or a plugin.

    Pure: the same bytes and row give the same tensor, in any process. Each row has a tensor of the
    same type and size.
    """

    @property
    @abstractmethod
    def version(self) -> str:
        """The packages that decide the bits, with their versions: "Pillow 12.0.0"."""

    @abstractmethod
    def __call__(self, encoded: bytes, row: Mapping[str, Tensor], where: str) -> Tensor:
        """`row` are the row's other columns; `where` names it in messages. Raises BadData."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A column of bytes that are decoded when a row is read."""

    values: Sequence[bytes]
    decoder: Decoder

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, index: Tensor) -> "Encoded":
        return Encoded(values=[self.values[i] for i in index.tolist()], decoder=self.decoder)
