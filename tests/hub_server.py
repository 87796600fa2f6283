"""
A small server on loopback that speaks as much of the Hub's HTTP protocol as publishing and loading a dataset needs:
creating a repository, LFS uploads, commits, listings, downloads. In memory, one branch per repository.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Repository:
    """Files by path; a commit is a number."""

    files: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0

    @property
    def sha(self) -> str:
        return hashlib.sha1(str(self.commits).encode()).hexdigest()


class HubServer(ThreadingHTTPServer):
    """Serves until [`~HubServer.stop`]; `url` is what `HF_ENDPOINT` must be."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.unknown: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever)
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *args) -> None:
        pass

    def reply(self, status: int, content: object = None, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, code: str) -> None:
        self.reply(404, {"error": code}, {"X-Error-Code": code, "X-Error-Message": code})

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        length = int(self.headers.get("Content-Length") or 0)
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b"".join(self._chunks())
        else:
            body = self.rfile.read(length)
        name = r"(?P<name>(?:datasets/)?[\w.-]+/[\w.-]+?)"
        for method, pattern, action in (
            ("POST", r"/api/repos/create", self.create),
            ("GET", r"/api/whoami-v2", self.who_am_i),
            ("POST", r"/api/validate-yaml", self.accept),
            ("POST", rf"/{name}\.git/info/lfs/objects/batch", self.plan_uploads),
            ("PUT", r"/objects/(?P<oid>\w+)", self.take_object),
            ("POST", rf"/api/(?:models/)?{name}/preupload/main", self.choose_upload_modes),
            ("POST", rf"/api/(?:models/)?{name}/commit/main", self.commit),
            ("POST", rf"/api/(?:models/)?{name}/paths-info/(?P<revision>\w+)", self.describe_paths),
            ("GET", rf"/api/(?:models/)?{name}/tree/(?P<revision>\w+)(?:/(?P<folder>.*))?", self.list_tree),
            ("GET", rf"/api/(?:models/)?{name}(?:/revision/(?P<revision>\w+))?", self.describe),
            ("GET HEAD", rf"/{name}/resolve/(?P<revision>\w+)/(?P<file>.+)", self.send_file),
        ):
            match = re.fullmatch(pattern, path)
            if match and self.command in method.split():
                action(body, **{key: value for key, value in match.groupdict().items() if key != "revision"})
                return
        self.server.unknown.append(f"{self.command} {path}")
        self.refuse("EntryNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def _chunks(self):
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def find(self, name: str) -> Repository | None:
        repository = self.server.repositories.get(name)
        if repository is None:
            self.refuse("RepoNotFound")
        return repository

    def create(self, body: bytes) -> None:
        values = json.loads(body)
        kind = "datasets/" if values.get("type") == "dataset" else ""
        name = f"{kind}{values.get('organization') or 'me'}/{values['name']}"
        exists = name in self.server.repositories
        self.server.repositories.setdefault(name, Repository())
        url = f"{self.server.url}/{name}"
        self.reply(409 if exists else 200, {"url": url, "name": name.removeprefix("datasets/")})

    def who_am_i(self, body: bytes) -> None:
        self.reply(200, {"name": "me", "type": "user", "orgs": []})

    def accept(self, body: bytes) -> None:
        self.reply(200, {"errors": [], "warnings": []})

    def describe(self, body: bytes, name: str) -> None:
        if repository := self.find(name):
            siblings = [{"rfilename": path} for path in repository.files]
            self.reply(200, {"id": name.removeprefix("datasets/"), "sha": repository.sha, "siblings": siblings})

    def choose_upload_modes(self, body: bytes, name: str) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith((".parquet", ".safetensors", ".png")) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self.reply(200, {"files": files})

    def plan_uploads(self, body: bytes, name: str) -> None:
        objects = []
        for entry in json.loads(body)["objects"]:
            entry = {"oid": entry["oid"], "size": entry["size"], "authenticated": True}
            if entry["oid"] not in self.server.objects:
                entry["actions"] = {"upload": {"href": f"{self.server.url}/objects/{entry['oid']}"}}
            objects.append(entry)
        self.reply(200, {"transfer": "basic", "objects": objects})

    def take_object(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            self.reply(400, {"error": "checksum"})
            return
        self.server.objects[oid] = body
        self.reply(200, {})

    def commit(self, body: bytes, name: str) -> None:
        if not (repository := self.find(name)):
            return
        files = dict(repository.files)
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                files.pop(value["path"])
        repository.files, repository.commits = files, repository.commits + 1
        url = f"{self.server.url}/{name}/commit/{repository.sha}"
        self.reply(200, {"commitUrl": url, "commitOid": repository.sha, "success": True})

    def _entry(self, path: str, content: bytes) -> dict:
        oid = hashlib.sha1(content).hexdigest()
        return {"type": "file", "path": path, "oid": oid, "size": len(content)}

    def describe_paths(self, body: bytes, name: str) -> None:
        if repository := self.find(name):
            values = parse_qs(body.decode()) if not body.startswith(b"{") else json.loads(body)
            entries = []
            for path in values.get("paths", []):
                if path in repository.files:
                    entries.append(self._entry(path, repository.files[path]))
                elif any(file.startswith(f"{path}/") for file in repository.files):
                    entries.append({"type": "directory", "path": path, "oid": "0" * 40, "size": 0})
            self.reply(200, entries)

    def list_tree(self, body: bytes, name: str, folder: str | None) -> None:
        if not (repository := self.find(name)):
            return
        prefix = f"{folder}/" if folder else ""
        recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() in ("true", "1")
        entries: dict[str, dict] = {}
        for path, content in repository.files.items():
            if not path.startswith(prefix):
                continue
            head, _, rest = path.removeprefix(prefix).partition("/")
            if rest:
                entries[prefix + head] = {"type": "directory", "path": prefix + head, "oid": "0" * 40, "size": 0}
            if recursive or not rest:
                entries[path] = self._entry(path, content)
        if folder and not entries:
            self.refuse("EntryNotFound")
            return
        self.reply(200, list(entries.values()))

    def send_file(self, body: bytes, name: str, file: str) -> None:
        if not (repository := self.find(name)):
            return
        if file not in repository.files:
            self.refuse("EntryNotFound")
            return
        content = repository.files[file]
        headers = {"X-Repo-Commit": repository.sha, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted:
            start, stop = int(wanted[1]), int(wanted[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{stop}/{len(content)}"
            self.reply(206, content[start : stop + 1], headers)
        else:
            self.reply(200, content, {**headers, "Accept-Ranges": "bytes"})
