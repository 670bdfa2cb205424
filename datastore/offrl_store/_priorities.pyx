# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Compiled kernels: the sum tree of the priorities. `_priorities_py.py` documents it."""

from libc.math cimport pow as power
from libc.stdint cimport int64_t, uint32_t, uint64_t

from ._memory cimport offrl_prefetch
from ._random cimport CHUNK, draw_some

from ._kernels_py import tree_levels

cdef enum:
    WIDE = 8
    HEIGHT = 22  # levels: 8^21 = 2^63 leaves


cdef class SumTree:
    cdef double[::1] nodes
    cdef double *level[HEIGHT]
    cdef int64_t length[HEIGHT]
    cdef int height           # levels above the leaves
    cdef int64_t count

    def __cinit__(self, double[::1] nodes not None, int64_t count):
        cdef Py_ssize_t at = 0
        levels = tree_levels(count) if count > 0 else []
        if count < 1 or sum(levels) != nodes.shape[0]:
            raise ValueError("the nodes do not fit the count")
        self.nodes, self.count, self.height = nodes, count, len(levels) - 1
        for i, length in enumerate(levels):
            self.level[i], self.length[i] = &nodes[at], length
            at += length

    def total(self):
        return self.level[self.height][0]

    def build(self):
        cdef int h
        cdef int64_t node
        with nogil:
            for h in range(self.height):
                for node in range(self.length[h] // WIDE):
                    self.level[h + 1][node] = sum_of(self.level[h] + node * WIDE)

    def sample(self, uint64_t seed, uint64_t step, uint32_t stream, double beta, int64_t[::1] numbers not None, float[::1] weights not None):
        cdef Py_ssize_t n = numbers.shape[0], done = 0, some, i
        cdef double share, least
        if weights.shape[0] != n:
            raise ValueError("weights and numbers have different lengths")
        if n == 0:
            return
        with nogil:
            share = self.level[self.height][0] / n
            while done < n:
                some = min(<Py_ssize_t>CHUNK, n - done)
                draw_some(seed, step, stream, <uint64_t>1 << 53, done, some, &numbers[done])
                self.descend(&numbers[done], done, some, share)
                done += some
            least = self.level[0][numbers[0]]
            for i in range(1, n):
                least = min(least, self.level[0][numbers[i]])
            for i in range(n):
                weights[i] = <float>power(least / self.level[0][numbers[i]], beta)

    cdef void descend(self, int64_t *numbers, Py_ssize_t done, Py_ssize_t n, double share) noexcept nogil:
        """Map 53 random bits each to numbers. All descend one level before any descends the next, so that their cache misses overlap."""
        cdef double[CHUNK] value
        cdef int64_t[CHUNK] node
        cdef double[WIDE] sums
        cdef const double *children
        cdef int64_t chosen
        cdef Py_ssize_t i
        cdef int h, child
        for i in range(n):
            value[i], node[i] = (<double>(done + i) + <double>numbers[i] * 1.1102230246251565e-16) * share, 0
        sums[0] = 0.0
        for h in range(self.height - 1, -1, -1):
            for i in range(n):
                node[i] = min(node[i], self.length[h] // WIDE - 1)  # rounding may go past the last node
                children = self.level[h] + node[i] * WIDE
                for child in range(WIDE - 1):
                    sums[child + 1] = sums[child] + children[child]
                chosen = 0  # counted rather than searched for: no branch to mispredict
                for child in range(1, WIDE):
                    chosen += value[i] >= sums[child]
                value[i] -= sums[chosen]
                node[i] = node[i] * WIDE + chosen
                if h:
                    offrl_prefetch(self.level[h - 1] + node[i] * WIDE)
        for i in range(n):
            numbers[i] = min(node[i], self.count - 1)

    def update(self, const int64_t[::1] numbers not None, const double[::1] priorities not None, double alpha, double eps):
        cdef Py_ssize_t n = numbers.shape[0], i
        cdef double highest = 0.0
        cdef int64_t node
        cdef int h
        if priorities.shape[0] != n:
            raise ValueError("priorities and numbers have different lengths")
        for i in range(n):
            if numbers[i] < 0 or numbers[i] >= self.count:
                raise IndexError("a transition number is out of range")
        with nogil:
            for i in range(n):
                highest = max(highest, priorities[i])
                self.level[0][numbers[i]] = power(priorities[i] + eps, alpha)
            for h in range(self.height):
                for i in range(n):
                    node = numbers[i] >> (3 * (h + 1))
                    self.level[h + 1][node] = sum_of(self.level[h] + node * WIDE)
        return highest


cdef inline double sum_of(const double *children) noexcept nogil:
    cdef double value = children[0]
    cdef int child
    for child in range(1, WIDE):
        value += children[child]
    return value
