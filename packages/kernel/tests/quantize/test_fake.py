"""Fake quantization, by numbers worked by hand."""

import pytest
import torch

from stillhouse.errors import BadSetting
from stillhouse.quantize import fake_quantize, quantize_gelu, quantize_softmax
from stillhouse.quantize.fake import check_bits


def test_numbers_are_rounded_to_the_grid_and_clipped():
    x = torch.tensor([0.26, -0.24, 9.0, -9.0, 0.25])
    # 3 bits: -4 ... 3; .25 / .5 is a half, which goes to the even 0
    found = fake_quantize(x, torch.tensor(0.5), bits=3)
    assert found.tolist() == [0.5, 0.0, 1.5, -2.0, 0.0]


def test_a_zero_point_moves_the_range():
    x = torch.tensor([0.0, 1.0, 7.0, 9.0, -1.0])
    found = fake_quantize(x, torch.tensor(1.0), bits=3, zero_point=torch.tensor(-4.0))
    assert found.tolist() == [0.0, 1.0, 7.0, 7.0, 0.0]


def test_a_scale_may_be_one_a_channel():
    x = torch.tensor([[0.4, 0.6], [4.0, 6.0]])
    found = fake_quantize(x, torch.tensor([[1.0], [10.0]]), bits=8)
    assert found.tolist() == [[0.0, 1.0], [0.0, 10.0]]


@pytest.mark.parametrize("k", [1, 3, 8])
def test_a_softmax_is_never_further_off_than_half_a_coarse_scale(k: int):
    x = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    error = (quantize_softmax(x, 2.0**-k, bits=8) - x).abs()
    assert error.max() <= 1 / 254 + 1e-12
    assert error.max() == pytest.approx(0.0039, abs=5e-5)
    assert error[x < 2.0**-k].max() <= 2.0**-k / 254 + 1e-12


def test_adding_the_two_ranges_would_be_off_by_an_eighth():
    x = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    coarse = torch.round(x.clamp(0.125, 1) * 127) / 127
    fine = torch.round(x.clamp(0, 0.125) * 127 / 0.125) * 0.125 / 127
    assert (coarse + fine - x).abs().max() == pytest.approx(0.129, abs=5e-4)


def test_a_gelu_keeps_its_small_negative_numbers():
    x = torch.tensor([-0.16997, -0.0849850, 0.6, 200.0])
    found = quantize_gelu(x, 1.0, bits=8)
    assert found.tolist() == pytest.approx([-0.16997, -0.084985, 1.0, 127.0], abs=1e-6)
    # one range with the same positive scale loses them
    assert fake_quantize(x[:2], torch.tensor(1.0), bits=8).abs().max() == 0


def test_a_width_that_cannot_be_is_refused():
    with pytest.raises(BadSetting, match=r"bits must be 2 ... 16 \(got 1\)"):
        check_bits(1)
