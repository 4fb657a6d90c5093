"""mmengine's hooks watch a training and change no bit of it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook, IterTimerHook, LoggerHook, RuntimeInfoHook
from mmengine.logging import MessageHub, MMLogger

from stillhouse.cli.watching import hook_of
from stillhouse.engine import fit
from stillhouse.errors import BadSetting, ContractError, PluginError
from stillhouse.hooks import watched_by

from .test_engine import adversarial, adversarial_models
from .toys import same, toy_context, toy_data, toy_models, toy_objective, toy_setup, weights


class Diary(Hook):
    """Writes down what it is called for."""

    def __init__(self) -> None:
        self.points: list[str] = []
        self.seen: list[tuple[int, int, list[str], list[str]]] = []

    def before_run(self, runner: Any) -> None:
        self.points.append("before_run")

    def before_train(self, runner: Any) -> None:
        self.points.append("before_train")

    def after_train(self, runner: Any) -> None:
        self.points.append("after_train")

    def after_run(self, runner: Any) -> None:
        self.points.append("after_run")

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        assert {"id", "view", "images"} <= data_batch.keys()

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        assert runner.iter == batch_idx
        assert runner.model.student.training
        roles = sorted(dict(runner.model.named_children()))
        self.seen.append((runner.iter, runner.max_iters, roles, sorted(outputs)))
        if self.every_n_train_iters(runner, 10):
            self.points.append(f"every ten: {runner.iter}")


def test_a_users_hook_sees_the_training_and_changes_no_bit(tmp_path: Path) -> None:
    plain, watched, diary = toy_models(), toy_models(), Diary()
    fit(toy_objective(), plain, toy_data(), setup=toy_setup(), ctx=toy_context(tmp_path / "plain"))
    before = len(MMLogger._instance_dict), len(MessageHub._instance_dict)
    ctx = toy_context(tmp_path / "watched", watch=watched_by(diary))
    fit(toy_objective(), watched, toy_data(), setup=toy_setup(), ctx=ctx)
    assert same(weights(watched), weights(plain))
    assert diary.points == [
        *("before_run", "before_train", "every ten: 9", "every ten: 19"),
        *("after_train", "after_run"),
    ]
    assert diary.seen == [
        (step, 20, ["student", "teacher"], ["ce", "loss", "match"]) for step in range(20)
    ]
    # nothing is left in mmengine's registries
    assert (len(MMLogger._instance_dict), len(MessageHub._instance_dict)) == before


def test_two_phases_have_an_optimizer_each(tmp_path: Path) -> None:
    class Rates(Hook):
        def after_train_iter(
            self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
        ) -> None:
            self.rates = runner.optim_wrapper.get_lr()
            self.outputs = sorted(outputs)

    hook = Rates()
    ctx = toy_context(tmp_path, watch=watched_by(hook))
    fit(adversarial(), adversarial_models(), toy_data(), setup=toy_setup(steps=3), ctx=ctx)
    phases = list(adversarial().phases)
    assert sorted(name.removesuffix(".lr") for name in hook.rates) == sorted(phases)
    assert hook.outputs == sorted(f"{phase}/{term}" for phase in phases for term in ("gap", "loss"))


def test_mmengines_own_hooks_log_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hooks = (IterTimerHook(), RuntimeInfoHook(), LoggerHook(interval=5))
    ctx = toy_context(tmp_path, watch=watched_by(*hooks))
    fit(toy_objective(), toy_models(), toy_data(), setup=toy_setup(), ctx=ctx)
    said = "".join(capsys.readouterr())
    lines = [line for line in said.splitlines() if "Iter(train)" in line]
    steps = [line.partition("[")[2].partition("/")[0].strip() for line in lines]
    assert steps == ["5", "10", "15", "20"]
    assert all(" lr: 1.0000e-01" in line and " ce: " in line for line in lines)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere:Alarm", "hook 'nowhere:Alarm': No module named 'nowhere'; name a module"),
        ("mmengine.hooks:Alarm", "has no attribute 'Alarm'"),
        ("pathlib:Path", "hook 'pathlib:Path': not a class on mmengine.hooks.Hook"),
        ("", "hook '': "),
    ],
)
def test_a_hook_that_is_none_is_one_line(name: str, reason: str) -> None:
    with pytest.raises(BadSetting, match=reason):
        hook_of(name)
    assert isinstance(hook_of("mmengine.hooks:IterTimerHook"), IterTimerHook)


ALONE = """
import sys
from pathlib import Path
from stillhouse.engine import fit
from tests.toys import toy_context, toy_data, toy_models, toy_objective, toy_setup
fit(toy_objective(), toy_models(), toy_data(), setup=toy_setup(steps=2), ctx=toy_context(Path(sys.argv[1])))
print(sorted(name for name in sys.modules if name.partition(".")[0] == "mmengine"))
"""


def test_a_training_without_hooks_does_not_import_mmengine(tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


class Meddling(Hook):
    """Does at the third step what no watcher may do."""

    def __init__(self, deed: str) -> None:
        self.deed = deed

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        student = runner.model.student
        if batch_idx == 2 and self.deed == "writes":
            with torch.no_grad():
                student.head.bias.add_(1)
        elif batch_idx == 2 and self.deed == "evaluates":
            student.eval()
        elif batch_idx == 2 and self.deed == "freezes":
            student.head.bias.requires_grad_(False)
        elif batch_idx == 2 and self.deed == "fails":
            raise ValueError("no such\nscreen")
        torch.rand(3)


@pytest.mark.parametrize(("deed", "error", "message"), [
    ("writes", ContractError, "changed 'student.head.bias'"),
    ("freezes", ContractError, "changed 'student.head.bias'"),
    ("evaluates", ContractError, "changed 'student'"),
    ("fails", PluginError, r"ValueError: no such screen \(test_hooks.py:\d+\)$"),
])  # fmt: skip
def test_a_hook_that_fails_or_changes_a_training_is_one_line(
    tmp_path: Path, deed: str, error: type[Exception], message: str
) -> None:
    ctx = toy_context(tmp_path, watch=watched_by(Meddling(deed)))
    with pytest.raises(error, match=f"^hook 'Meddling': after_train_iter:? {message}"):
        fit(toy_objective(), toy_models(), toy_data(), setup=toy_setup(steps=5), ctx=ctx)


def test_what_a_hook_draws_changes_no_bit(tmp_path: Path) -> None:
    """Dropout draws from the same random numbers."""
    plain, watched = toy_models(dropout=0.5), toy_models(dropout=0.5)
    fit(toy_objective(), plain, toy_data(), setup=toy_setup(), ctx=toy_context(tmp_path / "a"))
    ctx = toy_context(tmp_path / "b", watch=watched_by(Meddling("draws")))
    fit(toy_objective(), watched, toy_data(), setup=toy_setup(), ctx=ctx)
    assert same(weights(watched), weights(plain))
