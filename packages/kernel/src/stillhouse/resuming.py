"""What a training goes on from after a kill, as named tensors and JSON values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from stillhouse import parallel, training
from stillhouse.checkpoint import State, below
from stillhouse.errors import BadSetting
from stillhouse.frozen import untrained
from stillhouse.phase_state import Curves, PhaseState
from stillhouse.recipe import Context
from stillhouse.training import Position


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The parts of a running training that a checkpoint holds; `restore` changes them in place."""

    phases: Sequence[PhaseState]
    models: Mapping[str, nn.Module]
    position: Position
    curves: Curves
    refreshes: list[Any]  # Any: JSON values

    def state(self, ctx: Context) -> State:
        """Every rank takes part: each has its own random states and sums."""
        tensors: dict[str, Tensor] = {}
        for role, module in self._saved().items():
            tensors |= {f"model/{role}/{k}": v for k, v in self._kept(role, module).items()}
        optimizers: dict[str, Any] = {}  # Any: JSON values
        for state in self.phases:
            packed, optimizers[state.name] = state.state()
            tensors |= packed
        sums = {k: v.cpu() for k, v in self.curves.sums.items()}
        for kind, own in (("rng", training.rng_states()), ("sum", sums)):
            for rank, states in enumerate(_of_ranks(own, ctx)):
                tensors |= {f"{kind}/{rank}/{k}": v for k, v in states.items()}
        if self.position.index is not None:
            tensors["index"] = self.position.index
        return tensors, {
            "origin": self.position.origin,
            "epochs_before": self.position.epochs_before,
            "optimizers": optimizers,
            "refreshes": self.refreshes,
            "counts": _of_ranks(self.curves.counts, ctx),
            "curves": self.curves.rows,
            "last": self.curves.last,
        }

    def restore(
        self, tensors: Mapping[str, Tensor], record: Mapping[str, Any], ctx: Context
    ) -> None:
        """Put back what `state` gave; Any: JSON values. Raises BadSetting where the trained roles
        have other tensors than those here.
        """
        self._check_roles(tensors, ctx)
        for role, module in self._saved().items():
            module.load_state_dict(below(tensors, f"model/{role}/"), strict=False)
        for state in self.phases:
            state.restore(tensors, record["optimizers"][state.name])
        position, curves, rank = self.position, self.curves, ctx.rank
        curves.sums = {k: v.to(ctx.device) for k, v in below(tensors, f"sum/{rank}/").items()}
        curves.counts = record["counts"][rank]
        curves.rows, curves.last = record["curves"], record["last"]
        position.step, position.origin = record["step"], record["origin"]
        position.epochs_before, position.index = record["epochs_before"], tensors.get("index")
        self.refreshes[:] = record["refreshes"]
        training.set_rng_states(below(tensors, f"rng/{rank}/"))

    def _check_roles(self, tensors: Mapping[str, Tensor], ctx: Context) -> None:
        here = {
            f"{role}/{name}": value.shape
            for role, module in self._saved().items()
            for name, value in self._kept(role, module).items()
        }
        made = {name: value.shape for name, value in below(tensors, "model/").items()}
        differences = sorted(name for name in here | made if here.get(name) != made.get(name))
        if differences:
            raise BadSetting(
                f"stage '{ctx.stage}': the checkpoint in {ctx.checkpoints} is of another network: "
                f"{len(differences)} of its tensors differ, as '{differences[0]}'. Give another "
                "folder, or delete this one"
            )

    def _kept(self, role: str, module: nn.Module) -> dict[str, Tensor]:
        """Of a role's state what a training changes."""
        state: dict[str, Tensor] = module.state_dict()
        if role not in self.models:  # an average
            return state
        trained = {parameter for state in self.phases for parameter in state.parameters}
        left = set(untrained(module, trained))
        return {name: value for name, value in state.items() if name not in left}

    def _saved(self) -> dict[str, nn.Module]:
        roles = {role: self.models[role] for state in self.phases for role in state.phase.trains}
        return roles | {
            f"{role}-ema": a for state in self.phases for role, a in state.averages.items()
        }


def _of_ranks(value: Any, ctx: Context) -> list[Any]:  # Any: picklable values of our own making
    return parallel.gather(value) if ctx.nproc > 1 else [value]
