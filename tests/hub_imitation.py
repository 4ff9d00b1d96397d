"""A server on 127.0.0.1 that answers like a hub, a web page or a package index, and misbehaves
on request: every fault is taken by one request, in the order given."""

from __future__ import annotations

import hashlib
import threading
from collections import defaultdict, deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REPOSITORY = "maker/parts"


@dataclass
class Request:
    method: str
    path: str
    range: str | None
    authorization: str | None


@dataclass
class HubImitation:
    """`files` are those of REPOSITORY at `commit`; `pages` lie under /web/, `archives` under
    /packages/ with an index at /simple/. Files over 1,000 bytes are in LFS."""

    commit: str = "c" * 40
    files: dict[str, bytes] = field(default_factory=dict)
    history: dict[str, dict[str, bytes]] = field(default_factory=dict)
    pages: dict[str, bytes] = field(default_factory=dict)
    archives: dict[str, bytes] = field(default_factory=dict)
    stated_digest: str = ""  # what the hub claims instead of the truth
    has_etags: bool = True
    requests: list[Request] = field(default_factory=list)
    faults: dict[str, deque[str]] = field(default_factory=lambda: defaultdict(deque))

    def __enter__(self) -> HubImitation:
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        serve = self.server.serve_forever
        threading.Thread(target=serve, args=(0.02,), daemon=True).start()
        self.released = threading.Event()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()

    @property
    def port(self) -> int:
        return self.server.server_address[1]

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def misbehave(self, name: str, *faults: str) -> None:
        """Next GETs of this file: `truncate:N`, `corrupt`, `stall:N`, or an HTTP status."""
        self.faults[name].extend(faults)

    def gets(self, name: str) -> list[Request]:
        return [r for r in self.requests if r.method == "GET" and r.path.endswith(name)]

    def at(self, revision: str) -> dict[str, bytes] | None:
        return self.files if revision in ("main", self.commit) else self.history.get(revision)


class _Handler(BaseHTTPRequestHandler):
    hub: HubImitation

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        headers = self.headers
        self.hub.requests.append(
            Request(self.command, self.path, headers.get("Range"), headers.get("Authorization"))
        )
        kind, _, rest = self.path.lstrip("/").partition("/")
        if kind == "web" and rest in self.hub.pages:
            self._send(rest, self.hub.pages[rest], with_body)
        elif kind == "packages" and rest in self.hub.archives:
            self._send(rest, self.hub.archives[rest], with_body)
        elif kind == "simple":
            links = [f'<a href="/packages/{name}">{name}</a>' for name in self.hub.archives]
            self._reply(200, "".join(links).encode(), {"Content-Type": "text/html"})
        elif kind == "storage":
            name, _, revision = rest.partition("@")
            self._send(name, (self.hub.at(revision) or {})[name], with_body)
        else:
            self._resolve(with_body)

    def _resolve(self, with_body: bool) -> None:
        repository, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        files = self.hub.at(revision)
        if repository != REPOSITORY:
            return self._reply(404, b"", {"X-Error-Code": "RepoNotFound"})
        if files is None or name not in files:
            code = "RevisionNotFound" if files is None else "EntryNotFound"
            return self._reply(404, b"", {"X-Error-Code": code})
        if not with_body and self._has_status_fault("HEAD " + name):
            return None
        commit = self.hub.commit if revision == "main" else revision
        content = files[name]
        extra = {"X-Repo-Commit": commit}
        if len(content) <= 1000:
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            return self._send(name, content, with_body, {**extra, "ETag": f'"{blob}"'})
        digest = self.hub.stated_digest or hashlib.sha256(content).hexdigest()
        extra |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        # Another host name, as the real hub's storage has.
        extra["Location"] = f"http://localhost:{self.hub.port}/storage/{name}@{commit}"
        self._reply(302, b"", extra)

    def _has_status_fault(self, name: str) -> bool:
        faults = self.hub.faults[name]
        if not faults or not faults[0].isdigit():
            return False
        self._reply(int(faults.popleft()), b"", {})
        return True

    def _send(
        self, name: str, content: bytes, with_body: bool, extra: dict[str, str] | None = None
    ) -> None:
        if with_body and self._has_status_fault(name):
            return
        start, status = 0, 200
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        headers = {"ETag": etag} if self.hub.has_etags else {}
        headers |= extra or {}
        wanted = self.headers.get("Range")
        if wanted and self.headers.get("If-Range", etag) == etag:
            start, status = int(wanted.removeprefix("bytes=").rstrip("-")), 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if start >= len(content):
            return self._reply(416, b"", {})
        headers["Content-Length"] = str(len(content) - start)
        self._head(status, headers)
        if with_body:
            self._write(name, content, start)

    def _write(self, name: str, content: bytes, start: int) -> None:
        faults = self.hub.faults[name]
        fault, _, count = (faults.popleft() if faults else "").partition(":")
        body = content[start:]
        if fault == "corrupt":
            body = bytes([body[0] ^ 1]) + body[1:]
        elif fault in ("truncate", "stall"):
            body = body[: int(count)]
        self.wfile.write(body)
        self.wfile.flush()
        if fault == "stall":
            self.hub.released.wait(10)

    def _reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self._head(status, {**headers, "Content-Length": str(len(body))})
        if self.command == "GET":
            self.wfile.write(body)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
