"""A generator of soft Solidity: mixtures of the public vocabulary's tokens, from noise.

B: batch. Z: width of the noise. L: tokens. V: vocabulary. P: texts of the pool.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from stillhouse.errors import BadSetting
from stillhouse_contracts.tokens import IDS, PAD, UNKNOWN, VOCABULARY

FORBIDDEN = (IDS[PAD], IDS[UNKNOWN])
SHORTEST = 8  # tokens of a text


class SoftTokens(nn.Module):
    """batch["noise"] [B, Z] and batch["lengths"], int64 [B] -> "mixture" [B, L, V]: for each place
    of a text a distribution over the vocabulary; all of it padding from the text's length on.

    Noise to L vectors of `width`, places added, two convolutions of 5 tokens, a linear map to the
    vocabulary. `pool` holds the last texts that it made, each place its most likely token (int64
    [P, L]), `pooled` how many were ever put there: buffers, so that they are part of a checkpoint.
    """

    pool: Tensor
    pooled: Tensor

    def __init__(self, *, noise: int, width: int, length: int, replay: int) -> None:
        super().__init__()
        if min(noise, width, length) < 1 or replay < 0:
            raise BadSetting(
                f"generator: noise, width and length must be >= 1, replay >= 0 (got {noise}, "
                f"{width}, {length}, {replay})"
            )
        self.noise, self.width, self.length = noise, width, length
        self.enter = nn.Linear(noise, length * width)
        self.places = nn.Parameter(torch.randn(length, width) * 0.1)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, width, 5, padding=2) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.leave = nn.Linear(width, len(VOCABULARY))
        self.register_buffer("pool", torch.zeros(replay, length, dtype=torch.int64))
        self.register_buffer("pooled", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        noise, lengths = batch["noise"], batch["lengths"]
        x = self.enter(noise).view(-1, self.length, self.width) + self.places
        for conv, norm in zip(self.convolutions, self.norms, strict=True):
            x = x + torch.relu(norm(conv(x.transpose(1, 2)).transpose(1, 2)))
        scores = self.leave(x)
        scores[..., list(FORBIDDEN)] = float("-inf")
        inside = torch.arange(self.length, device=x.device)[None] < lengths[:, None]
        padding = one_hot(torch.zeros_like(inside, dtype=torch.int64))
        return {"mixture": torch.where(inside[..., None], scores.softmax(-1), padding)}

    def keep(self, mixture: Float[Tensor, "B L V"]) -> None:
        """Put texts into the pool, over the oldest."""
        if len(self.pool) == 0:
            return
        kept = mixture.detach().argmax(-1)[-len(self.pool) :]
        places = (self.pooled + torch.arange(len(kept), device=kept.device)) % len(self.pool)
        self.pool[places] = kept
        self.pooled += len(kept)

    def draw(self, count: int, rng: Generator) -> Int[Tensor, "B L"]:
        """`count` texts of the pool, drawn with replacement; none while it is empty."""
        have = min(int(self.pooled), len(self.pool))
        if have == 0:
            return self.pool[:0]
        return self.pool[torch.randint(have, (count,), generator=rng).to(self.pool.device)]

    def noise_for(self, count: int, rng: Generator) -> dict[str, Tensor]:
        """What `forward` reads for `count` texts, on the CPU: normal noise, even lengths."""
        shortest = min(SHORTEST, self.length)
        return {
            "noise": torch.randn(count, self.noise, generator=rng),
            "lengths": torch.randint(shortest, self.length + 1, (count,), generator=rng),
        }


def one_hot(tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B L V"]:
    """Tokens as mixtures of one token each."""
    return nn.functional.one_hot(tokens, len(VOCABULARY)).float()
