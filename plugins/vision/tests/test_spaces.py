"""The search spaces: sizes by hand and as published, numbering, mutations, cell texts."""

import math

import pytest
import torch
from torch import Generator, Tensor

from stillhouse.errors import BadSetting, UnknownName
from stillhouse.search import Encoding, Listed, Slice
from stillhouse.search.proxies import COMPARISON, METHODS, distillation_score, diswot_score
from stillhouse_vision.models import ImageSpec, model
from stillhouse_vision.models.cells import OPERATIONS, Cell
from stillhouse_vision.models.macro import InvertedResidual
from stillhouse_vision.models.resnet import resnet_of_blocks
from stillhouse_vision.spaces import (
    NasBench201,
    NasBenchMacro,
    ResNetDepths,
    ResNetShapes,
    cell_text,
    macro_text,
    parse_cell,
    parse_macro,
)

TINY = ImageSpec(size=8, mean=(0.5,), std=(0.25,))
DEPTHS = ResNetDepths(classes=100)
CELLS = NasBench201(classes=100)
MACRO = NasBenchMacro(classes=10)
SPACES = pytest.mark.parametrize("space", [DEPTHS, CELLS, MACRO], ids=["depths", "cells", "macro"])
# the cells that DisWOT's authors print
FOUND = "|nor_conv_3x3~0|+|avg_pool_3x3~0|nor_conv_1x1~1|+|nor_conv_1x1~0|nor_conv_3x3~1|nor_conv_3x3~2|"
RELATION_ONLY = (
    "|nor_conv_1x1~0|+|nor_conv_3x3~0|none~1|+|nor_conv_3x3~0|skip_connect~1|nor_conv_3x3~2|"
)


def values(encoding: Encoding) -> list[object]:
    (only,) = encoding.values()
    return only


@SPACES
def test_a_space_numbers_each_architecture_once(space: Listed):
    sizes = {"ResNetDepths": 64, "NasBench201": 15625, "NasBenchMacro": 6561}
    assert len(space) == sizes[type(space).__name__]
    assert len({tuple(values(space.at(i))) for i in range(len(space))}) == len(space)
    for outside in (-1, len(space)):
        with pytest.raises(IndexError, match=f"architecture {outside} of {len(space)}"):
            space.at(outside)


@SPACES
def test_a_mutation_changes_one_place_to_any_other_value(space: Listed):
    parent = space.at(27)
    draws = [space.mutate(parent, Generator().manual_seed(seed)) for seed in range(300)]
    changes = set()
    for child in draws:
        places = [
            i for i, (a, b) in enumerate(zip(values(parent), values(child), strict=True)) if a != b
        ]
        assert len(places) == 1
        changes.add((places[0], values(child)[places[0]]))
    ways = {"ResNetDepths": 3 * 3, "NasBench201": 6 * 4, "NasBenchMacro": 8 * 2}
    assert len(changes) == ways[type(space).__name__]


@SPACES
def test_draws_are_those_of_the_generator(space: Listed):
    first, second = (
        [space.sample(rng) for _ in range(20)]
        for rng in (Generator().manual_seed(1), Generator().manual_seed(1))
    )
    assert first == second
    assert len({tuple(values(e)) for e in first}) > 10


def test_three_blocks_a_stage_are_resnet20():
    space = ResNetDepths(classes=10, shortcut="pad")
    spec = space.model({"blocks": [3, 3, 3]})
    torch.manual_seed(0)
    ours = spec.new().state_dict()
    torch.manual_seed(0)
    theirs = model("resnet20", classes=10, images=ImageSpec()).new().state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_depths_cost_what_they_do_by_hand():
    # [1, 3, 1] of widths 2, 2, 3, 4 on grey 8 x 8 images, shortcuts of zeros
    space = ResNetDepths(widths=(2, 2, 3, 4), shortcut="pad", classes=5, images=TINY)
    stem, first = 9 * 2 + 4, 2 * (36 + 4)
    second = (54 + 6) + 5 * (81 + 6)
    third = (108 + 8) + (144 + 8)
    cost = space.cost({"blocks": [1, 3, 1]})
    assert cost["parameters"] == stem + first + second + third + 4 * 5 + 5
    assert cost["macs"] == 64 * (18 + 72) + 16 * (54 + 5 * 81) + 4 * (108 + 144) + 20


def test_blocks_that_are_none_say_so():
    for blocks in ([], [1, 0, 1], [1, 1]):
        with pytest.raises(BadSetting, match="blocks needs a number >= 1 a stage"):
            resnet_of_blocks(
                blocks=blocks, widths=[2, 2, 3, 4], shortcut="pad", classes=5, images=TINY.json()
            )
    for choices in ((3,), (3, 3), (0, 1)):
        with pytest.raises(BadSetting, match="two or more different numbers >= 1"):
            ResNetDepths(classes=5, choices=choices)


# parameters at 100 classes of the two printed cells, counted in the released code
@pytest.mark.parametrize(("text", "count"), [(FOUND, 864276), (RELATION_ONLY, 836276)])
def test_cells_have_the_published_size(text: str, count: int):
    assert CELLS.cost({"ops": parse_cell(text)})["parameters"] == count


def test_macs_of_a_cell_by_hand():
    # six 3 x 3 convolutions a cell, 15 cells, each stage as many MACs: 9 * 16^2 * 32^2 a convolution
    cells = 15 * 6 * 9 * 16**2 * 32**2
    stem, head = 9 * 3 * 16 * 32**2, 64 * 100
    reductions = 256 * (9 * 16 * 32 + 9 * 32 * 32 + 16 * 32) + 64 * (
        9 * 32 * 64 + 9 * 64 * 64 + 32 * 64
    )
    found = CELLS.cost({"ops": ["nor_conv_3x3"] * 6})["macs"]
    assert found == cells + stem + head + reductions


def test_a_cost_draws_nothing():
    torch.manual_seed(0)
    first = torch.rand(3)
    torch.manual_seed(0)
    CELLS.cost(CELLS.at(15000))
    assert torch.equal(torch.rand(3), first)


def test_a_cell_is_the_sum_over_its_edges():
    x = torch.randn(2, 3, 5, 5, generator=Generator().manual_seed(0))

    def pooled(y: Tensor) -> Tensor:
        """Each pixel's mean over the neighbours that there are."""
        out = torch.zeros_like(y)
        for i in range(5):
            for j in range(5):
                near = y[:, :, max(0, i - 1) : i + 2, max(0, j - 1) : j + 2]
                out[:, :, i, j] = near.mean((2, 3))
        return out

    # node 1 = pool(x); node 2 = x; node 3 = x + pool(node 1) + node 2
    ops = ("avg_pool_3x3", "skip_connect", "none", "skip_connect", "avg_pool_3x3", "skip_connect")
    torch.testing.assert_close(Cell(ops, 3)(x), 2 * x + pooled(pooled(x)))
    # node 1 = x, node 2 = node 1, node 3 = node 2
    ops = ("skip_connect", "none", "skip_connect", "none", "none", "skip_connect")
    assert torch.equal(Cell(ops, 3)(x), x)
    assert Cell(("none",) * 6, 3)(x).abs().max() == 0


def test_a_cells_convolution_has_a_relu_in_front():
    cell = Cell(("none", "none", "none", "nor_conv_1x1", "none", "none"), 2)
    x = torch.randn(4, 2, 3, 3, generator=Generator().manual_seed(0))
    conv = cell.ops[3].conv
    y = torch.einsum("oi,bihw->bohw", conv.weight[:, :, 0, 0], x.clamp_min(0))
    y = (y - y.mean((0, 2, 3), keepdim=True)) / (
        y.var((0, 2, 3), correction=0, keepdim=True) + 1e-5
    ).sqrt()
    torch.testing.assert_close(cell(x), y)


@pytest.mark.parametrize("index", [0, 1, 5, 7777, 15624])
def test_the_text_of_a_cell_goes_both_ways(index: int):
    ops = CELLS.at(index)["ops"]
    assert list(parse_cell(cell_text(ops))) == ops


def test_the_text_of_a_cell_is_the_benchmarks():
    ops = parse_cell(FOUND)
    assert ops == (
        "nor_conv_3x3",
        "avg_pool_3x3",
        "nor_conv_1x1",
        "nor_conv_1x1",
        "nor_conv_3x3",
        "nor_conv_3x3",
    )
    assert cell_text(ops) == FOUND
    assert set(OPERATIONS) >= set(ops)


def test_a_text_that_is_no_cell_says_so():
    with pytest.raises(
        UnknownName, match="unknown operation 'nor_conv_5x5'. Did you mean 'nor_conv_"
    ):
        parse_cell(FOUND.replace("nor_conv_1x1", "nor_conv_5x5"))
    with pytest.raises(BadSetting, match="a cell has 6 operations \\(got 1\\)"):
        parse_cell("|none~0|")
    with pytest.raises(BadSetting, match="is no cell; one looks like \\|nor_conv_3x3~0\\|"):
        parse_cell(FOUND.replace("~2", "~1"))
    with pytest.raises(BadSetting, match="width and cells must be >= 1"):
        NasBench201(classes=5, width=0).model(CELLS.at(0)).new()


# the benchmark's own numbers: parameters, MACs (its "flops")
@pytest.mark.parametrize(
    ("text", "parameters", "macs"),
    [
        ("02012100", 890666, 47327744),
        ("11111221", 2181386, 65012224),
        ("22222101", 1508586, 80697856),
        ("00011110", 1118378, 31390208),
    ],
)
def test_macro_networks_have_the_published_size(text: str, parameters: int, macs: int):
    assert MACRO.cost({"blocks": parse_macro(text)}) == {"parameters": parameters, "macs": macs}


def test_a_macro_network_of_identities_by_hand():
    # stem, three 1 x 1 convolutions of stride 2, the tail, the head; a norm has two a channel
    convolutions = 27 * 32, 32 * 64, 64 * 128, 128 * 256, 256 * 1280
    norms = 2 * (32 + 64 + 128 + 256 + 1280)
    found = MACRO.cost(MACRO.at(0))
    assert found["parameters"] == sum(convolutions) + norms + 1280 * 10 + 10
    sides = (32, 16, 8, 4, 4)
    macs = sum(side**2 * count for side, count in zip(sides, convolutions, strict=True))
    assert found["macs"] == macs + 1280 * 10


def test_an_inverted_residual_adds_its_input_where_shapes_allow():
    x = torch.randn(4, 3, 6, 6, generator=Generator().manual_seed(0))
    block = InvertedResidual(3, 3, 1, expansion=2, kernel=5)
    torch.nn.init.zeros_(
        block.get_parameter("path.7.weight")
    )  # the path's last norm: the path gives 0
    assert torch.equal(block(x), x)
    wider = InvertedResidual(3, 4, 1, expansion=2, kernel=3)
    torch.nn.init.zeros_(wider.get_parameter("path.7.weight"))
    assert torch.equal(wider(x), torch.zeros(4, 4, 6, 6))
    assert InvertedResidual(3, 4, 2, expansion=2, kernel=5)(x).shape == (4, 4, 3, 3)


def test_a_macro_networks_maps_are_its_stages():
    space = NasBenchMacro(width=4, tail=6, classes=5, images=TINY)
    outputs = space.model(space.at(1234)).new()({"images": torch.rand(2, 1, 8, 8)})
    shapes = [tuple(outputs[f"hint{i}"].shape[1:]) for i in (1, 2, 3)]
    assert shapes == [(8, 4, 4), (16, 2, 2), (6, 1, 1)]
    assert torch.equal(outputs["hint3"].mean((2, 3)), outputs["embedding"])
    assert torch.equal(outputs["preact3"].clamp_min(0), outputs["hint3"])


def test_the_text_of_a_macro_network_goes_both_ways():
    assert parse_macro("02012100")[:3] == ("identity", "mb6_k5", "identity")
    for index in (0, 1, 4321, 6560):
        text = macro_text(MACRO.at(index)["blocks"])
        assert list(parse_macro(text)) == MACRO.at(index)["blocks"]
        assert int(text, 3) == index


def test_a_macro_network_that_is_none_says_so():
    for text in ("0201210", "02012103", ""):
        with pytest.raises(
            BadSetting, match=f"'{text}' is no network of the macro space: 8 digits of 012"
        ):
            parse_macro(text)
    with pytest.raises(UnknownName, match="unknown block 'mb3_k5'. Did you mean 'mb6_k5'"):
        macro_text(["mb3_k5"] * 8)
    with pytest.raises(BadSetting, match="has 8 blocks \\(got 2\\)"):
        MACRO.model({"blocks": ["identity"] * 2}).new()
    with pytest.raises(BadSetting, match="width and tail must be >= 1 \\(got 0 and 1280\\)"):
        NasBenchMacro(classes=5, width=0).model(MACRO.at(0)).new()


def test_the_networks_can_be_scored():
    rng = Generator().manual_seed(0)
    images, labels = torch.rand(8, 1, 8, 8, generator=rng), torch.randint(5, (8,), generator=rng)
    depths = ResNetDepths(widths=(4, 4, 8, 16), classes=5, images=TINY)
    cells = NasBench201(width=4, cells=1, classes=5, images=TINY)
    macro = NasBenchMacro(width=4, tail=16, classes=5, images=TINY)
    teacher = depths.model({"blocks": [3, 3, 3]}).new()
    students = [depths.model({"blocks": [1, 1, 3]}), *(cells.model(cells.at(i)) for i in (0, 9999))]
    students += [macro.model(macro.at(i)) for i in (0, 4321)]
    for student in students:
        score = diswot_score(teacher, student.new(), images, labels, inits=2)
        assert score.semantic < 0
        assert score.relation < 0


SHAPES = ResNetShapes(choices=(1, 3), widths=(4, 6, 8), classes=5, images=TINY)


def shape(encoding: Encoding) -> tuple[int, ...]:
    return (*encoding["blocks"], encoding["width"])


def test_shapes_are_depths_times_widths():
    assert isinstance(SHAPES, Listed)
    assert len({shape(SHAPES.at(i)) for i in range(len(SHAPES))}) == len(SHAPES) == 8 * 3
    with pytest.raises(IndexError, match="architecture 24 of 24"):
        SHAPES.at(24)
    kwargs = SHAPES.model({"blocks": [1, 3, 1], "width": 6}).kwargs
    assert (kwargs["blocks"], kwargs["widths"]) == ([1, 3, 1], [6, 6, 12, 24])
    parent = SHAPES.at(4)  # [1, 1, 3] of width 6
    assert shape(parent) == (1, 1, 3, 6)
    children = {shape(SHAPES.mutate(parent, Generator().manual_seed(s))) for s in range(99)}
    assert children == {(3, 1, 3, 6), (1, 3, 3, 6), (1, 1, 1, 6), (1, 1, 3, 4), (1, 1, 3, 8)}
    with pytest.raises(BadSetting, match="widths must be two or more different numbers >= 1"):
        ResNetShapes(widths=(8,), classes=5)


def test_a_slice_trades_width_for_depth():
    space = ResNetShapes(choices=(1, 2), widths=(6, 8), classes=5, images=TINY)
    costs = {shape(e): space.cost(e)["macs"] for e in map(space.at, range(len(space)))}
    low, high = 0.85 * costs[1, 1, 1, 8], 1.15 * costs[1, 1, 1, 8]
    inside = {s for s, macs in costs.items() if low <= macs <= high}
    assert {s[-1] for s in inside} == {6, 8}
    part = Slice(space=space, name="macs", low=low, high=high)
    draws = [part.sample(Generator().manual_seed(seed)) for seed in range(4)]
    children = [part.mutate(e, Generator().manual_seed(s)) for s, e in enumerate(draws)]
    assert {shape(e) for e in draws} | {shape(e) for e in children} <= inside
    assert {e["width"] for e in (*draws, *children)} == {6, 8}
    assert all(shape(e) != shape(c) for e, c in zip(draws, children, strict=True))


def test_a_cell_that_leads_nowhere_has_every_score():
    """A search meets such cells: they come last or low, and stop nothing."""
    rng = Generator().manual_seed(0)
    images, labels = torch.rand(8, 1, 8, 8, generator=rng), torch.randint(5, (8,), generator=rng)
    space = NasBench201(width=4, cells=1, classes=5, images=TINY)
    dead, alive = (space.model({"ops": [op] * 6}).new() for op in ("none", "nor_conv_3x3"))
    for proxy in COMPARISON.values():
        low, high = (proxy(network, images, labels) for network in (dead, alive))
        assert not math.isnan(low)
        assert low < high < math.inf
    for method in METHODS:
        assert math.isfinite(distillation_score(alive, dead, images, labels, method=method))
    score = diswot_score(alive, dead, images, labels)
    assert math.isfinite(score.semantic + score.relation)
