"""
A Hub on loopback: as much of its HTTP protocol as `huggingface_hub`, transformers, timm and datasets use to publish
and to load, with faults on request. Large objects lie on a second port: to the clients another host, as the Hub's
storage is, to which no token may be sent.
"""

from __future__ import annotations

import base64
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from hub_state import LFS_SUFFIXES, Account, Commit, File, HubState, Refusal, Repository


TREE_PAGE = 20


@dataclass
class Fault:
    """
    What goes wrong with requests of a method whose path matches.

    Args:
        times (`int`): How many of them; below 0 all.
        status (*optional*): Answer this, and do nothing.
        before: Called before the request is looked at.
        reset (`bool`): Whether the connection is reset, and nothing done.
        lose_answer (`bool`): Whether the connection is reset in place of an answer, when all is done.
    """

    method: str
    path: str
    times: int = 1
    status: int | None = None
    before: Callable[[], object] | None = None
    reset: bool = False
    lose_answer: bool = False


@dataclass(frozen=True)
class Request:
    """One line of the log; `on_storage` says which port it came to."""

    method: str
    path: str
    has_token: bool
    range: str | None
    on_storage: bool


class HubServer(HubState):
    """Serves until [`~HubServer.stop`]; `url` is what `HF_ENDPOINT` must be."""

    def __init__(self, accounts: dict[str, Account] | None = None) -> None:
        super().__init__({"hf_for_tests": Account("me")} if accounts is None else accounts)
        self.unknown: list[str] = []
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.stopped = threading.Event()
        self._listeners = [_Listener(self), _Listener(self)]
        ports = [one.server_address[1] for one in self._listeners]
        # The Hub's storage has another host name, too: clients recognise redirections to follow by it.
        self.url, self.storage_url = f"http://127.0.0.1:{ports[0]}", f"http://localhost:{ports[1]}"
        self._threads = [threading.Thread(target=one.serve_forever, args=(0.05,)) for one in self._listeners]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self.stopped.set()
        for listener in self._listeners:
            listener.shutdown()
            listener.server_close()
        for thread in self._threads:
            thread.join()

    def count(self, method: str, path: str) -> int:
        """How many requests there were."""
        return sum(one.method == method and bool(re.search(path, one.path)) for one in self.requests)

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.method == method and re.search(fault.path, path) and fault.times:
                    fault.times -= 1
                    return fault
        return None


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 32

    def __init__(self, hub: HubServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub

    def handle_error(self, request, client_address) -> None:
        """Clients that go away, as killed ones do, are no error of the server."""


class _Reset(Exception):
    """The connection is gone."""


NAME = r"(?P<name>[\w.-]+(?:/[\w.-]+)?)"
API = rf"/api/(?P<kind>models|datasets)/{NAME}"
FILE = rf"(?:/(?P<kind>datasets))?/{NAME}"
REVISION = r"(?P<revision>[^/]+)"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Listener
    fault: Fault | None

    def log_message(self, *args) -> None:
        pass

    @property
    def hub(self) -> HubServer:
        return self.server.hub

    # A request, from its first line to its answer

    def answer(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        on_storage = self.server is self.hub._listeners[1]
        token = self.headers.get("Authorization")
        self.hub.requests.append(
            Request(self.command, unquote(url.path), token is not None, self.headers.get("Range"), on_storage)
        )
        self.fault = self.hub.take_fault(self.command, unquote(url.path))
        try:
            body = self.read_body()
            if self.fault and self.fault.before:
                self.fault.before()
            if self.fault and self.fault.status:
                raise Refusal(self.fault.status, "")
            self.dispatch(url.path, body, on_storage, token.removeprefix("Bearer ") if token else None)
        except Refusal as refusal:
            headers = {"X-Error-Message": refusal.message}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            if "commit" in refusal.details:
                headers["X-Repo-Commit"] = refusal.details["commit"]
            details = {"url": self.hub.url + refusal.details["url"]} if "url" in refusal.details else {}
            self.reply(refusal.status, {"error": refusal.message, **details}, headers)
        except _Reset:
            # An end without a goodbye: what was sent so far arrives, then ECONNRESET.
            time.sleep(0.05)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def read_body(self) -> bytes:
        if self.fault and self.fault.reset:
            raise _Reset
        return b"".join(self._pieces())

    def _pieces(self) -> Iterator[bytes]:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left and (piece := self.rfile.read(min(left, 1 << 14))):
            left -= len(piece)
            yield piece

    def dispatch(self, path: str, body: bytes, on_storage: bool, token: str | None) -> None:
        hub_routes: tuple[tuple[str, str, Callable], ...] = (
            ("POST", r"/api/repos/create", self.create),
            ("GET", r"/api/whoami-v2", self.who_am_i),
            ("POST", r"/api/validate-yaml", self.validate_card),
            ("POST", rf"{FILE}\.git/info/lfs/objects/batch", self.plan_uploads),
            ("POST", rf"{FILE}\.git/info/lfs/objects/verify", self.verify_upload),
            ("POST", rf"{API}/preupload/{REVISION}", self.choose_upload_modes),
            ("POST", rf"{API}/commit/{REVISION}", self.commit),
            ("POST", rf"{API}/branch/{REVISION}", self.create_branch),
            ("GET", rf"{API}/refs", self.list_refs),
            ("POST", rf"{API}/paths-info/{REVISION}", self.describe_paths),
            ("GET", rf"{API}/tree/{REVISION}(?:/(?P<folder>.*))?", self.list_tree),
            ("GET", rf"{API}(?:/revision/{REVISION})?", self.describe),
            ("GET HEAD", rf"{FILE}/resolve/{REVISION}/(?P<file>.+)", self.send_file),
        )
        storage_routes: tuple[tuple[str, str, Callable], ...] = (
            ("PUT", r"/objects/(?P<oid>\w+)", self.take_upload),
            ("GET HEAD", r"/objects/(?P<oid>\w+)", self.send_object),
        )
        for methods, pattern, action in storage_routes if on_storage else hub_routes:
            match = re.fullmatch(pattern, path)
            if match and self.command in methods.split():
                values = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                with self.hub.lock:
                    if not on_storage:
                        self.account = self.hub.account_of(token)
                    send = action(body, **values)
                send()
                return
        self.hub.unknown.append(f"{self.command} {path}")
        raise Refusal(404, "No such address")

    def reply(self, status: int, content: object = None, headers: dict[str, str] | None = None) -> None:
        if self.fault and self.fault.lose_answer:
            raise _Reset
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def ok(self, content: object, headers: dict[str, str] | None = None) -> Callable[[], None]:
        return lambda: self.reply(200, content, headers)

    # Accounts and repositories

    def who_am_i(self, body: bytes) -> Callable:
        if self.account is None:
            raise Refusal(401, "Invalid username or password.")
        return self.ok(
            {
                "type": "user",
                "name": self.account.name,
                "orgs": [{"name": name} for name in self.account.orgs],
                "auth": {"accessToken": {"displayName": "for tests", "role": self.account.role}},
            }
        )

    def create(self, body: bytes) -> Callable:
        values = json.loads(body)
        name = "/".join(filter(None, (values.get("organization"), values["name"])))
        kind = f"{values.get('type') or 'model'}s"
        private = values.get("visibility") == "private" or bool(values.get("private"))
        repository = self.hub.create(name, kind, self.account, private)
        prefix = "" if kind == "models" else f"{kind}/"
        return self.ok({"url": f"{self.hub.url}/{prefix}{repository.name}", "name": repository.name})

    def find(self, name: str, kind: str = "models", *, write: bool = False) -> Repository:
        return self.hub.find(name, kind, self.account, write=write)

    def describe(self, body: bytes, name: str, kind: str, revision: str = "main") -> Callable:
        repository = self.find(name, kind)
        commit = repository.at(revision)
        siblings = [{"rfilename": path} for path in commit.files]
        return self.ok({"id": name, "sha": commit.oid, "private": repository.private, "siblings": siblings})

    def create_branch(self, body: bytes, name: str, kind: str, revision: str) -> Callable:
        repository = self.find(name, kind, write=True)
        self.hub.create_branch(repository, revision, json.loads(body).get("startingPoint", "main"))
        return self.ok({})

    def list_refs(self, body: bytes, name: str, kind: str) -> Callable:
        branches = [
            {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": oid}
            for branch, oid in self.find(name, kind).branches.items()
            if not branch.startswith("refs/")
        ]
        return self.ok({"branches": branches, "converts": [], "tags": []})

    # Uploads and commits

    def validate_card(self, body: bytes) -> Callable:
        if not json.loads(body)["content"].startswith("---\n"):
            return lambda: self.reply(400, {"errors": [{"message": "no metadata"}], "warnings": []})
        return self.ok({"errors": [], "warnings": []})

    def choose_upload_modes(self, body: bytes, name: str, kind: str, revision: str) -> Callable:
        is_pull_request = self.query.get("create_pr") == ["1"]
        present = self.find(name, kind, write=not is_pull_request).at(revision).files
        files = []
        for file in json.loads(body)["files"]:
            path = file["path"]
            mode = "lfs" if path.endswith(LFS_SUFFIXES) else "regular"
            oid = present[path].etag if path in present else None
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return self.ok({"files": files})

    def plan_uploads(self, body: bytes, name: str, kind: str = "models") -> Callable:
        self.find(name, kind)
        if self.account is None or self.account.role != "write":
            raise Refusal(403, "Authorization error.")
        prefix = f"{self.hub.url}/{name if kind == 'models' else f'{kind}/{name}'}.git/info/lfs/objects"
        objects = []
        for wanted in json.loads(body)["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"], "authenticated": True}
            if wanted["oid"] not in self.hub.objects:
                entry["actions"] = {
                    "upload": {"href": f"{self.hub.storage_url}/objects/{wanted['oid']}"},
                    "verify": {"href": f"{prefix}/verify"},
                }
            objects.append(entry)
        return self.ok({"transfer": "basic", "objects": objects})

    def take_upload(self, body: bytes, oid: str) -> Callable:
        self.hub.take_object(oid, body)
        return self.ok({})

    def verify_upload(self, body: bytes, name: str, kind: str = "models") -> Callable:
        values = json.loads(body)
        if len(self.hub.objects.get(values["oid"], b"")) != values["size"]:
            raise Refusal(404, "The object did not arrive")
        return self.ok({})

    def commit(self, body: bytes, name: str, kind: str, revision: str) -> Callable:
        is_pull_request = self.query.get("create_pr") == ["1"]
        repository = self.find(name, kind, write=not is_pull_request)
        if self.account is None or self.account.role != "write":
            raise Refusal(403, "Authorization error.")
        header, changes = {}, {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                header = value
            elif line["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                changes[value["path"]] = value["oid"]
            elif line["key"] == "deletedFile":
                changes[value["path"]] = None
            else:
                raise Refusal(400, f"Unknown operation {line['key']}")
        commit, number = self.hub.commit(
            repository,
            revision,
            header["summary"],
            header.get("parentCommit"),
            changes,
            as_pull_request=is_pull_request,
        )
        url = f"{self.hub.url}/{name if kind == 'models' else f'{kind}/{name}'}"
        content = {"success": True, "commitOid": commit.oid, "commitUrl": f"{url}/commit/{commit.oid}"}
        return self.ok({**content, **({"pullRequestUrl": f"{url}/discussions/{number}"} if number else {})})

    # Listings and downloads

    def describe_paths(self, body: bytes, name: str, kind: str, revision: str) -> Callable:
        files = self.find(name, kind).at(revision).files
        values = parse_qs(body.decode()) if not body.startswith(b"{") else json.loads(body)
        entries = []
        for path in values.get("paths", []):
            if path in files:
                entries.append(_entry(path, files[path]))
            elif any(file.startswith(f"{path}/") for file in files):
                entries.append(_folder_entry(path))
        return self.ok(entries)

    def list_tree(self, body: bytes, name: str, kind: str, revision: str, folder: str = "") -> Callable:
        commit: Commit = self.find(name, kind).at(revision)
        prefix = f"{folder}/" if folder else ""
        is_recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        found: dict[str, dict] = {}
        for path, file in commit.files.items():
            if not path.startswith(prefix):
                continue
            head, _, rest = path.removeprefix(prefix).partition("/")
            if rest:
                found[prefix + head] = _folder_entry(prefix + head)
            if is_recursive or not rest:
                found[path] = _entry(path, file)
        if folder and not found:
            raise Refusal(404, f"{folder} does not exist", "EntryNotFound")
        start = int(self.query.get("cursor", ["0"])[0])
        headers = {}
        if start + TREE_PAGE < len(found):
            url = urlsplit(self.path)
            query = f"recursive={is_recursive}&cursor={start + TREE_PAGE}"
            headers["Link"] = f'<{self.hub.url}{url.path}?{query}>; rel="next"'
        return self.ok(list(found.values())[start : start + TREE_PAGE], headers)

    def send_file(self, body: bytes, name: str, revision: str, file: str, kind: str = "models") -> Callable:
        commit = self.find(name, kind).at(revision)
        if file not in commit.files:
            raise Refusal(404, f"{file} does not exist", "EntryNotFound", commit=commit.oid)
        found = commit.files[file]
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{found.etag}"', "Accept-Ranges": "bytes"}
        if not found.is_large:
            return self.send_content(found.content, headers)
        size = str(len(found.content))
        headers.update({"X-Linked-ETag": f'"{found.sha256}"', "X-Linked-Size": size})
        headers["Location"] = f"{self.hub.storage_url}/objects/{found.sha256}"
        return lambda: self.reply(302, b"", headers)

    def send_object(self, body: bytes, oid: str) -> Callable:
        if oid not in self.hub.objects:
            raise Refusal(404, "No such object")
        return self.send_content(self.hub.objects[oid], {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    def send_content(self, content: bytes, headers: dict[str, str]) -> Callable:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return self.ok(content, headers)
        start, stop = int(wanted[1]), min(int(wanted[2] or len(content) - 1), len(content) - 1)
        headers["Content-Range"] = f"bytes {start}-{stop}/{len(content)}"
        return lambda: self.reply(206, content[start : stop + 1], headers)


def _entry(path: str, file: File) -> dict:
    entry = {"type": "file", "path": path, "oid": file.blob_id, "size": len(file.content)}
    if file.is_large:
        entry["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": 134}
    return entry


def _folder_entry(path: str) -> dict:
    return {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}
