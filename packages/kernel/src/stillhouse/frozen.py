"""What a training leaves as it is: roles that no phase trains, and of a trained role the parameters
that no phase trains.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from stillhouse.checksums import bits_of
from stillhouse.errors import ContractError
from stillhouse.objectives.objective import Models, Objective

Bits = Mapping[str, Mapping[str, str]]  # role -> name -> checksum


def frozen_bits(objective: Objective, models: Models) -> dict[str, dict[str, str]]:
    """Checksums of what a training must not change, by role and name."""
    found: dict[str, dict[str, str]] = {}
    for role, module in models.items():
        trained = _trained(objective, role, module)
        if trained is None:
            found[role] = bits_of(module)
        elif names := untrained(module, trained):
            found[role] = bits_of(module, names)
    return found


def check_frozen(before: Bits, models: Models, *, stage: str) -> None:
    """Raises ContractError where something is no longer as it was `before`."""
    for role, bits in before.items():
        now = bits_of(models[role], bits)
        if name := next((name for name in bits if bits[name] != now[name]), ""):
            raise ContractError(
                f"stage '{stage}': frozen role '{role}' changed during training ('{name}'); "
                "an objective must not put it in train mode or write to its buffers"
            )


def untrained(module: nn.Module, trained: set[nn.Parameter]) -> list[str]:
    """The parameters of a module that are not among the trained, under all of their names."""
    state: dict[str, Tensor] = module.state_dict(keep_vars=True)
    return [n for n, v in state.items() if isinstance(v, nn.Parameter) and v not in trained]


def _trained(objective: Objective, role: str, module: nn.Module) -> set[nn.Parameter] | None:
    """The parameters of a role that a phase trains; None for a role that none trains."""
    phases = [phase for phase in objective.phases.values() if role in phase.trains]
    if not phases:
        return None
    groups = [group for phase in phases for group in phase.grouping(module) if group.trains]
    parameters = dict(module.named_parameters())
    # names that are none are refused where the optimizer is made
    return {parameters[n] for group in groups for n in group.names if n in parameters}
