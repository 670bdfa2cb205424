"""Random numbers and orders for the other kernels: integers below a total, and elements of a permutation."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef enum:
    LANES = 64   # Philox blocks computed at a time, word by word, so that the compiler uses vector instructions
    CHUNK = 128  # transitions drawn, found and copied at a time: two draws per Philox block

cdef void draw_some(uint64_t seed, uint64_t step, uint32_t stream, uint64_t total, Py_ssize_t first, Py_ssize_t n, int64_t *out) noexcept nogil
cdef void permute_some(uint64_t seed, uint64_t epoch, uint32_t stream, uint64_t total, uint64_t a, uint64_t b, uint64_t first, Py_ssize_t n,
                       int64_t *out) noexcept nogil
