"""Prefect's server, whose page reaches this server and nothing else.

The page's own code asks an analytics host for its configuration, with analytics switched off too;
a browser that is sent this policy does not.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]  # Any: as ASGI has it
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
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


def create() -> App:
    """What `flow server` serves."""
    from prefect.server.api.server import create_app
    from prefect.settings import PREFECT_UI_API_URL

    made: Any = create_app()  # Any: FastAPI types its messages more narrowly
    return guarded(made, policy(PREFECT_UI_API_URL.value()))
