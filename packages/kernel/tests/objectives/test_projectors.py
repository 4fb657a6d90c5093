"""Projector roles: shapes, noise from the seed, ReviewKD's fusion, OFD's margins, messages."""

import pytest
import torch
from torch import Tensor, nn

from stillhouse.errors import BadSetting, UnknownName
from stillhouse.objectives.features import negative_mean
from stillhouse.objectives.projectors import (
    ConvProjector,
    LinearProjector,
    MaskedGenerator,
    OverhaulConnectors,
    ReviewFusion,
)


def maps(seed: int, channels: int, size: int = 4, count: int = 3) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, size, size, generator=rng)


def test_conv_projector_maps_each_input_under_its_own_name():
    role = ConvProjector(["student.hint1", "student.hint2"], [2, 3], [5, 7])
    given = {"student.hint1": maps(1, 2), "student.hint2": maps(2, 3, size=2)}
    found = role(given)
    assert {name: tuple(x.shape) for name, x in found.items()} == {
        "hint1": (3, 5, 4, 4),
        "hint2": (3, 7, 2, 2),
    }
    # BatchNorm: each channel has mean 0 over batch and positions, before the ReLU
    assert found["hint1"].mean(dim=(0, 2, 3)).abs().max() < 1e-5
    torch.manual_seed(0)
    plain = ConvProjector(["student.hint1"], [2], [5])(given)
    torch.manual_seed(0)
    cut = ConvProjector(["student.hint1"], [2], [5], relu=True)(given)
    assert torch.equal(cut["hint1"], plain["hint1"].relu())


def test_linear_projector_is_a_linear_map():
    role = LinearProjector(["student.embedding"], [3], [6])
    x, y = torch.randn(2, 4, 3)
    zero = role({"student.embedding": torch.zeros(4, 3)})["embedding"]
    total = role({"student.embedding": x + y})["embedding"]
    parts = [role({"student.embedding": z})["embedding"] - zero for z in (x, y)]
    assert total.shape == (4, 6)
    torch.testing.assert_close(total, parts[0] + parts[1] + zero)


def masks(role: MaskedGenerator, seed: int) -> Tensor:
    """Which channels of each sample the generator sees: it is made to pass its input on."""
    role.align = nn.Identity()  # type: ignore[assignment]
    role.generate = nn.Identity()  # type: ignore[assignment]
    given = {"student.hint3": torch.ones(200, 10, 2, 2), "seed": torch.tensor(seed)}
    seen = role(given)["hint3"]
    assert torch.equal(seen, seen[:, :, :1, :1].expand_as(seen))
    return seen[:, :, 0, 0]


def test_masked_generator_masks_whole_channels_from_the_seed():
    role = MaskedGenerator("student.hint3", 10, 10, ratio=0.3)
    first = masks(role, 1)
    assert set(first.flatten().tolist()) == {0.0, 1.0}
    assert first.mean().item() == pytest.approx(0.7, abs=0.05)
    assert torch.equal(first, masks(role, 1))
    assert not torch.equal(first, masks(role, 2))
    assert masks(role.eval(), 1).min() == 1


def test_masked_generator_gives_the_teachers_width():
    role = MaskedGenerator("student.hint3", 4, 6)
    found = role({"student.hint3": maps(1, 4), "seed": torch.tensor(1)})
    assert found["hint3"].shape == (3, 6, 4, 4)


def test_overhaul_margins_are_those_of_the_batchnorm_in_front():
    # the teacher's map is a BatchNorm's output: mean its bias, deviation its |weight|
    norm = nn.BatchNorm2d(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, -2.0, 1.0]))
        norm.bias.copy_(torch.tensor([0.1, -0.3, 1.0]))
    teacher = norm(maps(1, 3, size=20, count=8)).detach()
    role = OverhaulConnectors(["student.preact1"], ["teacher.preact1"], [2], [3])
    given = {"student.preact1": maps(2, 2, size=20, count=8), "teacher.preact1": teacher}
    found = role(given)
    expected = negative_mean(norm.bias.detach(), norm.weight.detach().abs())
    torch.testing.assert_close(found["margin1"], expected, rtol=1e-3, atol=1e-3)
    assert found["preact1"].shape == (8, 3, 20, 20)


def test_overhaul_margins_average_over_batches_in_training_mode_only():
    role = OverhaulConnectors(["student.preact1"], ["teacher.preact1"], [2], [3])

    def margin(teacher: Tensor) -> Tensor:
        return role({"student.preact1": maps(2, 2), "teacher.preact1": teacher})["margin1"]

    margin(maps(3, 3))
    both = margin(5 + 2 * maps(4, 3))
    every = torch.cat([maps(3, 3), 5 + 2 * maps(4, 3)])
    expected = negative_mean(every.mean(dim=(0, 2, 3)), every.std(dim=(0, 2, 3), correction=0))
    torch.testing.assert_close(both, expected, rtol=1e-4, atol=1e-4)
    role.eval()
    assert torch.equal(margin(maps(5, 3)), both)


def review(channels: list[int], targets: list[int], width: int = 4) -> ReviewFusion:
    torch.manual_seed(0)
    names = [f"student.hint{i + 1}" for i in range(len(channels) - 1)]
    return ReviewFusion([*names, "student.embedding"], channels, targets, width)


def test_review_fusion_keeps_sizes_and_gives_the_teachers_channels():
    given = {
        "student.hint1": maps(1, 2, size=8),
        "student.hint2": maps(2, 3, size=4),
        "student.embedding": maps(3, 5)[:, :, 0, 0],
    }
    found = review([2, 3, 5], [6, 7, 9])(given)
    assert {name: tuple(x.shape) for name, x in found.items()} == {
        "hint1": (3, 6, 8, 8),
        "hint2": (3, 7, 4, 4),
        "embedding": (3, 9, 1, 1),
    }


def test_review_fusion_weighs_each_level_with_the_deeper_ones():
    role = review([2, 3, 5], [6, 7, 9])
    for norm in role.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()  # a fixed map, so that the parts can be recomputed one by one
    given = {
        "student.hint1": maps(1, 2, size=8),
        "student.hint2": maps(2, 3, size=4),
        "student.embedding": maps(3, 5)[:, :, 0, 0],
    }
    shallow, middle, deep = (
        role.narrow[0](given["student.hint1"]),
        role.narrow[1](given["student.hint2"]),
        role.narrow[2](given["student.embedding"][:, :, None, None]),
    )
    up = deep.expand(3, 4, 4, 4)
    weights = torch.sigmoid(role.attend[1](torch.cat([middle, up], dim=1)))
    middle = middle * weights[:, 0:1] + up * weights[:, 1:2]
    up = middle.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    weights = torch.sigmoid(role.attend[0](torch.cat([shallow, up], dim=1)))
    shallow = shallow * weights[:, 0:1] + up * weights[:, 1:2]
    found = role(given)
    torch.testing.assert_close(found["embedding"], role.widen[2](deep))
    torch.testing.assert_close(found["hint2"], role.widen[1](middle))
    torch.testing.assert_close(found["hint1"], role.widen[0](shallow))


def test_widths_that_do_not_pair_up():
    with pytest.raises(BadSetting, match=r"one entry a map \(got 2, 1, 1\)"):
        ConvProjector(["student.hint1", "student.hint2"], [2], [3])
    with pytest.raises(BadSetting, match=r"one entry a map \(got 0, 0, 0\)"):
        LinearProjector([], [], [])
    with pytest.raises(BadSetting, match=r"one entry a map \(got 1, 2, 2\)"):
        OverhaulConnectors(
            ["student.preact1", "student.preact2"], ["teacher.preact1"], [1, 1], [1, 1]
        )
    with pytest.raises(BadSetting, match=r"ratio must be >= 0 and < 1 \(got 1.0\)"):
        MaskedGenerator("student.hint1", 2, 3, ratio=1.0)


def test_a_missing_input_names_what_is_there():
    role = ConvProjector(["student.hint2"], [2], [3])
    with pytest.raises(UnknownName, match=r"unknown input 'student.hint2'. Did you mean"):
        role({"student.hint1": maps(1, 2)})
