"""Files from the daemon: chunks into a temporary file beside the target, SHA-256 checked, renamed; archives unpacked safely."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from offrl import wire
from offrl.connection import Connection, ConnectionLost
from offrl.errors import CheckFailed, DiskFull, InvalidInput, OffrlError


def receive(connection: Connection, artifact: wire.Artifact, target: Path) -> Path:
    """Bring ``artifact`` to ``target``, which is there in full or not at all. Goes on after the daemon was restarted.

    Raises:
        InvalidInput: ``target`` cannot be written.
        DiskFull: the disk here is full.
        CheckFailed: what arrived is not what the daemon announced.
    """
    with _writing(target):
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name[:100]}.", suffix=".part", dir=target.parent)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                digest = hashlib.sha256()
                for data in _parts(connection, artifact):
                    digest.update(data)
                    file.write(data)
                file.flush()
                os.fsync(file.fileno())
                if digest.hexdigest() != artifact.sha256:
                    raise CheckFailed(
                        f"{artifact.name} arrived damaged: SHA-256 {digest.hexdigest()}, not {artifact.sha256}", hint="fetch it again"
                    )
                os.fchmod(file.fileno(), 0o666 & ~_umask())  # mkstemp's 0600 would surprise
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    return target


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a tar of plain files into the new ``folder``, which is there in full or not at all; nothing is written outside of it.

    Raises `InvalidInput` (``folder`` exists or cannot be written), `CheckFailed` (no such tar), `DiskFull`.
    """
    if not hasattr(tarfile, "data_filter"):
        raise OffrlError("this Python cannot unpack archives safely", hint="use Python 3.11.4 or newer")
    with _writing(folder):
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name[:100]}.", suffix=".part", dir=folder.parent))
        try:
            with tarfile.open(archive) as tar:
                for member in tar:
                    if not (member.isreg() or member.isdir()):
                        raise CheckFailed(f"the archive holds {member.name!r}, which is neither a file nor a folder", hint="fetch it again")
                    tar.extract(member, temporary, filter="data")
            temporary.chmod(0o777 & ~_umask())
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


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise InvalidInput(f"cannot write {target}: its folder does not exist", hint=f"make it: mkdir -p {target.parent}") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"no space left for {target}", hint="free some space, or choose another place with --out") from None
        raise InvalidInput(f"cannot write {target}: {error.strerror}", hint="choose another place") from None


def _umask() -> int:
    # The only way to read it is to set it; Linux has it in /proc without that race between threads.
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1], 8) for line in status if line.startswith("Umask"))
    except (OSError, StopIteration):
        return 0o022


__all__ = ["receive", "unpack"]
