"""What `run_sanitized.py` adds to the store's tests: columns on the heap, and the check that the kernels are the sanitized ones."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_sanitized import modules


@pytest.fixture(autouse=True, scope="session")
def _columns_on_the_heap() -> Iterator[None]:
    """The sanitizer knows the ends of heap blocks, not those of maps: a row read past a column's end would pass where the page goes on."""
    from offrl_store import EpisodeStore

    mapped = EpisodeStore._map

    def copied(store: EpisodeStore, *arguments: Any) -> np.ndarray:
        rows = mapped(store, *arguments).copy()[:]  # a view, as a map gives
        rows.setflags(write=False)
        return rows

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EpisodeStore, "_map", copied)
        yield


@pytest.mark.parametrize("name", modules())
def test_the_kernels_are_the_sanitized_ones(name):
    file = Path(importlib.import_module(name).__file__)
    assert file.is_relative_to(os.environ["OFFRL_SANITIZED"])
    assert b"__asan_report_load" in file.read_bytes() and b"__ubsan_handle" in file.read_bytes()


def test_the_store_uses_them():
    from offrl_store.kernels import kernels

    assert kernels().NAME == "cython"
    assert Path(kernels().__file__).is_relative_to(os.environ["OFFRL_SANITIZED"])
