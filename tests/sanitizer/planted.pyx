# cython: language_level=3, boundscheck=False, wraparound=False
"""A kernel with a planted bug, built as the store's kernels are: reading past the end must end the process under the sanitizers."""

from libc.stdint cimport int32_t, uint8_t


def byte_at(const uint8_t[::1] data not None, Py_ssize_t i):
    """Byte ``i`` behind the start of ``data``, unchecked: i = len(data) reads out of bounds."""
    return (&data[0])[i]


def added(int32_t a, int32_t b):
    """The sum of two int32, unchecked: an overflow is undefined."""
    return a + b
