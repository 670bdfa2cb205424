"""pytest beside busy loops: ``beside_loops.py LOOPS [arguments of pytest]``. Its exit status is pytest's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

# A loop ends with its parent, however that ends.
LOOP = """
import os
while os.getppid() == {parent}:
    for _ in range(1_000_000): pass
"""


def main(loops: int, arguments: list[str]) -> int:
    command = [sys.executable, "-S", "-c", LOOP.format(parent=os.getpid())]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    beside = []
    try:
        beside += [subprocess.Popen(command, stdin=subprocess.DEVNULL) for _ in range(loops)]
        tests = subprocess.Popen([sys.executable, "-m", "pytest", *arguments])
        while True:
            try:
                return tests.wait()
            except KeyboardInterrupt:  # pytest has it too, and ends in its own way
                pass
            except SystemExit:
                tests.terminate()
                tests.wait()
                raise
    finally:
        for loop in beside:
            loop.kill()
            loop.wait()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
