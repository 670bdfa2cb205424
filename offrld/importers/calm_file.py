"""A file object for h5py that reports a failed write late, so that a full disk ends the export and not the process."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from offrl_store.disk import reserve


class CalmFile(io.RawIOBase):
    """A new file for h5py that delays the error of a failed write until `check`.

    HDF5 2.x crashes the process if a write fails while it closes a file (measured: a segmentation fault on a full disk). So after the first
    failed write this object accepts and discards all data, and `check` raises the first error.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "x+b", buffering=0)  # noqa: SIM115  closed by close()
        self._error: OSError | None = None

    def check(self) -> None:
        """Raise the error of the first write that failed."""
        if self._error is not None:
            raise self._error

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        try:
            reserve(len(view))
            while done < len(view) and self._error is None:
                done += self._file.write(view[done:])
        except OSError as error:
            self._error = error
        return len(view)

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        if self._error is not None:  # discarded data reads as zeros
            memoryview(buffer)[count:] = bytes(len(buffer) - count)
            return len(buffer)
        return count

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)

    def truncate(self, size: int | None = None) -> int:
        try:
            return self._file.truncate(size)
        except OSError as error:
            self._error = self._error or error
            return self._file.tell() if size is None else size

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        """Do nothing: the file is unbuffered."""

    def close(self) -> None:
        self._file.close()
        super().close()
