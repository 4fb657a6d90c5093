"""`fit` against plain loops, its contracts, and a run that is interrupted."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

import pytest
import torch
from torch import Tensor, nn

import stillhouse
from stillhouse.data.data import Data, Rows, TensorData
from stillhouse.engine import fit
from stillhouse.errors import BadData, BadSetting, ContractError, UnknownName
from stillhouse.metrics.scores import Score
from stillhouse.objectives.objective import Composed, Constant, Cosine, Models, Phase, Step, Tensors
from stillhouse.recipe import Event
from stillhouse.training import ORDER, STEP, mix
from stillhouse.work import Work

from .toys import (
    Adversarial,
    Noise,
    same,
    toy_context,
    toy_data,
    toy_models,
    toy_objective,
    toy_phase,
    toy_setup,
    weights,
)


def plain_loop(data: TensorData) -> dict[str, nn.Module]:
    models = toy_models()
    teacher, student = models["teacher"], models["student"].train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    step = 0
    while step < 20:
        order = torch.Generator().manual_seed(mix(3, ORDER, 0, step // 6))
        for batch in list(data.batches(8, rng=order))[:6]:
            if step == 20:
                break
            with torch.no_grad():
                target = teacher(batch)["logits"]
            logits = student(batch)["logits"]
            ce = 0.5 * nn.functional.cross_entropy(logits, batch["labels"])
            loss = ce + nn.functional.mse_loss(logits, target)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
    return models


def test_fit_gives_the_bits_of_a_plain_loop(tmp_path: Path) -> None:
    data, models = toy_data(), toy_models()
    fit(toy_objective(), models, data, setup=toy_setup(), ctx=toy_context(tmp_path))
    assert same(weights(models), weights(plain_loop(data)))


def test_a_step_makes_few_calls_of_python(tmp_path: Path) -> None:
    """Of the kernel's own functions: what a recipe says is worked out once, not at each step."""
    ours, counted = str(Path(stillhouse.__file__).parent), [0]

    def seen(frame: FrameType, event: str, _argument: object) -> None:
        counted[0] += event == "call" and frame.f_code.co_filename.startswith(ours)

    def calls(steps: int) -> int:
        counted[0] = 0
        sys.setprofile(seen)
        try:
            fit(
                toy_objective(),
                toy_models(),
                toy_data(),
                setup=toy_setup(steps=steps),
                ctx=toy_context(tmp_path / str(steps)),
            )
        finally:
            sys.setprofile(None)
        return counted[0]

    # a row of the curves is logged at each of up to 200 steps: a longer run has as many rows
    assert (calls(1400) - calls(400)) / 1000 < 30


def adversarial_models() -> dict[str, nn.Module]:
    models = toy_models()
    torch.manual_seed(2)
    return {**models, "generator": Noise()}


def adversarial() -> Adversarial:
    student = toy_phase()
    generator = toy_phase(trains=("generator",), every=3)
    return Adversarial(phases={"generator": generator, "student": student})


def plain_two_phases(data: TensorData) -> dict[str, nn.Module]:
    models = adversarial_models()
    teacher, student, generator = models["teacher"], models["student"], models["generator"]
    tune = {
        n: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        for n, m in models.items()
    }
    for step in range(20):
        rng = torch.Generator().manual_seed(mix(3, STEP, step, 0))
        for name, every, sign in (("generator", 3, -1), ("student", 1, 1)):
            if step % every == 0:
                student.train(name == "student")
                generator.train(name == "generator")
                images = generator({"noise": torch.randn(8, 6, generator=rng)})
                gap = nn.functional.mse_loss(student(images)["logits"], teacher(images)["logits"])
                for other in models.values():
                    other.zero_grad()
                (sign * gap).backward()
                tune[name].step()
    return models


def test_two_phases_give_the_bits_of_a_plain_loop(tmp_path: Path) -> None:
    models = adversarial_models()
    fit(adversarial(), models, toy_data(), setup=toy_setup(), ctx=toy_context(tmp_path))
    assert same(weights(models), weights(plain_two_phases(toy_data())))


class Killed(Exception):
    pass


@dataclass
class KillAt:
    """An observer that ends the process's work when a checkpoint has been written at `step`."""

    step: int
    texts: list[str] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        self.texts.append(event.text)
        if event.text == "checkpoint" and event.done == self.step:
            raise Killed


@pytest.mark.parametrize("changes", [
    {},
    {"accumulate": 2, "clip_norm": 0.1},
    {"ema": {"student": 0.9}, "schedule": Cosine(warmup=0.2)},
    {"optimizer": replace(toy_phase().optimizer, build=torch.optim.AdamW, kwargs={}, lr=0.01)},
], ids=["plain", "accumulate-clip", "ema-cosine", "adamw"])  # fmt: skip
def test_a_killed_run_ends_with_the_bits_of_an_uninterrupted_one(
    tmp_path: Path, changes: dict
) -> None:
    objective = toy_objective(**changes)
    whole = toy_models(dropout=0.3)
    ctx = toy_context(tmp_path / "whole")
    wanted = fit(objective, whole, toy_data(), setup=toy_setup(), ctx=ctx)
    kill = KillAt(step=14)
    ctx = toy_context(tmp_path / "killed", observe=kill, checkpoint_steps=7)
    with pytest.raises(Killed):
        fit(objective, toy_models(dropout=0.3), toy_data(), setup=toy_setup(), ctx=ctx)
    again = toy_context(tmp_path / "killed", checkpoint_steps=7)
    resumed = toy_models(dropout=0.3)
    found = fit(objective, resumed, toy_data(), setup=toy_setup(), ctx=again)
    assert (wanted.resumed_at, found.resumed_at) == (None, 14)
    assert same(weights(resumed), weights(whole))
    assert found.curves == wanted.curves


def test_two_phases_resume_to_the_same_bits(tmp_path: Path) -> None:
    whole = adversarial_models()
    fit(adversarial(), whole, toy_data(), setup=toy_setup(), ctx=toy_context(tmp_path / "whole"))
    ctx = toy_context(tmp_path / "killed", observe=KillAt(step=10), checkpoint_steps=5)
    with pytest.raises(Killed):
        fit(adversarial(), adversarial_models(), toy_data(), setup=toy_setup(), ctx=ctx)
    resumed = adversarial_models()
    fit(adversarial(), resumed, toy_data(), setup=toy_setup(), ctx=replace(ctx, observe=print))
    assert same(weights(resumed), weights(whole))


def test_a_damaged_checkpoint_is_not_used(tmp_path: Path) -> None:
    whole = toy_models()
    fit(toy_objective(), whole, toy_data(), setup=toy_setup(), ctx=toy_context(tmp_path / "whole"))
    ctx = toy_context(tmp_path, observe=KillAt(step=10), checkpoint_steps=5)
    with pytest.raises(Killed):
        fit(toy_objective(), toy_models(), toy_data(), setup=toy_setup(), ctx=ctx)
    file = next((tmp_path / "checkpoints").glob("step-*/state.safetensors"))
    file.write_bytes(file.read_bytes()[:-20])
    models = toy_models()
    again = toy_context(tmp_path)
    found = fit(toy_objective(), models, toy_data(), setup=toy_setup(), ctx=again)
    assert found.resumed_at is None
    assert same(weights(models), weights(whole))


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    # without BatchNorm in train mode the two differ only by rounding
    runs = []
    for parts in (1, 3):
        models = toy_models()
        models["student"].norm = nn.Identity()
        ctx = toy_context(tmp_path / str(parts))
        fit(toy_objective(accumulate=parts), models, toy_data(), setup=toy_setup(), ctx=ctx)
        runs.append(weights(models))
    for name, value in runs[0].items():
        torch.testing.assert_close(value, runs[1][name], rtol=1e-4, atol=1e-5)


def test_ema_follows_its_formula(tmp_path: Path) -> None:
    models, ctx = toy_models(), toy_context(tmp_path)
    fit(toy_objective(ema={"student": 0.5}), models, toy_data(), setup=toy_setup(steps=1), ctx=ctx)
    first = models["student"].head.weight.detach().clone()
    models2 = toy_models()
    fit(
        toy_objective(ema={"student": 0.5}),
        models2,
        toy_data(),
        setup=toy_setup(steps=2),
        ctx=toy_context(tmp_path / "2"),
    )
    # the average starts at the first update and takes half of the second
    expected = 0.5 * first + 0.5 * models2["student"].head.weight.detach()
    torch.testing.assert_close(models2["student-ema"].head.weight.detach(), expected)


def test_lr_scale_and_clip_reach_the_optimizer(tmp_path: Path) -> None:
    start = toy_models()
    moved = {}
    for name, changes in {
        "full": {},
        "scaled": {"lr_scale": {"student": 0.5}},
        "clipped": {"clip_norm": 1e-6},
    }.items():
        models = toy_models()
        fit(
            toy_objective(**changes),
            models,
            toy_data(),
            setup=toy_setup(steps=1),
            ctx=toy_context(tmp_path / name),
        )
        moved[name] = (models["student"].head.weight - start["student"].head.weight).norm().item()
    assert moved["scaled"] == pytest.approx(moved["full"] / 2, rel=1e-4)
    # what is left after clipping is the weight decay
    assert moved["clipped"] < 0.01 * moved["full"]


@dataclass(frozen=True, kw_only=True)
class Wakes(Composed):
    """Breaks the contract: puts the teacher in train mode, whole or in part."""

    part: bool = False

    def terms(self, phase, models, batch, *, step, steps, rng):
        (models["teacher"].norm if self.part else models["teacher"]).train()
        return Composed.terms(self, phase, models, batch, step=step, steps=steps, rng=rng)


@pytest.mark.parametrize(
    ("part", "message"), [(False, "in train mode"), (True, "changed during training")]
)
def test_a_teacher_that_drifts_is_an_error(tmp_path: Path, part: bool, message: str) -> None:
    base = toy_objective()
    objective = Wakes(phases=base.phases, losses=base.losses, part=part)
    with pytest.raises(
        ContractError, match=f"frozen role 'teacher' {message}|put frozen role 'teacher' {message}"
    ):
        fit(objective, toy_models(), toy_data(), setup=toy_setup(), ctx=toy_context(tmp_path))


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    objective = toy_objective(optimizer=replace(toy_phase().optimizer, lr=1e30))
    with pytest.raises(
        ContractError,
        match=r"stage 'toy': term '\w+' is (nan|inf) by step \d+; lower the learning rate",
    ):
        fit(objective, toy_models(), toy_data(), setup=toy_setup(), ctx=toy_context(tmp_path))


@dataclass(frozen=True, kw_only=True)
class Selecting(Composed):
    """Re-selects the rows of the largest student entropy."""

    refresh_every: int = 5

    def refresh(self, models: Models, data: Data, *, step: int, work: Work) -> Data:
        assert isinstance(data, TensorData)
        batch = next(data.batches(len(data), rng=None))
        with torch.no_grad():
            entropy = -models["student"](batch)["logits"].log_softmax(1).mean(1)
        return Rows(data, entropy.topk(24).indices)


def test_refreshed_data_are_part_of_the_checkpoint(tmp_path: Path) -> None:
    base = toy_objective()
    objective = Selecting(phases=base.phases, losses=base.losses)
    whole = toy_models()
    fit(objective, whole, toy_data(), setup=toy_setup(), ctx=toy_context(tmp_path / "whole"))
    ctx = toy_context(tmp_path / "killed", observe=KillAt(step=7), checkpoint_steps=7)
    with pytest.raises(Killed):
        fit(objective, toy_models(), toy_data(), setup=toy_setup(), ctx=ctx)
    resumed = toy_models()
    fit(objective, resumed, toy_data(), setup=toy_setup(), ctx=toy_context(tmp_path / "killed"))
    assert same(weights(resumed), weights(whole))
    plain = toy_models()
    fit(base, plain, toy_data(), setup=toy_setup(), ctx=toy_context(tmp_path / "plain"))
    assert not same(weights(plain), weights(whole))


@dataclass(frozen=True, kw_only=True)
class Describes(Selecting):
    """Says which share of its rows has an even label."""

    wrong: float | None = None

    def describe(self, chosen: Data, data: Data, *, step: int) -> Mapping[str, float]:
        labels = next(chosen.batches(len(chosen), rng=None))["labels"]
        even = float((labels % 2 == 0).float().mean())
        return {"even": even if self.wrong is None else self.wrong, "step_seen": step}

    def quantities(self) -> Sequence[Score]:
        return [Score(name=name, better="neither") for name in ("even", "step_seen")]


def describes(wrong: float | None = None) -> Describes:
    base = toy_objective()
    return Describes(phases=base.phases, losses=base.losses, wrong=wrong)


def test_what_was_chosen_is_recorded_through_a_kill(tmp_path: Path) -> None:
    whole = toy_context(tmp_path / "whole")
    record = fit(describes(), toy_models(), toy_data(), setup=toy_setup(), ctx=whole).refreshes
    assert [(r["step"], r["selected"], r["step_seen"]) for r in record] == [
        (step, 24, step) for step in (0, 5, 10, 15)
    ]
    assert len({r["even"] for r in record}) > 1
    for killed in (7, 10):  # in the middle of an interval, and where the next choice is due
        folder = tmp_path / f"killed-{killed}"
        ctx = toy_context(folder, observe=KillAt(step=killed), checkpoint_steps=killed)
        with pytest.raises(Killed):
            fit(describes(), toy_models(), toy_data(), setup=toy_setup(), ctx=ctx)
        resumed = toy_context(folder)
        found = fit(describes(), toy_models(), toy_data(), setup=toy_setup(), ctx=resumed)
        assert found.refreshes == record


def test_a_choice_is_counted_without_being_described(tmp_path: Path) -> None:
    base, ctx = toy_objective(), toy_context(tmp_path)
    objective = Selecting(phases=base.phases, losses=base.losses)
    found = fit(objective, toy_models(), toy_data(), setup=toy_setup(steps=6), ctx=ctx)
    assert found.refreshes == ({"step": 0, "selected": 24}, {"step": 5, "selected": 24})
    plain = toy_context(tmp_path / "plain")
    found = fit(toy_objective(), toy_models(), toy_data(), setup=toy_setup(steps=2), ctx=plain)
    assert found.refreshes == ()


def test_a_description_is_finite(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="stage 'toy': refresh at step 0 gave even = nan"):
        fit(
            describes(wrong=float("nan")),
            toy_models(),
            toy_data(),
            setup=toy_setup(),
            ctx=toy_context(tmp_path),
        )


def test_the_callers_random_state_is_its_own(tmp_path: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    models = {"teacher": toy_models()["teacher"]}
    torch.manual_seed(7)
    state = torch.get_rng_state()
    fit(
        toy_objective(),
        {**models, "student": _student()},
        toy_data(),
        setup=toy_setup(steps=2),
        ctx=toy_context(tmp_path),
    )
    torch.set_rng_state(torch.get_rng_state())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(torch.rand(3), expected)


def _student() -> nn.Module:
    with torch.random.fork_rng():
        return toy_models()["student"]


def test_what_cannot_be_trained_says_why(tmp_path: Path) -> None:
    ctx, setup = toy_context(tmp_path), toy_setup()
    with pytest.raises(UnknownName, match="phase 'main': unknown role 'student'. Valid: teacher"):
        fit(toy_objective(), {"teacher": toy_models()["teacher"]}, toy_data(), setup=setup, ctx=ctx)
    with pytest.raises(BadData, match="stage 'toy': the training data hold no sample"):
        fit(toy_objective(), toy_models(), toy_data(rows=0), setup=setup, ctx=ctx)
    with pytest.raises(BadSetting, match="precision bf16 needs --device cuda"):
        fit(
            toy_objective(),
            toy_models(),
            toy_data(),
            setup=replace(setup, precision="bf16"),
            ctx=ctx,
        )
    with pytest.raises(BadSetting, match="batch 8 cannot be split over 3 processes"):
        fit(toy_objective(), toy_models(), toy_data(), setup=setup, ctx=replace(ctx, nproc=3))
    with pytest.raises(BadSetting, match=r"steps must be >= 1 \(got 0\)"):
        toy_setup(steps=0)
    with pytest.raises(BadSetting, match="'teacher' is not among the trained roles student"):
        toy_phase(lr_scale={"teacher": 1.0})
    with pytest.raises(BadSetting, match=r"lr must be > 0 \(got 0.0\)"):
        replace(toy_phase().optimizer, lr=0.0)


def test_schedules_by_hand() -> None:
    step = Step(at=(150, 180, 210), of=240)
    # 240 epochs told in 24 steps: milestones at steps 15, 18, 21
    assert [step.factor(s, 24) for s in (14, 15, 18, 21)] == pytest.approx([1, 0.1, 0.01, 0.001])
    cosine = Cosine(warmup=0.2, final=0.1)
    # warm-up over 2 of 10 steps: 1/2, 2/2; then from 1 down to 0.1; halfway (step 6) 0.1 + 0.9 / 2
    assert [cosine.factor(s, 10) for s in (0, 1, 2, 6)] == pytest.approx([0.5, 1, 1, 0.55])
    assert Constant().factor(5, 10) == 1
    assert Constant(warmup=0.5).factor(0, 10) == pytest.approx(0.2)


def test_a_phase_that_is_not_due_is_not_run(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []

    @dataclass(frozen=True, kw_only=True)
    class Counting(Adversarial):
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
            seen.append((phase, step))
            frozen = models["student" if phase == "generator" else "generator"]
            assert not frozen.training
            assert not any(p.requires_grad for p in frozen.parameters())
            return Adversarial.terms(self, phase, models, batch, step=step, steps=steps, rng=rng)

    objective = Counting(phases=adversarial().phases)
    fit(
        objective,
        adversarial_models(),
        toy_data(),
        setup=toy_setup(steps=4),
        ctx=toy_context(tmp_path),
    )
    assert seen == [
        ("generator", 0),
        ("student", 0),
        ("student", 1),
        ("student", 2),
        ("generator", 3),
        ("student", 3),
    ]


def test_views_count_epochs(tmp_path: Path) -> None:
    views: list[int] = []

    @dataclass(frozen=True)
    class Record:
        def __call__(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            views.append(int(batch["view"][0]))
            return batch

    setup = toy_setup(steps=13, batch=10, augment=Record(), views=2)
    fit(toy_objective(), toy_models(), toy_data(), setup=setup, ctx=toy_context(tmp_path))
    # 50 rows in batches of 10: 5 steps an epoch
    assert views == [0] * 5 + [1] * 5 + [0] * 3


@dataclass(frozen=True, kw_only=True)
class Silent:
    """An objective that gives no term."""

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
        return {}


def test_an_objective_without_a_term_says_so(tmp_path: Path) -> None:
    objective = Silent(phases={"main": toy_phase()})
    with pytest.raises(ContractError, match="phase 'main' gave no loss term; an objective's terms"):
        fit(objective, toy_models(), toy_data(), setup=toy_setup(), ctx=toy_context(tmp_path))


def test_a_role_that_a_term_reads_and_the_training_lacks_is_named(tmp_path: Path) -> None:
    models = toy_models()
    ctx = toy_context(tmp_path)
    del models["teacher"]
    with pytest.raises(UnknownName, match=r"a term reads: unknown role 'teacher'.* Valid: student"):
        fit(toy_objective(), models, toy_data(), setup=toy_setup(), ctx=ctx)


def test_phase_needs_a_role() -> None:
    with pytest.raises(BadSetting, match="trains names no role"):
        Phase(trains=(), optimizer=toy_phase().optimizer)


def test_a_teacher_of_integers_stays_as_it_came(tmp_path: Path) -> None:
    """A weight in few bits has no gradient, before or after."""
    models = toy_models()
    bits = nn.Parameter(torch.arange(3, dtype=torch.int8), requires_grad=False)
    models["teacher"].register_parameter("bits", bits)
    models["teacher"].head.bias.requires_grad_(False)
    fit(toy_objective(), models, toy_data(), setup=toy_setup(steps=2), ctx=toy_context(tmp_path))
    learning = {n: p.requires_grad for n, p in models["teacher"].named_parameters()}
    assert {name for name, learns in learning.items() if not learns} == {"bits", "head.bias"}
    assert all(parameter.requires_grad for parameter in models["student"].parameters())
