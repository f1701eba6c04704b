"""A Hub on the loopback interface: what huggingface_hub needs to create, push, list and load, with faults on request.

It keeps everything in memory. Tokens are "writer" (owns all repositories), "reader" (sees them all, writes none) and
any other (unknown to it). As on the real Hub, who may not see a repository is told that there is none.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

#: Long and recognisable, so that a test finds it wherever it leaks.
WRITER = "hf_WriterTokenThatMustNeverBeSeenAnywhere"
READER = "hf_ReaderTokenThatMustNeverBeSeenAnywhere"
PERMISSIONS = {WRITER: "write", READER: "read"}
_REPO = r"(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)"


@dataclass
class File:
    """A file of a commit."""

    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        """What the client compares its own file with."""
        if self.lfs:
            return self.sha256
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content, usedforsecurity=False).hexdigest()


@dataclass
class Commit:
    """A commit: what it says and all files after it."""

    sha: str
    title: str
    message: str
    files: dict[str, File]
    parent: Commit | None

    def history(self) -> list[Commit]:
        """This commit and those before it, the newest first."""
        return [self, *(self.parent.history() if self.parent else [])]


@dataclass
class Repository:
    """A repository: branches, tags and pull requests are names of commits."""

    private: bool = False
    branches: dict[str, Commit] = field(default_factory=dict)
    tags: dict[str, Commit] = field(default_factory=dict)
    pulls: dict[str, Commit] = field(default_factory=dict)

    def __post_init__(self) -> None:
        first = {".gitattributes": File(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n", lfs=False)}
        self.branches["main"] = self.make_commit("initial commit", "", first, None)

    def make_commit(self, title: str, message: str, files: dict[str, File], parent: Commit | None) -> Commit:
        said = [title, message, parent.sha if parent else "", *(f"{path} {file.oid}" for path, file in files.items())]
        return Commit(
            hashlib.sha1("\n".join(said).encode(), usedforsecurity=False).hexdigest(), title, message, files, parent
        )

    def find(self, revision: str) -> Commit | None:
        """The commit of a branch, a tag, a pull request or a hash."""
        for names in (self.branches, self.tags, self.pulls):
            if revision in names:
                return names[revision]
        heads = [*self.branches.values(), *self.tags.values(), *self.pulls.values()]
        return next((commit for head in heads for commit in head.history() if commit.sha == revision), None)


@dataclass
class Fault:
    """What goes wrong with the next requests to a route.

    Attributes:
        route: Name of a handler method without its "on_", such as "commit"; "head", or "*" for all.
        how: "503"; "drop" (the connection ends instead of an answer, after the request had its effect); "cut" (it ends
            in the middle of a file); "empty" (it ends before the file's first byte).
        times: How often.
        repo: Only in requests about this repository; empty: in all.
        path: Only in requests of paths that end so.
    """

    route: str
    how: str
    times: int = 1
    repo: str = ""
    path: str = ""


class LoopbackHub:
    """The server; `url` is what HF_ENDPOINT names."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.uploads: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator[LoopbackHub]:
        """Serves until the block ends."""
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.stop()
            thread.join()

    def stop(self) -> None:
        """Is down from now on."""
        self._server.shutdown()
        self._server.server_close()

    def repository(self, repo: str, kind: str = "models") -> Repository:
        return self.repositories[kind, repo]

    def titles(self, repo: str, revision: str = "main", kind: str = "models") -> list[str]:
        """Titles of the commits, the newest first, without the one that makes a repository."""
        commit = self.repository(repo, kind).find(revision)
        assert commit is not None
        return [entry.title for entry in commit.history()][:-1]

    def files(self, repo: str, revision: str = "main", kind: str = "models") -> dict[str, bytes]:
        """What a revision holds, without the file that every repository has."""
        commit = self.repository(repo, kind).find(revision)
        assert commit is not None
        return {path: file.content for path, file in commit.files.items() if path != ".gitattributes"}

    def take_fault(self, route: str, repo: str, path: str) -> str | None:
        """How the request to be answered now goes wrong, if it does."""
        for fault in self.faults:
            matches = fault.route in (route, "*") and fault.repo in ("", repo) and path.endswith(fault.path)
            if matches and fault.times:
                fault.times -= 1
                return fault.how
        return None


class _Refused(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, code: str = "", message: str = "", **said: Any) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.said = status, code, message, said


class _Handler(BaseHTTPRequestHandler):
    """Routes requests to the `on_...` methods, each of which returns what is sent as JSON."""

    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    ROUTES = (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", rf"/api/{_REPO}/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", rf"/api/{_REPO}/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", rf"/api/{_REPO}/branch/(?P<name>[^/]+)", "branch"),
        ("POST", rf"/api/{_REPO}/tag/(?P<revision>[^/]+)", "tag"),
        ("GET", rf"/api/{_REPO}/refs", "refs"),
        ("GET", rf"/api/{_REPO}/commits/(?P<revision>[^/]+)", "commits"),
        ("GET", rf"/api/{_REPO}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.*))?", "tree"),
        ("GET", rf"/api/{_REPO}(?:/revision/(?P<revision>[^/]+))?", "info"),
        ("POST", r"/(?:datasets/)?(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/lfs/(?P<oid>\w+)", "upload"),
        ("GET", r"/(?:(?P<kind>datasets)/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    )

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _answer(self, method: str) -> None:
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        self.body = self._read_body()
        route, found = self._route(method, parts.path)
        with self.hub.lock:
            self.hub.requests.append(f"{self.command} {parts.path}")
            repo = self._asked_repo() if route == "create" else found.get("repo", "")
            self.fault = self.hub.take_fault("head" if self.command == "HEAD" else route, repo, parts.path)
        if self.fault == "503":
            return self._send(503, b"<html>try again later</html>")
        handle: Callable[..., Any] | None = getattr(self, f"on_{route}", None)
        try:
            if handle is None:
                raise _Refused(404, message=f"the loopback Hub knows no {method} {parts.path}")
            self._check_token()
            with self.hub.lock:
                answer = handle(**{key: unquote(value) if value else value for key, value in found.items()})
        except _Refused as refused:
            headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
            body = json.dumps({"error": refused.message, **refused.said}).encode()
            return self._send(refused.status, body, {key: value for key, value in headers.items() if value})
        if self.fault == "drop":
            self.close_connection = True
            return None
        if isinstance(answer, File):
            return self._send_file(answer)
        return self._send(200, json.dumps(answer).encode())

    def _route(self, method: str, path: str) -> tuple[str, dict[str, Any]]:
        for wanted, pattern, name in self.ROUTES:
            if method == wanted and (match := re.fullmatch(pattern, path)):
                return name, match.groupdict()
        return "", {}

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") == "chunked":
            parts = []
            while size := int(self.rfile.readline().strip(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_file(self, file: File) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        start = int(wanted[1]) if wanted else 0
        end = min(int(wanted[2]) + 1, len(file.content)) if wanted and wanted[2] else len(file.content)
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", f'"{file.oid}"')
        self.send_header("X-Repo-Commit", self.commit.sha)
        self.send_header("Content-Length", str(end - start))
        self.send_header("Accept-Ranges", "bytes")
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(file.content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault in ("cut", "empty"):
            end = start + (end - start) // 2 if self.fault == "cut" else start
            self.close_connection = True
        self.wfile.write(file.content[start:end])

    # --- who asks, and for what -------------------------------------------------------------------------------------

    @property
    def permission(self) -> str | None:
        return PERMISSIONS.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))

    def _check_token(self) -> None:
        if self.headers.get("Authorization") and self.permission is None:
            raise _Refused(401, message="Invalid credentials in Authorization header")

    def _require_writer(self) -> None:
        if self.permission is None:
            raise _Refused(401, message="Invalid username or password.")
        if self.permission != "write":
            raise _Refused(403, message="you must use a write token to upload to a repository.")

    def _repository(self, kind: str | None, repo: str) -> Repository:
        found = self.hub.repositories.get((kind or "models", repo))
        if found is None or (found.private and self.permission is None):
            message = "Repository not found" if self.permission else "Invalid username or password."
            raise _Refused(404 if self.permission else 401, "RepoNotFound", message)
        return found

    def _asked_repo(self) -> str:
        asked = json.loads(self.body)
        return f"{asked.get('organization') or 'tester'}/{asked['name']}"

    def _commit(self, repository: Repository, revision: str | None) -> Commit:
        commit = repository.find(revision or "main")
        if commit is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # --- routes -----------------------------------------------------------------------------------------------------

    def on_whoami(self) -> Any:
        if self.permission is None:
            raise _Refused(401, message="Invalid username or password.")
        return {"type": "user", "name": "tester", "orgs": [], "auth": {}}

    def on_validate(self) -> Any:
        if "license: [" in json.loads(self.body)["content"]:
            raise _Refused(400, message="invalid", errors=[{"message": '"license" must be a string'}])
        return {"errors": [], "warnings": []}

    def on_create(self) -> Any:
        self._require_writer()
        asked, repo = json.loads(self.body), self._asked_repo()
        kind = f"{asked.get('type', 'model')}s"
        prefix = "datasets/" if kind == "datasets" else ""
        made = {"url": f"{self.hub.url}/{prefix}{repo}", "name": repo}
        if (kind, repo) in self.hub.repositories:
            raise _Refused(409, message="You already created this model repo", **made)
        private = asked.get("private", asked.get("visibility") == "private")
        self.hub.repositories[kind, repo] = Repository(private=bool(private))
        return made

    def on_preupload(self, kind: str, repo: str, revision: str) -> Any:
        self._require_writer()
        commit = self._commit(self._repository(kind, repo), revision)
        files = []
        for asked in json.loads(self.body)["files"]:
            known = commit.files.get(asked["path"])
            lfs = asked["path"].endswith((".safetensors", ".parquet"))
            mode = "lfs" if lfs else "regular"
            shown = {"path": asked["path"], "uploadMode": mode, "shouldIgnore": False}
            files.append({**shown, "oid": known.oid if known else None})
        return {"files": files}

    def on_batch(self, repo: str) -> Any:
        self._require_writer()
        objects = []
        for asked in json.loads(self.body)["objects"]:
            upload = {"upload": {"href": f"{self.hub.url}/lfs/{asked['oid']}", "header": {}}}
            known = asked["oid"] in self.hub.uploads
            objects.append(asked if known else {**asked, "actions": upload})
        return {"transfer": "basic", "objects": objects}

    def on_upload(self, oid: str) -> Any:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.uploads[oid] = self.body
        return {}

    def on_commit(self, kind: str, repo: str, revision: str) -> Any:
        self._require_writer()
        repository = self._repository(kind, repo)
        parent = self._commit(repository, revision)
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit", parent.sha) != parent.sha:
            raise _Refused(412, message="A commit has happened since. Please refresh and try again.")
        files = dict(parent.files)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), lfs=False)
            elif line["key"] == "lfsFile":
                files[value["path"]] = File(self.hub.uploads[value["oid"]], lfs=True)
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        made = repository.make_commit(header["summary"], header["description"], files, parent)
        answer = {"commitOid": made.sha, "commitUrl": f"{self.hub.url}/{repo}/commit/{made.sha}", "success": True}
        if self.query.get("create_pr"):
            number = len(repository.pulls) + 1
            repository.pulls[f"refs/pr/{number}"] = made
            return {**answer, "pullRequestUrl": f"{self.hub.url}/{repo}/discussions/{number}"}
        if revision not in repository.branches:
            raise _Refused(404, "RevisionNotFound", f"Invalid branch: {revision}")
        repository.branches[revision] = made
        return answer

    def on_branch(self, kind: str, repo: str, name: str) -> Any:
        self._require_writer()
        repository = self._repository(kind, repo)
        if name in repository.branches:
            raise _Refused(409, message="Reference already exists")
        repository.branches[name] = self._commit(repository, json.loads(self.body or b"{}").get("startingPoint"))
        return {}

    def on_tag(self, kind: str, repo: str, revision: str) -> Any:
        self._require_writer()
        repository = self._repository(kind, repo)
        repository.tags[json.loads(self.body)["tag"]] = self._commit(repository, revision)
        return {}

    def on_refs(self, kind: str, repo: str) -> Any:
        repository = self._repository(kind, repo)

        def shown(names: dict[str, Commit], prefix: str) -> list[dict[str, str]]:
            return [{"name": n, "ref": f"{prefix}{n}", "targetCommit": commit.sha} for n, commit in names.items()]

        refs = {"branches": shown(repository.branches, "refs/heads/"), "tags": shown(repository.tags, "refs/tags/")}
        return {**refs, "converts": [], "pullRequests": shown(repository.pulls, "")}

    def on_commits(self, kind: str, repo: str, revision: str) -> Any:
        history = self._commit(self._repository(kind, repo), revision).history()
        said = {"authors": [{"user": "tester"}], "date": "2026-01-01T00:00:00.000Z"}
        return [{"id": entry.sha, "title": entry.title, "message": entry.message, **said} for entry in history]

    def on_tree(self, kind: str, repo: str, revision: str, folder: str | None) -> Any:
        commit = self._commit(self._repository(kind, repo), revision)
        return [
            {
                "type": "file",
                "path": path,
                "size": len(file.content),
                "oid": file.oid,
                **({"lfs": {"oid": file.sha256, "size": len(file.content), "pointerSize": 130}} if file.lfs else {}),
            }
            for path, file in commit.files.items()
            if not folder or path.startswith(f"{folder}/")
        ]

    def on_info(self, kind: str, repo: str, revision: str | None) -> Any:
        repository = self._repository(kind, repo)
        commit = self._commit(repository, revision)
        siblings = [{"rfilename": path} for path in commit.files]
        said = {"downloads": 0, "likes": 0, "tags": [], "private": repository.private}
        return {"id": repo, "sha": commit.sha, "siblings": siblings, **said}

    def on_resolve(self, kind: str | None, repo: str, revision: str, path: str) -> Any:
        self.commit = self._commit(self._repository(kind, repo), revision)
        if path not in self.commit.files:
            raise _Refused(404, "EntryNotFound", "Entry not found")
        return self.commit.files[path]
