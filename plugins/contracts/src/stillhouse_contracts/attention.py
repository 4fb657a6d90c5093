"""The adaptive fusion block of AF-STip: a reconstruction.

Wang, Jiang 2024, Knowledge Migration Framework for Smart Contract Vulnerability Detection (arXiv
2412.11175); its text was not to be had. The block is described with a multi-dimensional query
enhancement, an external memory and a multi-stage convolution, adaptively fused: here that is the
multi-head external attention of Guo et al. 2021 (arXiv 2105.02358), beside convolutions, with a
gate of ours.

B: batch. L: tokens. D: width. H: width of a head. S: memory slots.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stillhouse.errors import BadSetting

EPSILON = 1e-9


def double_normalise(
    scores: Float[Tensor, "*B L S"], mask: Bool[Tensor, "B L"] | None = None
) -> Float[Tensor, "*B L S"]:
    """Softmax over the tokens L, then each token's row divided by its sum over the slots S: Guo et
    al. 2021. Tokens where `mask` is False (padding) take no part and have zeros.
    """
    if mask is None:
        columns = scores.softmax(-2)
    else:
        inside = mask.reshape(mask.shape[0], *(1,) * (scores.dim() - 3), mask.shape[1], 1)
        lowest = torch.finfo(scores.dtype).min
        # of a text that is padding alone the softmax is even, and nothing of it is kept
        columns = scores.masked_fill(~inside, lowest).softmax(-2) * inside
    # no sum with so small a number: torch's exporter takes that for nothing, and padding is 0 / 0
    return columns / columns.sum(-1, keepdim=True).clamp_min(EPSILON)


def external_attention(
    x: Float[Tensor, "B L D"],
    keys: Float[Tensor, "S H"],
    values: Float[Tensor, "S H"],
    *,
    mask: Bool[Tensor, "B L"] | None = None,
) -> Float[Tensor, "B L D"]:
    """Attention of each head of `x` (D / H heads of width H) to a memory that all samples share:
    double_normalise(x keysᵀ) values. Raises BadSetting where H does not divide D.
    """
    batch, length, width = x.shape
    head = keys.shape[1]
    if width % head:
        raise BadSetting(f"external attention: heads of width {head} do not divide {width}")
    heads = x.view(batch, length, width // head, head).transpose(1, 2)  # [B, heads, L, H]
    weights = double_normalise(heads @ keys.T, mask)
    return (weights @ values).transpose(1, 2).reshape(batch, length, width)


class AdaptiveFusion(nn.Module):
    """x [B, L, width], mask [B, L] -> [B, L, width].

    1. Queries Q = x W_q of `expand` times the width, in heads of width `width / heads`. 2. External
    attention over `slots` memories, and W_o back to the width: O. 3. `len(kernels)` convolutions
    with normalisation and ReLU, one on another: C. 4. A gate a channel, g = sigmoid(W_g [mean O,
    mean C]), and LayerNorm(x + g O + (1 - g) C).

    The scores are B x expand heads x L x slots numbers: what the block costs.

    `normalisation` of the convolutions: "batch", whose running statistics (padding counts as
    zeros) a data-free distillation may use, or "layer", which has none (a student's statistics of
    noise would spoil it). Raises BadSetting where `heads` does not divide the width.
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int = 8,
        expand: int = 4,
        slots: int = 64,
        kernels: tuple[int, ...] = (3, 5),
        normalisation: str = "batch",
    ) -> None:
        super().__init__()
        if width % heads:
            raise BadSetting(f"adaptive fusion: {heads} heads do not divide the width {width}")
        head = width // heads
        self.query = nn.Linear(width, expand * width, bias=False)
        self.keys = nn.Parameter(torch.randn(slots, head) * head**-0.5)
        self.values = nn.Parameter(torch.randn(slots, head) * slots**-0.5)
        self.output = nn.Linear(expand * width, width, bias=False)
        self.stages = nn.ModuleList(
            ConvolutionStage(width, kernel, normalisation) for kernel in kernels
        )
        self.gate = nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        attended = external_attention(self.query(x), self.keys, self.values, mask=mask)
        attended = self.output(attended)
        convolved = x
        for stage in self.stages:
            convolved = stage(convolved, mask)
        means = [masked_mean(attended, mask), masked_mean(convolved, mask)]
        gate = torch.sigmoid(self.gate(torch.cat(means, -1)))[:, None]
        fused = self.norm(x + gate * attended + (1 - gate) * convolved)
        return fused * mask[..., None].to(fused.dtype)


class ConvolutionStage(nn.Module):
    """ReLU(norm(conv(x))) along the tokens; x and what it returns are [B, L, width], zero where
    there is padding.
    """

    def __init__(self, width: int, kernel: int, normalisation: str) -> None:
        super().__init__()
        if normalisation not in ("batch", "layer"):
            raise BadSetting(f"normalisation must be batch or layer (got {normalisation})")
        self.conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, bias=False)
        batch = normalisation == "batch"
        self.norm = nn.BatchNorm1d(width) if batch else nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        found = self.conv(x.transpose(1, 2))
        if isinstance(self.norm, nn.BatchNorm1d):
            found = self.norm(found).transpose(1, 2)
        else:
            found = self.norm(found.transpose(1, 2))
        return torch.relu(found) * mask[..., None].to(found.dtype)


def masked_mean(x: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B D"]:
    """The mean over the tokens that are none of padding; zeros where there is none."""
    inside = mask[..., None].to(x.dtype)
    return (x * inside).sum(1) / inside.sum(1).clamp_min(1)


def masked_max(x: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B D"]:
    """The largest over the tokens that are none of padding; zeros where there is none."""
    lowest = torch.finfo(x.dtype).min
    found = x.masked_fill(~mask[..., None], lowest).amax(1)
    return torch.where(mask.any(1, keepdim=True), found, torch.zeros_like(found))
