"""The search for scales: never worse than the covering scale, and led by the gradients."""

import pytest
import torch
from torch import Tensor, nn

from stillhouse.errors import BadRecipe, BadSetting
from stillhouse.quantize.scales import (
    Metric,
    Op,
    criterion,
    minmax_scales,
    op_of,
    search_scales,
)

torch.manual_seed(0)
LAYERS = [
    (nn.Linear(6, 5), (7, 6)),
    (nn.Conv2d(4, 6, 3, padding=1, groups=2), (2, 4, 5, 5)),
    (nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), (2, 4, 5, 5)),
]


def _case(layer: nn.Module, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=rng).exp()
    outputs = layer(x).detach()
    return x, outputs, torch.randn(outputs.shape, generator=rng)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("metric", ["hessian", "mse"])
@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_a_search_never_ends_worse_than_the_covering_scales(
    layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d,
    shape: tuple[int, ...],
    metric: Metric,
    bits: int,
):
    x, outputs, gradients = _case(layer, shape)
    op, weight = op_of(layer), layer.weight.detach()
    found = search_scales(layer, x, outputs, gradients, bits=bits, metric=metric, candidates=20)
    g = gradients if metric == "hessian" else None
    losses = [
        criterion(outputs, op.quantized(x, weight, scales, bits=bits).detach(), g)
        for scales in (found, minmax_scales(op, x, weight, bits=bits))
    ]
    assert losses[0] <= losses[1]
    if bits == 4:  # there is something to gain
        assert losses[0] < losses[1]
    channels = {nn.Linear: (), nn.Conv2d: (6,), nn.ConvTranspose2d: (3,)}[type(layer)]
    assert tuple(found.weight.shape) == channels


def test_covering_scales_by_hand():
    layer = nn.Linear(2, 1)
    layer.weight.data = torch.tensor([[7.5, -3.0]])
    x = torch.tensor([[15.0, -1.0]])
    found = search_scales(layer, x, layer(x), None, bits=4, metric="minmax")
    assert (found.weight, found.activation, found.zero_point) == (1.0, 2.0, 0.0)
    asymmetric = Op(compute=torch.matmul, form="asymmetric")
    # -5 ... 10 with the scale 1: -5 is the lowest of -8 ... 7, so zero lies at -3
    found = minmax_scales(asymmetric, torch.tensor([-5.0, 10.0]), torch.ones(2), bits=4)
    assert (found.activation, found.zero_point) == (1.0, -3.0)


def test_gradients_say_which_error_matters():
    """An outlier that the loss does not feel: only the search that knows it clips it."""
    x = torch.tensor([[0.5, 0.0], [-0.3, 0.0], [0.4, 0.0], [0.0, 100.0]])
    op = Op(compute=torch.matmul)
    outputs = x @ torch.eye(2)
    gradients = torch.tensor([[1.0, 0.0]] * 4)

    def felt(metric: Metric) -> float:
        found = search_scales(op, (x, torch.eye(2)), outputs, gradients, bits=4, metric=metric)
        rounded = op.quantized(x, torch.eye(2), found, bits=4)
        return float(criterion(outputs, rounded, gradients))

    hessian, mse, minmax = felt("hessian"), felt("mse"), felt("minmax")
    # scales of about 14 lose the first column whole: .25 + .09 + .16
    assert minmax == pytest.approx(0.5)
    assert mse == pytest.approx(0.5)
    assert hessian < 0.5 * minmax


def test_the_split_of_a_softmax_follows_the_small_numbers():
    rng = torch.Generator().manual_seed(0)
    x = torch.rand(64, 16, generator=rng) * 0.02
    weight = torch.randn(16, 4, generator=rng)
    op = Op(compute=torch.matmul, form="softmax")
    found = search_scales(op, (x, weight), x @ weight, None, bits=8, metric="mse")
    assert found.activation == 2.0**-5  # the least power of two above .02


def test_what_cannot_be_searched_is_refused():
    x = torch.ones(1, 2)
    with pytest.raises(BadRecipe, match="a ReLU has no scales to search"):
        search_scales(nn.ReLU(), x, x, None, bits=8, metric="mse")
    with pytest.raises(BadSetting, match=r"needs gradients of the outputs' shape \[1, 2\]"):
        search_scales(nn.Linear(2, 2), x, x, None, bits=8)
    with pytest.raises(BadSetting, match=r"candidates and rounds must be >= 1 \(got 0, 3\)"):
        search_scales(nn.Linear(2, 2), x, x, x, bits=8, candidates=0)
