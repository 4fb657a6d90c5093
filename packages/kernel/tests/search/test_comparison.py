"""Size and the zero-cost proxies: numbers by hand on networks of one pixel, and slow versions."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from stillhouse.errors import BadData, BadSetting
from stillhouse.search.proxies import (
    COMPARISON,
    grad_norm,
    jacov,
    macs,
    nwot,
    parameters,
    snip,
    synflow,
    zen,
)
from stillhouse.search.proxies.network import draw_normal
from stillhouse.training import mix

from .networks import Line, Small, batch, pixels, small

ZEROS = torch.tensor([0, 0])
EYE = [[1.0, 0.0], [0.0, 1.0]]


def test_size_by_hand():
    # conv1 3 -> 4 with bias, conv2 4 -> 6 without; norms 2 a channel; head 6 -> 5 with bias
    assert parameters(small(), *batch()) == (27 * 4 + 4) + 8 + 36 * 6 + 12 + 35
    # 8 x 8 positions of conv1, 4 x 4 of conv2, the head; one image of the eight
    assert macs(small(), *batch()) == 64 * 27 * 4 + 16 * 36 * 6 + 30


def test_nwot_by_hand():
    # codes of the two units: (on, off) and (off, on): they agree in none; det diag(2, 2) = 4
    assert nwot(Line(EYE, [[1.0, 1.0]]), pixels([[1.0, 0.0], [0.0, 1.0]]), ZEROS) == (
        pytest.approx(math.log(4))
    )
    # (on, on) and (on, off) agree in one: det [2, 1; 1, 2] = 3
    assert nwot(Line(EYE, [[1.0, 1.0]]), pixels([[1.0, 2.0], [3.0, 0.0]]), ZEROS) == (
        pytest.approx(math.log(3))
    )


def test_nwot_of_equal_codes_is_minus_infinity():
    found = nwot(Line(EYE, [[1.0, 1.0]]), pixels([[1.0, 2.0], [3.0, 4.0]]), ZEROS)
    assert found == -math.inf


def test_nwot_counts_every_relu_of_train_mode():
    images, labels = batch()
    network = small().eval()
    x = F.batch_norm(network.conv1(images), None, None, training=True).relu()
    y = F.batch_norm(network.conv2(x), None, None, training=True).relu()
    codes = torch.cat([x.flatten(1), y.flatten(1)], dim=1) > 0
    kernel = torch.tensor([[float((a == b).sum()) for b in codes] for a in codes])
    expected = torch.linalg.slogdet(kernel.double())[1].item()
    assert nwot(network, images, labels) == pytest.approx(expected)


class Smooth(Small):
    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"logits": self.head(F.silu(self.conv1(batch["images"])).mean((2, 3)).repeat(1, 2))}


def test_nwot_without_relus_says_so():
    with pytest.raises(BadSetting, match="nwot counts ReLU units; this network has none"):
        nwot(Smooth((4, 8)), *batch())


def test_synflow_by_hand():
    # absolute weights on ones: hidden 1 + 2 = 3 and 3 + 4 = 7, R = 3 * 1 + 7 * 2 = 17;
    # R is linear in the weights of each of the two layers, so that each sums to R
    network = Line([[1.0, -2.0], [-3.0, 4.0]], [[-1.0, 2.0]])
    assert synflow(network, pixels([[5.0, -6.0], [1.0, 0.0]]), ZEROS) == pytest.approx(34)
    assert network.conv.weight.min() == -3  # the caller's weights keep their signs


def test_synflow_sees_norms_as_the_identity():
    images, labels = batch()
    network = small()
    nn.init.zeros_(network.conv1.bias)
    nn.init.zeros_(network.head.bias)
    before = synflow(network, images, labels)
    network.train()({"images": 5 + 3 * images})  # other running statistics
    assert synflow(network, images, labels) == before
    weights = [w.abs().double() for w in (network.conv1.weight, network.conv2.weight)]
    hidden = F.conv2d(torch.ones(1, 3, 8, 8).double(), weights[0], padding=1)
    hidden = F.conv2d(hidden, weights[1], stride=2, padding=1).mean((2, 3))
    total = (hidden @ network.head.weight.abs().double().mT).sum().item()
    assert before == pytest.approx(3 * total, rel=1e-4)  # three layers; eps of the norms


def test_snip_and_grad_norm_by_hand():
    # hidden 1, logits (1, -1), label 0: dL / dlogits = (-q, q), q = 1 / (1 + e^2)
    # head: gradient (-q, q), |w g| = q each; conv: gradient -2 q, |w g| = 2 q
    network, images = Line([[1.0]], [[1.0], [-1.0]]), pixels([[1.0], [1.0]])
    q = 1 / (1 + math.exp(2))
    assert snip(network, images, ZEROS) == pytest.approx(4 * q)
    assert grad_norm(network, images, ZEROS) == pytest.approx((2 + math.sqrt(2)) * q)


def test_jacov_by_hand():
    # one unit on for each sample; its row is the gradient: (1, -1, 0) and (1, 1, -2), correlation 0
    network = Line([[1.0, -1.0, 0.0], [1.0, 1.0, -2.0]], [[1.0, 1.0]])
    images = pixels([[1.0, -5.0, 0.0], [0.0, 1.0, 0.0]])
    k = 1e-5
    expected = -2 * (math.log(1 + k) + 1 / (1 + k))
    assert jacov(network, images, ZEROS) == pytest.approx(expected)
    # (1, -1) and (-1, 1): correlation -1, eigenvalues 0 and 2
    network = Line([[1.0, -1.0], [-1.0, 1.0]], [[1.0, 1.0]])
    expected = -(math.log(k) + 1 / k + math.log(2 + k) + 1 / (2 + k))
    assert jacov(network, pixels(EYE), ZEROS) == pytest.approx(expected)


def test_a_dead_network_comes_last():
    dead = Line(EYE, [[1.0, 1.0]])
    # one sample dead, and one whose gradient (1, 1) has no spread
    assert jacov(dead, pixels([[-1.0, -1.0], [1.0, 0.0]]), ZEROS) == -math.inf
    assert jacov(dead, pixels([[1.0, 1.0], [1.0, 0.0]]), ZEROS) == -math.inf
    images = pixels([[1.0, 2.0], [3.0, 4.0]])
    assert zen(Constant(EYE, [[1.0, 1.0]]), images, ZEROS) == -math.inf


class Constant(Line):
    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {k: 0 * v for k, v in super().forward(batch).items()}


def test_an_overflow_says_so():
    network, images = Line(EYE, [[1.0, 1.0]]), pixels([[1.0, 2.0], [3.0, 4.0]])
    with pytest.raises(BadSetting, match="jacov of this network is nan: its activations"):
        jacov(Line(EYE, [[math.inf, 1.0]]), images, ZEROS)
    with pytest.raises(BadSetting, match="grad_norm of this network is nan: its activations"):
        grad_norm(network, images * math.inf, ZEROS)


def test_zen_is_the_slow_one():
    images, labels = batch()
    expected = 0.0
    for draw in range(2):
        rng = Generator().manual_seed(mix(3, draw))
        network = small(1)
        draw_normal(network, rng)
        x = torch.randn(images.shape, generator=rng)
        noisy = x + 0.1 * torch.randn(images.shape, generator=rng)
        ends = []
        for number, start in enumerate((x, noisy)):
            a = network.conv1(start)
            b = F.batch_norm(a, None, None, training=True).relu()
            c = network.conv2(b)
            ends.append(F.batch_norm(c, None, None, training=True).relu().flatten(1))
            if number == 0:
                for y in (a, c):
                    mean_variance = y.transpose(0, 1).flatten(1).var(dim=1, correction=0).mean()
                    expected += 0.5 * math.log(mean_variance.item()) / 2
        expected += math.log((ends[0] - ends[1]).norm(dim=1).mean().item()) / 2
    found = zen(small(0), images, labels, inits=2, alpha=0.1, seed=3)
    assert found == pytest.approx(expected, rel=1e-4)


def test_zen_reads_only_the_shape_of_the_images():
    images, labels = batch()
    assert zen(small(0), images, labels) == zen(small(1), 0 * images, labels)
    assert zen(small(0), images, labels) != zen(small(0), images, labels, seed=1)


@pytest.mark.parametrize("name", COMPARISON)
def test_a_proxy_leaves_the_network_as_it_was(name: str):
    network = small().eval().requires_grad_(False)
    before = copy.deepcopy(network.state_dict())
    first = COMPARISON[name](network, *batch())
    assert COMPARISON[name](network, *batch()) == first
    assert math.isfinite(first)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert not network.training
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())


def test_wrong_input_says_so():
    images, labels = batch()
    with pytest.raises(BadData, match="labels go from 9 to 9; the network has classes 0 to 4"):
        snip(small(), images, torch.full_like(labels, 9))
    with pytest.raises(BadSetting, match="alpha must be > 0 \\(got 0\\)"):
        zen(small(), images, labels, alpha=0)
    with pytest.raises(BadSetting, match="inits must be >= 1 \\(got 0\\)"):
        zen(small(), images, labels, inits=0)
    for proxy in (nwot, jacov, zen, snip):
        with pytest.raises(BadSetting, match="at least 2 images"):
            proxy(small(), images[:1], labels[:1])
