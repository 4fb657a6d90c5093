"""The objective on real SAM parts: which roles learn, which terms there are, how prompts are drawn."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor, nn

from stillhouse.errors import BadSetting, UnknownName
from stillhouse.objectives.objective import Optimizer, Phase, Tensors
from stillhouse_sam.full_stage import FullStage, chosen_mask, jittered
from stillhouse_sam.models import Shape, decoder_named, encoder_named, prompts_named
from stillhouse_sam.prompts import boxes_of, pack_masks, unpack_masks

SHAPE = Shape(size=64, grid=8, channels=32, heads=2, mlp=64)
PHASE = Phase(trains=("encoder", "decoder"), optimizer=Optimizer(lr=1e-3))
FULL = FullStage(phases={"student": PHASE}, prompts_per_image=3, box_share=0.0)


def roles() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    specs = {
        "teacher-encoder": encoder_named("sam-32x1", shape=SHAPE),
        "teacher-decoder": decoder_named(shape=SHAPE),
        "prompts": prompts_named(shape=SHAPE),
        "encoder": encoder_named("cnn8", shape=SHAPE),
        "decoder": decoder_named(shape=SHAPE),
    }
    models = {role: spec.new() for role, spec in specs.items()}
    for role in ("teacher-encoder", "teacher-decoder", "prompts"):
        models[role].eval().requires_grad_(False)
    return models


def batch() -> dict[str, Tensor]:
    rng = Generator().manual_seed(1)
    masks = torch.zeros(2, 3, 32, 32, dtype=torch.bool)
    masks[0, 0, 4:12, 6:20] = True
    masks[0, 1, 10:25, 3:9] = True
    masks[1, 2, 2:9, 20:30] = True
    return {
        "id": torch.arange(2),
        "view": torch.zeros(2, dtype=torch.int64),
        "images": torch.randint(0, 256, (2, 3, 64, 64), generator=rng, dtype=torch.uint8),
        "sizes": torch.tensor([[64, 48], [24, 64]]),
        "masks": pack_masks(masks),
        "mask_valid": masks.flatten(2).any(2),
        "boxes": 2 * boxes_of(masks),
    }


def terms(objective: FullStage, models: dict[str, nn.Module], seed: int = 0) -> Tensors:
    rng = Generator().manual_seed(seed)
    return objective.terms("student", models, batch(), step=0, steps=10, rng=rng)


def test_each_row_of_the_ablation_has_its_terms():
    models = roles()
    alone = replace(FULL, distil=())
    only = replace(FULL, distil=("embedding",), mask_weight=0.0, iou_weight=0.0)
    del models["teacher-decoder"]  # neither asks it
    assert set(terms(alone, models)) == {"mask", "iou"}
    assert set(terms(only, {k: m for k, m in models.items() if k != "decoder"})) == {"embedding"}
    assert set(terms(FULL, roles())) == {"mask", "iou", "embedding", "tokens", "output"}


def test_the_gradient_reaches_the_student_and_nobody_else():
    models = roles()
    objective = replace(FULL, hard_rounds=3, hard_weighting=True)
    sum(terms(objective, models).values(), torch.zeros(())).backward()
    for role, model in models.items():
        learns = any(p.grad is not None for p in model.parameters())
        assert learns == (role in PHASE.trains), role


def test_a_frozen_decoder_still_teaches_the_encoder():
    models = roles()
    models["decoder"].requires_grad_(False)
    found = terms(replace(FULL, distil=("tokens",)), models)
    found["tokens"].backward()
    assert any(p.grad is not None for p in models["encoder"].parameters())


def test_a_student_equal_to_its_teacher_has_nothing_left_to_learn_from_it():
    models = roles()
    models["encoder"], models["decoder"] = models["teacher-encoder"], models["teacher-decoder"]
    found = terms(FULL, models)
    assert [float(found[name]) for name in ("embedding", "tokens", "output")] == [0.0, 0.0, 0.0]
    assert float(found["mask"]) > 0


class Recorded(nn.Module):
    """A role that also keeps what it is given."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.given = net, list[Tensors]()

    def forward(self, given: Tensors) -> Tensors:
        self.given.append(given)
        return self.net(given)


def in_masks(points: Tensor, rows: Callable[[int], int]) -> bool:
    """Whether each point (pixels of the frame) lies in one of its image's masks."""
    given = batch()
    masks = unpack_masks(given["masks"]).any(1)
    places = (points / 2).floor().long()
    return all(bool(masks[rows(i), y, x]) for i, (x, y) in enumerate(places.tolist()))


def test_hard_points_replace_each_other_and_lie_in_the_truth():
    models = roles()
    prompts, decoder = Recorded(models["prompts"]), Recorded(models["decoder"])
    models |= {"prompts": prompts, "decoder": decoder}
    rounds: set[int] = set()
    for seed in range(30):
        prompts.given.clear()
        decoder.given.clear()
        terms(replace(FULL, hard_rounds=3), models, seed)
        rounds.add(len(decoder.given) - 1)
        for given in prompts.given:
            assert given["points"].shape == (6, 1, 2)  # one point a prompt, however many rounds
            assert bool((given["labels"] == 1).all())
            assert in_masks(given["points"][:, 0], lambda i: i // 3)
            # the middle of two pixels 2p and 2p + 1, in SAM's count from the middle of a pixel
            assert bool((given["points"] % 2 == 0.5).all())
        # all but the last pass carry no graph
        assert not any(given["embedding"].requires_grad for given in decoder.given[:-1])
        assert decoder.given[-1]["embedding"].requires_grad
    assert rounds == {0, 1, 2, 3}


def test_more_clicks_are_asked_beside_the_prompt_where_its_mask_errs():
    models = roles()
    prompts, decoder = Recorded(models["prompts"]), Recorded(models["decoder"])
    models |= {"prompts": prompts, "decoder": decoder}
    masks = unpack_masks(batch()["masks"])
    counts: list[int] = []
    for seed in range(40):
        prompts.given.clear()
        decoder.given.clear()
        terms(replace(FULL, box_share=0.5, more_clicks=3), models, seed)
        sparse = decoder.given[-1]["sparse"]
        counts.append(sparse.shape[1] - 2)
        if counts[-1] == 0:
            assert len(decoder.given) == 1
            continue
        first, last = decoder.given
        assert not first["embedding"].requires_grad
        assert last["embedding"].requires_grad
        assert torch.equal(first["sparse"], sparse[:, :2])  # the prompt stays beside them
        asked = prompts.given[-1]
        assert asked["points"].shape == (6, counts[-1], 2)
        shown = chosen_mask(decoder.net(first))
        for row, (points, labels) in enumerate(
            zip((asked["points"] / 2).long(), asked["labels"], strict=True)
        ):
            truths = masks[row // 3]
            fit = [
                all(
                    int(truth[y, x]) == label and bool(truth[y, x] != shown[row, y, x])
                    for (x, y), label in zip(points.tolist(), labels.tolist(), strict=True)
                )
                for truth in truths[truths.flatten(1).any(1)]
            ]
            assert any(fit)
    assert set(counts) == {0, 1, 2, 3}
    assert 10 < counts.count(0) < 30


def asked_boxes(objective: FullStage, seed: int = 0) -> Tensor:
    models = roles()
    prompts = Recorded(models["prompts"])
    terms(objective, models | {"prompts": prompts}, seed)
    return next(g["boxes_prompt"] for g in prompts.given if "boxes_prompt" in g)


def test_boxes_are_those_of_the_masks():
    boxes = asked_boxes(replace(FULL, box_share=1.0, box_noise=0.0)).tolist()
    assert boxes[3:] == [[40.0, 4.0, 60.0, 18.0]] * 3
    assert {tuple(box) for box in boxes[:3]} <= {(12.0, 8.0, 40.0, 24.0), (6.0, 20.0, 18.0, 50.0)}


def test_boxes_are_moved_by_a_part_of_their_sides_and_not_far():
    exact = torch.tensor([[0.0, 0.0, 2.0, 20.0]]).expand(4000, 4)
    gap = jittered(exact, 0.1, 3.0, rng=Generator().manual_seed(0)) - exact
    torch.testing.assert_close(gap.std(0), torch.tensor([0.2, 1.9, 0.2, 1.9]), rtol=0.1, atol=0)
    assert float(gap.abs().max()) == 3.0
    again = asked_boxes(replace(FULL, box_share=1.0)) - asked_boxes(
        replace(FULL, box_share=1.0, box_noise=0.0)
    )
    assert 0 < float(again.abs().max()) <= 64 * 20 / 1024


def test_a_step_asks_boxes_and_points_and_redraws_the_points_only():
    models = roles()
    decoder, prompts = Recorded(models["decoder"]), models["prompts"]
    kinds: set[int] = set()
    for seed in range(12):
        decoder.given.clear()
        objective = replace(FULL, box_share=0.5, box_noise=0.0, hard_rounds=3)
        terms(objective, models | {"decoder": decoder}, seed)
        last = decoder.given[-1]["sparse"]
        assert last.shape == (6, 2, 32)
        # of a point and its padding the second token is always the same
        padding = prompts({"points": torch.zeros(1, 1, 2), "labels": torch.ones(1, 1)})["sparse"]
        points = (last[:, 1] == padding[0, 1]).all(-1)
        kinds.add(int(points.sum()))
        assert all(len(given["sparse"]) == int(points.sum()) for given in decoder.given[:-1])
    assert len(kinds) > 2


def test_padding_changes_nothing_that_is_asked_of_the_teacher():
    models = roles()
    plain = terms(replace(FULL, distil=("embedding",)), models)
    other = batch()
    other["images"][0, :, :, 48:] = 255
    rng = Generator().manual_seed(0)
    again = FULL.terms("student", models, other, step=0, steps=10, rng=rng)
    assert torch.equal(plain["embedding"], again["embedding"])


def test_images_without_a_mask_take_part_in_the_embedding_only():
    models, given = roles(), batch()
    given["mask_valid"] = torch.zeros_like(given["mask_valid"])
    rng = Generator().manual_seed(0)
    assert set(FULL.terms("student", models, given, step=0, steps=1, rng=rng)) == {"embedding"}
    alone = replace(FULL, distil=())
    nothing = alone.terms("student", models, given, step=0, steps=1, rng=rng)
    assert nothing["mask"].item() == 0.0
    nothing["mask"].backward()


def test_the_chosen_mask_is_that_of_the_highest_predicted_iou():
    logits = torch.stack([torch.full((2, 2), v) for v in (-1.0, 1.0, -1.0)])[None]
    assert bool(chosen_mask({"logits": logits, "iou": torch.tensor([[0.1, 0.9, 0.5]])}).all())
    assert not bool(chosen_mask({"logits": logits, "iou": torch.tensor([[0.9, 0.1, 0.5]])}).any())


def test_it_learns():
    models = roles()
    learned = [*models["encoder"].parameters(), *models["decoder"].parameters()]
    optimizer = torch.optim.AdamW(learned, lr=3e-3)
    totals: list[float] = []
    for _ in range(30):
        optimizer.zero_grad()
        total = sum(terms(FULL, models).values(), torch.zeros(()))
        total.backward()
        optimizer.step()
        totals.append(float(total.detach()))
    assert totals[-1] < 0.6 * totals[0]


def test_what_cannot_be_is_named():
    with pytest.raises(UnknownName, match="'embeding'.*'embedding'"):
        replace(FULL, distil=("embeding",))
    with pytest.raises(BadSetting, match="box_share"):
        replace(FULL, box_share=2.0)
    with pytest.raises(BadSetting, match="prompts_per_image"):
        replace(FULL, prompts_per_image=0)
    embedding = replace(FULL, distil=("embedding",), mask_weight=0.0, iou_weight=0.0)
    with pytest.raises(BadSetting, match="add 'output' to distil"):
        replace(embedding, hard_weighting=True)
    with pytest.raises(BadSetting, match="no term decodes"):
        replace(embedding, hard_rounds=3)
    with pytest.raises(BadSetting, match="box_share below 1"):
        replace(FULL, hard_rounds=3, box_share=1.0)
    with pytest.raises(BadSetting, match="more_clicks > 0, but no term decodes a mask"):
        replace(embedding, more_clicks=1)
    with pytest.raises(BadSetting, match=r"more_clicks must be >= 0 \(got -1\)"):
        replace(FULL, more_clicks=-1)


def test_a_prompt_encoder_that_is_trained_learns():
    models = roles()
    models["prompts"].requires_grad_(True)
    sum(terms(replace(FULL, distil=(), hard_rounds=2), models).values(), torch.zeros(())).backward()
    assert any(p.grad is not None for p in models["prompts"].parameters())


class Loud(nn.Module):
    """A decoder that draws a mask all over the padding below row 12 of 32."""

    def __init__(self, net: nn.Module, value: float) -> None:
        super().__init__()
        self.net, self.value = net, value

    def forward(self, given: Tensors) -> Tensors:
        found = dict(self.net(given))
        found["logits"] = found["logits"].clone()
        found["logits"][:, :, 12:] = self.value
        return found


def test_what_is_drawn_on_padding_costs_nothing():
    given = {name: value[1:] for name, value in batch().items()}  # 24 of 64 rows are real
    models = roles()
    losses: list[float] = []
    for value in (-9.0, 90.0):
        loud = models | {"decoder": Loud(models["decoder"], value)}
        rng = Generator().manual_seed(0)
        found = FULL.terms("student", loud, given, step=0, steps=1, rng=rng)
        losses.append(sum(float(found[name].detach()) for name in ("mask", "iou", "output")))
    assert losses[0] == losses[1]


def test_a_mask_that_lies_in_padding_only_is_never_prompted():
    given = batch()
    masks = torch.zeros(2, 3, 32, 32, dtype=torch.bool)
    masks[1, 2, 20:30] = True  # below the real part
    given["masks"], given["mask_valid"] = pack_masks(masks), masks.flatten(2).any(2)
    rng = Generator().manual_seed(0)
    found = FULL.terms("student", roles(), given, step=0, steps=1, rng=rng)
    assert set(found) == {"embedding"}
