"""The page of `flow server` in headless Chromium: it works, and nothing leaves this machine."""

import asyncio
import http.server
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from flow_servers import free_port, going, wait_for

from stillhouse_flows.server.page import AGAIN_SECONDS, App, Receive, Scope, Send, patient, policy

if TYPE_CHECKING:
    from conftest import Project

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-default-apps", "--disable-extensions", "--enable-logging=stderr", "--v=0"),
    # of the browser's own, nothing; what the page asks for is in the log all the same
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)


def test_the_policy_names_the_api_and_its_socket() -> None:
    told = policy("http://127.0.0.1:4200/api")
    assert "connect-src 'self' data: blob: http://127.0.0.1:4200 ws://127.0.0.1:4200;" in told
    assert "wss://box" in policy("https://box/api")


class Busy:
    """An app that answers 503 so often, and raises after it as Starlette does; then its body."""

    def __init__(self, times: int) -> None:
        self.times, self.calls = times, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.calls += 1
        body = (await receive())["body"] + (await receive())["body"]
        busy = self.calls <= self.times
        status = 503 if busy else 200
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"later" if busy else body})
        if busy:
            raise OSError("database is locked")


def run(app: App, receive: Receive, send: Send) -> None:
    async def once() -> None:
        await app({"type": "http"}, receive, send)

    asyncio.run(once())


def call(app: App) -> list[Scope]:
    """What a client gets of a request in two parts."""
    parts = iter(
        [
            {"type": "http.request", "body": b"to", "more_body": True},
            {"type": "http.request", "body": b"gether", "more_body": False},
        ]
    )
    got: list[Scope] = []

    async def receive() -> Scope:
        return next(parts)

    async def send(message: Scope) -> None:
        got.append(message)

    run(app, receive, send)
    return got


def test_a_database_that_is_busy_for_a_moment_is_called_again_at_once() -> None:
    app = Busy(3)
    start, body = call(patient(app))
    assert (app.calls, start["status"], body["body"]) == (4, 200, b"together")


def test_a_database_that_stays_busy_is_the_clients_to_wait_for() -> None:
    app = Busy(100)
    got = list[Scope]()

    async def receive() -> Scope:
        return {"type": "http.request", "body": b""}

    async def send(message: Scope) -> None:
        got.append(message)

    with pytest.raises(OSError, match="locked"):
        run(patient(app), receive, send)
    assert app.calls == len(AGAIN_SECONDS) + 1
    assert [message.get("status") for message in got] == [503, None]


def test_other_errors_are_passed_on_once() -> None:
    calls = list[int]()

    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        calls.append(1)
        await send({"type": "http.response.start", "status": 500, "headers": []})
        raise ValueError("a fault")

    with pytest.raises(ValueError, match="a fault"):
        call(patient(broken))
    assert calls == [1]


def asked(log: Path, origin: str) -> Iterator[str]:
    """Hosts of every request that a page of `origin` gave to the browser's network stack, answered or not. The
    browser's own requests have no origin.
    """
    text = log.read_text().rstrip().rstrip(",")
    tree = json.loads(text if text.endswith("}") else f"{text}]}}")
    started = tree["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    for event in tree["events"]:
        values = event.get("params", {})
        if event["type"] == started and values.get("initiator") == origin:
            yield urlsplit(values["url"]).hostname or ""


def browse(url: str, place: Path) -> tuple[str, str, set[str]]:
    """The page as drawn after some seconds, the console, and the hosts that it asked."""
    log = place / "net.json"
    words = [f"--user-data-dir={place / 'profile'}", f"--log-net-log={log}", "--dump-dom"]
    command = [str(CHROMIUM), *FLAGS, *words, "--virtual-time-budget=10000", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    where = urlsplit(url)
    return done.stdout, done.stderr, set(asked(log, f"{where.scheme}://{where.netloc}"))


class Elsewhere(http.server.BaseHTTPRequestHandler):
    """A page that asks another host."""

    def do_GET(self) -> None:
        body = b"<script>fetch('http://elsewhere.example/x')</script>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@browser
@pytest.mark.timeout(600)
def test_a_request_elsewhere_would_be_seen(tmp_path: Path) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        _, _, hosts = browse(f"http://127.0.0.1:{server.server_port}/", tmp_path)
        server.shutdown()
    assert "elsewhere.example" in hosts


@browser
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_request_of_the_page_leaves_this_machine(
    counting: "Project", env: Mapping[str, str], tmp_path: Path
) -> None:
    port, log = free_port(), tmp_path / "server.log"
    with going(counting, env, log, "server", "--port", str(port)):
        wait_for(lambda: "export PREFECT_API_URL" in log.read_text(), 240, log.read_text)
        drawn, console, hosts = browse(f"http://127.0.0.1:{port}/", tmp_path)
    assert hosts == {"127.0.0.1"}, console
    # it is drawn, and reaches its API
    assert "Dashboard" in drawn
    assert "Can't connect" not in drawn
