"""Files from the daemon: chunks whose SHA-256 is checked before a file stands in its place; archives unpacked safely."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from offrl import outfile, wire
from offrl.connection import Connection, ConnectionLost
from offrl.errors import CheckFailed, OffrlError


def receive(connection: Connection, artifact: wire.Artifact, target: Path, *, force: bool = False) -> Path:
    """Bring ``artifact`` to ``target`` (`offrl.outfile`), in full or not at all. Goes on after the daemon was restarted.

    Raises:
        InvalidInput: ``target`` cannot be written. Conflict: it exists with other content, and no ``force``.
        DiskFull: the disk here is full.
        CheckFailed: what arrived is not what the daemon announced.
    """
    with outfile.writing(target, force=force) as file:
        digest = hashlib.sha256()
        for data in _parts(connection, artifact):
            digest.update(data)
            file.write(data)
        if digest.hexdigest() != artifact.sha256:
            raise CheckFailed(
                f"{artifact.name} arrived damaged: SHA-256 {digest.hexdigest()}, not {artifact.sha256}", hint="fetch it again"
            )
    return target


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a tar of plain files into the new ``folder``, which is there in full or not at all; nothing is written outside of it.

    Raises `InvalidInput` (``folder`` exists or cannot be written), `CheckFailed` (no such tar), `DiskFull`.
    """
    if not hasattr(tarfile, "data_filter"):
        raise OffrlError("this Python cannot unpack archives safely", hint="use Python 3.11.4 or newer")
    with outfile.errors(folder):
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name[:100]}.", suffix=".part", dir=folder.parent))
        try:
            with tarfile.open(archive) as tar:
                for member in tar:
                    if not (member.isreg() or member.isdir()):
                        raise CheckFailed(f"the archive holds {member.name!r}, which is neither a file nor a folder", hint="fetch it again")
                    tar.extract(member, temporary, filter="data")
            temporary.chmod(0o777 & ~outfile.umask())
            temporary.rename(folder)
        except tarfile.TarError as error:
            raise CheckFailed(f"the archive cannot be unpacked: {error}", hint="fetch it again") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _parts(connection: Connection, artifact: wire.Artifact) -> Iterator[bytes]:
    offset = 0
    give_up: float | None = None
    while offset < artifact.size:
        starts = range(offset, artifact.size, wire.CHUNK)
        sizes = iter([min(wire.CHUNK, artifact.size - start) for start in starts])
        requests = (
            wire.ReadArtifact(job=artifact.job, path=artifact.path, offset=start, size=min(wire.CHUNK, artifact.size - start))
            for start in starts
        )
        try:
            for reply in connection.stream(requests):
                if len(reply.data) != next(sizes):
                    raise CheckFailed(
                        f"{artifact.name} ended {len(reply.data)} bytes after {offset}, not at {artifact.size}", hint="fetch it again"
                    )
                give_up = None
                offset += len(reply.data)
                yield reply.data
        except ConnectionLost:
            if give_up is not None and time.monotonic() >= give_up:
                raise
            give_up = give_up or time.monotonic() + connection.patience
            connection.wait_for_daemon(give_up)


__all__ = ["receive", "unpack"]
