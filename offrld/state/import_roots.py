"""Paths of the daemon's machine that an import may read: below a configured root, without a symbolic link on the way."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from offrl.errors import InvalidInput, NotAllowed

COPY = "copy the folder with `cp -rL` and import the copy"


def checked(path: str, roots: Iterable[Path]) -> Path:
    """Return the path if it is absolute, below one of the roots, and has only real folders and files below the root.

    The root itself may be a link, because the administrator sets it. Raises `NotAllowed`, or `InvalidInput` if the path does not exist.
    """
    checked_path = Path(path)
    roots = list(roots)
    if (
        not checked_path.is_absolute()
        or ".." in checked_path.parts
        or not (above := [root for root in roots if checked_path.is_relative_to(root)])
    ):
        allowed = ", ".join(map(str, roots)) or "none are configured"
        raise NotAllowed(f"{path!r} is not below an import root of the daemon ({allowed})", hint="let the client upload it")
    place = above[0]
    for part in checked_path.relative_to(place).parts:
        place /= part
        try:
            mode = place.lstat().st_mode
        except OSError as error:
            raise InvalidInput(f"{path!r} does not exist on the daemon's machine, or cannot be read: {error.strerror}") from None
        if stat.S_ISLNK(mode):
            raise NotAllowed(f"{place} is a symbolic link, and links below an import root are not followed", hint=COPY)
    if not place.exists():
        raise InvalidInput(f"{path!r} does not exist on the daemon's machine")
    return checked_path


def check_tree(folder: Path) -> None:
    """Raise `InvalidInput` if a folder holds, at any depth, a symbolic link or anything but files and folders."""
    for inner, folders, files in os.walk(folder, followlinks=False):
        for name in (*folders, *files):
            mode = os.lstat(os.path.join(inner, name)).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                what = "a symbolic link, and links are not followed" if stat.S_ISLNK(mode) else "neither a file nor a folder"
                raise InvalidInput(f"{os.path.join(inner, name)} is {what}", hint=COPY)
