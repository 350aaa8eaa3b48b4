"""A small Hugging Face hub on this machine."""

import base64
import hashlib
import json
import re
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT, OLDER = "a" * 40, "b" * 40


class Hub(ThreadingHTTPServer):
    """What the library asks of a hub: a repository's commit, its tree, and its files, whole or in part."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None, str | None]] = []  # path, Range and Authorization of each request
        self.pushed: dict[str, bytes] = {}  # what the last commit to o/new has uploaded
        self.drops: set[int] = set()  # requests for parts, by number, that end in the middle of their content
        self.refuses: dict[int, int] = {}  # requests for parts, by number, that are answered with this status
        self.status = 200  # of everything
        self.error_code = ""
        self.lies = False
        self._parts = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def ranges(self) -> list[str]:
        """The parts that were asked for, in order."""
        return [part.removeprefix("bytes=") for _, part, _ in self.asked if part]

    def next_part(self) -> int:
        self._parts += 1
        return self._parts - 1


class Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
        self.server.asked.append((path, self.headers["Range"], self.headers["Authorization"]))
        if self.server.status != 200:
            return self.say(self.server.status, {}, **{"X-Error-Code": self.server.error_code})
        if not re.match("(/api)?/(datasets/o/n|models/o/t|o/t)(/|$)", path):
            return self.say(404, {}, **{"X-Error-Code": "RepoNotFound"})
        if "/revision/" in path or path.endswith(("/o/n", "/o/t")):
            revision = path.partition("/revision/")[2] or "main"
            commits = {"main": COMMIT, "refs/convert/parquet": OLDER, COMMIT: COMMIT, OLDER: OLDER}
            if revision not in commits:
                return self.say(404, {}, **{"X-Error-Code": "RevisionNotFound"})
            return self.say(200, {"id": "o/n", "sha": commits[revision]})
        if "/tree/" in path:
            return self.say(200, self.tree(path.partition("/tree/")[2].partition("/")[2]))
        return self.file(path.partition("/resolve/")[2].partition("/")[2])

    def do_POST(self) -> None:
        """A new repository o/new, and commits to it whose files are all in the request."""
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.asked.append((self.path, None, self.headers["Authorization"]))
        if self.server.status != 200:
            return self.say(self.server.status, {})
        if self.path == "/api/repos/create":
            return self.say(200, {"url": f"{self.server.url}/o/new"})
        if self.path == "/api/validate-yaml":
            return self.say(200, {"warnings": [], "errors": []})
        if self.path.endswith("/preupload/main"):
            files = json.loads(text)["files"]
            mode = {"uploadMode": "regular", "shouldIgnore": False}
            return self.say(200, {"files": [{"path": file["path"], **mode} for file in files]})
        values = [line["value"] for line in map(json.loads, text.splitlines()) if line["key"] == "file"]
        self.server.pushed = {value["path"]: base64.b64decode(value["content"]) for value in values}
        address = f"{self.server.url}/o/new/commit/{COMMIT}"
        return self.say(200, {"commitUrl": address, "commitOid": COMMIT, "success": True})

    def tree(self, folder: str) -> list[dict[str, Any]]:
        files = {name: data for name, data in self.server.files.items() if name.startswith(folder)}
        folders = {name.rpartition("/")[0] for name in files if "/" in name}
        return [{"type": "directory", "path": name, "oid": "0" * 40} for name in sorted(folders)] + [
            {"type": "file", "path": name, "size": len(data)} | oids(data, large=name.endswith(".parquet"))
            for name, data in files.items()
        ]

    def file(self, name: str) -> None:
        data = self.server.files.get(name)
        if data is None:
            return self.say(404, {}, **{"X-Error-Code": "EntryNotFound"})
        headers = {"ETag": f'"{oids(data, False)["oid"]}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        part = self.headers["Range"]
        if part is None:
            return self.give(200, data, headers)
        number = self.server.next_part()
        if number in self.server.refuses:
            return self.say(self.server.refuses[number], {})
        first, last = (int(number) for number in part.removeprefix("bytes=").split("-"))
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        content = data[first : last + 1]
        content = b"?" * len(content) if self.server.lies else content
        return self.give(206, content, headers, number in self.server.drops)

    def say(self, status: int, content: Any, **headers: str) -> None:
        self.give(status, json.dumps(content).encode(), {"Content-Type": "application/json"} | headers)

    def give(self, status: int, content: bytes, headers: dict[str, str], broken: bool = False) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if broken else content)
        if broken:
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


def oids(data: bytes, large: bool) -> dict[str, Any]:
    plain = {"oid": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}
    lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return plain | ({"lfs": lfs} if large else {})
