"""One peer's figures for the works of `benchmarks.store`, in the peers' own environment:

    python store_peer.py PEER TRANSITIONS FRAMES FOLDER    prints {"figures": {work: number}, "notes": [what it cannot do and why]}

PEER names a module `store_PEER` beside this file with WORKS: {work: function of (data, folder) that returns the figure}. Units:
microseconds per batch; "open" milliseconds; "write" and the steps rows per second. One thread.
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
import tempfile
import warnings
from pathlib import Path

from store_data import Data


def main(peer: str, transitions: int, frames: int, folder: str) -> None:
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)
    figures, notes = {}, []
    try:
        works = importlib.import_module(f"store_{peer}").WORKS
    except (ImportError, OSError) as error:
        works = {}
        notes.append(f"is left out: {type(error).__name__}: {error}")
    data = Data(transitions, frames)
    for name, work in works.items():
        try:
            with tempfile.TemporaryDirectory(dir=folder) as own:
                figures[name] = float(work(data, Path(own)))
        except Exception as error:  # a peer's fault must not end the bench; it is printed
            notes.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        gc.collect()
    print(json.dumps({"figures": figures, "notes": notes}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
