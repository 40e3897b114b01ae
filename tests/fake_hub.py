"""A model hub on loopback: what `huggingface_hub` asks for, and no more.

Speaks the routes that make a repository, take a commit (large files by LFS)
and give files out, over HTTP. Writing needs the token.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_loopback"
LARGE = ".safetensors"


class FakeHub:
    """Repositories in memory, served while the context lasts.

    `commits[repo]` lists (sha, {path: bytes}), oldest first; `closed[repo]`
    is the status that whoever reads a repository gets instead.
    """

    def __init__(self):
        self.commits = {}
        self.private = {}
        self.closed = {}
        self.large = {}
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def add(self, repo, files):
        """Add a commit with files changed; return its sha."""
        history = self.commits.setdefault(repo, [])
        files = {**(history[-1][1] if history else {}), **files}
        text = f"{repo} {len(history)}"
        sha = hashlib.sha1(text.encode()).hexdigest()
        history.append((sha, files))
        return sha

    def find(self, repo, revision):
        """Sha and files of a revision, or None."""
        history = self.commits[repo]
        if revision == "main":
            return history[-1] if history else ("0" * 40, {})
        return next((x for x in history if x[0] == revision), None)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Stay silent."""

    def do_GET(self):  # noqa: N802
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self):
        path = unquote(urlsplit(self.path).path)
        size = int(self.headers.get("Content-Length") or 0)
        body = self._chunks() if self._chunked() else self.rfile.read(size)
        writes = self.command in ("POST", "PUT") and "/lfs-files/" not in path
        bearer = f"Bearer {TOKEN}"
        if writes and self.headers.get("Authorization") != bearer:
            return self._send(401, {"error": "Invalid username or password."})
        for method, pattern, name in _ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in method:
                return getattr(self, name)(body, **found.groupdict())
        return self._send(404, {"error": f"no route {self.command} {path}"})

    def _chunked(self):
        return self.headers.get("Transfer-Encoding") == "chunked"

    def _chunks(self):
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, code, content=None, body=None, **headers):
        if body is None:
            body = json.dumps(content).encode()
            headers["Content-Type"] = "application/json"
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _missing(self, what):
        return self._send(404, {"error": what}, X_Error_Code=what)

    def create(self, body):
        wanted = json.loads(body)
        repo = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        code = 409 if repo in self.hub.commits else 200
        self.hub.commits.setdefault(repo, [])
        self.hub.private[repo] = wanted.get("private") or (
            wanted.get("visibility") == "private"
        )
        url = f"{self.hub.address}/{repo}"
        self._send(code, {"url": url, "name": repo, "id": repo})

    def validate(self, body):
        text = json.loads(body)["content"]
        errors = [] if text.startswith("---\n") else [{"message": "no head"}]
        self._send(200, {"errors": errors, "warnings": []})

    def preupload(self, body, repo, revision):
        if repo not in self.hub.commits:
            return self._missing("RepoNotFound")
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs"
                if file["path"].endswith(LARGE)
                else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in json.loads(body)["files"]
        ]
        return self._send(200, {"files": files})

    def batch(self, body, repo):
        objects = [
            {
                **wanted,
                "authenticated": True,
                "actions": {
                    "upload": {
                        "href": f"{self.hub.address}/lfs-files/{wanted['oid']}",
                        "header": {},
                    }
                },
            }
            for wanted in json.loads(body)["objects"]
        ]
        self._send(200, {"transfer": "basic", "objects": objects})

    def upload(self, body, oid):
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.large[oid] = body
        self._send(200, {})

    def commit(self, body, repo, revision):
        lines = [json.loads(line) for line in body.splitlines()]
        files = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        sha = self.hub.add(repo, files)
        url = f"{self.hub.address}/{repo}/commit/{sha}"
        self._send(200, {"success": True, "commitOid": sha, "commitUrl": url})

    def info(self, _, repo, revision="main"):
        if repo in self.hub.closed:
            reason = "Invalid credentials in Authorization header"
            return self._send(
                self.hub.closed[repo], {"error": reason}, X_Error_Message=reason
            )
        if repo not in self.hub.commits:
            return self._missing("RepoNotFound")
        found = self.hub.find(repo, revision)
        if not found:
            return self._missing("RevisionNotFound")
        sha, files = found
        return self._send(
            200,
            {
                "id": repo,
                "modelId": repo,
                "sha": sha,
                "private": False,
                "tags": [],
                "siblings": [{"rfilename": path} for path in files],
            },
        )

    def tree(self, _, repo, revision):
        _, files = self.hub.find(repo, revision)
        rows = [
            {
                "type": "file",
                "path": path,
                "size": len(content),
                "oid": hashlib.sha1(content).hexdigest(),
            }
            for path, content in files.items()
        ]
        self._send(200, rows)

    def resolve(self, _, repo, revision, path):
        if repo not in self.hub.commits:
            return self._missing("RepoNotFound")
        found = self.hub.find(repo, revision)
        if not found:
            return self._missing("RevisionNotFound")
        sha, files = found
        if path not in files:
            return self._missing("EntryNotFound")
        etag = hashlib.sha1(files[path]).hexdigest()
        return self._send(
            200, body=files[path], ETag=f'"{etag}"', X_Repo_Commit=sha
        )


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_ROUTES = [
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("POST", rf"/api/models/{_REPO}/preupload/(?P<revision>.+)", "preupload"),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/lfs-files/(?P<oid>\w+)", "upload"),
    ("POST", rf"/api/models/{_REPO}/commit/(?P<revision>.+)", "commit"),
    ("GET", rf"/api/models/{_REPO}", "info"),
    ("GET", rf"/api/models/{_REPO}/revision/(?P<revision>.+)", "info"),
    ("GET", rf"/api/models/{_REPO}/tree/(?P<revision>.+)", "tree"),
    (
        "GET HEAD",
        rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
        "resolve",
    ),
]
