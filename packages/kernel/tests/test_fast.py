"""Precision "fast": forms of roles that compute the same faster, and what guards them."""

import copy
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stillhouse import fast
from stillhouse.data.data import TensorData
from stillhouse.engine import Fitted, fit
from stillhouse.errors import ContractError
from stillhouse.fast import Role, misfit
from stillhouse.folding import fold, pairs_of
from stillhouse.objectives import Composed, Optimizer, Phase, Term, Weighted, kd_loss
from stillhouse.objectives.objective import Models, Tensors
from stillhouse.phase_state import fused
from stillhouse.recipe import Context, Event
from stillhouse.training import Setup

from .toys import same, toy_context, toy_data, weights


class Small(nn.Module):
    """Two convolutions, each with a BatchNorm, and a head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.norm1 = nn.Conv2d(3, width, 3, bias=False), nn.BatchNorm2d(width)
        self.two, self.norm2 = nn.Conv2d(width, width, 3), nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 5)

    def forward(self, batch: Tensors) -> dict[str, Tensor]:
        x = F.relu(self.norm1(self.one(batch["images"])))
        x = F.relu(self.norm2(self.two(x)))
        return {"logits": self.head(x.mean((2, 3))), "map": x}


class Reread(Small):
    """Reads the first convolution's output beside its BatchNorm."""

    def forward(self, batch: Tensors) -> dict[str, Tensor]:
        made = self.one(batch["images"])
        x = F.relu(self.norm1(made) + made)
        return {"logits": self.head(self.norm2(self.two(x)).mean((2, 3)))}


class Named(Small):
    """Returns the first convolution's output by name."""

    def forward(self, batch: Tensors) -> dict[str, Tensor]:
        made = self.one(batch["images"])
        x = self.norm2(self.two(F.relu(self.norm1(made))))
        return {"logits": self.head(x.mean((2, 3))), "raw": made}


class Noisy(Small):
    """Draws from torch's generator."""

    def forward(self, batch: Tensors) -> dict[str, Tensor]:
        logits = super().forward(batch)["logits"]
        return {"logits": logits + torch.randn_like(logits)}


def network(kind: type[Small] = Small, width: int = 6) -> Small:
    """One whose BatchNorms have seen something."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        made = kind(width)
        for part in made.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.normal_(part.running_mean)  # pyright: ignore[reportArgumentType]
                nn.init.uniform_(part.running_var, 0.5, 2.0)  # pyright: ignore[reportArgumentType]
                nn.init.uniform_(part.weight, 0.5, 2.0)
                nn.init.normal_(part.bias)
    return made.eval()


def batch() -> dict[str, Tensor]:
    return dict(next(iter(toy_data().batches(8, rng=None))))


def found_pairs(module: nn.Module) -> Mapping[str, str]:
    seen = batch()
    with torch.no_grad():
        return pairs_of(module, lambda: module(seen))


def test_each_batchnorm_goes_with_the_convolution_before_it() -> None:
    assert found_pairs(network()) == {"norm1": "one", "norm2": "two"}


@pytest.mark.parametrize("kind", [Reread, Named])
def test_what_else_reads_a_convolution_forbids_folding_it(kind: type[Small]) -> None:
    assert found_pairs(network(kind)) == {"norm2": "two"}


def test_a_hook_on_a_batchnorm_or_its_convolution_forbids_folding_them() -> None:
    one, other = network(), network()
    one.norm1.register_forward_hook(lambda *_: None)
    other.two.register_forward_hook(lambda *_: None)
    assert found_pairs(one) == {"norm2": "two"}
    assert found_pairs(other) == {"norm1": "one"}


def test_a_batchnorm_in_train_mode_is_not_folded() -> None:
    module = network()
    module.norm1.train()
    assert found_pairs(module) == {"norm2": "two"}


def test_folding_by_hand() -> None:
    """conv 2x, then (y - 1) / sqrt(4) * 3 + 5: 3x + 3.5."""
    conv, norm = nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1, eps=0.0)
    nn.init.constant_(conv.weight, 2.0)
    nn.init.constant_(norm.weight, 3.0)
    nn.init.constant_(norm.bias, 5.0)
    norm.register_buffer("running_mean", torch.tensor([1.0]))
    norm.register_buffer("running_var", torch.tensor([4.0]))
    both = nn.Sequential(conv, norm).eval()
    fold(both, {"1": "0"})
    assert isinstance(both[1], nn.Identity)
    assert conv.bias is not None
    assert (conv.weight.item(), conv.bias.item()) == (3.0, 3.5)


def test_a_form_leaves_the_role_as_it_is() -> None:
    module = network()
    before, seen = copy.deepcopy(module.state_dict()), batch()
    form = Role(module=module, batch=seen).form(("folded", "channels_last"))
    assert same(before, module.state_dict())
    assert module.one.weight.is_contiguous()
    assert type(form) is Small
    assert isinstance(form.norm1, nn.Identity)
    assert form.head.weight is module.head.weight  # shared
    with torch.no_grad():
        assert not misfit(module(seen), form(seen), half=False)


def test_the_error_is_that_of_the_largest_value() -> None:
    reference = {"map": torch.tensor([[10.0, 1.0]])}
    near, far = torch.tensor([[10.0, 1.00005]]), torch.tensor([[10.0, 1.0002]])
    assert misfit(reference, {"map": near}, half=False) == ""
    assert (
        misfit(reference, {"map": far}, half=False)
        == "its 'map' is off by 2.0e-05, of at most 1e-05"
    )
    assert misfit(reference, {"map": far}, half=True) == ""
    assert "off by nan" in misfit(reference, {"map": far * torch.nan}, half=True)


def test_logits_in_bf16_are_held_against_classes_and_nats() -> None:
    flat = {"logits": torch.zeros(1, 2)}
    # KL(0.5, 0.5 || 0.6, 0.4) = 0.5 ln(0.5 / 0.6) + 0.5 ln(0.5 / 0.4) = 0.0204
    tilted = {"logits": torch.tensor([[0.6, 0.4]]).log()}
    assert misfit(flat, tilted, half=True) == "its logits are off by 2.0e-02 nats, of at most 1e-03"
    masked = {"logits": torch.tensor([[0.0, 1.0, -torch.inf]])}  # a class that both exclude
    assert misfit(masked, masked, half=True) == ""
    one, other = torch.tensor([[0.0, 1e-4]]), torch.tensor([[1e-4, 0.0]])
    assert misfit({"logits": one}, {"logits": other}, half=True) == (
        "100.0% of the rows get another class"
    )


def test_a_network_of_other_outputs_runs_as_it_is() -> None:
    state = torch.get_rng_state()
    found = Role(module=network(Noisy), batch=batch()).choose()
    # the draws of each trial begin alike; the folded form gives the same but for rounding
    assert torch.equal(torch.get_rng_state(), state)
    assert "folded" in found.measures or "off by" in found.refused["folded"]


def test_bf16_is_not_tried_where_the_processor_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "has_bf16", lambda: False)
    found = Role(module=network(), batch=batch()).choose()
    assert "bf16" not in {*found.measures, *found.refused}


def test_compiling_that_cannot_pay_is_refused() -> None:
    found = Role(module=network(), batch=batch(), steps=2).choose()
    # five layers of 0.3 s, with the network itself none
    assert "2 steps would save 0 s, compiling costs 2 s" in found.refused["compiled"]
    assert "not compiled: 2 steps" in found.line("teacher")


def test_without_a_compiler_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    found = Role(module=network(), batch=batch(), steps=10**9).choose()
    assert "there is no C++ compiler" in found.refused["compiled"]


def test_what_compiling_takes_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    faster_each_time(monkeypatch)
    monkeypatch.setattr(nn.Module, "compile", lambda _module: None)
    found = Role(module=network(), batch=batch(), steps=10**9).choose()
    assert found.measures == ["folded", "channels_last", "compiled"]
    assert found.compile_seconds is not None
    assert " s to compile" in found.line("teacher")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_all_runs_in_bf16_and_is_saved_in_fp32(tmp_path: Path) -> None:
    given = models()
    ctx = toy_context(tmp_path, device="cuda")
    found = fit(objective(), given, toy_data(), setup=setup(), ctx=ctx)
    assert "tried" not in {**found.fast["teacher"]["refused"], **found.fast["student"]["refused"]}
    for value in given["student"].state_dict().values():
        assert value.device.type == "cpu"
        assert value.dtype in (torch.float32, torch.int64)


def test_a_compiler_that_fails_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_module: nn.Module) -> None:
        raise RuntimeError("no backend\nand a long trace")

    monkeypatch.setattr(nn.Module, "compile", refuse)
    found = Role(module=network(), batch=batch(), steps=10**9).choose()
    assert found.refused["compiled"] == "RuntimeError: no backend"
    assert "folded" in found.measures


def test_a_role_that_needs_more_than_the_batch_stays_as_it_is() -> None:
    found = Role(module=network(), batch={"id": torch.arange(3)}).choose()
    assert found.measures == []
    assert found.line("teacher") == "fast: 'teacher' runs as it is; not tried: KeyError: 'images'"


def test_optimizers_are_fused_where_torch_has_that() -> None:
    layer = nn.Linear(2, 2)
    groups = [{"params": [*layer.parameters()]}]
    assert fused(Optimizer(lr=0.1), groups).defaults["fused"] is True
    assert "fused" not in fused(Optimizer(build=torch.optim.RMSprop, lr=0.1), groups).defaults
    own = Optimizer(lr=0.1, kwargs={"foreach": True})
    assert not fused(own, groups).defaults["fused"]


def objective(**changes: object) -> Composed:
    sgd = Optimizer(lr=0.05, kwargs={"momentum": 0.9, "weight_decay": 1e-3})
    kd = Term(kd_loss, "student.logits", "teacher.logits", temperature=4.0)
    phase = replace(Phase(trains=("student",), optimizer=sgd), **changes)  # pyright: ignore[reportArgumentType]
    return Composed(phases={"main": phase}, losses={"kd": Weighted(term=kd)})


def models() -> dict[str, nn.Module]:
    return {"teacher": network(width=8), "student": network(width=4).train()}


def setup(precision: str = "fast", steps: int = 20) -> Setup:
    return Setup(steps=steps, batch=8, seed=3, precision=precision)  # pyright: ignore[reportArgumentType]


def faster_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each measure takes less time than the one before: what is chosen does not depend on noise."""
    times = itertools.count(1)
    monkeypatch.setattr(Role, "_timed", lambda *_: 1 / next(times))


def test_a_fast_training_is_near_the_exact_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faster_each_time(monkeypatch)
    exact, quick = models(), models()
    events: list[Event] = []
    ctx = toy_context(tmp_path / "fast", observe=events.append)
    fit(objective(), exact, toy_data(), setup=setup("fp32"), ctx=toy_context(tmp_path / "exact"))
    found = fit(objective(ema={"student": 0.9}), quick, toy_data(), setup=setup(), ctx=ctx)
    assert found.fast["teacher"]["measures"] == ["folded", "channels_last"]
    assert found.fast["student"]["measures"] == ["channels_last"]
    assert any(e.text.startswith("note: fast: 'teacher' runs folded") for e in events)
    ends = weights({role: quick[role] for role in ("teacher", "student")})
    for name, value in weights(exact).items():
        torch.testing.assert_close(ends[name], value, rtol=1e-3, atol=1e-4)
    for module in quick.values():  # as files have them
        assert all(p.is_contiguous() for p in module.parameters())


def test_in_fp32_nothing_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Role, "choose")
    found = fit(objective(), models(), toy_data(), setup=setup("fp32"), ctx=toy_context(tmp_path))
    assert found.fast == {}


class _Killed(Exception):
    pass


def killed_at(step: int, ctx: Context) -> Context:
    def observe(event: Event) -> None:
        if event.text == "checkpoint" and event.done == step:
            raise _Killed

    return replace(ctx, observe=observe, checkpoint_steps=7)


@pytest.mark.parametrize("adam", [False, True])
def test_a_killed_fast_run_takes_the_same_forms_and_ends_with_the_same_bits(
    adam: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faster_each_time(monkeypatch)
    more = {"optimizer": Optimizer(build=torch.optim.AdamW, lr=0.01)} if adam else {}
    trained = objective(ema={"student": 0.9}, **more)
    whole, resumed = models(), models()
    fit(trained, whole, toy_data(), setup=setup(), ctx=toy_context(tmp_path / "whole"))
    ctx = toy_context(tmp_path / "killed")
    with pytest.raises(_Killed):
        fit(trained, models(), toy_data(), setup=setup(), ctx=killed_at(14, ctx))
    monkeypatch.delattr(Role, "choose")  # it is not chosen anew
    found: Fitted = fit(trained, resumed, toy_data(), setup=setup(), ctx=ctx)
    assert found.resumed_at == 14
    assert found.fast["teacher"]["measures"] == ["folded", "channels_last"]
    assert same(weights(resumed), weights(whole))


@dataclass(frozen=True, kw_only=True)
class Writing:
    """An objective that writes to a frozen role."""

    phases: Mapping[str, Phase]

    def terms(
        self,
        phase: str,
        models: Models,
        batch: Tensors,
        *,
        step: int,
        steps: int,
        rng: torch.Generator,
    ) -> Tensors:
        teacher = models["teacher"]
        assert isinstance(teacher, Small)
        with torch.no_grad():
            teacher.two.weight.add_(1.0)
        return {"loss": models["student"](batch)["logits"].square().mean()}


def test_writing_to_a_frozen_role_is_refused_in_its_fast_form_too(tmp_path: Path) -> None:
    writing = Writing(phases=objective().phases)
    with pytest.raises(ContractError, match="frozen role 'teacher' changed"):
        fit(writing, models(), toy_data(), setup=setup(steps=2), ctx=toy_context(tmp_path))


def test_micro_batches_are_what_the_forms_are_tried_on(tmp_path: Path) -> None:
    rows: list[int] = []

    class Counting(Small):
        def forward(self, batch: Tensors) -> dict[str, Tensor]:
            rows.append(len(batch["images"]))
            return super().forward(batch)

    given = {**models(), "teacher": network(Counting, width=8)}
    data: TensorData = toy_data()
    fit(objective(accumulate=2), given, data, setup=setup(steps=2), ctx=toy_context(tmp_path))
    assert set(rows) == {4}
