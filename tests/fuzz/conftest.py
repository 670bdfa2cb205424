"""The programs of this folder and the daemon of the daemon's tests, for the tests here."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "daemon")]
