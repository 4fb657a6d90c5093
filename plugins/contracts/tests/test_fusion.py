import math

import pytest
import torch
from torch import nn

from stillhouse.errors import BadSetting
from stillhouse_contracts import AdaptiveFusion, double_normalise, external_attention
from stillhouse_contracts.attention import ConvolutionStage, masked_max, masked_mean

# softmax over the tokens: 1/4 and 3/4 of the first slot, 1/2 and 1/2 of the second;
# then each token's two over their sum
SCORES = torch.tensor([[[0.0, 0.0], [math.log(3), 0.0]]])
WEIGHTS = torch.tensor([[[1 / 3, 2 / 3], [0.6, 0.4]]])


def test_double_normalise_by_hand() -> None:
    torch.testing.assert_close(double_normalise(SCORES), WEIGHTS)


def test_padding_takes_no_part_in_the_normalisation() -> None:
    longer = torch.cat([SCORES, torch.full((1, 1, 2), 9.0)], 1)
    mask = torch.tensor([[True, True, False]])
    expected = torch.cat([WEIGHTS, torch.zeros(1, 1, 2)], 1)
    torch.testing.assert_close(double_normalise(longer, mask), expected)
    empty = torch.zeros(1, 3, dtype=torch.bool)
    assert double_normalise(longer, empty).abs().sum() == 0


def test_external_attention_by_hand() -> None:
    x = torch.tensor([[[0.0], [1.0]]])
    keys, values = torch.tensor([[math.log(3)], [0.0]]), torch.tensor([[1.0], [10.0]])
    # 1/3 + 20/3, and 0.6 + 4
    torch.testing.assert_close(external_attention(x, keys, values), torch.tensor([[[7.0], [4.6]]]))


def test_external_attention_of_two_heads_is_that_of_each() -> None:
    x, keys, values = torch.randn(2, 5, 6), torch.randn(4, 3), torch.randn(4, 3)
    both = external_attention(x, keys, values)
    each = [external_attention(part, keys, values) for part in x.split(3, dim=-1)]
    torch.testing.assert_close(both, torch.cat(each, -1))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(BadSetting, match="width 4 do not divide 6"):
        external_attention(torch.zeros(1, 1, 6), torch.zeros(2, 4), torch.zeros(2, 4))
    with pytest.raises(BadSetting, match="5 heads do not divide the width 8"):
        AdaptiveFusion(width=8, heads=5)
    with pytest.raises(BadSetting, match="batch or layer"):
        ConvolutionStage(4, 3, "group")


@pytest.mark.parametrize("normalisation", ["batch", "layer"])
def test_fusion_gates_between_attention_and_convolution(normalisation: str) -> None:
    torch.manual_seed(0)
    block = AdaptiveFusion(width=8, heads=2, slots=3, normalisation=normalisation).eval()
    x, mask = torch.randn(2, 6, 8), torch.ones(2, 6, dtype=torch.bool)
    attended = block.output(external_attention(block.query(x), block.keys, block.values))
    convolved = x
    for stage in block.stages:
        convolved = stage(convolved, mask)
    for bias, fused in ((50.0, x + attended), (-50.0, x + convolved)):
        nn.init.zeros_(block.gate.weight)
        nn.init.constant_(block.gate.bias, bias)
        torch.testing.assert_close(block(x, mask), block.norm(fused))


def test_fusion_of_a_text_does_not_depend_on_its_padding() -> None:
    torch.manual_seed(0)
    block = AdaptiveFusion(width=8, heads=2, slots=3, normalisation="layer").eval()
    x = torch.randn(1, 4, 8)
    alone = block(x, torch.ones(1, 4, dtype=torch.bool))
    padded = torch.cat([x, torch.zeros(1, 3, 8)], 1)
    found = block(padded, torch.tensor([[True] * 4 + [False] * 3]))
    torch.testing.assert_close(found[:, :4], alone)
    assert found[:, 4:].abs().sum() == 0


def test_means_and_maxima_leave_out_padding() -> None:
    x = torch.tensor([[[1.0], [-3.0], [9.0]], [[5.0], [5.0], [5.0]]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert masked_mean(x, mask).tolist() == [[-1.0], [0.0]]
    assert masked_max(x, mask).tolist() == [[1.0], [0.0]]
