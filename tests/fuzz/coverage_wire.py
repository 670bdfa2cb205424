"""Coverage-guided fuzzing of what reads a message (atheris): ``coverage_wire.py [libFuzzer's options] FOLDER-FOR-INPUTS``.

Run by `make fuzz` with a virtual environment of its own. Every second input goes through the mutations of `wire_mutations`, which keep
a message a message; the others are libFuzzer's own.
"""

import random
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["offrl", "offrl_store", "offrld"]):
    from wire_checks import check
    from wire_mutations import bodies, mutate


def custom(data: bytes, max_size: int, seed: int) -> bytes:
    """The next input: bytes as libFuzzer changes them, or a message as we do."""
    chance = random.Random(seed)
    if chance.random() < 0.5:
        return atheris.Mutate(data, max_size)
    return mutate(data, chance)[:max_size]


def one(data: bytes) -> None:
    check(data)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as seeds:
        for number, body in enumerate(bodies()):
            Path(seeds, str(number)).write_bytes(body)
        atheris.Setup([*sys.argv, seeds], one, custom_mutator=custom)
        atheris.Fuzz()
