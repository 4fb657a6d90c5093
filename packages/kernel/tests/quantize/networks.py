"""A small network with every kind of op."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Mixed(nn.Module):
    """Convolutions, an attention, a two-layer perceptron, a transposed convolution.

    images [B, 3, 8, 8] to logits [B, 5], mask [B, 8, 8] and unused [B, 1].
    """

    def __init__(self, *, width: int, gelu: bool = True) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.patches = nn.Conv2d(width, width, 2, stride=2)
        self.qkv = nn.Linear(width, 3 * width)
        self.up = nn.Linear(width, 2 * width)
        self.act = nn.GELU() if gelu else nn.ReLU()
        self.down = nn.Linear(2 * width, width)
        self.head = nn.Linear(width, 5)
        self.larger = nn.ConvTranspose2d(width, 1, 2, stride=2)
        self.lost = nn.Linear(width, 1)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        x = self.patches(functional.relu(self.first(batch["images"])))
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).chunk(3, dim=-1)
        tokens = tokens + functional.scaled_dot_product_attention(q, k, v)
        tokens = tokens + self.down(self.act(self.up(tokens)))
        grid = tokens.transpose(1, 2).reshape(x.shape)
        pooled = tokens.mean(1)
        return {
            "logits": self.head(pooled),
            "mask": self.larger(grid).squeeze(1),
            "unused": self.lost(pooled),
        }


class Residual(nn.Module):
    """Convolutions with BatchNorm, one beside the identity, one of each channel alone, and a layer.

    images [B, 3, 8, 8] to map [B, 8, 4, 4] and logits [B, 5].
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        )
        self.beside = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.alone = nn.Sequential(
            nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU6()
        )
        self.last = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        x = self.first(batch["images"])
        x = self.alone(functional.relu(x + self.beside(x)))
        return {"map": self.last(x), "logits": self.head(x.mean((2, 3)))}


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1)).exp()
