"""Networks of the search's tests."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Small(nn.Module):
    """Two stages of convolution, BatchNorm and ReLU, then a linear head."""

    def __init__(self, widths: tuple[int, int] = (4, 6), classes: int = 5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1)
        self.norm1 = nn.BatchNorm2d(widths[0])
        self.conv2 = nn.Conv2d(widths[0], widths[1], 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(widths[1])
        self.head = nn.Linear(widths[1], classes)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        first = self.norm1(self.conv1(batch["images"])).relu()
        second = nn.functional.relu(self.norm2(self.conv2(first)))
        embedding = second.mean((2, 3))
        logits = self.head(embedding)
        return {"logits": logits, "embedding": embedding, "hint1": first, "hint2": second}


class Line(nn.Module):
    """logits = head(w2 relu(w1 x)) of one pixel: small enough to do by hand."""

    def __init__(self, w1: list[list[float]], head: list[list[float]]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(len(w1[0]), len(w1), 1, bias=False)
        self.head = nn.Linear(len(w1), len(head), bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor(w1)[:, :, None, None])
            self.head.weight.copy_(torch.tensor(head))

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        hint = self.conv(batch["images"]).relu()
        embedding = hint.mean((2, 3))
        return {"logits": self.head(embedding), "embedding": embedding, "hint1": hint}


def pixels(rows: list[list[float]]) -> Tensor:
    """Pictures of one pixel."""
    return torch.tensor(rows)[:, :, None, None]


def small(seed: int = 0, widths: tuple[int, int] = (4, 6)) -> Small:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Small(widths)


def batch(size: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, 8, 8, generator=rng)
    return images, torch.randint(0, 5, (size,), generator=rng)
