"""Flower: what is in its messages, the bits of one process, clients that die. Needs the extra `federated`."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from stillhouse.artifact import Artifact, Model, load_model
from stillhouse.errors import ContractError
from stillhouse.federated import Federate, Itself
from stillhouse.federated.flower import bridge, messages, simulation
from stillhouse.federated.flower.client import Answers, Seat
from stillhouse.federated.flower.messages import ACTIONS, CLIENT, FUSED, LEARN, ROUND
from stillhouse.places import home
from stillhouse.recipe import Event
from stillhouse.testing.killing import KilledError, die_at_checkpoint

from ..toys import SITE, toy_context  # noqa: TID252  the toys of all the kernel's tests
from .test_federate import CLASSES, NAMES, SAMPLES, digests, federate, federated_inputs

pytest.importorskip("flwr", reason="needs Flower: the extra `federated`")
# Ray's and Flower's own, of other packages' names
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
ARRAY_BYTES = SAMPLES * CLASSES * 4


@pytest.fixture(autouse=True)
def _toy_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SITE))
    bridge.prepare()
    # a message made outside of a run
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 7


def seat(folder: Path, inputs: Mapping[str, Artifact], stage: Federate) -> Seat:
    return Seat(name="client-1", stage=stage, inputs=inputs, folder=folder, device="cpu", threads=1)


def contents(message: Any) -> dict[str, Any]:
    """Everything in a message: all records of every kind, by name."""
    found: dict[str, Any] = {}
    for name, record in message.content.items():
        found |= {f"{name}/{key}": value for key, value in record.items()}
    return found


def node(given: Seat) -> Callable[[Any], Any]:
    """A ClientApp with one client, as a node runs it."""
    from flwr.app import Context, RecordDict

    app = bridge.client_app(Answers(seats=lambda run, node: given), ACTIONS)
    context = Context(run_id=1, node_id=7, node_config={}, state=RecordDict(), run_config={})

    def run(message: Any) -> Any:
        message.metadata.__dict__["_message_id"] = "asked"
        reply = app(message, context)
        # nor does anything stay in Flower's own keeping
        assert len(context.state) == 0
        return reply

    return run


def test_a_reply_holds_one_array_a_round_and_a_name(tmp_path: Path) -> None:
    run = node(seat(tmp_path / "node", federated_inputs(tmp_path / "in"), federate()))
    reply = run(messages.query(7, 0))
    found = contents(reply)
    assert set(found) == {"names/round", "names/client", "arrays/knowledge"}
    assert (found["names/round"], found["names/client"]) == (0, "client-1")
    array = found["arrays/knowledge"]
    assert (tuple(array.shape), array.dtype) == ((SAMPLES, CLASSES), "float32")
    # numpy's header, and nothing behind the numbers
    assert len(array.data) <= ARRAY_BYTES + 128
    client, known = messages.read(reply, 0)
    assert client == "client-1"
    assert known is not None
    assert torch.equal(known, torch.from_numpy(array.numpy()))
    done = run(messages.teach(7, 0, torch.softmax(known, dim=1)))
    assert contents(done) == {"names/round": 0, "names/client": "client-1"}


def test_what_goes_to_a_client_is_a_round_and_its_teacher() -> None:
    assert contents(messages.query(7, 3)) == {"names/round": 3}
    fused = torch.full((SAMPLES, CLASSES), 1 / CLASSES)
    names, arrays = bridge.opened(messages.teach(7, 3, fused))
    assert names == {ROUND: 3}
    assert list(arrays) == [FUSED]
    assert torch.equal(arrays[FUSED], fused)


def test_a_client_that_shares_nothing_sends_nothing(tmp_path: Path) -> None:
    stage = federate(rule=Itself())
    run = node(seat(tmp_path / "node", federated_inputs(tmp_path / "in"), stage))
    assert contents(run(messages.query(7, 0))) == {"names/round": 0, "names/client": "client-1"}


def test_an_answer_with_more_in_it_is_refused() -> None:
    array = torch.zeros(SAMPLES, CLASSES)
    for names, arrays in (
        ({ROUND: 1, CLIENT: "a"}, {}),  # of another round
        ({ROUND: 0, CLIENT: "a", "accuracy": 1}, {}),
        ({ROUND: 0, CLIENT: "a"}, {"knowledge": array, "weights": array}),
    ):
        with pytest.raises(ContractError, match="client 'a': an answer has a round, a name and"):
            messages.read(bridge.message(LEARN, 7, names, arrays), 0)


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A grid that keeps every message that passes, in either direction."""

    grid: bridge.Grid
    down: list[dict[str, Any]] = field(default_factory=list)
    up: list[dict[str, Any]] = field(default_factory=list)

    def get_node_ids(self) -> Iterable[int]:
        return self.grid.get_node_ids()

    def push_messages(self, messages: Iterable[Any]) -> Iterable[str]:
        self.down.extend(contents(message) for message in messages)
        return self.grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Any]:
        replies = list(self.grid.pull_messages(message_ids))
        self.up.extend(contents(reply) for reply in replies)
        return replies


@pytest.mark.slow
def test_a_simulation_comes_to_the_bits_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, stage = federated_inputs(tmp_path / "in"), federate()
    local = stage.run(inputs, toy_context(tmp_path / "local")).outputs
    watched: list[Watched] = []
    serve = simulation.serve

    def watch(stage: Any, inputs: Any, grid: Any, ctx: Any, **options: Any) -> Any:
        watched.append(Watched(grid=grid))
        return serve(stage, inputs, watched[0], ctx, **options)

    monkeypatch.setattr(simulation, "serve", watch)
    ctx = toy_context(tmp_path / "flower", engine="flower")
    flower = stage.run(inputs, ctx)
    # every client's weights, every fusion weight, every byte counted
    assert digests(flower.outputs) == digests(local)
    assert flower.measured == {"rounds": 3, "bytes_sent": 3 * 3 * 2 * ARRAY_BYTES}
    # 3 rounds, 3 clients: the array once up, once down
    up, down = (
        [found for found in side if "arrays" in str(found)]
        for side in (watched[0].up, watched[0].down)
    )
    assert len(up) == len(down) == 9
    for found in watched[0].up:
        arrays = {key: value for key, value in found.items() if key.startswith("arrays/")}
        assert set(arrays) <= {"arrays/knowledge"}
        assert all(tuple(a.shape) == (SAMPLES, CLASSES) for a in arrays.values())
        assert set(found) - set(arrays) == {"names/round", "names/client"}
    import ray

    assert not ray.is_initialized()


@dataclass(frozen=True, kw_only=True)
class Touch:
    """An observer that leaves a file when the first round is over."""

    file: Path
    events: list[Event] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if event.text == "checkpoint":
            self.file.touch()


@pytest.mark.slow
def test_a_simulated_client_that_fails_is_missing_as_in_one_process(tmp_path: Path) -> None:
    inputs, found = federated_inputs(tmp_path / "in"), {}
    from stillhouse_toy import Fragile

    file = tmp_path / "broken"
    fragile = Model(build=Fragile, kwargs={"width": 3, "file": str(file)})
    stage = federate(fresh={**federate().fresh, "client-2": fragile})
    for engine in ("local", "flower"):
        file.unlink(missing_ok=True)
        touch = Touch(file=file)
        ctx = toy_context(tmp_path / engine, engine=engine, observe=touch)
        result = stage.run(inputs, ctx)
        found[engine] = digests(result.outputs)
        assert result.measured["missing"] == {"client-2": [2, 3]}
        assert "round 2 of 3 ended without client-2" in [event.text for event in touch.events]
    assert found["local"] == found["flower"]
    # it is as it was after its last round
    exchange = load_model(tmp_path / "flower" / "exchange").module
    assert exchange.missing.tolist() == [[False] * 3, *[[False, True, False]] * 2]


@pytest.mark.slow
def test_a_killed_simulation_goes_on_from_its_last_round(tmp_path: Path) -> None:
    inputs, stage = federated_inputs(tmp_path / "in"), federate()
    local = stage.run(inputs, toy_context(tmp_path / "local")).outputs
    dying = toy_context(tmp_path / "dead", engine="flower", observe=die_at_checkpoint)
    with pytest.raises(KilledError):
        stage.run(inputs, dying)
    events: list[Event] = []
    again = toy_context(
        tmp_path / "again", engine="flower", checkpoints=dying.checkpoints, observe=events.append
    )
    resumed = stage.run(inputs, again).outputs
    assert events[0].text == "resumed at round 1"
    assert digests(resumed) == digests(local)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        found = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in found:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in found]


@dataclass(frozen=True, kw_only=True)
class Loopback:
    """A SuperLink and a SuperNode for each client on 127.0.0.1, each a process group."""

    address: str
    nodes: Mapping[str, "subprocess.Popen[bytes]"]

    def kill(self, client: str) -> None:
        end(self.nodes[client].pid)

    def works(self, client: str, since: float) -> bool:
        """Whether the node has a ClientApp at work that was started after `since`."""
        for child in psutil.Process(self.nodes[client].pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                words = " ".join(child.cmdline())
                # it imports torch for longer than this second: the round is not over
                if "flwr-clientapp" in words and since < child.create_time() < time.time() - 1:
                    return True
        return False


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project with the toy plugin, in this process and its children."""
    root = tmp_path / "project"
    root.mkdir()
    scripts = str(Path(sys.executable).parent)
    for name, value in {
        **bridge.QUIET,
        "STILLHOUSE_ROOT": str(root),
        "FLWR_HOME": str(tmp_path / "flower"),
        "PATH": os.pathsep.join((scripts, os.environ["PATH"])),
        "PYTHONPATH": str(SITE),
        "OMP_NUM_THREADS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    return root


@pytest.fixture
def loopback(project: Path, tmp_path: Path) -> Generator[Loopback]:
    link, *ports = free_ports(1 + len(NAMES))
    started: dict[str, subprocess.Popen[bytes]] = {}

    def start(name: str, *words: str) -> None:
        with (tmp_path / f"{name}.log").open("wb") as log:
            started[name] = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)

    try:
        start(
            "superlink",
            "flower-superlink",
            "--insecure",
            "--host",
            "127.0.0.1",
            "--port",
            str(link),
        )
        healthy(f"http://127.0.0.1:{link}/health")
        for name, port in zip(NAMES, ports, strict=True):
            start(
                name,
                *("flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{link}"),
                *("--host", "127.0.0.1", "--port", str(port)),
                *("--node-config", f'client="{name}"'),
            )
        nodes = {name: started[name] for name in NAMES}
        yield Loopback(address=f"127.0.0.1:{link}", nodes=nodes)
    finally:
        for each in started.values():
            end(each.pid)
            each.wait()


def end(pid: int) -> None:
    """Kill a process and all that it has started, in whatever group."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in (*process.children(recursive=True), process):
            with contextlib.suppress(psutil.Error):
                each.kill()


def healthy(url: str) -> None:
    for _ in range(300):
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=1):
            return
        time.sleep(0.2)
    raise TimeoutError(url)


def until(holds: Callable[[], bool], seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def told() -> str:
    """What the ServerApp has told the stage that waits."""
    found = (home() / "checkpoints").glob("*/flower/run-*/events.jsonl")
    return "".join(path.read_text() for path in found)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_round_on_supernodes_ends_without_the_one_that_is_killed(
    loopback: Loopback, project: Path, tmp_path: Path
) -> None:
    words = ["toy/federated", "--device", "cpu", "--no-report", "--set", "rounds=2"]
    command = [sys.executable, "-m", "stillhouse", "run", *words]
    subprocess.run([*command, "--engine", "local"], check=True, stdout=subprocess.DEVNULL)
    (variant,) = (project / "runs" / "toy" / "federated").iterdir()
    local = tmp_path / "local"
    shutil.move(variant / "knfu", local)
    environ = {
        **os.environ,
        "STILLHOUSE_FLOWER_SUPERLINK": loopback.address,
        # Flower notices a dead node by itself, after two missing heartbeats: a minute
        "STILLHOUSE_FLOWER_TIMEOUT": "240",
    }
    log = tmp_path / "run.log"
    with log.open("wb") as out:
        run = subprocess.Popen(
            [*command, "--engine", "flower"],
            stdout=out,
            stderr=out,
            env=environ,
            start_new_session=True,
        )
    try:
        until(lambda: run.poll() is not None or '"done": 1' in told())
        since = time.time()
        until(lambda: loopback.works("client-10", since))
        loopback.kill("client-10")
        assert run.wait(timeout=300) == 0, log.read_text()
    finally:
        end(run.pid)
        run.wait()
    found = load_model(variant / "knfu" / "exchange").module
    whole = load_model(local / "exchange").module
    assert found.missing.tolist() == [[False] * 3, [False, False, True]]
    # the first round is that of one process, bit for bit
    assert torch.equal(found.weights[0], whole.weights[0])
    # and the fusion of the second used the two that were left
    assert torch.allclose(found.weights[1].sum(1), torch.tensor([1.0, 1.0, 0.0]))
    assert "round 2 of 2 ended without client-10" in log.read_text()
    record = json.loads((variant / "knfu.run.json").read_text())
    assert record["measured"]["missing"] == {"client-10": [2]}
    # its model is the one it had after its last round
    assert load_model(variant / "knfu" / "client-10").module is not None
