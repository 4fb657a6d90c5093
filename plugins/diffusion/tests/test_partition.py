import pytest
import torch
from torch import Generator

from stillhouse.errors import BadData, BadSetting
from stillhouse_diffusion.partition import (
    Blocks,
    PromptQuadrants,
    kmeans_blocks,
    label_blocks,
    owners,
    random_blocks,
)


def rng(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def partitions(classes: int, k: int) -> list[Blocks]:
    embeddings = torch.randn(classes, 5, generator=rng(3))
    return [
        label_blocks(classes, k),
        random_blocks(classes, k, rng()),
        kmeans_blocks(embeddings, k, rng()),
    ]


@pytest.mark.parametrize(("classes", "k"), [(10, 1), (10, 2), (10, 5), (8, 4), (12, 12)])
def test_partitions_are_disjoint_complete_and_equal(classes: int, k: int) -> None:
    for blocks in partitions(classes, k):
        assert sorted(label for block in blocks for label in block) == list(range(classes))
        assert {len(block) for block in blocks} == {classes // k}


def test_label_blocks_are_consecutive() -> None:
    assert label_blocks(6, 3) == ((0, 1), (2, 3), (4, 5))


def test_a_number_of_students_that_does_not_divide_is_refused_with_those_that_do() -> None:
    for k in (0, 3, 11):
        with pytest.raises(BadSetting, match=rf"^{k} students cannot share 10 classes equally"):
            label_blocks(10, k)
    with pytest.raises(BadSetting, match="choose one of 1, 2, 5, 10"):
        random_blocks(10, 4, rng())


def test_random_blocks_follow_their_generator() -> None:
    assert random_blocks(10, 2, rng(1)) == random_blocks(10, 2, rng(1))
    assert random_blocks(10, 2, rng(1)) != random_blocks(10, 2, rng(2))


def test_kmeans_puts_near_classes_together_in_equal_parts() -> None:
    # four classes around each of two centres, but one of the first five is nearer to the others
    embeddings = torch.tensor([[0.0], [0.1], [0.2], [0.3], [0.4], [10.0], [10.1], [10.2]])
    blocks = kmeans_blocks(embeddings, 2, rng())
    assert sorted(blocks) == [(0, 1, 2, 3), (4, 5, 6, 7)]


def test_owners_are_the_router_of_labels_of_the_whole_set() -> None:
    assert owners(((0, 3), (1, 2)), 4).tolist() == [0, 1, 1, 0]
    for blocks, message in (
        (((0, 1), (1, 2)), "label 1 is in two parts"),
        (((0,), (2,)), "label 1 is in no part"),
        (((0, 1), (2, 3)), r"label 3 is not in 0\.\.2"),
    ):
        with pytest.raises(BadData, match=message):
            owners(blocks, 3)


def test_quadrants_are_equal_parts_of_the_prompts_they_were_fitted_to() -> None:
    embeddings = torch.randn(400, 16, generator=rng()) * torch.linspace(3, 0.1, 16)
    quadrants = PromptQuadrants.fit(embeddings)
    assert torch.bincount(quadrants.route(embeddings), minlength=4).tolist() == [100] * 4


def test_quadrants_by_hand() -> None:
    # the first axis is x, the second y
    points = torch.tensor([[x, y] for x in (-30.0, -10.0, 10.0, 30.0) for y in (-1.0, 1.0)])
    quadrants = PromptQuadrants.fit(points)
    assert quadrants.axes.abs().round().tolist() == [[1, 0], [0, 1]]
    assert quadrants.route(points).tolist() == [0, 1, 0, 1, 2, 3, 2, 3]


def test_a_router_is_the_same_after_it_was_stored_and_for_any_order_of_the_prompts() -> None:
    embeddings = torch.randn(101, 8, generator=rng())
    quadrants = PromptQuadrants.fit(embeddings)
    again = PromptQuadrants.of(quadrants.tensors())
    turned = PromptQuadrants.fit(embeddings.flip(0))
    new = torch.randn(500, 8, generator=rng(5))
    assert torch.equal(again.route(new), quadrants.route(new))
    assert torch.equal(turned.route(new), quadrants.route(new))


def test_embeddings_that_cannot_be_split_are_refused() -> None:
    with pytest.raises(BadData, match="need four embeddings"):
        PromptQuadrants.fit(torch.randn(3, 8))
    with pytest.raises(BadData, match="not finite"):
        PromptQuadrants.fit(torch.full((8, 4), float("nan")))
    quadrants = PromptQuadrants.fit(torch.randn(8, 4, generator=rng()))
    with pytest.raises(BadData, match=r"expected embeddings \[N, 4\]"):
        quadrants.route(torch.randn(2, 5))
