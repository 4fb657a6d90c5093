"""PointDistiller's encoder of local graphs, never holding all of its edges at once.

n: items of all clouds laid end to end. C: their channels. M: graphs. K: items of a graph, its
centre among them. nodes: K, or 1 after the maximum. D: channels of the encoder's output.

The convolution of an edge [z_j; z_i] is W_a z_j + W_b z_i, so it runs on the n items and the M
centres and not on the M * K edges; with the BatchNorm folded in, an edge is relu(a_j + b_i).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stillhouse.errors import BadData
from stillhouse.objectives.inputs import product, same_type
from stillhouse_pointcloud.graphs import Graphs, chunks


class EdgeEncoder(nn.Module):
    """gamma of arXiv 2205.11098: 1 x 1 convolution without bias, BatchNorm, ReLU, of the edges.

    An edge is [z_j; z_i] (`concat`), [z_i - z_j; z_i] (`subtract`), or z_j alone without `local`.
    The BatchNorm is over all edges of a call, in training mode; raises BadData with fewer than two.
    """

    def __init__(self, channels: int, width: int, *, subtract: bool, local: bool) -> None:
        super().__init__()
        self.subtract, self.local = subtract, local
        self.conv = nn.Conv2d(2 * channels if local else channels, width, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(
        self, items: Float[Tensor, "n C"], graphs: Sequence[Graphs], chunk: int
    ) -> tuple[Float[Tensor, "n D"], Float[Tensor, "M D"]]:
        """a and b such that relu(a_j + b_i) is the edge from centre i to item j."""
        a, b = self._convolve(items, torch.cat([one.centres for one in graphs]))
        if self.training:
            # both shifted near 0, so that the variance does not cancel
            shift = a.detach().mean(dim=0), b.detach().mean(dim=0)
            a, b = a - shift[0], b - shift[1]
            mean, var = edge_moments(a, b, graphs, chunk)
            self._track(mean.detach() + shift[0] + shift[1], var.detach(), _edges(graphs))
        else:
            mean, var = (self.norm.get_buffer(f"running_{name}") for name in ("mean", "var"))
        scale = self.norm.weight * (var + self.norm.eps).rsqrt()
        return a * scale, (b - mean) * scale + self.norm.bias

    def _convolve(self, items: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
        weight = self.conv.weight[:, :, 0, 0]
        same_type("graph distillation", features=items, encoder=weight)
        if not self.local:
            return product(items, weight.mT), items.new_zeros(len(centres), len(weight))
        near, centre = weight.chunk(2, dim=1)
        if self.subtract:
            near, centre = -near, near + centre
        return product(items, near.mT), product(items[centres], centre.mT)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, edges: int) -> None:
        # as BatchNorm does: the running variance is the unbiased one
        momentum = self.norm.momentum
        assert momentum is not None
        self.norm.get_buffer("num_batches_tracked").add_(1)
        self.norm.get_buffer("running_mean").lerp_(mean, momentum)
        self.norm.get_buffer("running_var").lerp_(var * (edges / (edges - 1)), momentum)


def _edges(graphs: Sequence[Graphs]) -> int:
    return sum(one.edges for one in graphs)


def edge_moments(
    a: Float[Tensor, "n D"], b: Float[Tensor, "M D"], graphs: Sequence[Graphs], chunk: int
) -> tuple[Float[Tensor, " D"], Float[Tensor, " D"]]:
    """Mean and (biased) variance of a_j + b_i over all edges; differentiable."""
    edges = _edges(graphs)
    if edges < 2:
        raise BadData(
            "graph distillation: BatchNorm needs at least 2 edges (graphs times their items) "
            f"a step (got {edges}); give it clouds of more items, or raise num or k"
        )
    parts = [bounded(_sums, a, b[where], near) for where, near in chunks(graphs, chunk)]
    first, second = torch.stack(parts).sum(dim=0) / edges
    return first.to(a.dtype), (second - first.square()).clamp_min(0).to(a.dtype)


def _sums(a: Tensor, b: Tensor, near: Tensor) -> Tensor:
    edges = F.embedding(near, a) + b[:, None]
    sums = [edges.sum(dim=(0, 1)), edges.square().sum(dim=(0, 1))]
    return torch.stack(sums).double()


def bounded(function: object, *given: object) -> Tensor:
    """The function's tensor, computed anew in the backward pass: nothing inside it is kept."""
    return checkpoint(function, *given, use_reentrant=False, preserve_rng_state=False)


def graph_features(
    a: Float[Tensor, "n D"],
    b: Float[Tensor, "M D"],
    near: Integer[Tensor, "M K"],
    *,
    pooled: bool,
) -> Float[Tensor, "M nodes D"]:
    """G of the graphs, the maximum over the K items if `pooled`."""
    edges = F.relu(F.embedding(near, a) + b[:, None])
    return edges.amax(dim=1, keepdim=True) if pooled else edges
