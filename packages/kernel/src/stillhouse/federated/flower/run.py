"""A Federate stage on Flower: on this machine, or through a SuperLink if one is named."""

import contextlib
import os
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from stillhouse.artifact import Artifact, Built
from stillhouse.errors import BadSetting
from stillhouse.federated.flower import bridge
from stillhouse.federated.rounds import saved
from stillhouse.federated.stage import Federate
from stillhouse.recipe import Context, Event, Result

# host:port of a SuperLink; without it, Flower's simulation on this machine
SUPERLINK = "STILLHOUSE_FLOWER_SUPERLINK"
# how long a round waits for a client
TIMEOUT = "STILLHOUSE_FLOWER_TIMEOUT"
SECONDS = 3600.0


def run_flower(stage: Federate, inputs: Mapping[str, Artifact], ctx: Context) -> Result:
    """The outputs of a stage whose clients ran on Flower.

    Clients on nodes of this machine are among them; the model of a client on another host stays
    there, and its port is missing here. Raises MissingExtra, BadSetting, ClientLost.
    """
    bridge.prepare()
    seconds, folder = timeout(), ctx.checkpoints / "flower"
    folder.mkdir(parents=True, exist_ok=True)
    if address := os.environ.get(SUPERLINK, ""):
        from stillhouse.federated.flower.deployment import deploy

        played, weights = deploy(stage, ctx, folder, address=address, seconds=seconds)
    else:
        from stillhouse.federated.flower.simulation import simulate

        played, weights = simulate(stage, inputs, ctx, folder, seconds=seconds)
    built = stage.built(inputs)
    away = [name for name in stage.clients if name not in weights]
    if away:
        text = f"the models of {', '.join(away)} stay with their nodes"
        ctx.observe(Event(stage=ctx.stage, text=text))
    here = {name: _with(built[name], state) for name, state in weights.items()}
    return saved(here, replace(played, elsewhere=tuple(away)), ctx)


def timeout() -> float:
    """Seconds a round waits for its clients, from the environment."""
    text = os.environ.get(TIMEOUT, str(SECONDS))
    with contextlib.suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise BadSetting(f"{TIMEOUT}={text}: expected seconds > 0")


def _with(built: Built, state: Mapping[str, Tensor]) -> Built:
    if state:  # a client that never answered is as it was built
        built.module.load_state_dict(state)
    return built
