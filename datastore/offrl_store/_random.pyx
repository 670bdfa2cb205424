# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Compiled kernels: counter-based random numbers, and orders of a whole epoch without a table. `_random_py.py` documents them."""

from libc.math cimport sqrtf
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from ._kernels_py import sides

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    static inline uint64_t offrl_high(uint64_t a, uint64_t b) {          /* high 64 bits of the product */
    #ifdef __SIZEOF_INT128__
        return (uint64_t)(((unsigned __int128)a * b) >> 64);
    #else
        uint64_t al = (uint32_t)a, ah = a >> 32, bl = (uint32_t)b, bh = b >> 32;
        uint64_t middle = ((al * bl) >> 32) + (uint32_t)(al * bh) + (uint32_t)(ah * bl);
        return ah * bh + ((al * bh) >> 32) + ((ah * bl) >> 32) + (middle >> 32);
    #endif
    }


    static inline int32_t offrl_bits(float x) { int32_t i; memcpy(&i, &x, 4); return i; }
    static inline float offrl_float(int32_t i) { float x; memcpy(&x, &i, 4); return x; }
    """
    uint64_t offrl_high(uint64_t, uint64_t) noexcept nogil
    int32_t offrl_bits(float) noexcept nogil
    float offrl_float(int32_t) noexcept nogil

cdef inline void blocks(uint64_t seed, uint64_t step, uint32_t stream, uint32_t first, uint32_t[4][LANES] words) noexcept nogil:
    """Compute LANES Philox4x32-10 blocks, starting with ``first``: words[w][i] is word w of block first + i."""
    cdef uint32_t key0 = <uint32_t>seed, key1 = <uint32_t>(seed >> 32)
    cdef uint64_t product0, product1
    cdef int i, turn
    for i in range(LANES):
        words[0][i] = first + <uint32_t>i
        words[1][i] = <uint32_t>step
        words[2][i] = <uint32_t>(step >> 32)
        words[3][i] = stream
    for turn in range(10):
        for i in range(LANES):
            product0 = <uint64_t>words[0][i] * <uint64_t>0xD2511F53
            product1 = <uint64_t>words[2][i] * <uint64_t>0xCD9E8D57
            words[0][i] = <uint32_t>(product1 >> 32) ^ words[1][i] ^ key0
            words[2][i] = <uint32_t>(product0 >> 32) ^ words[3][i] ^ key1
            words[1][i] = <uint32_t>product1
            words[3][i] = <uint32_t>product0
        key0 += <uint32_t>0x9E3779B9
        key1 += <uint32_t>0xBB67AE85


def philox4x32(uint64_t seed, uint64_t step, uint32_t stream, uint32_t first, uint32_t[:, ::1] out not None):
    cdef uint32_t[4][LANES] words
    cdef Py_ssize_t n = out.shape[0], done = 0, i, w
    if out.shape[1] != 4:
        raise ValueError("out must have four columns")
    with nogil:
        while done < n:
            blocks(seed, step, stream, first + <uint32_t>done, words)
            for i in range(min(<Py_ssize_t>LANES, n - done)):
                for w in range(4):
                    out[done + i, w] = words[w][i]
            done += LANES


cdef void draw_some(uint64_t seed, uint64_t step, uint32_t stream, uint64_t total, Py_ssize_t first, Py_ssize_t n, int64_t *out) noexcept nogil:
    """Compute draws first .. first+n-1; ``first`` is even."""
    cdef uint32_t[4][LANES] words
    cdef Py_ssize_t done = 0, i
    cdef uint64_t number
    while done < n:
        blocks(seed, step, stream, <uint32_t>((first + done) >> 1), words)
        for i in range(min(<Py_ssize_t>(2 * LANES), n - done)):
            number = <uint64_t>words[2 * (i & 1)][i >> 1] | (<uint64_t>words[2 * (i & 1) + 1][i >> 1] << 32)
            out[done + i] = <int64_t>offrl_high(number, total)
        done += 2 * LANES


def draw(uint64_t seed, uint64_t step, uint32_t stream, uint64_t total, int64_t[::1] out not None):
    if out.shape[0]:
        with nogil:
            draw_some(seed, step, stream, total, 0, out.shape[0], &out[0])


def uniform(uint64_t seed, uint64_t step, uint32_t stream, float[::1] out not None):
    cdef uint32_t[4][LANES] words
    cdef float[4 * LANES] part
    cdef Py_ssize_t n = out.shape[0], done = 0, i, w
    with nogil:
        while done < n:
            blocks(seed, step, stream, <uint32_t>(done >> 2), words)
            for i in range(LANES):
                for w in range(4):
                    part[4 * i + w] = <float><int32_t>(words[w][i] >> 8) * <float>5.9604644775390625e-08
            memcpy(&out[done], part, 4 * min(<Py_ssize_t>(4 * LANES), n - done))
            done += 4 * LANES


cdef inline void box_muller(const uint32_t *radii, const uint32_t *angles, float *x, float *y) noexcept nogil:
    """Compute LANES pairs of normal numbers. Every operation is float32 in the order of _random_py.normal, so the results are equal."""
    cdef float u, t, p, radius, f, square, sine, cosine
    cdef int32_t bits, exponent, quarter, swap
    cdef int i
    for i in range(LANES):
        u = <float><int32_t>(radii[i] >> 1) + <float>0.5
        bits = offrl_bits(u)
        exponent = (bits - <int32_t>0x3F3504F3) >> 23
        t = offrl_float(bits - exponent * <int32_t>0x800000) - <float>1.0
        p = <float>-0.08101579546928406
        p = p * t + <float>0.12712319195270538
        p = p * t + <float>-0.12972235679626465
        p = p * t + <float>0.14202171564102173
        p = p * t + <float>-0.16642247140407562
        p = p * t + <float>0.20001468062400818
        p = p * t + <float>-0.25000298023223877
        p = p * t + <float>0.333333283662796
        p = <float>(exponent - 31) * <float>0.6931471805599453 + (t * t * (t * p - <float>0.5) + t)
        p = p * <float>-2.0
        radius = sqrtf(p if p > <float>0.0 else <float>0.0)
        f = <float><int32_t>(angles[i] << 2) * <float>2.3283064365386963e-10
        quarter = <int32_t>(angles[i] >> 30)
        square = f * f
        sine = <float>-0.004602163098752499
        sine = sine * square + <float>0.07968021929264069
        sine = sine * square + <float>-0.6459634900093079
        sine = f * (sine * square + <float>1.5707963705062866)
        cosine = <float>0.00090362987248227
        cosine = cosine * square + <float>-0.02086007036268711
        cosine = cosine * square + <float>0.25366920232772827
        cosine = cosine * square + <float>-1.2337005138397217
        cosine = cosine * square + <float>1.0
        swap = -(quarter & 1)  # all ones in the odd quarters, where sine and cosine swap; then the signs
        bits = (offrl_bits(sine) & swap) | (offrl_bits(cosine) & ~swap)
        x[i] = offrl_float(bits ^ <int32_t>(<uint32_t>((quarter + 1) & 2) << 30)) * radius
        bits = (offrl_bits(cosine) & swap) | (offrl_bits(sine) & ~swap)
        y[i] = offrl_float(bits ^ <int32_t>(<uint32_t>(quarter & 2) << 30)) * radius


def normal(uint64_t seed, uint64_t step, uint32_t stream, float[::1] out not None):
    cdef uint32_t[4][LANES] words
    cdef float[4][LANES] pairs
    cdef float[4 * LANES] part
    cdef Py_ssize_t n = out.shape[0], done = 0, i, w
    with nogil:
        while done < n:
            blocks(seed, step, stream, <uint32_t>(done >> 2), words)
            box_muller(words[0], words[1], pairs[0], pairs[1])
            box_muller(words[2], words[3], pairs[2], pairs[3])
            for i in range(LANES):
                for w in range(4):
                    part[4 * i + w] = pairs[w][i]
            memcpy(&out[done], part, 4 * min(<Py_ssize_t>(4 * LANES), n - done))
            done += 4 * LANES


# --- Orders without a table -----------------------------------------------------------------------------------------------------

cdef enum:
    ROUNDS = 10


cdef inline uint32_t reduced(uint32_t x, uint32_t key, uint32_t other, uint32_t size) noexcept nogil:
    cdef uint32_t h = (x ^ key) * <uint32_t>0x9E3779B1
    h = ((h ^ (h >> 15)) + other) * <uint32_t>0x85EBCA6B
    h = (h ^ (h >> 13)) * <uint32_t>0xC2B2AE35
    h ^= h >> 16
    return <uint32_t>((<uint64_t>h * size) >> 32)


cdef inline void turns(uint32_t *left, uint32_t *right, Py_ssize_t n, uint32_t a, uint32_t b, uint32_t[4][LANES] keys) noexcept nogil:
    """Apply the rounds, each to all elements before the next, so that the compiler uses vector instructions."""
    cdef uint32_t key, other
    cdef Py_ssize_t i, r
    for r in range(ROUNDS):
        key, other = keys[(2 * r) & 3][(2 * r) >> 2], keys[(2 * r + 1) & 3][(2 * r + 1) >> 2]
        if r & 1:
            for i in range(n):
                right[i] += reduced(left[i], key, other, b)
                right[i] -= b if right[i] >= b else 0
        else:
            for i in range(n):
                left[i] += reduced(right[i], key, other, a)
                left[i] -= a if left[i] >= a else 0


cdef void permute_some(uint64_t seed, uint64_t epoch, uint32_t stream, uint64_t total, uint64_t a, uint64_t b, uint64_t first, Py_ssize_t n,
                       int64_t *out) noexcept nogil:
    """Compute elements first .. first+n-1, n <= CHUNK; a and b are the result of sides(total)."""
    cdef uint32_t[4][LANES] keys
    cdef uint32_t[CHUNK] left
    cdef uint32_t[CHUNK] right
    cdef Py_ssize_t i
    if total == 1:
        memset(out, 0, n * sizeof(int64_t))
        return
    blocks(seed, epoch, stream, 0, keys)
    for i in range(n):
        left[i], right[i] = <uint32_t>((first + i) / b), <uint32_t>((first + i) % b)
    turns(left, right, n, <uint32_t>a, <uint32_t>b, keys)
    for i in range(n):
        out[i] = left[i] * b + right[i]
        while <uint64_t>out[i] >= total:
            turns(&left[i], &right[i], 1, <uint32_t>a, <uint32_t>b, keys)
            out[i] = left[i] * b + right[i]


def permute(uint64_t seed, uint64_t epoch, uint32_t stream, uint64_t total, uint64_t first, int64_t[::1] out not None):
    cdef uint64_t a, b
    cdef Py_ssize_t n = out.shape[0], done = 0
    if total < 1 or total >> 62:
        raise ValueError("the total is not from 1 to 2^62 - 1")
    a, b = sides(total)
    with nogil:
        while done < n:
            permute_some(seed, epoch, stream, total, a, b, first + done, min(<Py_ssize_t>CHUNK, n - done), &out[done])
            done += CHUNK
