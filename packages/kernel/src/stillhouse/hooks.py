"""mmengine's hooks in a training: what users have for their OpenMMLab runs watches ours.

The only file that imports mmengine. A hook is called where mmengine's iteration-based loop calls
it, with a Runner that has `iter`, `max_iters`, `model` (the roles, by name), `optim_wrapper` (the
phases' optimizers), `message_hub`, `logger` and `work_dir`, and after each step the phases' loss
terms as `outputs`. Hooks watch: nothing of them is in a stage's key or its checkpoints, so one that
changes weights would make results that nobody can repeat; it ends the training.
"""

import contextlib
import functools
import time
import traceback
import uuid
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook as Hook
from mmengine.logging import MessageHub, MMLogger
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import VISBACKENDS, DefaultScope
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn

from stillhouse.errors import ContractError, PluginError, StillhouseError
from stillhouse.leftovers import temporary
from stillhouse.objectives.objective import Tensors
from stillhouse.training import Training, Watch, rng_states, set_rng_states


class Hooked:
    """Calls the hooks of a training."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    def before(self, step: int, batch: Tensors) -> None:
        """Before the step's first phase."""
        self.runner.call_hook("before_train_iter", batch_idx=step, data_batch=batch)

    def after(self, step: int, batch: Tensors, outputs: Tensors) -> None:
        """After the step's last optimizer update."""
        self.runner.call_hook(
            "after_train_iter", batch_idx=step, data_batch=batch, outputs=dict(outputs)
        )


def watched_by(*hooks: Hook) -> Watch:
    """For `Context.watch`, and so for `fit`: these hooks watch each training."""
    return functools.partial(hooked, hooks)


@contextlib.contextmanager
def hooked(hooks: Sequence[Hook], training: Training) -> Generator[Hooked]:
    """The hooks of a training, called before its first step and after its last. Nothing of them is
    left in mmengine's registries.
    """
    name = f"stillhouse-{uuid.uuid4().hex}"
    known = {kind: set(_instances(kind)) for kind in (MMLogger, MessageHub, DefaultScope)}
    try:
        with temporary() as folder:
            runner = _runner(hooks, training, name, str(folder))
            for point in ("before_run", "before_train", "before_train_epoch"):
                runner.call_hook(point)
            yield Hooked(runner)
            for point in ("after_train_epoch", "after_train", "after_run"):
                runner.call_hook(point)
    finally:
        _forget(known)


def tracker(
    kind: str, folder: Path, settings: Mapping[str, Any], options: Mapping[str, Any]
) -> Any:
    """mmengine's Visualizer backend `kind` (Any: it has no public base), which logs to `folder` and
    has the settings of the run. It has `add_scalars(values, step=...)` and `close()`.
    """
    backend: Any = VISBACKENDS.build({"type": kind, "save_dir": str(folder), **options})
    backend.add_config(Config({**settings, "work_dir": str(folder)}))
    return backend


class _Roles(nn.Module):
    """The roles, by name, as a hook finds them in `runner.model`."""

    def train_step(self, data: Any, optim_wrapper: Any) -> dict[str, Tensor]:
        """mmengine requires that it exists; our own loop runs the phases."""
        raise NotImplementedError


class _NoVisualizer:
    """Stands for mmengine's Visualizer, which opens a matplotlib figure for every run: what hooks
    would draw or log through it goes nowhere (`stillhouse run --track` has its backends).
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return _do_nothing


def _do_nothing(*_: object, **__: object) -> None:
    """Any method of a Visualizer."""


class _Runner(Runner):
    """mmengine's Runner without its slow habits: probing compilers, dumping a config that we do not
    use, opening a figure that nobody draws into.
    """

    def build_visualizer(self, visualizer: Any = None) -> Any:
        return _NoVisualizer()

    def _log_env(self, env_cfg: Any) -> None:
        return

    def dump_config(self) -> None:
        return

    def setup_env(self, env_cfg: Any) -> None:
        """Leave the process as it is: mmengine would choose how others start, and its threads."""
        self._timestamp = time.strftime("%Y%m%d_%H%M%S")

    def set_randomness(self, *_: Any, **__: Any) -> None:
        """Leave the random states, which are the training's own."""
        self._seed, self._deterministic = None, False

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        """Call each hook. Raises PluginError for one that fails, ContractError for one that changes
        the training; what it draws of torch's random numbers is put back.
        """
        before = _state(self.model)
        for hook in self.hooks:
            name = type(hook).__name__
            with _random_states_kept():
                try:
                    getattr(hook, fn_name)(self, **kwargs)
                except StillhouseError:
                    raise
                except Exception as error:  # whatever a user's hook does
                    raise PluginError(f"hook '{name}': {fn_name}: {_where(error)}") from error
            after = _state(self.model)
            if changed := [key for key in before if before[key] != after.get(key)]:
                raise ContractError(
                    f"hook '{name}': {fn_name} changed {changed[0]} (values, gradient or mode); "
                    "hooks watch, since what they change is in no key and no checkpoint"
                )

    def take(self, loop: BaseLoop) -> None:
        """A loop needs its runner and a runner its loop: the loop comes later."""
        self._train_loop = loop


class _Position(BaseLoop):
    """Where the training is, in mmengine's words."""

    def __init__(self, runner: Runner, training: Training) -> None:
        nothing: Any = _Nothing()
        super().__init__(runner, nothing)
        self.training = training

    @property
    def iter(self) -> int:
        return self.training.step

    @property
    def max_iters(self) -> int:
        return self.training.steps

    @property
    def epoch(self) -> int:
        return 0

    @property
    def max_epochs(self) -> int:
        return 1

    def run(self) -> None:
        raise NotImplementedError


class _Nothing:
    """Stands for the data loader, which stays with the training."""

    dataset: tuple[()] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __len__(self) -> int:
        return 0


def _runner(hooks: Sequence[Hook], training: Training, name: str, folder: str) -> _Runner:
    MessageHub.get_instance(name)  # the optimizer wrappers write to the newest hub
    wrappers: dict[str, Any] = {  # Any: OptimWrappers
        phase: OptimWrapper(optimizer) for phase, optimizer in training.optimizers.items()
    }
    # a single phase as mmengine has it: a learning rate "lr", not "main.lr"
    several = len(wrappers) > 1
    wrapper = OptimWrapperDict(**wrappers) if several else next(iter(wrappers.values()))
    unused = ("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint")
    none: dict[str, Any] = dict.fromkeys(unused)  # Any: mmengine's way to say no hook
    loader: Any = _Nothing()
    roles = _Roles()
    runner = _Runner(
        model=roles,
        work_dir=folder,
        train_dataloader=loader,
        train_cfg={"by_epoch": False},
        optim_wrapper=wrapper,
        default_hooks=none,
        custom_hooks=list(hooks),
        log_level="INFO",
        log_processor={"by_epoch": False},
        experiment_name=name,
    )
    # after the Runner, which would move them and set their weights
    for role, module in training.models.items():
        roles.add_module(role.replace(".", "/"), module)
    runner.take(_Position(runner, training))
    return runner


def _state(roles: nn.Module) -> dict[str, tuple[object, ...]]:
    """What a hook must leave: torch counts what is written to each tensor in place."""
    modes: dict[str, tuple[object, ...]] = {
        f"'{name}'": (module.training,) for name, module in roles.named_modules() if name
    }
    tensors = (*roles.named_parameters(), *roles.named_buffers())
    return modes | {f"'{k}'": (id(v), v._version, v.requires_grad) for k, v in tensors}


@contextlib.contextmanager
def _random_states_kept() -> Generator[None]:
    states = rng_states()
    try:
        yield
    finally:
        set_rng_states(states)


def _where(error: Exception) -> str:
    """An error of a hook as one line, with the line of the hook that it came from."""
    frames = traceback.extract_tb(error.__traceback__)[1:2]
    text = " ".join([f"{type(error).__name__}:", *str(error).split()])
    return "".join([text, *(f" ({Path(frame.filename).name}:{frame.lineno})" for frame in frames)])


def _instances(kind: Any) -> dict[str, Any]:  # Any: mmengine's registries of loggers and hubs
    return kind._instance_dict


def _forget(known: Mapping[Any, set[str]]) -> None:
    """Take this run's loggers, hubs and scopes out of mmengine's registries; close their files."""
    for kind, names in known.items():
        for name in set(_instances(kind)) - names:
            instance = _instances(kind).pop(name)
            for handler in getattr(instance, "handlers", ()):
                handler.close()
