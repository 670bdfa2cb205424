"""Download a file over HTTP. A download resumes after an interruption, is verified, and appears whole or not at all.

During the download, ``.NAME.part`` beside the target holds the bytes, and ``.NAME.part.json`` the version of the object (its ETag or date).
A later attempt requests only the rest of that version (``Range`` with ``If-Range``), and restarts if the server has another version. At the
end the size is compared, and the hashes in the server's headers (``x-goog-hash``, ``Content-MD5``) or, without them, the checksum of a gzip
file. Then a rename gives the file its name. ``gs://BUCKET/OBJECT`` is the bucket's public address.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from offrl.errors import DownloadFailed
from offrl_store.disk import disk_errors, publish, reserve
from offrld.datasets.crc32c import crc32c

CHUNK = 1 << 20
ATTEMPTS = 5  # consecutive attempts without a single byte
TIMEOUT_S = 60.0  # without a byte from the server
WAIT_S = 1.0  # before the second attempt; doubled for each further one
AGAIN = (408, 429, 500, 502, 503, 504)  # statuses that may be temporary
GCS = "https://storage.googleapis.com/"

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Described:
    """A server's description of an object: size in bytes, version, and hashes (base64, as in the headers); None if not stated."""

    size: int | None
    version: str | None
    md5: str | None = None
    crc32c: str | None = None


def fetch(url: str, target: Path, *, progress: Progress | None = None, sha256: str | None = None) -> Path:
    """Download ``url`` to ``target``, unless it exists. Returns ``target``.

    Args:
        url: http(s) or gs, with special characters quoted (``$`` is not special).
        progress: called with the bytes so far and their total (None if the server does not state it). May raise to stop; the bytes are
            kept.
        sha256: expected hash in hexadecimal, for example from a listing.

    Raises:
        DownloadFailed: the server cannot be reached, does not have the file, or its bytes do not match its description.
        DiskFull: the disk is full; the bytes so far are kept.
    """
    with disk_errors(target), _claimed(target, progress) as part:
        if target.exists():
            return target
        described = _receive(https(url), part, progress)
        _check(url, part, described, sha256)
        publish(part, target)
        _notes(part).unlink(missing_ok=True)
    return target


def read_json(url: str) -> Any:
    """Download a small JSON document, such as a listing. Raises `DownloadFailed`."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"User-Agent": "offrld"}), timeout=TIMEOUT_S) as reply:
            return json.loads(reply.read(64 * CHUNK))
    except urllib.error.HTTPError as error:
        raise DownloadFailed(f"{url}: the server answers {error.code} {error.reason}", hint="check the name") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DownloadFailed(f"{url} cannot be read: {error}", hint=_OFFLINE) from None


def https(url: str) -> str:
    """Return the https address of a gs:// URL; any other URL unchanged."""
    return GCS + url.removeprefix("gs://") if url.startswith("gs://") else url


@contextmanager
def _claimed(target: Path, progress: Progress | None) -> Iterator[Path]:
    """Lock the file of the bytes so far for this process. A second process that downloads the same file waits."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    lock = os.open(target.with_name(f".{target.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if progress is not None:
                    progress(0, None)
                time.sleep(0.2)
        yield part
        if target.exists():
            target.with_name(f".{target.name}.lock").unlink(missing_ok=True)
    finally:
        os.close(lock)


def _receive(url: str, part: Path, progress: Progress | None) -> Described:
    """Download the missing part, with retries while there is progress. Returns the server's description of the object."""
    failures, trouble = 0, ""
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            return _request(url, part, progress)
        except urllib.error.HTTPError as error:
            if error.code not in AGAIN:
                hint = "check the name; the file may have moved" if error.code in (403, 404) else ""
                raise DownloadFailed(f"{url}: the server answers {error.code} {error.reason}", hint=hint) from None
            trouble = f"{error.code} {error.reason}"
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, EOFError) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(reason, OSError) and not isinstance(reason, TimeoutError | ConnectionError) and before == 0 and failures >= 1:
                # The host is unknown: more attempts do not help.
                raise DownloadFailed(f"{url} cannot be reached: {reason}", hint=_OFFLINE) from None
            trouble = f"{type(reason).__name__}: {reason}" if not isinstance(reason, str) else reason
        failures = 0 if part.exists() and part.stat().st_size > before else failures + 1
        if failures >= ATTEMPTS:
            raise DownloadFailed(f"{url} cannot be fetched: {trouble}", hint=_OFFLINE)
        time.sleep(min(30.0, WAIT_S * 2 ** max(0, failures - 1)) if failures else 0.1)
        if progress is not None:
            progress(before, None)  # lets the caller stop between two attempts


_OFFLINE = "try again later: the bytes so far are kept; without a network, put the files into the local folder yourself"


def _request(url: str, part: Path, progress: Progress | None) -> Described:
    """Request the rest of the object and append it to the part. Raises EOFError if the reply is incomplete."""
    present, version = part.stat().st_size if part.exists() else 0, _version(part)
    headers = {"User-Agent": "offrld", "Accept-Encoding": "identity"}
    if present and version:
        headers |= {"Range": f"bytes={present}-", "If-Range": version}
    try:
        reply = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the part is complete, or too long and of another version: restart
            part.unlink(missing_ok=True)
            raise EOFError("the server has no further bytes") from None
        raise
    with reply:
        start = _start(reply) if reply.status == 206 else 0
        described = _described(reply, start)
        if start > present:
            raise EOFError(f"requested the bytes from {present} on, received those from {start} on")
        _notes(part).write_text(json.dumps({"version": described.version}))
        with open(part, "r+b" if part.exists() else "w+b") as file:
            file.truncate(start)
            file.seek(start)
            done = start
            while block := reply.read1(CHUNK):  # returns available bytes at once, so that an interruption loses nothing
                reserve(len(block))
                file.write(block)
                done += len(block)
                if progress is not None:
                    progress(done, described.size)
            if described.size is not None and done < described.size:
                raise EOFError(f"the connection ended after {done} of {described.size} bytes")
            file.flush()
            os.fsync(file.fileno())
    return described


def _start(reply: Any) -> int:
    unit, _, span = (reply.headers.get("Content-Range") or "").partition(" ")
    first = span.partition("-")[0]
    if unit != "bytes" or not first.isdecimal():
        raise http.client.HTTPException(f"a part without a range: {reply.headers.get('Content-Range')!r}")
    return int(first)


def _described(reply: Any, start: int) -> Described:
    length = reply.headers.get("Content-Length")
    hashes = dict(
        each.strip().split("=", 1) for line in reply.headers.get_all("x-goog-hash", []) for each in line.split(",") if "=" in each
    )
    tag = reply.headers.get("ETag")
    whole = reply.status == 200
    return Described(
        size=start + int(length) if length is not None else None,
        version=tag if tag and not tag.startswith("W/") else reply.headers.get("Last-Modified"),
        md5=hashes.get("md5") or (reply.headers.get("Content-MD5") if whole else None),
        crc32c=hashes.get("crc32c"),
    )


def _notes(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _version(part: Path) -> str | None:
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        version = json.loads(_notes(part).read_text())["version"]
        return version if isinstance(version, str) and version.isprintable() else None
    return None


def _check(url: str, part: Path, described: Described, sha256: str | None) -> None:
    """Verify the bytes. If they do not match the description, delete them and raise `DownloadFailed`."""
    size = part.stat().st_size
    wrong = ""
    if described.size is not None and size != described.size:
        wrong = f"it has {size} bytes, expected {described.size}"
    elif sha256 is not None:
        with open(part, "rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if actual != sha256:
            wrong = f"its sha256 is {actual}, expected {sha256}"
    elif described.md5 or described.crc32c:
        name, expected = ("md5", described.md5) if described.md5 else ("crc32c", described.crc32c)
        with open(part, "rb") as file:
            actual = _md5(file) if name == "md5" else _crc32c(file)
        if actual != expected:
            wrong = f"its {name} is {actual}, expected {expected}"
    elif part.name.endswith(".gz.part"):
        wrong = gzip_damage(part)
    if wrong:
        part.unlink()
        _notes(part).unlink(missing_ok=True)
        raise DownloadFailed(f"{url} arrived damaged: {wrong}", hint="download it again; a proxy or the mirror may be at fault")


def _md5(file: BufferedReader) -> str:
    return base64.b64encode(hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).digest()).decode()


def _crc32c(file: BufferedReader) -> str:
    crc = 0
    while block := file.read(8 * CHUNK):
        crc = crc32c(block, crc)
    return base64.b64encode(crc.to_bytes(4, "big")).decode()


def gzip_damage(path: Path) -> str:
    """Check a gzip file by its own length and checksum. Returns the problem, or "" if the file is intact."""
    inflate, left = zlib.decompressobj(wbits=31), b""
    with open(path, "rb") as file:
        try:
            while True:
                block = left or file.read(CHUNK)
                if not block:
                    return "" if inflate.eof else "the gzip stream is cut"
                if inflate.eof:  # another member follows
                    inflate = zlib.decompressobj(wbits=31)
                inflate.decompress(block, 16 * CHUNK)
                while inflate.unconsumed_tail:
                    inflate.decompress(inflate.unconsumed_tail, 16 * CHUNK)
                left = inflate.unused_data
        except zlib.error as error:
            return f"the gzip stream is damaged ({error})"
