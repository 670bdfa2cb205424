"""Sums of remaining rewards, for the kernels that fill batches with them."""

from libc.stdint cimport int64_t, uint8_t

from ._memory cimport offrl_double

cdef enum:
    MARK = 4  # a sum is stored for every 2^MARK-th row


cdef struct Sums:
    const uint8_t *reward
    double *marks
    double gamma
    int64_t base            # marks[j] is the sum from row (base + j) << MARK on
    int64_t mark_count
    int64_t rows            # length of the column
    int code                # the dtype of the rewards


cdef class Returns:
    cdef Sums sums
    cdef object kept         # keeps alive the arrays behind the pointers


cdef inline bint covers(const Sums *sums, int64_t first, int64_t end) noexcept nogil:
    """Return whether ``sum_at`` supports the rows from first to end."""
    return (first >> MARK) >= sums.base and ((end >> MARK) - sums.base) < sums.mark_count and end <= sums.rows


cdef inline double sum_at(const Sums *sums, int64_t row, int64_t end) noexcept nogil:
    """Return the sum from ``row`` to the episode's end, the row ``end``."""
    cdef int64_t stop = ((row >> MARK) + 1) << MARK
    cdef double value = 0.0
    if stop < end:
        value = sums.marks[(stop >> MARK) - sums.base]
    else:
        stop = end
    while stop > row:
        stop -= 1
        value = offrl_double(sums.reward, stop, sums.code) + sums.gamma * value
    return value
