"""Restrict the files that a worker may open, by kind of job; the kernel refuses all others.

Decoders (HDF5, FFmpeg, Pillow, Arrow, onnxruntime) read bytes that a submitter sent. The code opens no other file; this restriction also
holds if a malicious file takes control of a decoder.

* A job that decodes files (import, exports) can read the installation, its source and the datasets. It can write the datasets and its run
  folder. An import cannot start programs, and reaches the network only if it downloads.
* A job that trains or collects runs environments, and only the administrator knows which files those need. It keeps access to the whole
  machine, but in the state folder it can open only what the job needs: keys, the queue, the audit log and other uploads stay closed.

The restriction holds for the main thread and everything that it starts. The thread that listens to the daemon started earlier; it opens no
files.
"""

from __future__ import annotations

import os
import site
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import offrl
import offrl_store
import offrld
from offrl.job import KINDS
from offrld import landlock
from offrld.state.files import remove
from offrld.state.folder import StateFolder
from offrld.state.run_folder import RunFolder

SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/sys", "/nix", "/gnu", "/run/opengl-driver")
# The part of /etc that the loader, the resolver, TLS and the clock read; the rest may hold secrets.
ETC = (
    "alternatives", "ca-certificates", "gai.conf", "group", "host.conf", "hosts", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime",
    "mime.types", "nsswitch.conf", "passwd", "pki", "resolv.conf", "ssl", "timezone",
)  # fmt: skip
# The part of /proc, beside the worker's own entry, that libraries read; the entry of another process shows its environment.
PROC = ("cgroups", "cpuinfo", "filesystems", "loadavg", "meminfo", "mounts", "self", "stat", "sys", "uptime", "version")
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
CARDS = ("nvidia*", "dri", "kfd")


def confine(start: dict[str, Any], state: StateFolder, run: RunFolder) -> int:
    """Restrict this process to what the job of ``start`` needs; return the ABI of Landlock in force, 0 if nothing is restricted.

    Temporary files go to ``tmp/`` of the run folder from then on. Raises `OSError` if the kernel offers Landlock but refuses a rule.
    """
    if not start.get("confine", True) or not landlock.abi():
        return 0
    kind = start["spec"]["kind"]
    strict = KINDS[kind].confined
    downloads = kind == "import" and bool(start["spec"].get("named"))
    remove(run.temporary)  # left by an attempt that was killed
    for folder in (run.temporary, state.datasets, state.cache):  # a rule needs a folder that exists
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(run.temporary)
    rules = list(_state_rules(start, state, run))
    if strict:
        rules += _installation(run=kind == "export")
        rules += [(Path(path), landlock.READ) for path in _sources(start)]
        if downloads:
            rules += [(path, landlock.WRITE) for path in _downloads()]
    else:
        rules += _machine_but(state.root.resolve())
    return landlock.restrict(rules, network=not strict or downloads, signals=not strict)


def _state_rules(start: dict[str, Any], state: StateFolder, run: RunFolder) -> Iterator[tuple[Path, int]]:
    """Yield the rules for the state folder: a job writes its own outputs, and reads datasets and outputs that every key may read.

    A job that inherits a checkpoint makes a second link to the file. The kernel allows that only with the same rights over both folders, so
    such a job may write below ``jobs/``.
    """
    kind = start["spec"]["kind"]
    yield state.root, landlock.READ_DIR  # the quota is measured by file sizes; contents stay unreadable
    yield run.path, landlock.WRITE
    yield state.cache, landlock.WRITE | landlock.EXECUTE  # Inductor writes compiled code there and loads it
    yield state.datasets, landlock.WRITE if KINDS[kind].writes_dataset else landlock.READ
    if not KINDS[kind].decodes:  # jobs that decode need no checkpoint of another job
        yield state.jobs, landlock.WRITE
    if upload := start["spec"].get("upload"):
        yield state.upload(upload), landlock.READ if kind == "import" else landlock.WRITE
        if kind != "import":  # the job removes its upload once it has a copy
            yield state.uploads, landlock.REMOVE_DIR


def _installation(*, run: bool) -> list[tuple[Path, int]]:
    """Return the rules for Python, the packages, the system's libraries, and the files of the machine that those read."""
    packages = [Path(package.__file__).parents[1] for package in (offrl, offrl_store, offrld) if package.__file__]
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    places: list[str | Path] = [
        *SYSTEM,
        sys.prefix,
        sys.base_prefix,
        *filter(None, [*sys.path, *libraries]),
        *site.getsitepackages(),
        *packages,
    ]
    rules = [(Path(place), landlock.RUN if run else landlock.READ) for place in places]
    rules += [(Path("/etc", name), landlock.READ) for name in ETC]
    rules += [(Path("/proc", name), landlock.READ) for name in PROC]
    rules += [(Path("/dev", name), landlock.DEVICE) for name in DEVICES]
    if run:
        rules += [(place, landlock.WRITE | landlock.IOCTL_DEV) for name in CARDS for place in Path("/dev").glob(name)]
        rules.append((Path("/dev/shm"), landlock.WRITE))
    return rules


def _sources(start: dict[str, Any]) -> list[str]:
    """Return the path on this machine that an import reads; `import_roots.checked` decides later whether it may."""
    path = start["spec"].get("path")
    roots = start.get("import_roots") or ()
    return [path] if path and any(Path(path).is_relative_to(root) for root in roots) else []


def _downloads() -> list[Path]:
    """Return the folders of named datasets, made here because a rule needs a folder that exists, and the sources that are folders."""
    from offrld.datasets import places

    folders = [places.d4rl_folder(), places.minari_folder()]
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:  # the import fails with a message if it needs the folder
            continue
    sources = [places.atari_source(), places.d4rl_source(), places.minari_remote()]
    return folders + [Path(os.path.expanduser(source)) for source in sources if source and not places.is_address(source)]


def _machine_but(state: Path) -> Iterator[tuple[Path, int]]:
    """Yield rules with all rights over everything outside the path to the state folder, and listing of the folders on that path.

    A rule holds for everything below its folder, and no rule removes rights. So each folder on the path adds a rule for each of its other
    entries. Symbolic links get none: a rule would hold for their target, which may lie on the path.
    """
    for folder in reversed(state.parents):
        yield folder, landlock.READ_DIR
        following = state.parts[len(folder.parts)]
        try:
            entries = [entry.path for entry in os.scandir(folder) if entry.name != following and not entry.is_symlink()]
        except OSError:
            continue
        for entry in entries:
            yield Path(entry), landlock.ALL
