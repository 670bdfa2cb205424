"""Downloading a file over HTTP: resumed where it was cut, checked against what the server says of it, and whole or not there at all.

While it comes the bytes stand in ``.NAME.part`` beside the target, and ``.NAME.part.json`` says of which version of the object they are
(its ETag or date); a later attempt asks for the rest of that version alone (``Range`` with ``If-Range``) and begins anew where the server
has another. At the end the size, the hashes of the server's headers (``x-goog-hash``, ``Content-MD5``) and, where there are none, the check
sum of a gzip file are compared; then the file gets its name by one rename. ``gs://BUCKET/OBJECT`` is the bucket's public address.
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
ATTEMPTS = 5  # in a row without a single byte
TIMEOUT_S = 60.0  # of silence
WAIT_S = 1.0  # before the second attempt; doubled for each further one
AGAIN = (408, 429, 500, 502, 503, 504)  # statuses that may be over in a moment
GCS = "https://storage.googleapis.com/"

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Described:
    """What a server says of an object: its size, its version, and the hashes of its bytes (base64, as the headers have them)."""

    size: int | None
    version: str | None
    md5: str | None = None
    crc32c: str | None = None


def fetch(url: str, target: Path, *, progress: Progress | None = None, sha256: str | None = None) -> Path:
    """Downloads ``url`` to ``target``, unless that is there already; returns it.

    Args:
        url: http(s) or gs. Characters that stand for something else in a URL (``$`` is none) are to be quoted.
        progress: called with the bytes there and their total (None where the server does not say). May raise to stop: the bytes are kept.
        sha256: what a listing says of the bytes, in hexadecimal.

    Raises:
        DownloadFailed: the server cannot be reached, has no such file, or gives bytes that are not those it announces.
        DiskFull: the bytes so far are kept.
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
    """A small JSON document, such as a listing. Raises `DownloadFailed`."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"User-Agent": "offrld"}), timeout=TIMEOUT_S) as reply:
            return json.loads(reply.read(64 * CHUNK))
    except urllib.error.HTTPError as error:
        raise DownloadFailed(f"{url}: the server answers {error.code} {error.reason}", hint="see whether the name is right") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DownloadFailed(f"{url} cannot be read: {error}", hint=_OFFLINE) from None


def https(url: str) -> str:
    """The address of a public object of a bucket; any other URL as it is."""
    return GCS + url.removeprefix("gs://") if url.startswith("gs://") else url


@contextmanager
def _claimed(target: Path, progress: Progress | None) -> Iterator[Path]:
    """The file of the bytes so far, for this process alone: a second one that wants the same file waits for the first."""
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
    """Fetch the missing part, and retry after each interruption while there is progress; returns the server's description of the object."""
    failures, trouble = 0, ""
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            return _request(url, part, progress)
        except urllib.error.HTTPError as error:
            if error.code not in AGAIN:
                hint = "see whether the name is right; what is published may have moved" if error.code in (403, 404) else ""
                raise DownloadFailed(f"{url}: the server answers {error.code} {error.reason}", hint=hint) from None
            trouble = f"{error.code} {error.reason}"
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, EOFError) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(reason, OSError) and not isinstance(reason, TimeoutError | ConnectionError) and before == 0 and failures >= 1:
                raise DownloadFailed(
                    f"{url} cannot be reached: {reason}", hint=_OFFLINE
                ) from None  # no such host: more attempts do not help
            trouble = f"{type(reason).__name__}: {reason}" if not isinstance(reason, str) else reason
        failures = 0 if part.exists() and part.stat().st_size > before else failures + 1
        if failures >= ATTEMPTS:
            raise DownloadFailed(f"{url} cannot be fetched: {trouble}", hint=_OFFLINE)
        time.sleep(min(30.0, WAIT_S * 2 ** max(0, failures - 1)) if failures else 0.1)
        if progress is not None:
            progress(before, None)  # whoever wants to stop can, between two attempts too


_OFFLINE = "try again later: what has come is kept; without a network put the files into the folder where they are looked for"


def _request(url: str, part: Path, progress: Progress | None) -> Described:
    """One request for the rest of the object, written behind what is there."""
    there, version = part.stat().st_size if part.exists() else 0, _version(part)
    headers = {"User-Agent": "offrld", "Accept-Encoding": "identity"}
    if there and version:
        headers |= {"Range": f"bytes={there}-", "If-Range": version}
    try:
        reply = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the file is complete, or too long and of another version: restart
            part.unlink(missing_ok=True)
            raise EOFError("the server has no bytes beyond those that are there") from None
        raise
    with reply:
        start = _start(reply) if reply.status == 206 else 0
        described = _described(reply, start)
        if start > there:
            raise EOFError(f"asked for the bytes from {there} on, got those from {start} on")
        _notes(part).write_text(json.dumps({"version": described.version}))
        with open(part, "r+b" if part.exists() else "w+b") as file:
            file.truncate(start)
            file.seek(start)
            done = start
            while block := reply.read1(CHUNK):  # what is there, so that a cut loses nothing
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
    """The bytes are those that the server announced; else they are deleted."""
    size = part.stat().st_size
    wrong = ""
    if described.size is not None and size != described.size:
        wrong = f"{size} bytes, announced were {described.size}"
    elif sha256 is not None:
        with open(part, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            wrong = f"its sha256 is {found}, announced was {sha256}"
    elif described.md5 or described.crc32c:
        name, expected = ("md5", described.md5) if described.md5 else ("crc32c", described.crc32c)
        with open(part, "rb") as file:
            found = _md5(file) if name == "md5" else _crc32c(file)
        if found != expected:
            wrong = f"its {name} is {found}, announced was {expected}"
    elif part.name.endswith(".gz.part"):
        wrong = gzip_damage(part)
    if wrong:
        part.unlink()
        _notes(part).unlink(missing_ok=True)
        raise DownloadFailed(f"{url} came damaged: {wrong}", hint="fetch it again; a proxy or the mirror may be at fault")


def _md5(file: BufferedReader) -> str:
    return base64.b64encode(hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).digest()).decode()


def _crc32c(file: BufferedReader) -> str:
    crc = 0
    while block := file.read(8 * CHUNK):
        crc = crc32c(block, crc)
    return base64.b64encode(crc.to_bytes(4, "big")).decode()


def gzip_damage(path: Path) -> str:
    """What is wrong with a gzip file, by its own length and check sum; "" where nothing is."""
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
