"""A cache of a few classes of a long vocabulary: what it serves, what it measures, what it refuses."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stillhouse.artifact import Model
from stillhouse.cache import Cache, CachedRole, Source, cached
from stillhouse.digest import digest
from stillhouse.engine import fit
from stillhouse.errors import BadRecipe, BadSetting
from stillhouse.objectives import (
    Composed,
    Term,
    Weighted,
    kd_loss,
    sampled_kd_loss,
    sparse_kd_loss,
)
from stillhouse.sparse import Sampled, TopK, drawn, likeliest, starts
from stillhouse.stages.train import Train

from .toys import Net, same, toy_context, toy_data, toy_phase, toy_setup, weights

CLASSES, TOKENS = 300, 4


class Talker(nn.Module):
    """Logits [B, tokens, classes] as peaked as those of a language model, or nearly flat ones."""

    def __init__(self, spread: float = 3.0, classes: int = CLASSES) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.table, self.spread = nn.Parameter(torch.randn(TOKENS, classes)), spread

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        shift = batch["images"].flatten(1).mean(1)[:, None, None]
        return {"logits": self.spread * (self.table + shift * self.table.flip(-1))}


def fill(
    folder: Path, cache: Cache, role: nn.Module | None = None
) -> tuple[CachedRole, dict, Tensor]:
    """The stand-in, its record, and the whole logits of all rows."""
    source = Source(role="r", data="d", code="c", device="cpu", batch=8, cache=cache, augment=None)
    role, data = role or Talker(), toy_data()
    ctx = toy_context(folder)
    found = cached("teacher", role, data, range(1), source, ctx=ctx)
    with torch.no_grad():
        return found, dict(found.record), role(data.rows(torch.arange(50)))["logits"]


def served(role: CachedRole, count: int = 50) -> dict[str, Tensor]:
    return role({"id": torch.arange(count), "view": torch.zeros(count, dtype=torch.long)})


def near(whole: Tensor) -> Tensor:
    return whole + torch.randn(whole.shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_it_serves_the_largest_and_the_rest(tmp_path: Path, temperature: float) -> None:
    form = TopK(k=100, temperature=temperature, error=0.5)
    role, record, whole = fill(tmp_path, Cache(outputs=(form,)))
    index, log_p, rest = served(role).values()
    for found, expected in zip(
        (index, log_p, rest), likeliest(whole, 100, temperature), strict=True
    ):
        torch.testing.assert_close(found, expected)
    assert index.shape == (50, TOKENS, 100)
    torch.testing.assert_close(
        log_p, (whole / temperature).log_softmax(-1).gather(-1, index), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(log_p.exp().sum(-1) + rest.exp(), torch.ones(50, TOKENS))
    assert record["kept"]["logits"]["k"] == 100


def test_it_serves_draws_of_seed_id_and_view(tmp_path: Path) -> None:
    form = Sampled(k=50, error=0.5)
    role, _, whole = fill(tmp_path, Cache(outputs=(form,)))
    index, weight, entropy = served(role).values()
    torch.testing.assert_close(weight.sum(-1), torch.ones(50, TOKENS))
    p = whole.softmax(-1)
    torch.testing.assert_close(entropy, -(p * p.log()).sum(-1), rtol=1e-4, atol=1e-5)
    assert (index.sort(-1).values.diff(dim=-1) > 0).all()  # each class once
    # the same rows in another batch, alone
    u = starts(torch.tensor([7]), 0, 0, torch.Size((1, TOKENS)))
    again, log_weight, _ = drawn(whole[7:8], 50, 1.0, u)
    assert torch.equal(again, index[7:8])
    torch.testing.assert_close(log_weight.exp(), weight[7:8])
    other, _, _ = fill(tmp_path, Cache(outputs=(replace(form, seed=1),)))
    assert not torch.equal(served(other)["logits.index"], index)


def test_the_loss_of_what_is_kept_is_near_that_of_all(tmp_path: Path) -> None:
    top, record, whole = fill(tmp_path, Cache(outputs=(TopK(),)))
    sampled, _, _ = fill(tmp_path, Cache(outputs=(Sampled(),)))
    student = near(whole)
    dense = kd_loss(student.flatten(0, 1), whole.flatten(0, 1), temperature=1.0)
    by_top = sparse_kd_loss(student, *served(top).values(), temperature=1.0)
    by_draw = sampled_kd_loss(student, *served(sampled).values(), temperature=1.0)
    kept = record["kept"]["logits"]
    assert abs(kept["kl_error"]) <= 0.05
    assert kept["gradient_cosine"] > 0.99
    assert by_top.item() == pytest.approx(dense.item(), rel=0.05)
    assert by_draw.item() == pytest.approx(dense.item(), rel=0.1)
    assert (kept["rows"], kept["classes"], kept["temperature"]) == (200, CLASSES, 1.0)


def test_short_indices_take_two_bytes_and_long_ones_four(tmp_path: Path) -> None:
    for classes, size in ((40000, 2), (70000, 4)):
        role, _, whole = fill(
            tmp_path / str(classes),
            Cache(outputs=(TopK(k=16, error=9.0),), dtype="fp16"),
            Talker(classes=classes),
        )
        stored = role.views[0].rows(torch.tensor([3]))
        assert stored["logits.index"].element_size() == size
        assert stored["logits.log_p"].element_size() == 2
        index = served(role, 4)["logits.index"]
        assert torch.equal(index, whole[:4].topk(16).indices)
        assert classes < 65536 or (index >= 65536).any()
        assert (index >= 32768).any()


def test_a_second_opening_measures_nothing_anew(tmp_path: Path) -> None:
    _, first, _ = fill(tmp_path, Cache(outputs=(TopK(),)))
    (file,) = (tmp_path / "caches").rglob("fidelity.json")
    told = json.loads(file.read_text())
    told["logits"]["kl_error"] = -0.0123
    file.write_text(json.dumps(told))
    role, second, _ = fill(tmp_path, Cache(outputs=(TopK(),)))
    assert second["kept"]["logits"]["kl_error"] == -0.0123
    assert second["kept"]["logits"]["k"] == first["kept"]["logits"]["k"]
    assert (second["computed_rows"], second["reused_rows"]) == (0, 50)
    file.write_text("{")
    _, third, _ = fill(tmp_path, Cache(outputs=(TopK(),)))
    assert third["kept"] == first["kept"]
    assert served(role)["logits.index"].shape[-1] == first["kept"]["logits"]["k"]


def refusal(folder: Path, cache: Cache, role: nn.Module | None = None) -> str:
    with pytest.raises(BadSetting) as caught:
        fill(folder, cache, role)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_errs_too_much_is_refused_with_what_would_do(tmp_path: Path) -> None:
    told = refusal(tmp_path, Cache(outputs=(TopK(k=2),)))
    found = re.fullmatch(
        r"cache of role 'teacher': TopK\(k=2\) of 300 classes of 'logits': KL errs by -[\d.]+ % at "
        r"T = 1 \(gradient cosine 0\.\d\d\); k = (\d+) would do",
        told,
    )
    assert found, told
    fill(tmp_path, Cache(outputs=(TopK(k=int(found[1])),)))
    told = refusal(tmp_path, Cache(top_k=10))
    assert re.search(r"top_k=10 of 300 classes of 'logits': KL errs by \+[\d.]+ % at T = 4", told)


def test_what_no_small_k_can_hold_is_to_be_kept_whole(tmp_path: Path) -> None:
    told = refusal(tmp_path, Cache(outputs=(TopK(temperature=4.0),)), Talker(spread=0.1))
    assert told.endswith("no k of a half of them or less would do: keep it whole, as 'logits'")


def test_whole_logits_made_of_a_few_stay_where_they_are_near_enough(tmp_path: Path) -> None:
    role, record, whole = fill(tmp_path, Cache(top_k=299))
    found = served(role)["logits"]
    assert found.shape == whole.shape
    torch.testing.assert_close(found.softmax(-1), whole.softmax(-1), rtol=1e-4, atol=1e-6)
    assert abs(record["kept"]["logits"]["kl_error"]) < 0.05


class Speaker(Net):
    """A student of `Talker`."""

    def __init__(self) -> None:
        super().__init__(4)
        self.out = nn.Linear(3, TOKENS * CLASSES)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        x = batch["images"].mean((2, 3))
        return {"logits": self.out(x).view(-1, TOKENS, CLASSES)}


KEPT = ("teacher.logits.index", "teacher.logits.log_p", "teacher.logits.rest")


def objective(temperature: float = 1.0, reads: tuple[str, ...] = KEPT) -> Composed:
    loss = sparse_kd_loss if len(reads) == 3 else kd_loss
    kd = Term(loss, "student.logits", *reads, temperature=temperature)
    return Composed(phases={"main": toy_phase()}, losses={"kd": Weighted(term=kd)})


def test_a_student_learns_from_what_is_kept(tmp_path: Path) -> None:
    role, _, whole = fill(tmp_path, Cache(outputs=(TopK(),)))
    ends = []
    for folder in ("one", "other"):
        torch.manual_seed(2)
        models = {"teacher": role, "student": Speaker()}
        fitted = fit(
            objective(), models, toy_data(), setup=toy_setup(steps=40, views=1), ctx=toy_context(tmp_path / folder)
        )  # fmt: skip
        ends.append(weights({"s": models["student"]}))
    assert same(*ends)
    torch.manual_seed(2)
    before = kd_loss(
        Speaker()(toy_data().rows(torch.arange(50)))["logits"].flatten(0, 1),
        whole.flatten(0, 1),
        temperature=1.0,
    )
    assert 0 < fitted.last["loss"] < 0.8 * before.item()


def train(cache: Cache, told: Composed) -> Train:
    return Train(
        name="student",
        objective=told,
        inputs={"data": "data.train", "teacher": "teacher.teacher"},
        fresh={"student": Model(build=Speaker)},
        steps=1,
        batch=8,
        cache={"teacher": cache},
    )


def test_a_term_must_read_what_is_kept_at_its_temperature() -> None:
    few = Cache(outputs=(TopK(temperature=2.0),))
    train(few, objective(2.0))
    with pytest.raises(
        BadRecipe,
        match="stage 'student': term 'kd' is at temperature 4, what the cache keeps of "
        "'teacher.logits' at 2; give both as one",
    ):
        train(few, objective(4.0))
    with pytest.raises(
        BadRecipe,
        match="term 'kd' reads 'teacher.logits', of which the cache keeps a TopK; read "
        "'teacher.logits.index', 'teacher.logits.log_p', 'teacher.logits.rest'",
    ):
        train(few, objective(2.0, ("teacher.logits",)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopK(k=0), r"cache: TopK of 'logits': k must be >= 1 or 'auto' \(got 0\)"),
        (lambda: Sampled(temperature=0.0), r"Sampled of 'logits': temperature must be > 0"),
        (lambda: TopK(error=-1.0), "error must be > 0"),
        (lambda: Cache(top_k=0), r"top_k must be >= 1 \(got 0\)"),
        (lambda: Cache(outputs=("logits", TopK())), "output 'logits' is named 2 times"),
    ],
)
def test_values_out_of_range(make, message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        make()


def test_a_cache_that_keeps_whole_outputs_has_the_key_it_had() -> None:
    # recorded before there were other forms
    assert digest(Cache(outputs=("logits", "embedding"))) == RECORDED


RECORDED = "dd6c81a8d35dfee5913d9004a4b73b2f4effc1e564987b623f9670308cb40eb8"
