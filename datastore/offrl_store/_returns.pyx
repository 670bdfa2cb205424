# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Compiled kernels: returns to the episode's end, and lambda returns. `_returns_py.py` documents them."""

from libc.stdint cimport int64_t, uint8_t

from ._memory cimport dtype_code, offrl_double


cdef class Returns:
    """Sums of remaining rewards. One takes at most 15 additions and one look-up in a table of half a byte per row, which stays in cache."""

    def __cinit__(self, const int64_t[:, ::1] spans not None, reward, double gamma, double[::1] marks not None, int64_t base):
        cdef const uint8_t[::1] raw = reward.view("u1")
        cdef Py_ssize_t e
        cdef int64_t row, rows = len(reward)
        cdef double value
        cdef int code = dtype_code(reward)
        if spans.shape[1] != 2 or not rows or not marks.shape[0]:
            raise ValueError("spans must have two columns, rewards and marks at least one element")
        for e in range(spans.shape[0]):
            if (spans[e, 0] >> MARK) < base or spans[e, 1] < 0 or spans[e, 0] + spans[e, 1] > rows \
                    or ((spans[e, 0] + spans[e, 1]) >> MARK) - base >= marks.shape[0]:
                raise ValueError("an episode is beyond the column or the marks")
        self.sums = Sums(reward=&raw[0], marks=&marks[0], gamma=gamma, base=base, mark_count=marks.shape[0], rows=rows, code=code)
        self.kept = (reward, marks)
        with nogil:
            for e in range(spans.shape[0]):
                value = 0.0
                row = spans[e, 0] + spans[e, 1]
                while row > spans[e, 0]:
                    row -= 1
                    value = offrl_double(&raw[0], row, code) + gamma * value
                    if row & ((1 << MARK) - 1) == 0:
                        marks[(row >> MARK) - base] = value


def lambda_returns(const float[:, :] rewards not None, const float[:, :] values not None, const float[:, :] discounts not None,
                   double decay, float[:, :] out not None):
    cdef Py_ssize_t b, t, length = rewards.shape[1]
    cdef double following
    if not (rewards.shape[0] == values.shape[0] == discounts.shape[0] == out.shape[0]) \
            or not (length == values.shape[1] == discounts.shape[1] == out.shape[1]):
        raise ValueError("the arrays differ in shape")
    if length == 0:
        return
    with nogil:
        for b in range(rewards.shape[0]):
            following = values[b, length - 1]
            for t in range(length - 1, -1, -1):
                following = rewards[b, t] + <double>discounts[b, t] * ((1.0 - decay) * values[b, t] + decay * following)
                out[b, t] = <float>following
