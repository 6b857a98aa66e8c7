"""A Hugging Face Hub in memory, on loopback, for the real client, with faults to order.

Clients find it by HF_ENDPOINT, set before huggingface_hub is imported, with HF_HUB_DISABLE_XET=1.
"""

import base64
import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_loopback"


class LoopbackHub:
    """A Hub: ``repos[id]`` has private, gated, tags, commits [(id, {path: bytes})].

    ``log`` holds the requests.

    ``faults`` change how weight files are answered: status (a list, one per request), truncate,
    alter, html, slow (seconds per kB), redirect (a URL), etag, etags (a list), commit; ``create``
    and ``commit_status`` (lists) are how the creation of a repository and a commit are answered
    (None: as they should be), ``pushed_before`` holds files that somebody commits just before.
    """

    def __init__(self):
        self.repos, self.blobs, self.log, self.faults = {}, {}, [], {}
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = _Server(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def add(self, repo: str, files: dict[str, bytes], gone: tuple = (), **flags) -> str:
        """A repository with one commit more; returns its id."""
        known = self.repos.setdefault(
            repo, {"private": False, "gated": False, "commits": [], "tags": {}}
        )
        known.update(flags)
        before = known["commits"][-1][1] if known["commits"] else {}
        commit = hashlib.sha1(f"{repo}{len(known['commits'])}".encode()).hexdigest()
        known["commits"].append(
            (commit, {k: v for k, v in (before | files).items() if k not in gone})
        )
        return commit

    def gets(self, ending: str = "") -> list:
        return [
            (path, headers)
            for method, path, headers in self.log
            if method == "GET" and path.endswith(ending)
        ]

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """A client that hung up is what many tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LoopbackHub

    def log_message(self, *args):
        pass

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while count := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(count)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, code: int, data=b"", headers=None, length: int | None = None):
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(code)
        kind = "application/octet-stream" if isinstance(data, bytes) else "application/json"
        length = len(body) if length is None else length
        for key, value in {
            "Content-Type": kind,
            "Content-Length": str(length),
            **(headers or {}),
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        pause = self.hub.faults.get("slow")
        for start in range(0, len(body), 1000 if pause else 2**20):
            self.wfile.write(body[start : start + (1000 if pause else 2**20)])
            self.wfile.flush()
            time.sleep(pause or 0)
        if length > len(body):
            self.close_connection = True

    def _refuse(self, code: int, kind: str, text: str, headers=None):
        self._send(
            code,
            {"error": text},
            {"X-Error-Code": kind, "X-Error-Message": text, **(headers or {})},
        )

    def _any(self):
        path, data = unquote(urlsplit(self.path).path), self._body()
        self.hub.log.append(
            (self.command, path, {key.lower(): value for key, value in self.headers.items()})
        )
        routes = (
            (r"/api/whoami-v2", self._whoami),
            (r"/api/repos/create", self._create),
            (r"/api/repos/delete", self._delete),
            (r"/api/validate-yaml", lambda _: self._send(200, {"errors": [], "warnings": []})),
            (r"/_lfs/(\w+)", self._put),
            (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._batch),
            (r"/api/models/([^/]+/[^/]+)((?:/.*)?)", self._api),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._resolve),
        )
        for pattern, answer in routes:
            if found := re.fullmatch(pattern, path):
                return answer(data, *found.groups())
        return self._send(404, {"error": f"no route {path}"})

    do_GET = do_POST = do_HEAD = do_PUT = do_DELETE = _any  # noqa: N815 - http.server's names

    def _may(self, repo: str, write: bool = False) -> bool:
        known = self.hub.repos.get(repo)
        token = self.headers.get("authorization") == f"Bearer {TOKEN}"
        if known is None or ((known["private"] or write) and not token):
            self._refuse(404 if token else 401, "RepoNotFound", "Repository not found")
            return False
        return True

    def _tree(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        known = self.hub.repos[repo]
        wanted = known["tags"].get(
            revision, known["commits"][-1][0] if revision == "main" else revision
        )
        return next((commit for commit in known["commits"] if commit[0] == wanted), None)

    def _whoami(self, data):
        known = self.headers.get("authorization") == f"Bearer {TOKEN}"
        self._send(200, {"type": "user", "name": "me", "orgs": []}) if known else self._send(
            401, {"error": "who?"}
        )

    def _create(self, data):
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            return self._send(401, {"error": "Invalid username or password."})
        if self.hub.faults.get("create"):
            return self._send(self.hub.faults["create"].pop(0), {"error": "injected"})
        asked = json.loads(data)
        repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
        url = {"url": f"{self.hub.url}/{repo}", "name": repo, "id": repo}
        if repo in self.hub.repos:
            return self._send(409, {"error": "You already created this model repo", **url})
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.add(repo, {".gitattributes": b""}, private=private)
        return self._send(200, url)

    def _delete(self, data):
        asked = json.loads(data)
        repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if self._may(repo, write=True):
            del self.hub.repos[repo]
            self._send(200, {})

    def _put(self, data, oid):
        self.hub.blobs[oid] = data
        self._send(200 if hashlib.sha256(data).hexdigest() == oid else 400)

    def _batch(self, data, repo):
        objects = []
        for asked in json.loads(data)["objects"]:
            upload = {
                "actions": {"upload": {"href": f"{self.hub.url}/_lfs/{asked['oid']}", "header": {}}}
            }
            objects.append({**asked, **({} if asked["oid"] in self.hub.blobs else upload)})
        self._send(
            200,
            {"transfer": "basic", "objects": objects},
            {"Content-Type": "application/vnd.git-lfs+json"},
        )

    def _api(self, data, repo, rest):
        action, _, rest = rest.lstrip("/").partition("/")
        if not self._may(repo, write=action in ("preupload", "commit", "tag")):
            return None
        revision, _, _ = rest.partition("/")
        tree = self._tree(repo, revision or "main")
        if tree is None:
            return self._refuse(404, "RevisionNotFound", "Invalid rev id")
        commit, files = tree
        if action in ("", "revision"):
            private = self.hub.repos[repo]["private"]
            siblings = [{"rfilename": name} for name in files]
            return self._send(
                200,
                {"id": repo, "sha": commit, "private": private, "tags": [], "siblings": siblings},
            )
        if action == "tree":
            entries = [_entry(name, body) for name, body in files.items()]
            return self._send(200, entries, {"X-Repo-Commit": commit})
        if action == "preupload":
            asked = json.loads(data)["files"]
            modes = [
                {
                    "path": (name := f["path"]),
                    "uploadMode": "lfs" if _is_lfs(name) else "regular",
                    "shouldIgnore": False,
                    "oid": _entry(name, files[name])["oid"] if name in files else None,
                }
                for f in asked
            ]
            return self._send(200, {"files": modes})
        if action == "tag":
            tag, known = json.loads(data)["tag"], self.hub.repos[repo]["tags"]
            known.setdefault(tag, commit)
            return self._send(200 if known[tag] == commit else 409, {})
        if action == "commit":
            return self._commit(
                repo, [json.loads(line) for line in data.splitlines() if line.strip()]
            )
        return self._send(404, {"error": f"no action {action}"})

    def _commit(self, repo, lines):
        if (faults := self.hub.faults.get("commit_status")) and (status := faults.pop(0)):
            return self._send(status, {"error": "injected"})
        if before := self.hub.faults.pop("pushed_before", None):  # somebody else's files
            self.hub.add(repo, before)
        added = {}
        for line in lines:
            value = line["value"]
            parent = value.get("parentCommit") if line["key"] == "header" else None
            if parent not in (None, self.hub.repos[repo]["commits"][-1][0]):
                return self._refuse(412, "PreconditionFailed", "A commit has happened since")
            if line["key"] == "file":
                added[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                added[value["path"]] = self.hub.blobs[value["oid"]]
        gone = tuple(line["value"]["path"] for line in lines if line["key"] == "deletedFile")
        commit = self.hub.add(repo, added, gone)
        return self._send(
            200,
            {
                "success": True,
                "commitOid": commit,
                "commitUrl": f"{self.hub.url}/{repo}/commit/{commit}",
            },
        )

    def _resolve(self, data, repo, revision, name):
        if not self._may(repo):
            return None
        faults = self.hub.faults
        if faults.get("status"):
            return self._send(faults["status"].pop(0), {"error": "injected"})
        if self.hub.repos[repo]["gated"]:
            return self._refuse(403, "GatedRepo", "Access to this model is restricted")
        tree = self._tree(repo, revision)
        if tree is None:
            return self._refuse(404, "RevisionNotFound", "Invalid rev id")
        commit, files = faults.get("commit", tree[0]), tree[1]
        if name not in files:
            return self._refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        body = files[name]
        etag = faults.get("etag", _entry(name, body)["oid"])
        if faults.get("etags"):  # one per request
            etag = faults["etags"].pop(0) or etag
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"'}
        if not _is_lfs(name):
            return self._send(200, body, headers)
        headers |= {"X-Linked-Size": str(len(body)), "X-Linked-ETag": headers["ETag"]}
        if faults.get("redirect"):
            return self._send(302, b"", headers | {"Location": faults["redirect"]})
        if faults.get("alter"):
            body = body[:-9] + bytes([body[-9] ^ 1]) + body[-8:]
        if faults.get("html"):
            body = b"<html>please log in</html>"
        sent = body[: len(body) // 2] if faults.get("truncate") else body
        return self._send(200, sent, headers, length=len(body))


def _is_lfs(name: str) -> bool:
    return name.endswith(".safetensors")


def _entry(name: str, body: bytes) -> dict:
    blob = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
    if not _is_lfs(name):
        return {"type": "file", "oid": blob, "size": len(body), "path": name}
    oid = hashlib.sha256(body).hexdigest()
    lfs = {"oid": oid, "size": len(body), "pointerSize": 134}
    return {"type": "file", "oid": oid, "size": len(body), "path": name, "lfs": lfs}
