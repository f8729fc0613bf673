"""A server on this machine that speaks the file endpoints of the Hugging Face hub, and breaks when
it is told to.
"""

import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse

COMMIT = "c0ffee" + "0" * 34


class HubServer:
    """The files of one data set (or model), and a list of what was asked for.

    Attributes:
        break_after: bytes after which a file's next downloads break off, one entry for each
            download.
        ranges: whether it can send a part of a file.
        wrong: content that is sent in place of a file's.
        requests: (method, path, Range header).
    """

    def __init__(self, repo: str, files: dict[str, bytes]):
        self.repo, self.files = repo, files
        self.break_after: dict[str, list[int]] = {}
        self.wrong: dict[str, bytes] = {}
        self.lfs = self.ranges = True
        self.requests: list[tuple[str, str, str | None]] = []

    def downloads(self, file: str) -> list[str | None]:
        """The Range headers of a file's downloads, in order."""
        return [
            asked
            for method, path, asked in self.requests
            if method == "GET" and path.endswith(f"/{file}") and "/resolve/" in path
        ]


@contextlib.contextmanager
def serve(hub: HubServer):
    """Yields the server's address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body: bool):
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            hub.requests.append((self.command, path, self.headers.get("Range")))
            kind = r"(?:api/)?(?:datasets/|models/)?"
            if re.fullmatch(rf"/{kind}{hub.repo}/revision/\w+", path):
                self.send_json({"id": hub.repo, "sha": COMMIT, "siblings": []})
            elif re.fullmatch(rf"/{kind}{hub.repo}/tree/{COMMIT}", path):
                self.send_tree()
            elif match := re.fullmatch(rf"/{kind}{hub.repo}/resolve/(\w+)/(.+)", path):
                self.send_file(match[2], body)
            else:
                self.send_json({"error": "Repository not found"}, 404)

        def send_tree(self):
            """Two pages, linked as the hub's."""
            second = "cursor=2" in self.path
            entries = [{"type": "directory", "path": "train", "oid": "0" * 40, "size": 0}]
            for name, content in hub.files.items():
                digest = hashlib.sha256(content).hexdigest()
                lfs = (
                    {"lfs": {"oid": digest, "size": len(content), "pointerSize": 130}}
                    if hub.lfs
                    else {}
                )
                entries.append(
                    {"type": "file", "path": name, "oid": digest[:40], "size": len(content), **lfs}
                )
            half = len(entries) // 2
            link = {} if second else {"Link": f'<{address}{self.path}&cursor=2>; rel="next"'}
            self.send_json(entries[half:] if second else entries[:half], headers=link)

        def send_file(self, name: str, body: bool):
            if name not in hub.files:
                self.send_json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
                return
            content = hub.wrong.get(name, hub.files[name])
            start = int(
                (self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-") or 0
            )
            if start and start >= len(content):
                self.send_json({}, 416)
                return
            start = start if hub.ranges else 0
            part = content[start:]
            self.send_response(206 if start else 200)
            if start:
                self.send_header(
                    "Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}"
                )
            self.send_header("Content-Length", str(len(part)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(hub.files[name]).hexdigest()}"')
            self.end_headers()
            if not body:
                return
            limits = hub.break_after.get(name)
            if limits:
                self.wfile.write(part[: limits.pop(0)])
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()
            else:
                self.wfile.write(part)

        def send_json(self, value, status: int = 200, headers: dict | None = None):
            content = json.dumps(value).encode()
            self.send_response(status)
            for name, text in {
                "Content-Type": "application/json",
                "Content-Length": str(len(content)),
                **(headers or {}),
            }.items():
                self.send_header(name, text)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield address
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
