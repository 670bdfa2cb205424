"""Landlock, the kernel's sandbox for a process without privileges, through its three system calls.

The C library has no wrappers for them. A ruleset lists what stays allowed; the kernel refuses everything else that the ruleset handles with
EACCES. This holds for the current thread and for every thread and process that it starts later. No process can lift it. See landlock(7).
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable
from pathlib import Path

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # call numbers, the same on every architecture
VERSION = 1  # flag of CREATE_RULESET: return the newest ABI instead of a ruleset
PATH_BENEATH = 1  # type of a rule: a file, or a folder with everything below it
NO_NEW_PRIVS = 38  # option of prctl(2), which the kernel requires first

# Rights over files. SINCE lists the ABI that introduced each.
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REMOVE_DIR, REMOVE_FILE, MAKE_CHAR, MAKE_DIR, MAKE_REG = 1 << 4, 1 << 5, 1 << 6, 1 << 7, 1 << 8
MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = 1 << 9, 1 << 10, 1 << 11, 1 << 12
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
SINCE = ((1, (1 << 13) - 1), (2, REFER), (3, TRUNCATE), (5, IOCTL_DEV))
OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV

READ = READ_FILE | READ_DIR
RUN = READ | EXECUTE
WRITE = READ | WRITE_FILE | TRUNCATE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SOCK | MAKE_FIFO | MAKE_SYM | REFER
DEVICE = READ_FILE | WRITE_FILE | IOCTL_DEV
ALL = (1 << 16) - 1

TCP = 3  # bind and connect; since ABI 4
SIGNALS, ABSTRACT_SOCKETS = 2, 1  # what a scoped process cannot reach outside its sandbox; since ABI 6


class _Ruleset(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]


def abi() -> int:
    """Return the version of Landlock that this kernel offers; 0 if it has none, or if it is switched off or blocked."""
    try:
        return max(0, _call(CREATE_RULESET, None, 0, VERSION))
    except OSError:
        return 0


def restrict(rules: Iterable[tuple[Path, int]], *, network: bool, signals: bool) -> int:
    """Restrict this thread to what the rules allow; return the ABI in force, 0 if the kernel has none and nothing is restricted.

    Args:
        rules: pairs of a path and the rights over it and everything below it; a path that does not exist is ignored.
        network: whether TCP connections stay allowed.
        signals: whether signals to processes outside the sandbox stay allowed.

    Raises:
        OSError: the kernel refuses a rule.
    """
    version = abi()
    if not version:
        return 0
    handled = sum(rights for since, rights in SINCE if since <= version)
    ruleset = _Ruleset(handled, 0 if network or version < 4 else TCP, 0 if signals or version < 6 else SIGNALS | ABSTRACT_SOCKETS)
    size = 8 if version < 4 else 16 if version < 6 else 24  # an older kernel knows only the first fields
    descriptor = _call(CREATE_RULESET, ctypes.byref(ruleset), size, 0)
    try:
        for path, rights in rules:
            _add(descriptor, path, rights & handled)
        _no_new_privileges()
        _call(RESTRICT_SELF, descriptor, 0)
    finally:
        os.close(descriptor)
    return version


def _add(ruleset: int, path: Path, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # it does not exist, or lies below a folder that this user cannot enter
        return
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            rights &= OF_A_FILE
        if rights:
            _call(ADD_RULE, ruleset, PATH_BENEATH, ctypes.byref(_PathBeneath(rights, place)), 0)
    finally:
        os.close(place)


def _no_new_privileges() -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(NO_NEW_PRIVS, 1, 0, 0, 0):
        _failed()


def _call(number: int, *arguments: object) -> int:
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    result = library.syscall(ctypes.c_long(number), *(ctypes.c_long(value) if isinstance(value, int) else value for value in arguments))
    if result < 0:
        _failed()
    return result


def _failed() -> None:
    code = ctypes.get_errno()
    raise OSError(code, os.strerror(code))
