"""The teacher cache: what it serves, when it computes again, and what it refuses."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stillhouse.cache import Cache, CachedRole, Source, cached
from stillhouse.data.data import TensorData
from stillhouse.engine import fit
from stillhouse.errors import BadSetting, ContractError, UnknownName

from .toys import (
    Net,
    Shift,
    same,
    toy_context,
    toy_data,
    toy_models,
    toy_objective,
    toy_setup,
    weights,
)


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """Not pure: depends on the rest of the batch."""

    def __call__(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {**batch, "images": batch["images"] - batch["images"].mean()}


SOURCE = Source(role="r", data="d", code="c", device="cpu", batch=8, cache=Cache(), augment=Shift())


def fill(
    folder: Path, source: Source = SOURCE, teacher: Net | None = None, views: range = range(2)
) -> tuple[CachedRole, dict]:
    ctx = toy_context(folder)
    role = teacher or toy_models()["teacher"]
    stand_in = cached("teacher", role, toy_data(), views, source, ctx=ctx)
    return stand_in, dict(stand_in.record)


def direct(ids: list[int], view: int, teacher: Net | None = None) -> Tensor:
    batch = toy_data().rows(torch.tensor(ids))
    seen = Shift()({**batch, "view": torch.full((len(ids),), view)})
    with torch.no_grad():
        return (teacher or toy_models()["teacher"]).eval()(seen)["logits"]


def served(role: CachedRole, ids: list[int], view: int) -> Tensor:
    return role({"id": torch.tensor(ids), "view": torch.full((len(ids),), view)})["logits"]


def test_it_serves_what_the_teacher_says_of_this_sample_and_view(tmp_path: Path) -> None:
    role, record = fill(tmp_path)
    for view in (0, 1):
        torch.testing.assert_close(served(role, [3, 44, 3, 0], view), direct([3, 44, 3, 0], view))
    assert not torch.allclose(served(role, [3], 0), served(role, [3], 1))
    assert (record["computed_rows"], record["reused_rows"]) == (100, 0)


def test_a_second_opening_computes_nothing(tmp_path: Path) -> None:
    first, _ = fill(tmp_path)
    second, record = fill(tmp_path)
    assert (record["computed_rows"], record["reused_rows"]) == (0, 100)
    assert torch.equal(served(first, [5, 9], 1), served(second, [5, 9], 1))


@pytest.mark.parametrize("changed", [
    {"role": "another teacher"}, {"data": "another data version"}, {"augment": Shift(seed=1)}, {"augment": None},
    {"code": "another code"}, {"device": "cuda"}, {"batch": 16}, {"cache": Cache(dtype="fp16")},
], ids=lambda c: next(iter(c)))  # fmt: skip
def test_a_changed_source_is_never_served_the_old_entry(tmp_path: Path, changed: dict) -> None:
    fill(tmp_path)
    _, record = fill(tmp_path, replace(SOURCE, **changed))
    assert record["computed_rows"] == 100


def test_a_damaged_shard_is_computed_again(tmp_path: Path) -> None:
    role, _ = fill(tmp_path)
    expected = served(role, [1, 2], 0).clone()
    file = next((tmp_path / "caches").rglob("view-0/*.safetensors"))
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 0xFF
    file.write_bytes(raw)
    again, record = fill(tmp_path)
    assert record["computed_rows"] == 50
    assert torch.equal(served(again, [1, 2], 0), expected)


class Dies(Net):
    """A teacher whose process ends after some batches."""

    calls = 0

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.calls += 1
        if self.calls > 5:
            raise KeyboardInterrupt
        return super().forward(batch)


def test_an_interrupted_fill_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillhouse.cache.SHARD_ROWS", 16)
    dying = Dies(12)
    dying.load_state_dict(toy_models()["teacher"].state_dict())
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, teacher=dying, views=range(1))
    role, record = fill(tmp_path, views=range(1))
    # two shards of 16 rows were whole; the rest of the 50 rows is computed now
    assert (record["computed_rows"], record["reused_rows"]) == (18, 32)
    torch.testing.assert_close(served(role, list(range(50)), 0), direct(list(range(50)), 0))


def test_rows_come_from_several_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillhouse.cache.SHARD_ROWS", 16)
    monkeypatch.setattr("stillhouse.cache.IN_MEMORY", 0)
    role, _ = fill(tmp_path)
    ids = [49, 0, 17, 16, 48, 3]
    torch.testing.assert_close(served(role, ids, 1), direct(ids, 1))


def test_half_precision_states_its_error(tmp_path: Path) -> None:
    half, _ = fill(tmp_path, replace(SOURCE, cache=Cache(dtype="fp16")))
    exact = direct([0, 1, 2], 0)
    assert 0 < (served(half, [0, 1, 2], 0) - exact).abs().max() < 1e-3


def test_ids_need_not_be_positions(tmp_path: Path) -> None:
    data = toy_data()
    data.columns["id"] = torch.arange(50).flip(0) * 10
    ctx = toy_context(tmp_path)
    source = replace(SOURCE, augment=None)
    role = cached("teacher", toy_models()["teacher"], data, [0], source, ctx=ctx)
    with torch.no_grad():
        expected = toy_models()["teacher"](data.rows(torch.tensor([49, 0])))["logits"]
    torch.testing.assert_close(served(role, [0, 490], 0), expected)


def test_an_augmentation_that_is_not_pure_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ContractError, match="Neighbours is not a pure function of \\(id, view\\): 'images' differs"
    ):
        fill(tmp_path, replace(SOURCE, augment=Neighbours()))


def test_messages(tmp_path: Path) -> None:
    with pytest.raises(
        UnknownName, match="cache of role 'teacher': unknown output 'logit'. Did you mean 'logits'"
    ):
        fill(tmp_path, replace(SOURCE, cache=Cache(outputs=("logit",))))
    with pytest.raises(BadSetting, match=r"top_k must be >= 1 \(got 0\)"):
        Cache(top_k=0)


def test_training_with_the_cache_follows_training_without_it(tmp_path: Path) -> None:
    setup, data = toy_setup(steps=30, augment=Shift(), views=2), toy_data()
    online = toy_models()
    fit(toy_objective(), online, data, setup=setup, ctx=toy_context(tmp_path / "online"))
    role, _ = fill(tmp_path)
    offline = {"teacher": role, "student": toy_models()["student"]}
    fitted = fit(toy_objective(), offline, data, setup=setup, ctx=toy_context(tmp_path / "offline"))
    again = {"teacher": role, "student": toy_models()["student"]}
    fit(toy_objective(), again, data, setup=setup, ctx=toy_context(tmp_path / "again"))
    assert same(weights({"s": offline["student"]}), weights({"s": again["student"]}))
    assert fitted.last["loss"] > 0
    for name, value in weights({"s": online["student"]}).items():
        torch.testing.assert_close(
            value, weights({"s": offline["student"]})[name], rtol=1e-3, atol=1e-4
        )
    assert isinstance(data, TensorData)
