"""What precision "fast" does to a training: which of its roles run in another form, and back."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from stillhouse import fast, parallel, training
from stillhouse.cache import CachedRole
from stillhouse.checksums import bits_of
from stillhouse.fast import CHANNELS_LAST, COMPILED, Chosen
from stillhouse.frozen import check_frozen
from stillhouse.objectives.objective import Composed, Objective, Tensors
from stillhouse.phase_state import PhaseState
from stillhouse.recipe import NOTE, Context, Event
from stillhouse.training import PlainView

# forms that are another module's affair: what is looked up, what reads other columns
LEFT = (CachedRole, PlainView)


@dataclass(kw_only=True)
class Speed:
    """Forms of the roles of one training. `record` says which, as JSON values by role: what was
    chosen, or what the checkpoint recorded.
    """

    objective: Objective
    phases: Sequence[PhaseState]
    ctx: Context
    record: dict[str, Any] = field(default_factory=dict[str, Any])  # Any: JSON values
    forms: dict[str, nn.Module] = field(default_factory=dict[str, nn.Module])
    bits: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])

    def begin(self, models: Mapping[str, nn.Module], batch: Tensors, *, steps: int) -> None:
        """Give each role the form of the record; without one, what is best on this batch for the
        `steps` to come. Fills `forms` with what stands in for frozen roles.
        """
        trained = {role for state in self.phases for role in state.phase.trains}
        parts = max(state.phase.accumulate for state in self.phases) * self.ctx.micro_batches
        seen, _ = next(iter(training.micro_batches(batch, parts)))
        roles = {
            role: fast.Role(
                module=module,
                batch=seen,
                reads=self._reads(role),
                device=self.ctx.device,
                steps=steps,
                trained=role in trained,
            )
            for role, module in models.items()
            if self._fits(role, module)
        }
        if not self.record:
            self.record = {role: asdict(self._choose(role, one)) for role, one in roles.items()}
            if self.ctx.nproc > 1:  # the same forms everywhere
                self.record = parallel.agree(self.record)
        for role, one in roles.items():
            self._take(role, one, self.record[role]["measures"])

    def check(self) -> None:
        """Raises ContractError where a form changed, which stands for a frozen role."""
        check_frozen(self.bits, self.forms, stage=self.ctx.stage)

    def _choose(self, role: str, one: fast.Role) -> Chosen:
        found = one.choose()
        self._note(found.line(role))
        return found

    def _note(self, text: str) -> None:
        if self.ctx.rank == 0:
            self.ctx.observe(Event(stage=self.ctx.stage, text=f"{NOTE}{text}"))

    def _take(self, role: str, one: fast.Role, measures: Sequence[str]) -> None:
        if COMPILED in measures and (reason := one.no_compiler()):  # on another machine than before
            self._note(f"fast: '{role}' is no longer {COMPILED}: {reason}")
            measures = [measure for measure in measures if measure != COMPILED]
        if one.trained:
            if CHANNELS_LAST in measures:
                self._lay_out(role, one.module)
            if COMPILED in measures:
                one.module.compile()
        elif measures or self._around(role, one):
            self.forms[role] = form = one.form(measures)
            self.bits[role] = bits_of(form)
            for state in self.phases:
                state.frozen[role] = form

    def _around(self, role: str, one: fast.Role) -> bool:
        """Whether a role that is as it came must be kept out of the bf16 that is around it."""
        return one.kind == "cuda" and "tried" not in self.record[role]["refused"]

    def _lay_out(self, role: str, module: nn.Module) -> None:
        fast.lay_out(module, torch.channels_last)
        for state in self.phases:
            if role in state.averages:
                fast.lay_out(state.averages[role], torch.channels_last)
            fast.follow(state.optimizer)

    def _reads(self, role: str) -> tuple[str, ...]:
        return self.objective.outputs_of(role) if isinstance(self.objective, Composed) else ()

    def _fits(self, role: str, module: nn.Module) -> bool:
        return not isinstance(module, LEFT) and role not in self.ctx.shard


def undo(module: nn.Module) -> None:
    """Leave a trained role as any other: weights in the order that files have, not compiled."""
    fast.lay_out(module, torch.contiguous_format)
    module._compiled_call_impl = None  # pyright: ignore[reportPrivateUsage]
