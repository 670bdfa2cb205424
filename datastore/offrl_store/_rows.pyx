# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Compiled kernels: checksums of rows. `_kernels_py.py` documents each."""

from libc.stdint cimport uint8_t, uint32_t

cdef uint32_t[256] CRC


cdef void fill_crc_table() noexcept:
    cdef uint32_t value
    cdef int i, k
    for i in range(256):
        value = i
        for k in range(8):
            value = (value >> 1) ^ (<uint32_t>0xEDB88320 if value & 1 else <uint32_t>0)
        CRC[i] = value


fill_crc_table()


def crc32_rows(const uint8_t[:, ::1] rows not None, Py_ssize_t width, uint32_t[::1] out not None):
    cdef Py_ssize_t i, k
    cdef uint32_t value
    if width > rows.shape[1] or out.shape[0] != rows.shape[0]:
        raise ValueError("sizes differ")
    with nogil:
        for i in range(rows.shape[0]):
            value = 0xFFFFFFFF
            for k in range(width):
                value = CRC[(value ^ rows[i, k]) & 0xFF] ^ (value >> 8)
            out[i] = ~value
