"""What goes between the server and a client: a round's number, a name, and one array at most.

M: samples of the transfer set. C: classes.
"""

from typing import Any

from torch import Tensor

from stillhouse.errors import ContractError
from stillhouse.federated.flower import bridge

# learn and say what you know; here is your teacher
LEARN, ABSORB = "learn", "absorb"
ACTIONS = (LEARN, ABSORB)
ROUND, CLIENT = "round", "client"
KNOWLEDGE, FUSED = "knowledge", "fused"


def query(node: int, number: int) -> Any:  # Any: Flower's message
    """To a client: learn round `number`, and send what you know [M, C] if it is wanted."""
    return bridge.message(LEARN, node, {ROUND: number}, {})


def teach(node: int, number: int, fused: Tensor) -> Any:  # Any: Flower's message
    """To a client: absorb this [M, C] in round `number`."""
    return bridge.message(ABSORB, node, {ROUND: number}, {FUSED: fused})


def read(found: Any, number: int) -> tuple[str, Tensor | None]:  # Any: Flower's message
    """The client's name and its array in an answer of round `number`; raises ContractError for
    anything more, or of another round.
    """
    names, arrays = bridge.opened(found)
    client = str(names.get(CLIENT, ""))
    if set(names) != {ROUND, CLIENT} or int(names[ROUND]) != number or set(arrays) - {KNOWLEDGE}:
        raise ContractError(
            f"client '{client}': an answer has a round, a name and at most one array "
            f"'{KNOWLEDGE}' (got {dict(names)} and {sorted(arrays)} in round {number})"
        )
    return client, arrays.get(KNOWLEDGE)
