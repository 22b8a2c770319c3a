"""A stand-in of the Hugging Face hub's HTTP interface on 127.0.0.1: to send and load a model.

It keeps repositories in memory, takes a token, and refuses as the hub does. Large files go by git LFS
(`basic`); the hub's Xet is not here.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

TOKEN = "hf_a_token_of_the_tests_0123456789"


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[dict[str, Any]] = field(default_factory=list)

    @property
    def sha(self) -> str:
        return hashlib.sha1(json.dumps(self.commits).encode()).hexdigest()


class Hub(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.refuse: int | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, value: Any = None, headers: dict[str, str] | None = None) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.send_header("Content-Length", (headers or {}).get("X-Length", str(len(body))))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            found = b""
            while size := int(self.rfile.readline(), 16):
                found += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return found
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def allowed(self, *, write: bool, private: bool = False) -> bool:
        right = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        return right or not (write or private)

    def handle_any(self) -> None:
        content = self.body()
        path = self.path.partition("?")[0]
        self.server.asked.append((self.command, path))
        if self.server.refuse is not None:
            # A hostile or chatty server repeats what it was sent.
            self.answer(self.server.refuse, {"error": f"no: {self.headers.get('Authorization')}"})
            return
        for pattern, name in _ROUTES:
            match = re.fullmatch(pattern, f"{self.command} {path}")
            if match:
                getattr(self, name)(content, *match.groups())
                return
        self.answer(404, {"error": f"{self.command} {path} is not here"})

    do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815

    def create(self, content: bytes) -> None:
        asked = json.loads(content)
        name = f"{asked['organization']}/{asked['name']}"
        if not self.allowed(write=True):
            self.answer(401, {"error": "Invalid username or password."})
        elif asked["organization"] == "others":
            self.answer(403, {"error": "You don't have the rights"})
        elif name in self.server.repositories:
            self.answer(409, {"error": "exists", "url": f"{self.server.address}/{name}"})
        else:
            private = asked.get("visibility") == "private" or asked.get("private") is True
            self.server.repositories[name] = Repository(private)
            self.answer(200, {"url": f"{self.server.address}/{name}"})

    def validate(self, content: bytes) -> None:
        card = json.loads(content)["content"]
        head = yaml.safe_load(card.split("---\n")[1])
        errors = [] if isinstance(head, dict) else [{"message": "no metadata"}]
        self.answer(200 if not errors else 400, {"errors": errors, "warnings": []})

    def repository(self, name: str, *, write: bool) -> Repository | None:
        found = self.server.repositories.get(name)
        if found is None or not self.allowed(write=write, private=found.private):
            self.answer(401 if found is None else 404, {}, {"X-Error-Code": "RepoNotFound"})
            return None
        return found

    def info(self, _: bytes, name: str) -> None:
        found = self.repository(name, write=False)
        if found is not None:
            siblings = [{"rfilename": path} for path in found.files]
            self.answer(
                200,
                {"id": name, "sha": found.sha, "siblings": siblings, "private": found.private},
            )

    def tree(self, _: bytes, name: str) -> None:
        found = self.repository(name, write=False)
        if found is not None:
            entries = [
                {"type": "file", "path": path, "size": len(content), "oid": "0" * 40}
                for path, content in found.files.items()
            ]
            self.answer(200, entries)

    def preupload(self, content: bytes, name: str) -> None:
        if self.repository(name, write=True) is not None:
            files = [
                {
                    "path": entry["path"],
                    "uploadMode": "lfs" if entry["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for entry in json.loads(content)["files"]
            ]
            self.answer(200, {"files": files})

    def lfs(self, content: bytes, name: str) -> None:
        if self.repository(name, write=True) is not None:
            objects = [
                entry
                | {"actions": {"upload": {"href": f"{self.server.address}/lfs/{entry['oid']}"}}}
                for entry in json.loads(content)["objects"]
            ]
            self.answer(200, {"transfer": "basic", "objects": objects})

    def put(self, content: bytes, oid: str) -> None:
        assert hashlib.sha256(content).hexdigest() == oid
        self.server.objects[oid] = content
        self.answer(200, {})

    def commit(self, content: bytes, name: str) -> None:
        found = self.repository(name, write=True)
        if found is None:
            return
        entries = [json.loads(line) for line in content.splitlines()]
        for entry in entries:
            value = entry["value"]
            if entry["key"] == "file":
                found.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                found.files[value["path"]] = self.server.objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                del found.files[value["path"]]
        paths = [entry["value"].get("path") for entry in entries[1:]]
        found.commits.append({"message": entries[0]["value"]["summary"], "files": paths})
        address = f"{self.server.address}/{name}/commit/{found.sha}"
        self.answer(200, {"success": True, "commitOid": found.sha, "commitUrl": address})

    def resolve(self, _: bytes, name: str, path: str) -> None:
        found = self.repository(name, write=False)
        if found is None:
            return
        if path not in found.files:
            self.answer(404, {}, {"X-Error-Code": "EntryNotFound"})
            return
        content = found.files[path]
        facts = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": found.sha}
        self.answer(200, content, facts | {"X-Linked-Size": str(len(content))})


_REPO = r"([\w.-]+/[\w.-]+)"
_ROUTES = (
    (r"POST /api/repos/create", "create"),
    (r"POST /api/validate-yaml", "validate"),
    (rf"GET /api/models/{_REPO}(?:/revision/[\w.-]+)?", "info"),
    (rf"GET /api/models/{_REPO}/tree/[\w.-]+", "tree"),
    (rf"POST /api/models/{_REPO}/preupload/[\w.-]+", "preupload"),
    (rf"POST /api/models/{_REPO}/commit/[\w.-]+", "commit"),
    (rf"POST /{_REPO}\.git/info/lfs/objects/batch", "lfs"),
    (r"PUT /lfs/([0-9a-f]{64})", "put"),
    (rf"(?:GET|HEAD) /{_REPO}/resolve/[\w.-]+/(.+)", "resolve"),
)


@contextlib.contextmanager
def hub_stand_in() -> Iterator[Hub]:
    """Run the stand-in while the block runs."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
