"""Prefect's server, whose page reaches this server and nothing else.

The page's own code asks an analytics host for its configuration, with analytics switched off too;
a browser that is sent this policy does not.

On SQLite, where two of its transactions meet, Prefect answers 503 for the client to call again,
which that does after two seconds. Here the server itself calls again at once.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]  # Any: as ASGI has it
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
BUSY = 503
AGAIN_SECONDS = (0.02, 0.05, 0.1, 0.2, 0.4)  # then the client waits, up to a minute
# the page runs scripts and styles that stand in it, and draws from memory
OWN = "'self' 'unsafe-inline' 'unsafe-eval' data: blob:"


def policy(api: str) -> str:
    """A Content-Security-Policy for a page whose API is at `api`."""
    where = urlsplit(api)
    socket = "wss" if where.scheme == "https" else "ws"
    there = f"{where.scheme}://{where.netloc} {socket}://{where.netloc}"
    return (
        f"default-src {OWN}; "
        f"connect-src 'self' data: blob: {there}; "
        "object-src 'none'; base-uri 'self'; form-action 'self'"
    )


def guarded(app: App, text: str) -> App:
    """`app`, whose answers all carry the policy."""
    header = (b"content-security-policy", text.encode())

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_header(message: Scope) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), header]
            await send(message)

        await app(scope, receive, send_with_header if scope["type"] == "http" else send)

    return answer


def patient(app: App) -> App:
    """`app`, called again where it answers 503, for most of a second."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        read: list[Scope] = []
        for wait in AGAIN_SECONDS if scope["type"] == "http" else ():
            attempt = _Try(receive, send, read)
            try:
                await app(dict(scope), attempt.receive, attempt.send)
            except Exception:
                if not attempt.busy:  # as in what follows an answer of 500
                    raise
            if not attempt.busy:
                return
            await asyncio.sleep(wait)
        await app(scope, _Try(receive, send, read).receive, send)

    return answer


class _Try:
    """One call of an app: the request from its start, and the answer unless that is 503."""

    def __init__(self, receive: Receive, send: Send, read: list[Scope]) -> None:
        self.next, self.pass_on, self.read = receive, send, read
        self.at, self.busy = 0, False

    async def receive(self) -> Scope:
        if self.at == len(self.read):
            self.read.append(await self.next())
        self.at += 1
        return self.read[self.at - 1]

    async def send(self, message: Scope) -> None:
        if message["type"] == "http.response.start":
            self.busy = message["status"] == BUSY
        if not self.busy:
            await self.pass_on(message)


def create() -> App:
    """What `flow server` serves."""
    from prefect.server.api.server import create_app
    from prefect.settings import PREFECT_UI_API_URL

    made: Any = create_app()  # Any: FastAPI types its messages more narrowly
    return guarded(patient(made), policy(PREFECT_UI_API_URL.value()))
