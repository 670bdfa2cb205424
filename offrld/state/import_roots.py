"""Paths of the daemon's own machine that an import may read: below a configured root, without a symbolic link on the way."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from offrl.errors import InvalidInput, NotAllowed

COPY = "copy the folder with `cp -rL` and give the copy"


def checked(path: str, roots: Iterable[Path]) -> Path:
    """Return the path if it is absolute, below one of the roots, and every part of it below the root is a real folder or file.

    The root itself may be a link: it is the administrator's. Raises `NotAllowed`, or `InvalidInput` if nothing is there.
    """
    wanted = Path(path)
    roots = list(roots)
    if not wanted.is_absolute() or ".." in wanted.parts or not (above := [root for root in roots if wanted.is_relative_to(root)]):
        allowed = ", ".join(map(str, roots)) or "none are configured"
        raise NotAllowed(f"{path!r} is not below an import root of the daemon ({allowed})", hint="let the client upload it")
    place = above[0]
    for part in wanted.relative_to(place).parts:
        place /= part
        try:
            mode = place.lstat().st_mode
        except OSError as error:
            raise InvalidInput(f"{path!r} does not exist on the daemon's machine, or cannot be read: {error.strerror}") from None
        if stat.S_ISLNK(mode):
            raise NotAllowed(f"{place} is a symbolic link, and below an import root none is followed", hint=COPY)
    if not place.exists():
        raise InvalidInput(f"{path!r} does not exist on the daemon's machine")
    return wanted


def check_tree(folder: Path) -> None:
    """Raise `InvalidInput` if a folder holds, at any depth, a symbolic link or anything but files and folders."""
    for inner, folders, files in os.walk(folder, followlinks=False):
        for name in (*folders, *files):
            mode = os.lstat(os.path.join(inner, name)).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                what = "a symbolic link, and none is followed" if stat.S_ISLNK(mode) else "neither a file nor a folder"
                raise InvalidInput(f"{os.path.join(inner, name)} is {what}", hint=COPY)
