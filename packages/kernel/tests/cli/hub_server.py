"""A server on 127.0.0.1 that speaks what huggingface_hub says to upload a folder: repositories,
the check of a card's front matter, upload modes, Git LFS's batch API, Xet's storage (of files below
its chunks' 64 KiB), commits. It keeps the bytes.
"""

import base64
import hashlib
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pyarrow
import yaml

LARGE = (".safetensors", ".onnx")  # what the hub keeps by LFS


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict[str, bytes])
    commits: list[str] = field(default_factory=list[str])


class Hub:
    """The server's memory; `tokens` are owners by their token. As a context it runs."""

    def __init__(self, tokens: dict[str, str]) -> None:
        self.tokens = tokens
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.paths: list[str] = []
        hub = self

        class Bound(_Handler):
            memory = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "Hub":
        Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()


class Refused(Exception):
    """An answer that is no 200."""

    def __init__(self, status: int, said: str, **more: Any) -> None:
        self.status, self.answer = status, {"error": said, **more}


def chunks(xorb: bytes) -> Iterator[bytes]:
    """The chunks of a Xet object: each behind a head of 8 bytes, as it is, by LZ4, or by LZ4 of its
    bytes by their place in words of four."""
    at = 0
    while at < len(xorb) and xorb[at] == 0:
        scheme, size = xorb[at + 4], int.from_bytes(xorb[at + 5 : at + 8], "little")
        end = at + 8 + int.from_bytes(xorb[at + 1 : at + 4], "little")
        data = xorb[at + 8 : end]
        if scheme:
            data = pyarrow.Codec("lz4").decompress(data, size).to_pybytes()
        if scheme == 2:
            words, start = bytearray(size), 0
            for place in range(4):
                count = len(range(place, size, 4))
                words[place::4] = data[start : start + count]
                start += count
            data = bytes(words)
        yield data
        at = end


class _Handler(BaseHTTPRequestHandler):
    memory: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing on stderr."""

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def do_PUT(self) -> None:
        self._answer(self._put)

    def _answer(self, act: Any) -> None:
        self.memory.paths.append(f"{self.command} {self.path}")
        body = self._body()
        try:
            status, answer = 200, act(body)
        except Refused as refused:
            status, answer = refused.status, refused.answer
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _owner(self) -> str:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.memory.tokens:
            raise Refused(401, "Invalid credentials in Authorization header")
        return self.memory.tokens[token]

    def _repository(self, name: str) -> Repository:
        owner = self._owner()
        found = self.memory.repositories.get(name)
        if found is None:
            raise Refused(404, "Repository not found")
        if name.partition("/")[0] != owner:
            raise Refused(403, "You don't have the rights to write to this repository")
        return found

    def _get(self, body: bytes) -> Any:
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)", self.path):
            repository = self._repository(found[1])
            return {"id": found[1], "private": repository.private, "sha": "0" * 40}
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/xet-write-token/main", self.path):
            self._repository(found[1])
            until = int(time.time()) + 3600
            return {"casUrl": self.memory.url, "accessToken": "xet", "exp": until}
        raise Refused(404, f"no such address: {self.path}")

    def _post(self, body: bytes) -> Any:
        if self.path == "/api/validate-yaml":
            return self._validated(json.loads(body)["content"])
        if self.path == "/api/repos/create":
            return self._created(json.loads(body))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", self.path):
            self._repository(found[1])
            files = json.loads(body)["files"]
            return {"files": [self._mode(file["path"]) for file in files]}
        if found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self.path):
            self._repository(found[1])
            return self._batch(json.loads(body)["objects"])
        if self.path.startswith("/v1/xorbs/"):
            self.memory.objects |= {hashlib.sha256(c).hexdigest(): c for c in chunks(body)}
            return {"was_inserted": True}
        if self.path == "/v2/shards":
            return {"type": "result", "result": 1}
        if self.path == "/lfs/verify":
            return self._verified(json.loads(body))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", self.path):
            return self._committed(found[1], [json.loads(line) for line in body.splitlines()])
        raise Refused(404, f"no such address: {self.path}")

    def _put(self, body: bytes) -> Any:
        oid = self.path.removeprefix("/lfs/objects/")
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refused(400, "the bytes have another digest")
        self.memory.objects[oid] = body
        return {}

    def _validated(self, content: str) -> Any:
        try:
            values = yaml.safe_load(content.split("---\n")[1])
            problem = "" if "license" in values else "license is missing"
        except (yaml.YAMLError, IndexError, TypeError) as error:
            problem = str(error)
        if problem:
            raise Refused(400, "invalid", errors=[{"message": problem}], warnings=[])
        return {"errors": [], "warnings": []}

    def _created(self, request: Any) -> Any:
        owner = self._owner()
        name = f"{request.get('organization') or owner}/{request['name']}"
        url = f"{self.memory.url}/{name}"
        if not name.startswith(f"{owner}/"):
            raise Refused(403, f"You don't have the rights to create a model under {name}")
        if name in self.memory.repositories:
            raise Refused(409, "You already created this model repo", url=url)
        private = request.get("visibility") == "private" or request.get("private") is True
        self.memory.repositories[name] = Repository(private=private)
        return {"url": url, "name": name}

    def _mode(self, path: str) -> Any:
        mode = "lfs" if path.endswith(LARGE) else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False}

    def _batch(self, objects: Any) -> Any:
        url = self.memory.url
        actions = {
            one["oid"]: {
                "upload": {"href": f"{url}/lfs/objects/{one['oid']}"},
                "verify": {"href": f"{url}/lfs/verify"},
            }
            for one in objects
        }
        return {
            "transfer": "basic",
            "objects": [{**one, "actions": actions[one["oid"]]} for one in objects],
        }

    def _verified(self, one: Any) -> Any:
        if len(self.memory.objects.get(one["oid"], b"")) != one["size"]:
            raise Refused(404, "object not found")
        return {}

    def _committed(self, name: str, lines: Any) -> Any:
        repository = self._repository(name)
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                repository.commits.append(value["summary"])
            elif line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.memory.objects:
                    raise Refused(400, f"{value['path']}: its bytes are not here")
                repository.files[value["path"]] = self.memory.objects[value["oid"]]
        oid = f"{len(repository.commits):040x}"
        url = f"{self.memory.url}/{name}/commit/{oid}"
        return {"success": True, "commitOid": oid, "commitUrl": url}
