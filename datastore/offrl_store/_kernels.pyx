# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The compiled kernels: the same functions as `_kernels_py.py`, which documents each. No GIL, no allocation, no NumPy headers."""

from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.math cimport pow as power
from libc.math cimport sqrtf
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from ._kernels_py import sides, tree_levels

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    #if defined(__GNUC__)
    #define offrl_prefetch(p) __builtin_prefetch((p), 0, 3)
    #else
    #define offrl_prefetch(p) ((void)(p))
    #endif

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

    /* Short rows by two overlapping moves of fixed size; from 32 bytes on memcpy's wider vectors keep more misses under way (68 bytes: 21
       against 24 us for 256 transitions). */
    static inline void offrl_copy(uint8_t *to, const uint8_t *from, size_t n) {
        if (n > 32) { memcpy(to, from, n); return; }
        if (n >= 16) { uint64_t a[2], b[2]; memcpy(a, from, 16); memcpy(b, from + n - 16, 16); memcpy(to, a, 16); memcpy(to + n - 16, b, 16); return; }
        if (n >= 8) { uint64_t a, b; memcpy(&a, from, 8); memcpy(&b, from + n - 8, 8); memcpy(to, &a, 8); memcpy(to + n - 8, &b, 8); return; }
        if (n >= 4) { uint32_t a, b; memcpy(&a, from, 4); memcpy(&b, from + n - 4, 4); memcpy(to, &a, 4); memcpy(to + n - 4, &b, 4); return; }
        while (n--) to[n] = from[n];
    }

    #define OFFRL_LOAD(type) { type x; memcpy(&x, p + i * (int64_t)sizeof(type), sizeof(type)); return x; }
    static inline double offrl_double(const uint8_t *p, int64_t i, int code) {
        switch (code) {
            case 0: OFFRL_LOAD(float) case 1: OFFRL_LOAD(double) case 2: OFFRL_LOAD(int8_t) case 3: OFFRL_LOAD(int16_t)
            case 4: OFFRL_LOAD(int32_t) case 5: OFFRL_LOAD(int64_t) case 6: OFFRL_LOAD(uint8_t) case 7: OFFRL_LOAD(uint16_t)
            case 8: OFFRL_LOAD(uint32_t) default: OFFRL_LOAD(uint64_t)
        }
    }
    static inline int64_t offrl_whole(const uint8_t *p, int64_t i, int code) {
        switch (code) {
            case 2: OFFRL_LOAD(int8_t) case 3: OFFRL_LOAD(int16_t) case 4: OFFRL_LOAD(int32_t) case 5: OFFRL_LOAD(int64_t)
            case 6: OFFRL_LOAD(uint8_t) case 7: OFFRL_LOAD(uint16_t) case 8: OFFRL_LOAD(uint32_t) default: return (int64_t)0;
        }
    }
    """
    void offrl_prefetch(const void *) noexcept nogil
    uint64_t offrl_high(uint64_t, uint64_t) noexcept nogil
    int32_t offrl_bits(float) noexcept nogil
    float offrl_float(int32_t) noexcept nogil
    void offrl_copy(uint8_t *, const uint8_t *, size_t) noexcept nogil
    double offrl_double(const uint8_t *, int64_t, int) noexcept nogil
    int64_t offrl_whole(const uint8_t *, int64_t, int) noexcept nogil

NAME = "cython"
CODES = {"<f4": 0, "<f8": 1, "|i1": 2, "<i2": 3, "<i4": 4, "<i8": 5, "|u1": 6, "<u2": 7, "<u4": 8, "<u8": 9, "|b1": 6}

cdef enum:
    LANES = 64   # Philox blocks made at a time, word by word, so that the compiler makes them with vector instructions
    CHUNK = 128  # transitions drawn, found and copied at a time: what two draws per Philox block give


# --- Random numbers -------------------------------------------------------------------------------------------------------------

cdef inline void blocks(uint64_t seed, uint64_t step, uint32_t stream, uint32_t first, uint32_t[4][LANES] words) noexcept nogil:
    """The LANES Philox4x32-10 blocks from ``first`` on: words[w][i] is word w of block first + i."""
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
    """Draws first .. first+n-1; ``first`` is even."""
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
    """LANES pairs of normal numbers. Every operation is float32 and in the order of _kernels_py.normal: the results are equal."""
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
        swap = -(quarter & 1)  # all ones in the odd quarters, where sine and cosine change places; then the signs
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


# --- Checksums ------------------------------------------------------------------------------------------------------------------

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
    """The rounds, all of one after the other, so that the compiler makes them with vector instructions."""
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
    """Elements first .. first+n-1, n <= CHUNK; a and b are the sides of the total."""
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


# --- Returns --------------------------------------------------------------------------------------------------------------------

cdef enum:
    MARK = 4  # a sum is kept for every 2^MARK-th row


cdef class Returns:
    """A sum takes at most 15 additions and one look-up in a table of half a byte per row, which stays in the processor's caches."""

    cdef const uint8_t[::1] reward
    cdef double[::1] marks
    cdef double gamma
    cdef int64_t base
    cdef int code

    def __cinit__(self, const int64_t[:, ::1] spans not None, reward, double gamma, double[::1] marks not None, int64_t base):
        cdef Py_ssize_t e
        cdef int64_t row, rows = len(reward)
        cdef double value
        self.reward, self.code, self.gamma, self.marks, self.base = reward.view("u1"), CODES[reward.dtype.str], gamma, marks, base
        if spans.shape[1] != 2:
            raise ValueError("spans must have two columns")
        for e in range(spans.shape[0]):
            if (spans[e, 0] >> MARK) < base or spans[e, 1] < 0 or spans[e, 0] + spans[e, 1] > rows \
                    or ((spans[e, 0] + spans[e, 1]) >> MARK) - base >= marks.shape[0]:
                raise ValueError("an episode is beyond the column or the marks")
        with nogil:
            for e in range(spans.shape[0]):
                value = 0.0
                row = spans[e, 0] + spans[e, 1]
                while row > spans[e, 0]:
                    row -= 1
                    value = offrl_double(&self.reward[0], row, self.code) + gamma * value
                    if row & ((1 << MARK) - 1) == 0:
                        marks[(row >> MARK) - base] = value

    cdef bint covers(self, int64_t first, int64_t end):
        """Whether ``at`` may be asked for rows from first to end."""
        return (first >> MARK) >= self.base and ((end >> MARK) - self.base) < self.marks.shape[0] and end <= len(self.reward)

    cdef inline double at(self, int64_t row, int64_t end) noexcept nogil:
        """The sum from ``row`` to the episode's end, the row ``end``."""
        cdef int64_t stop = ((row >> MARK) + 1) << MARK
        cdef double value = 0.0
        if stop < end:
            value = self.marks[(stop >> MARK) - self.base]
        else:
            stop = end
        while stop > row:
            stop -= 1
            value = offrl_double(&self.reward[0], stop, self.code) + self.gamma * value
        return value


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


# --- Samplers -------------------------------------------------------------------------------------------------------------------

cdef inline int64_t positive(int64_t x) noexcept nogil:
    return -x if x < 0 else x


cdef struct Operation:
    const uint8_t *source
    uint8_t *out
    Py_ssize_t width        # bytes of a row of the source; whole numbers: items of a row
    Py_ssize_t stride       # bytes from one sample of the output to the next
    Py_ssize_t count        # rows taken, ending at the transition's row or its next one
    bint at_next
    bint repeat_first
    int code                # -1: copied as bytes; else the dtype of whole numbers that become int64


cdef struct Chunk:
    int64_t[CHUNK] row      # the transition's row
    int64_t[CHUNK] after    # the row where its return ends
    int64_t[CHUNK] first    # the first row of its episode


cdef class Gatherer:
    cdef const int64_t[:, ::1] table
    cdef const int32_t[::1] guide
    cdef int64_t rows_used, total
    cdef uint64_t a, b       # the sides of the total
    cdef Py_ssize_t size     # samples of a batch
    cdef int shift
    cdef Operation *operations
    cdef Py_ssize_t operation_count
    cdef list kept           # the arrays behind the pointers

    cdef set_index(self, table, guide, int shift, Py_ssize_t size, Py_ssize_t rows):
        cdef Py_ssize_t e
        self.table, self.guide, self.shift, self.size, self.kept = table, guide, shift, size, []
        self.total = self.table[self.table.shape[0] - 1, 0]
        for e in range(self.table.shape[0] - 1):
            self.rows_used = max(self.rows_used, self.table[e, 1] + max(self.table[e, 2], positive(self.table[e, 3])) + 1)
        if self.total < 1 or rows < self.rows_used or self.guide.shape[0] != ((self.total - 1) >> shift) + 1:
            raise ValueError("the index does not fit the columns")
        self.a, self.b = sides(self.total)

    def __dealloc__(self):
        PyMem_Free(self.operations)

    cdef Operation *more(self, const uint8_t[:, ::1] source, out, Py_ssize_t stride) except NULL:
        if source.shape[0] < self.rows_used or len(out) != self.size:
            raise ValueError("the column or the output is too short")
        cdef Operation *grown = <Operation *>PyMem_Realloc(self.operations, (self.operation_count + 1) * sizeof(Operation))
        if grown == NULL:
            raise MemoryError()
        self.operations = grown
        cdef Operation *one = &grown[self.operation_count]
        one.source, one.stride, one.code, one.count, one.at_next, one.repeat_first = &source[0, 0], stride, -1, 1, False, False
        self.operation_count += 1
        return one

    cdef add_bytes(self, source, out, Py_ssize_t steps, Py_ssize_t count, bint at_next, bint repeat_first):
        cdef const uint8_t[:, ::1] rows = source
        cdef uint8_t[:, :] target = out
        if count < 1 or target.shape[1] != steps * count * rows.shape[1] or target.strides[1] != 1:
            raise ValueError("the output does not fit the column")
        cdef Operation *one = self.more(rows, out, target.strides[0])
        one.out, one.width, one.count, one.at_next, one.repeat_first = &target[0, 0], rows.shape[1], count, at_next, repeat_first
        self.kept += [source, out]

    cdef add_whole(self, source, out, Py_ssize_t steps, bint at_next):
        code = CODES[source.dtype.str]
        raw = source.view("u1")
        cdef const uint8_t[:, ::1] rows = raw
        cdef int64_t[:, :] target = out
        if code < 2 or target.shape[1] != steps * source.shape[1] or target.strides[1] != 8:
            raise ValueError("the output does not fit the column")
        cdef Operation *one = self.more(rows, out, target.strides[0])
        one.out, one.width, one.code, one.at_next = <uint8_t *>&target[0, 0], source.shape[1], code, at_next
        self.kept += [raw, out]

    cdef Py_ssize_t counted(self, Py_ssize_t start, Py_ssize_t count) except -1:
        if start < 0 or start > self.size or count < -1 or count > self.size - start:
            raise ValueError("the batch has no such samples")
        return self.size - start if count < 0 else count

    def sample(self, uint64_t seed, uint64_t step, uint32_t stream, Py_ssize_t start=0, Py_ssize_t count=-1):
        cdef int64_t[CHUNK] numbers
        cdef Py_ssize_t n = self.counted(start, count), drawn = 0, some
        with nogil:
            while drawn < n:
                some = min(<Py_ssize_t>CHUNK, n - drawn)
                draw_some(seed, step, stream, <uint64_t>self.total, drawn, some, numbers)
                self.fill(numbers, start + drawn, some)
                drawn += some

    def sample_order(self, uint64_t seed, uint64_t epoch, uint32_t stream, int64_t first, Py_ssize_t start=0, Py_ssize_t count=-1):
        cdef int64_t[CHUNK] numbers
        cdef Py_ssize_t n = self.counted(start, count), drawn = 0, some
        if first < 0 or first > self.total - n:
            raise ValueError("the epoch is over")
        with nogil:
            while drawn < n:
                some = min(<Py_ssize_t>CHUNK, n - drawn)
                permute_some(seed, epoch, stream, <uint64_t>self.total, self.a, self.b, <uint64_t>(first + drawn), some, numbers)
                self.fill(numbers, start + drawn, some)
                drawn += some

    def gather(self, const int64_t[::1] numbers not None, Py_ssize_t start=0):
        cdef Py_ssize_t n = self.counted(start, numbers.shape[0]), done = 0, size, i
        for i in range(n):
            if numbers[i] < 0 or numbers[i] >= self.total:
                raise IndexError("a transition number is out of range")
        with nogil:
            while done < n:
                size = min(<Py_ssize_t>CHUNK, n - done)
                self.fill(&numbers[done], start + done, size)
                done += size

    cdef inline void approach(self, const int64_t *numbers, Py_ssize_t n) noexcept nogil:
        """Ask for what ``find`` will read."""
        cdef Py_ssize_t i
        for i in range(n):
            offrl_prefetch(&self.guide[numbers[i] >> self.shift])
        for i in range(n):
            offrl_prefetch(&self.table[self.guide[numbers[i] >> self.shift], 0])

    cdef inline Py_ssize_t find(self, int64_t number) noexcept nogil:
        """The episode of a transition."""
        cdef Py_ssize_t e = self.guide[number >> self.shift]
        while self.table[e + 1, 0] <= number:  # the last line holds the total: it ends there
            e += 1
        return e

    cdef void fill(self, const int64_t *numbers, Py_ssize_t done, Py_ssize_t n) noexcept nogil:
        """Fill samples done .. done+n-1 of the batch, n <= CHUNK."""


cdef class Transitions(Gatherer):
    cdef const double[::1] powers
    cdef const uint8_t[::1] reward
    cdef float[::1] reward_out, terminal_out, discount_out, returns_out
    cdef int64_t[::1] index_out, remaining_out
    cdef const int64_t[::1] last
    cdef Returns returns
    cdef int reward_code
    cdef int64_t steps
    cdef float failure

    def __cinit__(self, table, guide, int shift, powers, reward, reward_out, terminal_out, discount_out, index_out):
        self.set_index(table, guide, shift, len(index_out), len(reward))
        self.powers, self.steps = powers, powers.shape[0] - 1
        self.reward, self.reward_code = reward.view("u1"), CODES[reward.dtype.str]
        self.reward_out, self.terminal_out, self.discount_out, self.index_out = reward_out, terminal_out, discount_out, index_out
        if not self.size == self.reward_out.shape[0] == self.terminal_out.shape[0] == self.discount_out.shape[0]:
            raise ValueError("the outputs differ in length")

    def add_copy(self, source, out, Py_ssize_t count, bint at_next, bint repeat_first):
        self.add_bytes(source, out, 1, count, at_next, repeat_first)

    def add_int64(self, source, out, bint at_next):
        self.add_whole(source, out, 1, at_next)

    def add_returns(self, Returns returns not None, float[::1] out not None, int64_t[::1] remaining not None, const int64_t[::1] last not None,
                    float failure):
        cdef Py_ssize_t e
        if out.shape[0] != self.size or remaining.shape[0] != self.size or last.shape[0] != self.table.shape[0] - 1:
            raise ValueError("the outputs differ in length")
        for e in range(self.table.shape[0] - 1):
            if not returns.covers(self.table[e, 1], self.table[e, 1] + positive(self.table[e, 3])):
                raise ValueError("the returns are of other episodes")
        self.returns, self.returns_out, self.remaining_out, self.last, self.failure = returns, out, remaining, last, failure

    cdef void fill(self, const int64_t *numbers, Py_ssize_t done, Py_ssize_t n) noexcept nogil:
        """Find all rows first, then copy one column after the other.

        The copies of one column do not wait for each other. Asking for the first line of each row while finding the next ones keeps memory
        busy meanwhile (256 transitions of 1 M: 26 to 24 us); asking for every line of the rows is not faster.
        """
        cdef Chunk chunk
        cdef Operation *one
        cdef Py_ssize_t i, k, e
        cdef int64_t t, used, first
        self.approach(numbers, n)
        for i in range(n):
            e = self.find(numbers[i])
            t, first = numbers[i] - self.table[e, 0], self.table[e, 1]
            used = min(self.steps, self.table[e, 2] - t)
            chunk.row[i], chunk.after[i], chunk.first[i] = first + t, first + t + used, first
            self.terminal_out[done + i] = t + used == self.table[e, 3]
            self.discount_out[done + i] = <float>self.powers[used]
            self.index_out[done + i] = first + t
            for k in range(self.operation_count):
                one = &self.operations[k]
                offrl_prefetch(one.source + (chunk.after[i] if one.at_next else chunk.row[i]) * one.width)
        self.rewards(&chunk, done, n)
        if self.returns_out.shape[0]:
            self.add_up(numbers, &chunk, done, n)
        for i in range(self.operation_count):
            if self.operations[i].code < 0:
                copy_rows(&self.operations[i], &chunk, done, n)
            else:
                convert_rows(&self.operations[i], &chunk, done, n)

    cdef inline void rewards(self, Chunk *chunk, Py_ssize_t done, Py_ssize_t n) noexcept nogil:
        cdef Py_ssize_t i
        cdef int64_t row, k
        cdef double total
        for i in range(n):
            row = chunk.row[i]
            total = offrl_double(&self.reward[0], row, self.reward_code)
            for k in range(1, chunk.after[i] - row):
                total += self.powers[k] * offrl_double(&self.reward[0], row + k, self.reward_code)
            self.reward_out[done + i] = <float>total

    cdef void add_up(self, const int64_t *numbers, Chunk *chunk, Py_ssize_t done, Py_ssize_t n) noexcept nogil:
        """The returns."""
        cdef Py_ssize_t i, e
        cdef int64_t t, steps
        for i in range(n):
            e = self.find(numbers[i])
            t, steps = numbers[i] - self.table[e, 0], positive(self.table[e, 3])
            if t > self.last[e]:
                self.returns_out[done + i], self.remaining_out[done + i] = self.failure, 1
            else:
                self.returns_out[done + i] = <float>self.returns.at(chunk.row[i], chunk.first[i] + steps)
                self.remaining_out[done + i] = steps - t


cdef class Windows(Gatherer):
    cdef const uint8_t[::1] reward
    cdef float[:, :] reward_out, mask_out, returns_out, terminal_out
    cdef int64_t[:, :] timesteps_out
    cdef int64_t[::1] index_out
    cdef Returns returns
    cdef int reward_code
    cdef Py_ssize_t length

    def __cinit__(self, table, guide, int shift, reward, Returns returns not None, reward_out, mask_out, returns_out, terminal_out,
                  timesteps_out, index_out):
        cdef Py_ssize_t e
        self.set_index(table, guide, shift, len(index_out), len(reward))
        self.reward, self.reward_code, self.returns = reward.view("u1"), CODES[reward.dtype.str], returns
        self.reward_out, self.mask_out, self.returns_out, self.terminal_out = reward_out, mask_out, returns_out, terminal_out
        self.timesteps_out, self.index_out, self.length = timesteps_out, index_out, reward_out.shape[1]
        for array in (reward_out, mask_out, returns_out, terminal_out, timesteps_out):
            if array.shape != (self.size, self.length) or array.strides[1] != array.itemsize:
                raise ValueError("the outputs differ in shape")
        for e in range(self.table.shape[0] - 1):
            if not returns.covers(self.table[e, 1], self.table[e, 1] + positive(self.table[e, 3])):
                raise ValueError("the returns are of other episodes")

    def add_copy(self, source, out, Py_ssize_t count, bint repeat_first):
        self.add_bytes(source, out, self.length, count, False, repeat_first)

    def add_int64(self, source, out):
        self.add_whole(source, out, self.length, False)

    cdef void fill(self, const int64_t *numbers, Py_ssize_t done, Py_ssize_t n) noexcept nogil:
        """As in Transitions; the first lines of a window are asked for, the processor sees by itself that the next ones follow."""
        cdef Chunk chunk  # after: the row of the first step of the window that is real
        cdef Operation *one
        cdef Py_ssize_t i, k, e
        cdef int64_t t, first, start
        self.approach(numbers, n)
        for i in range(n):
            e = self.find(numbers[i])
            t, first = numbers[i] - self.table[e, 0], self.table[e, 1]
            start = first + max(t + 1 - self.length, 0)
            chunk.row[i], chunk.first[i], chunk.after[i] = first + t, first, start
            self.index_out[done + i] = first + t
            for k in range(self.operation_count):
                one = &self.operations[k]
                offrl_prefetch(one.source + start * one.width)
                offrl_prefetch(one.source + start * one.width + 64)
                offrl_prefetch(one.source + start * one.width + 128)
        for i in range(n):
            e = self.find(numbers[i])
            self.steps_of(done + i, chunk.row[i], chunk.after[i], chunk.first[i], self.table[e, 3])
        for i in range(self.operation_count):
            if self.operations[i].code < 0:
                copy_windows(&self.operations[i], &chunk, done, n, self.length)
            else:
                convert_windows(&self.operations[i], &chunk, done, n, self.length)

    cdef inline void steps_of(self, Py_ssize_t sample, int64_t end, int64_t start, int64_t first, int64_t terminal) noexcept nogil:
        """What a window has beside its columns; backwards, since a return is its reward and the return after it."""
        cdef Py_ssize_t i, missing = self.length - (end - start + 1)
        cdef float *mask = &self.mask_out[sample, 0]
        cdef float *reward = &self.reward_out[sample, 0]
        cdef float *returns = &self.returns_out[sample, 0]
        cdef float *ends = &self.terminal_out[sample, 0]
        cdef int64_t *timesteps = &self.timesteps_out[sample, 0]
        cdef double value = self.returns.at(end + 1, first + positive(terminal)), one
        for i in range(missing):
            mask[i], reward[i], returns[i], ends[i], timesteps[i] = 0, 0, 0, 0, 0
        for i in range(missing, self.length):
            mask[i], ends[i], timesteps[i] = 1, 0, start - first + 1 + i - missing
        ends[self.length - 1] = end - first + 1 == terminal
        for i in range(self.length - 1, missing - 1, -1):
            one = offrl_double(&self.reward[0], start + i - missing, self.reward_code)
            value = one + self.returns.gamma * value
            reward[i], returns[i] = <float>one, <float>value


cdef void copy_windows(const Operation *one, const Chunk *chunk, Py_ssize_t done, Py_ssize_t n, Py_ssize_t length) noexcept nogil:
    cdef Py_ssize_t i, k, missing, size = one.count * one.width
    cdef const uint8_t *ahead
    cdef uint8_t *to
    cdef int64_t row
    for i in range(n):
        to = one.out + (done + i) * one.stride
        if i + 1 < n and one.count == 1:  # the next window's lines come while this one is copied
            ahead = one.source + chunk.after[i + 1] * one.width
            for k in range(0, (chunk.row[i + 1] - chunk.after[i + 1] + 1) * one.width, 64):
                offrl_prefetch(ahead + k)
        missing = length - (chunk.row[i] - chunk.after[i] + 1)
        if missing:
            memset(to, 0, missing * size)
        to += missing * size
        if one.count == 1:
            memcpy(to, one.source + chunk.after[i] * one.width, (length - missing) * size)
            continue
        for row in range(chunk.after[i], chunk.row[i] + 1):
            copy_stack(one, to, row, chunk.first[i])
            to += size


cdef void convert_windows(const Operation *one, const Chunk *chunk, Py_ssize_t done, Py_ssize_t n, Py_ssize_t length) noexcept nogil:
    cdef Py_ssize_t i, k, missing
    cdef int64_t *to
    for i in range(n):
        to = <int64_t *>(one.out + (done + i) * one.stride)
        missing = (length - (chunk.row[i] - chunk.after[i] + 1)) * one.width
        memset(to, 0, missing * sizeof(int64_t))
        for k in range(length * one.width - missing):
            to[missing + k] = offrl_whole(one.source, chunk.after[i] * one.width + k, one.code)


cdef inline void copy_stack(const Operation *one, uint8_t *to, int64_t last, int64_t first) noexcept nogil:
    """The rows that end at ``last``, of an episode that begins at ``first``."""
    cdef Py_ssize_t k, missing, count = one.count, width = one.width
    cdef int64_t start = last - count + 1
    if start >= first:
        offrl_copy(to, one.source + start * width, count * width)
        return
    missing = first - start  # frames before the episode began
    if one.repeat_first:
        for k in range(missing):
            offrl_copy(to + k * width, one.source + first * width, width)
    else:
        memset(to, 0, missing * width)
    offrl_copy(to + missing * width, one.source + first * width, (count - missing) * width)


cdef void copy_rows(const Operation *one, Chunk *chunk, Py_ssize_t done, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    cdef int64_t *last = &chunk.after[0] if one.at_next else &chunk.row[0]
    for i in range(n):
        copy_stack(one, one.out + (done + i) * one.stride, last[i], chunk.first[i])


cdef void convert_rows(const Operation *one, Chunk *chunk, Py_ssize_t done, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i, k
    cdef int64_t *last = &chunk.after[0] if one.at_next else &chunk.row[0]
    cdef int64_t *to
    for i in range(n):
        to = <int64_t *>(one.out + (done + i) * one.stride)
        for k in range(one.width):
            to[k] = offrl_whole(one.source, last[i] * one.width + k, one.code)


# --- Priorities -----------------------------------------------------------------------------------------------------------------

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
            raise ValueError("one weight per number is due")
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
        """From 53 random bits each to numbers. All go down one level before any goes down the next: their cache misses overlap."""
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
                node[i] = min(node[i], self.length[h] // WIDE - 1)  # rounding may lead past the last node
                children = self.level[h] + node[i] * WIDE
                for child in range(WIDE - 1):
                    sums[child + 1] = sums[child] + children[child]
                chosen = 0  # counted rather than searched for: no branch to be guessed wrong
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
            raise ValueError("one priority per number is due")
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
