"""A local HTTP server that speaks enough of the Hub's protocol for huggingface_hub's own client.

Repositories, preupload, LFS (basic transfer), commits, tree, info, file downloads and metadata validation. Run the
client with `HF_ENDPOINT` at `FakeHub.url` and without xet.
"""

import base64
import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from huggingface_hub import ModelCard

USER = "tester"
TOKEN = "hf_local"
LFS_FROM = 10_000


@dataclass
class Repo:
    private: bool = False
    commits: list[tuple[str, str, dict[str, bytes]]] = field(default_factory=list)

    @property
    def files(self):
        return self.commits[-1][2] if self.commits else {}

    @property
    def sha(self):
        return self.commits[-1][0] if self.commits else "0" * 40

    def commit(self, message, files):
        sha = hashlib.sha1(f"{len(self.commits)}{message}".encode()).hexdigest()
        self.commits.append((sha, message, files))
        return sha


class FakeHub:
    """`with FakeHub() as hub:` serves at `hub.url`; `hub.failures` holds answers to give instead of the right ones."""

    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.failures: list[tuple[str, int]] = []
        self.delay = 0.0
        self.cut: dict[str, int] = {}  # by the name of a file: bytes after which its downloads break off
        self.lock = threading.Lock()

    def __enter__(self):
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()

    def fail(self, part_of_path, status, times=1):
        """Answer the next `times` requests whose path contains the text with an error status."""
        self.failures += [(part_of_path, status)] * times

    def failure_of(self, path):
        with self.lock:
            for failure in self.failures:
                if failure[0] in path:
                    self.failures.remove(failure)
                    return failure[1]
        return None


def etag(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *args):
        pass

    def _answer(self, value=None, status=200, headers=(), body=None):
        body = json.dumps(value).encode() if body is None else body
        self.send_response(status)
        standard = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        for name, text in {**standard, **dict(headers)}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            cut = self.hub.cut.get(urlsplit(self.path).path.rpartition("/")[2])
            self.wfile.write(body[:cut])
            self.close_connection |= cut is not None

    def _handle(self):
        # Spaces are kept beside models, as "spaces/user/name".
        path = unquote(urlsplit(self.path).path).replace("/api/spaces/", "/api/models/spaces/")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) if self.command != "GET" else b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = self._chunks()
        self.hub.requests.append(f"{self.command} {path}")
        time.sleep(self.hub.delay)
        status = self.hub.failure_of(path)
        if status is not None:
            return self._answer({"error": "made to fail"}, status)
        for pattern, method in ROUTES:
            match = re.fullmatch(pattern, f"{self.command} {path}")
            if match:
                return method(self, *match.groups())
        return self._answer({"error": f"the fake has no {self.command} {path}"}, 404)

    do_GET = do_POST = do_PUT = do_HEAD = _handle

    def _chunks(self):
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _allowed(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _repo(self, repo_id):
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and not self._allowed()):
            self._answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            return None
        return repo

    def create(self):
        if not self._allowed():
            return self._answer({"error": "Invalid user token."}, 401)
        wanted = json.loads(self.body)
        repo_id = f"{wanted.get('organization') or USER}/{wanted['name']}"
        repo_id = f"spaces/{repo_id}" if wanted.get("type") == "space" else repo_id
        exists = repo_id in self.hub.repos
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.hub.repos.setdefault(repo_id, Repo(private))
        return self._answer({"url": f"{self.hub.url}/{repo_id}", "error": "exists"}, 409 if exists else 200)

    def validate(self):
        try:
            card = ModelCard(json.loads(self.body)["content"])
            errors = [] if card.data.to_dict() else ["no metadata"]
        except (ValueError, KeyError, TypeError) as error:
            errors = [str(error)]
        return self._answer({"errors": [{"message": e} for e in errors], "warnings": []}, 400 if errors else 200)

    def preupload(self, repo_id):
        if self._repo(repo_id) is None:
            return None
        files = json.loads(self.body)["files"]
        answers = [
            {"path": f["path"], "uploadMode": "lfs" if f["size"] >= LFS_FROM else "regular", "shouldIgnore": False}
            for f in files
        ]
        return self._answer({"files": answers})

    def lfs_batch(self, repo_id):
        objects = []
        for each in json.loads(self.body)["objects"]:
            known = each["oid"] in self.hub.objects
            upload = {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{each['oid']}", "header": {}}}}
            objects.append({**each, **({} if known else upload)})
        return self._answer({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self._answer({"error": "wrong content"}, 422)
        self.hub.objects[oid] = self.body
        return self._answer({})

    def commit(self, repo_id):
        repo = self._repo(repo_id)
        if repo is None:
            return None
        if not self._allowed():
            return self._answer({"error": "forbidden"}, 403)
        message, files = "", dict(repo.files)
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "deletedFile":
                files.pop(value["path"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        sha = repo.commit(message, files)
        return self._answer({"commitUrl": f"{self.hub.url}/{repo_id}/commit/{sha}", "commitOid": sha})

    def info(self, repo_id, _revision=None):
        repo = self._repo(repo_id)
        if repo is None:
            return None
        siblings = [{"rfilename": name} for name in repo.files]
        value = {"id": repo_id, "modelId": repo_id, "sha": repo.sha, "private": repo.private, "siblings": siblings}
        return self._answer({**value, "tags": [], "downloads": 0})

    def tree(self, repo_id, _revision):
        repo = self._repo(repo_id)
        if repo is None:
            return None
        return self._answer(
            [{"type": "file", "path": p, "size": len(c), "oid": etag(c)} for p, c in sorted(repo.files.items())]
        )

    def resolve(self, _method, repo_id, _revision, path):
        repo = self._repo(repo_id)
        if repo is None:
            return None
        headers = {"X-Repo-Commit": repo.sha}
        if path not in repo.files:
            return self._answer({"error": "Entry not found"}, 404, {**headers, "X-Error-Code": "EntryNotFound"})
        content = repo.files[path]
        headers |= {"ETag": f'"{etag(content)}"', "Content-Type": "application/octet-stream"}
        return self._answer(headers=headers, body=content)

    def who(self):
        return self._answer({"name": USER, "type": "user", "orgs": []} if self._allowed() else {}, 200)


_ID = r"((?:spaces/)?[^/]+/[^/]+)"
ROUTES = (
    (r"POST /api/repos/create", _Handler.create),
    (r"POST /api/validate-yaml", _Handler.validate),
    (r"GET /api/whoami-v2", _Handler.who),
    (rf"POST /api/models/{_ID}/preupload/.*", _Handler.preupload),
    (rf"POST /{_ID}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (r"PUT /lfs/(\w+)", _Handler.lfs_put),
    (rf"POST /api/models/{_ID}/commit/.*", _Handler.commit),
    (rf"GET /api/models/{_ID}/tree/([^/]+).*", _Handler.tree),
    (rf"GET /api/models/{_ID}(?:/revision/(.*))?", _Handler.info),
    (rf"(GET|HEAD) /{_ID}/resolve/([^/]+)/(.*)", _Handler.resolve),
)
