import pytest

from stillhouse.errors import BadSetting
from stillhouse_language import Architecture, kept_layers, macs, parameter_count
from stillhouse_language.encoder import Encoder
from stillhouse_language.spaces import Spaces, SubSpace

BERT = Architecture(layers=12, width=768, inner=3072, heads=12)
# layers, width, ratio, heads of the networks that the paper names; millions of parameters as
# printed there; giga-MACs of 128 tokens by the estimate whose width is d * h / 12
NAMED = (
    (11, 352, 4, 10, 26.8, 31.9, 2.08),
    (12, 544, 3, 9, 50.1, 53.6, 4.25),
    (11, 352, 4, 8, 26.1, 29.9, 1.95),
    (7, 160, 3.5, 10, 6.88, 9.14, 0.268),
)


@pytest.mark.parametrize(
    ("depth", "kept"),
    [
        (4, (0, 3, 6, 9)),
        (5, (0, 2, 4, 7, 9)),
        (6, (0, 2, 4, 6, 8, 10)),
        (7, (0, 1, 3, 5, 6, 8, 10)),
        (9, (0, 1, 2, 4, 5, 6, 8, 9, 10)),
        (10, (0, 1, 2, 3, 4, 6, 7, 8, 9, 10)),
        (11, tuple(range(11))),
        (12, tuple(range(12))),
    ],
)
def test_kept_layers_are_those_of_the_released_code(depth: int, kept: tuple[int, ...]) -> None:
    assert kept_layers(depth, 12) == kept


@pytest.mark.parametrize("depth", [0, 13])
def test_a_depth_outside_the_network_is_refused(depth: int) -> None:
    with pytest.raises(BadSetting, match="a depth of 1 to 12"):
        kept_layers(depth, 12)


@pytest.mark.parametrize(("layers", "width", "ratio", "heads", "paper", "true", "giga"), NAMED)
def test_counts_of_the_papers_networks(
    layers: int, width: int, ratio: float, heads: int, paper: float, true: float, giga: float
) -> None:
    a = Architecture(layers=layers, width=width, inner=int(width * ratio), heads=heads)
    assert parameter_count(a, kind="paper") / 1e6 == pytest.approx(paper, rel=2e-3)
    assert parameter_count(a) / 1e6 == pytest.approx(true, rel=2e-3)
    assert macs(a, tokens=128, kind="paper") / 1e9 == pytest.approx(giga, rel=3e-3)


def test_macs_of_bert_base_by_hand() -> None:
    # 12 (128 (4 768 768 + 2 768 3072) + 2 128 128 768)
    assert macs(BERT, tokens=128) == 12 * (128 * 7077888 + 25165824) == 11_173_625_856
    assert macs(BERT, tokens=128, kind="paper") == macs(BERT, tokens=128)


@pytest.mark.parametrize("pooler", [False, True])
def test_the_true_count_is_that_of_the_network(pooler: bool) -> None:
    a = Architecture(
        layers=3, width=20, inner=50, heads=2, head_width=16, vocabulary=99, pooler=pooler
    )
    assert parameter_count(a) == sum(p.numel() for p in Encoder(a.record()).parameters())


def test_a_subnet_larger_than_its_model_is_refused() -> None:
    with pytest.raises(BadSetting, match="a subnet of 13 heads cannot be cut from a model of 12"):
        BERT.cut(layers=12, width=768, inner=3072, heads=13)


def space(**changes: tuple[float, ...]) -> SubSpace:
    grid: dict[str, tuple[float, ...]] = {
        "layers": (4, 5, 6, 7), "widths": (128, 160, 192, 224), "ratios": (2.0, 2.5, 3.0, 3.5),
        "heads": (7, 8, 9, 10), **changes,
    }  # fmt: skip
    return SubSpace(full=BERT, **grid)  # pyright: ignore[reportArgumentType]  numbers as given


def test_the_papers_sub_space_has_256_subnets_from_smallest_to_largest() -> None:
    tiny = space()
    assert len(tiny.architectures) == 256
    assert (tiny.smallest.layers, tiny.smallest.width, tiny.smallest.inner) == (4, 128, 256)
    assert (tiny.largest.layers, tiny.largest.heads, tiny.largest.inner) == (7, 10, 784)
    counts = [parameter_count(a, kind="paper") for a in tiny.architectures]
    assert counts == sorted(counts)
    # a shallow subnet keeps layers that the deepest leaves out
    assert tiny.stored.layers == 12
    assert tiny.stored.width == 224


def test_sizes_that_are_no_whole_number_are_refused() -> None:
    with pytest.raises(BadSetting, match=r"2\.3 x 128 units are no whole number"):
        space(ratios=(2.3,))


def test_a_budget_under_the_smallest_subnet_is_refused() -> None:
    spaces = Spaces(spaces={"tiny": space()}, tokens=128)
    least = macs(space().smallest, tokens=128)
    with pytest.raises(BadSetting, match=f"1,000 macs are under the smallest subnet's {least:,}"):
        spaces.check_budget({"macs": 1000})
    spaces.check_budget({"macs": least})


def test_each_subnet_of_a_search_space_has_a_number() -> None:
    spaces = Spaces(spaces={"one": space(), "two": space(heads=(5, 6))}, tokens=128)
    assert len(spaces) == 256 + 128
    seen = {tuple(spaces.at(i).items()) for i in range(len(spaces))}
    assert len(seen) == len(spaces)
    one = spaces.at(300)
    assert one["space"] == "two"
    assert spaces.cost(one)["parameters"] == parameter_count(
        Architecture.of(spaces.model(one).kwargs["architecture"])
    )
