"""A Hub on 127.0.0.1 that speaks as much of the HTTP API as pushing and loading a model takes."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

TOKEN = "hf_write"
READ_TOKEN = "hf_read"
STRANGER = "theirs"
"""An organisation that nobody here may write to."""

Mode = Literal["regular", "lfs"]


@dataclass
class Commit:
    """A state of a repository."""

    oid: str
    title: str
    files: dict[str, bytes]


@dataclass
class Repository:
    """A model repository: branches point to commits."""

    private: bool
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def at(self, revision: str) -> Commit | None:
        """Return the commit of a branch or of an id."""
        return self.commits.get(self.branches.get(revision, revision))

    def commit(self, branch: str, title: str, files: dict[str, bytes]) -> Commit:
        """Add a commit to a branch."""
        parent = self.branches.get(branch, "")
        digests = sorted((path, hashlib.sha1(data).hexdigest()) for path, data in files.items())
        commit = Commit(hashlib.sha1(repr((parent, title, digests)).encode()).hexdigest(), title, files)
        self.commits[commit.oid] = commit
        self.branches[branch] = commit.oid
        return commit


class HubServer:
    """All that the server stores, and the switch that takes it off the network and back.

    Args:
        mode (`str`): how weights travel: `"regular"` within the commit, `"lfs"` as large files before it.

    `status` is the answer to every request while the Hub is out of order; `datasets` holds ids without content.
    """

    def __init__(self, mode: Mode = "lfs") -> None:
        self.mode = mode
        self.repositories: dict[str, Repository] = {}
        self.datasets: set[str] = set()
        self.large_files: dict[str, bytes] = {}
        self.status: int | None = None
        self.uploads = 0
        self.failing_commits = 0
        self.rival_commits = 0
        self.lock = threading.Lock()
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        """The endpoint, for `HF_ENDPOINT`."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen, on the same port as before."""
        self._listener = Listener(("127.0.0.1", self.port), Handler)
        self._listener.hub = self
        self.port = self._listener.server_address[1]
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Refuse all connections."""
        self._listener.shutdown()
        self._listener.server_close()
        self._thread.join()

    def files_at(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Return the files of a repository."""
        commit = self.repositories[repo_id].at(revision)
        assert commit is not None
        return commit.files

    def is_large(self, path: str) -> bool:
        """Tell whether a file travels as a large one."""
        return self.mode == "lfs" and path.endswith((".safetensors", ".png"))

    def oid(self, path: str, data: bytes) -> str:
        """Return the hash the Hub gives a file."""
        if self.is_large(path):
            return hashlib.sha256(data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Listener(ThreadingHTTPServer):
    """The socket."""

    daemon_threads = True
    allow_reuse_address = True
    hub: HubServer


@contextmanager
def hub_server(mode: Mode = "lfs") -> Iterator[HubServer]:
    """Run a server for the length of the block."""
    server = HubServer(mode)
    try:
        yield server
    finally:
        server.stop()


class Handler(BaseHTTPRequestHandler):
    """One request. HTTP/1.0: no connection outlives its answer."""

    server: Listener

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    @property
    def hub(self) -> HubServer:
        """What is stored."""
        return self.server.hub

    def do_GET(self) -> None:
        """Answer what reads."""
        self._route(
            {
                r"/api/whoami-v2": self._whoami,
                r"/api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?": self._model_info,
                r"/api/datasets/(?P<repo>[^/]+/[^/]+)(/.+)?": self._dataset_info,
                r"/datasets/(?P<repo>[^/]+/[^/]+)/resolve/.+": self._dataset_file,
                r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)": self._tree,
                r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)": self._resolve,
            }
        )

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """Answer what writes."""
        self._route(
            {
                r"/api/validate-yaml": self._validate_yaml,
                r"/api/repos/create": self._create,
                r"/api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<revision>[^/]+)": self._branch,
                r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)": self._preupload,
                r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)": self._commit,
                r"/(?P<repo>[^/]+/[^/]+).git/info/lfs/objects/batch": self._batch,
            }
        )

    def do_PUT(self) -> None:
        """Take a large file."""
        self._route({r"/upload/(?P<oid>\w+)": self._upload})

    # Reading

    def _whoami(self) -> None:
        role = "read" if self._token() == READ_TOKEN else "write"
        auth = {"type": "access_token", "accessToken": {"displayName": "laptop", "role": role}}
        self._json({"name": "tester", "orgs": [], "type": "user", "auth": auth})

    def _model_info(self, repo: str, revision: str | None) -> None:
        if found := self._find(repo, revision or "main"):
            repository, commit = found
            files = [{"rfilename": path} for path in commit.files]
            info = {"id": repo, "modelId": repo, "sha": commit.oid, "siblings": files, "tags": []}
            self._json({**info, "private": repository.private})

    def _dataset_info(self, repo: str, **_: str) -> None:
        if repo in self.hub.datasets:
            self._json({"id": repo, "sha": "0" * 40, "siblings": [], "tags": [], "private": False})
        else:
            self._fail(404, "Repository not found", code="RepoNotFound")

    def _dataset_file(self, repo: str) -> None:
        known = repo in self.hub.datasets
        self._fail(404, "Not found", code="EntryNotFound" if known else "RepoNotFound")

    def _tree(self, repo: str, revision: str) -> None:
        if found := self._find(repo, revision):
            self._json([self._entry(path, data) for path, data in found[1].files.items()])

    def _entry(self, path: str, data: bytes) -> dict[str, Any]:
        oid = self.hub.oid(path, data)
        entry = {"type": "file", "path": path, "size": len(data), "oid": oid}
        if self.hub.is_large(path):
            entry["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 130}
        return entry

    def _resolve(self, repo: str, revision: str, path: str) -> None:
        if not (found := self._find(repo, revision)):
            return
        commit = found[1]
        if path not in commit.files:
            self._fail(404, "Entry not found", code="EntryNotFound", headers={"X-Repo-Commit": commit.oid})
            return
        data = commit.files[path]
        headers = {"ETag": f'"{self.hub.oid(path, data)}"', "X-Repo-Commit": commit.oid}
        self._answer(200, data, "application/octet-stream", headers)

    # Writing

    def _validate_yaml(self) -> None:
        self._json({"errors": [], "warnings": []})

    def _create(self) -> None:
        body = json.loads(self.body)
        if not self._may_write(body.get("organization")):
            return
        repo = f"{body.get('organization') or 'tester'}/{body['name']}"
        answer = {"url": f"{self.hub.url}/{repo}", "id": repo, "name": repo}
        if repo in self.hub.repositories:
            self._json(answer, status=409)
            return
        self.hub.repositories[repo] = Repository(private=body.get("visibility") == "private")
        self.hub.repositories[repo].commit("main", "initial commit", {".gitattributes": b"*.safetensors lfs\n"})
        self._json(answer)

    def _branch(self, repo: str, revision: str) -> None:
        if self._may_write(repo.split("/")[0]) and (found := self._find(repo, "main")):
            repository, commit = found
            if revision in repository.branches:
                self._fail(409, "Reference already exists")
                return
            repository.branches[revision] = commit.oid
            self._json({})

    def _preupload(self, repo: str, revision: str) -> None:
        if self._may_write(repo.split("/")[0]) and (found := self._find(repo, revision)):
            commit = found[1]
            self._json({"commitOid": commit.oid, "files": [self._plan(file, commit) for file in self._sent_files()]})

    def _sent_files(self) -> list[dict[str, Any]]:
        files: list[dict[str, Any]] = json.loads(self.body)["files"]
        return files

    def _plan(self, file: dict[str, Any], commit: Commit) -> dict[str, Any]:
        path = file["path"]
        oid = self.hub.oid(path, commit.files[path]) if path in commit.files else None
        mode = "lfs" if self.hub.is_large(path) else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def _batch(self, repo: str) -> None:
        if not self._may_write(repo.split("/")[0]):
            return
        objects = []
        for item in json.loads(self.body)["objects"]:
            missing = item["oid"] not in self.hub.large_files
            actions = {"upload": {"href": f"{self.hub.url}/upload/{item['oid']}"}}
            objects.append({**item, "actions": actions} if missing else item)
        self._json({"transfer": "basic", "objects": objects})

    def _upload(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            self._fail(400, "Wrong digest")
            return
        with self.hub.lock:
            self.hub.large_files[oid] = self.body
            self.hub.uploads += 1
        self._json({})

    def _commit(self, repo: str, revision: str) -> None:
        if not (self._may_write(repo.split("/")[0]) and (found := self._find(repo, revision))):
            return
        if self.hub.failing_commits:
            self.hub.failing_commits -= 1
            self._fail(400, "The commit failed")
            return
        repository, parent = found
        if self.hub.rival_commits:
            self.hub.rival_commits -= 1
            parent = repository.commit(revision, "Somebody else", {**parent.files, "notes.txt": b"mine"})
        lines = [json.loads(line) for line in self.body.splitlines()]
        title = next(line["value"]["summary"] for line in lines if line["key"] == "header")
        expected = next(line["value"].get("parentCommit") for line in lines if line["key"] == "header")
        if expected not in (None, parent.oid):
            self._fail(412, "A commit has happened since")
            return
        commit = repository.commit(revision, title, self._changed(dict(parent.files), lines))
        url = f"{self.hub.url}/{repo}/commit/{commit.oid}"
        self._json({"success": True, "commitOid": commit.oid, "commitUrl": url, "hookOutput": ""})

    def _changed(self, files: dict[str, bytes], lines: list[dict[str, Any]]) -> dict[str, bytes]:
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.large_files[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        return files

    # Plumbing

    def _route(self, routes: dict[str, Any]) -> None:
        self.body = self._read_body()
        path = unquote(urlsplit(self.path).path)
        if self.hub.status is not None:
            self._fail(self.hub.status, "Out of order")
            return
        for pattern, answer in routes.items():
            if match := re.fullmatch(pattern, path):
                answer(**match.groupdict())
                return
        self._fail(404, f"No route {self.command} {path}")

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def _authorized(self) -> bool:
        return self._token() == TOKEN

    def _may_write(self, owner: str | None) -> bool:
        if self._token() == READ_TOKEN:
            self._fail(403, "Forbidden: you must use a write token to upload to a repository.")
        elif not self._authorized():
            self._fail(401, "Invalid username or password.")
        elif owner == STRANGER:
            self._fail(403, f"You don't have the rights to create a model under the namespace {STRANGER!r}.")
        return self._authorized() and owner != STRANGER

    def _find(self, repo: str, revision: str) -> tuple[Repository, Commit] | None:
        """Return a repository and its commit, or answer 404."""
        repository = self.hub.repositories.get(repo)
        if repository is None or (repository.private and not self._authorized()):
            self._fail(404, "Repository not found", code="RepoNotFound")
            return None
        if repository.gated:  # nobody here has accepted the terms
            self._fail(403 if self._authorized() else 401, f"Access to model {repo} is restricted.", code="GatedRepo")
            return None
        if self._token() not in (None, TOKEN, READ_TOKEN):
            self._fail(401, "Invalid credentials in Authorization header")
            return None
        commit = repository.at(revision)
        if commit is None:
            self._fail(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
            return None
        return repository, commit

    def _fail(self, status: int, message: str, *, code: str = "", headers: dict[str, str] | None = None) -> None:
        extra = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}
        self._answer(status, json.dumps({"error": message}).encode(), "application/json", extra)

    def _json(self, content: object, *, status: int = 200) -> None:
        self._answer(status, json.dumps(content).encode(), "application/json", {})

    def _answer(self, status: int, data: bytes, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
