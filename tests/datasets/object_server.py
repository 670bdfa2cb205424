"""A real HTTP server over a folder for the download tests: ranges, versions, hashes as Google's buckets give them, and failures on
demand."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


class ObjectServer:
    """Serves the files of a folder.

    Attributes:
        url: its address.
        asked: (path, Range header or None) of every request, in order.
        cuts: bytes after which the connection of a request for an object is cut, taken from the front; None: not cut.
        statuses: an error status for the next requests, taken from the front; None: none.
        hashes: what stands in ``x-goog-hash``: a subset of ``("md5", "crc32c")``.
        spoil: the body has other bytes than the headers announce.
        documents: path -> JSON that is answered there, for listings.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.asked, self.cuts, self.statuses = root, [], [], []
        self.hashes: tuple[str, ...] = ("md5",)
        self.crc32c = ""
        self.spoil = self.no_ranges = False
        self.documents: dict[str, Any] = {}
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *arguments: Any) -> None:
                """Nothing on stderr."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        self.asked.append((path, request.headers.get("Range")))
        status = self.statuses.pop(0) if self.statuses else None
        file = self.root / path.lstrip("/")
        if path in self.documents:
            return self._send(request, 200, json.dumps(self.documents[path]).encode(), {})
        if status is not None or not file.is_file():
            return self._send(request, status or 404, b"no", {})
        data = file.read_bytes()
        tag = f'"{hashlib.md5(data).hexdigest()}"'
        headers = {"ETag": tag, "Accept-Ranges": "bytes"}
        values = {"md5": base64.b64encode(hashlib.md5(data).digest()).decode(), "crc32c": self.crc32c}
        if self.hashes:
            headers["x-goog-hash"] = ",".join(f"{name}={values[name]}" for name in self.hashes)
        start, code = 0, 200
        if (span := request.headers.get("Range")) and not self.no_ranges and request.headers.get("If-Range") in (None, tag):
            start, code = int(span.removeprefix("bytes=").partition("-")[0]), 206
            if start >= len(data):
                return self._send(request, 416, b"", {"Content-Range": f"bytes */{len(data)}"})
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        body = data[start:]
        if self.spoil:
            body = bytes([body[0] ^ 1]) + body[1:]
        return self._send(request, code, body, headers, self.cuts.pop(0) if self.cuts else None)

    @staticmethod
    def _send(request: BaseHTTPRequestHandler, code: int, body: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        request.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body if cut is None else body[:cut])
        request.wfile.flush()
        if cut is not None:
            request.close_connection = True
            request.connection.close()


@contextmanager
def serving(root: Path) -> Iterator[ObjectServer]:
    server = ObjectServer(root)
    try:
        yield server
    finally:
        server.close()
