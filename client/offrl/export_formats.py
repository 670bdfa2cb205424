"""The file formats that a dataset can be exported to.

A format takes two places: its entry in this file, and the module ``offrld/importers/NAME_export.py`` (a dash becomes an underscore), whose
function ``write`` writes it.
"""

from __future__ import annotations

from typing import Literal

ExportFormat = Literal["d4rl", "npz", "store", "minari", "d3rlpy", "d3rlpy-v1", "robomimic", "torchrl", "gen_dgrl", "atari", "lerobot"]

#: Format -> the ending of its file; "" if it is a folder.
SUFFIXES: dict[ExportFormat, str] = {
    "d4rl": ".hdf5", "npz": ".npz", "store": "", "minari": "", "d3rlpy": ".h5", "d3rlpy-v1": ".h5", "robomimic": ".hdf5", "torchrl": "",
    "gen_dgrl": "", "atari": "", "lerobot": "",
}  # fmt: skip

FOLDERS = tuple(name for name, suffix in SUFFIXES.items() if not suffix)
FILES = tuple(name for name, suffix in SUFFIXES.items() if suffix)
