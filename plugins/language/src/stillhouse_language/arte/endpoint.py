"""A generator behind an OpenAI-compatible address: vLLM, llama.cpp's server, a provider."""

import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Generator

from stillhouse.errors import BadData, BadSetting, MissingData
from stillhouse_language.causal.generation import Sampling

KEY = "STILLHOUSE_ENDPOINT_KEY"  # sent as a bearer token where it is set; never stored
TRIES = 3


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Continues prompts by POST <address>/completions, one request a prompt; `address` ends where
    "/completions" begins, as in http://127.0.0.1:8000/v1.

    A request has a seed drawn from the stage's generator, so that a server that honours it writes
    the same again. What it writes is kept by parts as with a local model. Raises BadSetting for an
    address that is none, MissingData where nobody answers, BadData for another answer.
    """

    address: str
    model: str
    seconds: float = 120.0  # until an answer must come

    def __post_init__(self) -> None:
        parsed = urlparse(self.address)
        if parsed.scheme not in ("http", "https") or not parsed.hostname:
            raise BadSetting(
                f"endpoint: '{self.address}' is no address; say http://<host>:<port>/v1"
            )
        if not self.model:
            raise BadSetting("endpoint: no name of a model (endpoint_model)")

    def write(self, prompts: Sequence[str], *, sampling: Sampling, rng: Generator) -> list[str]:
        """A text a prompt, its stop text put back where it ended by it."""
        return [self._one(prompt, sampling, rng) for prompt in prompts]

    def _one(self, prompt: str, sampling: Sampling, rng: Generator) -> str:
        body: dict[str, Any] = {  # Any: JSON values
            "model": self.model,
            "prompt": prompt,
            "max_tokens": sampling.max_new,
            "temperature": sampling.temperature,
            "seed": int(torch.randint(2**31, (), generator=rng)),
        }
        if sampling.stop:
            body["stop"] = [sampling.stop]
        found = self._post("completions", body)
        try:
            choice = found["choices"][0]
            text, ended = str(choice["text"]), choice.get("finish_reason") == "stop"
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise BadData(
                f"endpoint {self.address}: its answer has no choices with a text ({brief(found)})"
            ) from error
        # servers leave the stop text out; a tag that was opened ended by it
        opened = sampling.stop.replace("</", "<")
        if sampling.stop and ended and sampling.stop not in text and opened in text:
            text += sampling.stop
        return text

    def _post(self, path: str, body: dict[str, Any]) -> Any:  # Any: JSON values
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(
            f"{self.address.rstrip('/')}/{path}", json.dumps(body).encode(), headers
        )
        reason = ""
        for _ in range(TRIES):
            try:
                with urllib.request.urlopen(request, timeout=self.seconds) as answer:
                    return json.loads(answer.read())
            except urllib.error.HTTPError as error:
                reason = f"{error.code} {brief(error.read().decode(errors='replace'))}"
                if error.code < 500 and error.code != 429:  # it will not do better next time
                    break
            except ValueError as error:
                raise BadData(
                    f"endpoint {self.address}: its answer is no JSON ({error})"
                ) from error
            except (OSError, http.client.HTTPException) as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
        raise MissingData(f"endpoint {self.address}: no answer ({reason}); is the server running?")


def brief(value: object) -> str:
    """The beginning of a value as one line."""
    text = " ".join((value if isinstance(value, str) else json.dumps(value)).split())
    return text if len(text) <= 160 else f"{text[:157]}..."
