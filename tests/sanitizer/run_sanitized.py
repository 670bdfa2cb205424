"""The store's tests on kernels built with AddressSanitizer and UndefinedBehaviorSanitizer: `run_sanitized.py [PYTEST ARGUMENTS]`.

Every extension module that pyproject.toml names is built in a folder of its own, with one module more that has planted bugs: first these
must end their process, so that a silent run means something. `sanitized.py` beside this file checks that the tests used those builds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SANITIZE = "-fsanitize=address,undefined"
PLANTED = """
[[tool.setuptools.ext-modules]]
name = "offrl_store._planted"
sources = ["datastore/offrl_store/_planted.pyx"]
"""
BUGS = (  # a call that is fine, one that is not, and what the sanitizer must say of it
    ("byte_at(numpy.ones(100, 'u1'), 99)", "byte_at(numpy.ones(100, 'u1'), 100)", "AddressSanitizer: heap-buffer-overflow"),
    ("added(2**31 - 1, 0)", "added(2**31 - 1, 1)", "runtime error: signed integer overflow"),
)


def modules() -> list[str]:
    """The names of the extension modules."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return [module["name"] for module in project["tool"]["setuptools"]["ext-modules"]]


def build(folder: Path) -> None:
    """The store with sanitized kernels, and the planted bugs, under ``folder``/datastore."""
    shutil.copytree(ROOT / "datastore", folder / "datastore", ignore=shutil.ignore_patterns("*.so", "*.c", "__pycache__"))
    shutil.copy(HERE / "planted.pyx", folder / "datastore" / "offrl_store" / "_planted.pyx")
    for name in ("README.md", "LICENSE"):  # which the project's metadata names
        shutil.copy(ROOT / name, folder)
    (folder / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text() + PLANTED)
    flags = f"{SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -g"
    environment = {**os.environ, "CFLAGS": flags, "LDFLAGS": SANITIZE}
    command = [sys.executable, "-c", "from setuptools import setup; setup()", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=folder, env=environment, check=True, stderr=subprocess.DEVNULL)


def library(name: str) -> str:
    """The path of a sanitizer's library, from the compiler. Raises SystemExit without it."""
    path = subprocess.run(["gcc", f"-print-file-name={name}"], check=True, capture_output=True, text=True).stdout.strip()
    if not Path(path).is_absolute():
        raise SystemExit(f"{name} is missing; install the sanitizer libraries of gcc (Debian: libgcc-N-dev)")
    return path


def environment(folder: Path) -> dict[str, str]:
    """The sanitizers first, every Python object in a block of its own, the build in front of what is installed."""
    return {
        **os.environ,
        "LD_PRELOAD": f"{library('libasan.so')} {library('libubsan.so')}",
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": os.pathsep.join(map(str, (folder / "datastore", HERE, ROOT, ROOT / "client"))),
        "OFFRL_SANITIZED": str(folder),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def check_planted(settings: dict[str, str]) -> None:
    """Raises SystemExit unless the calls that are fine pass and those with a bug end their process with the sanitizer's report."""
    for good, bad, report in BUGS:
        for call, caught in ((good, False), (bad, True)):
            code = f"import numpy; from offrl_store._planted import *; {call}"
            child = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True)
            if caught != (child.returncode != 0) or caught != (report in child.stderr):
                raise SystemExit(f"the sanitizers {'missed' if caught else 'refused'} {call}:\n{child.stderr}")
        print(f"planted bug caught: {bad}: {report}", flush=True)


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="offrl-asan-") as name:
        folder = Path(name)
        build(folder)
        settings = environment(folder)
        check_planted(settings)
        # --capture=sys: a report goes to file descriptor 2 just before the process ends, and must not be kept for later.
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-p",
            "sanitized",
            "--capture=sys",
            HERE / "sanitized.py",
            *(arguments or ["tests/store"]),
        ]
        return subprocess.run(command, cwd=ROOT, env=settings).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
