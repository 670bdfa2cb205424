# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The compiled kernels: the same functions as `_kernels_py.py`, which documents each. No GIL, no allocation, no NumPy headers."""

from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.math cimport sqrtf
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

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
        t = offrl_float(bits - (exponent << 23)) - <float>1.0
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
        x[i] = offrl_float(bits ^ (((quarter + 1) & 2) << 30)) * radius
        bits = (offrl_bits(cosine) & swap) | (offrl_bits(sine) & ~swap)
        y[i] = offrl_float(bits ^ ((quarter & 2) << 30)) * radius


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


# --- Transitions ----------------------------------------------------------------------------------------------------------------

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


cdef class Transitions:
    cdef const int64_t[:, ::1] table
    cdef const int32_t[::1] guide
    cdef const double[::1] powers
    cdef const uint8_t[::1] reward
    cdef float[::1] reward_out, terminal_out, discount_out
    cdef int64_t[::1] index_out
    cdef int64_t rows_used
    cdef int shift, reward_code, reward_size
    cdef int64_t total, steps
    cdef Operation *operations
    cdef Py_ssize_t operation_count
    cdef list kept           # the arrays behind the pointers

    def __cinit__(self, table, guide, int shift, powers, reward, reward_out, terminal_out, discount_out, index_out):
        cdef Py_ssize_t e
        self.table, self.guide, self.powers, self.shift = table, guide, powers, shift
        self.reward, self.reward_code, self.reward_size = reward.view("u1"), CODES[reward.dtype.str], reward.dtype.itemsize
        self.reward_out, self.terminal_out, self.discount_out, self.index_out = reward_out, terminal_out, discount_out, index_out
        self.kept = []
        self.total, self.steps = self.table[self.table.shape[0] - 1, 0], powers.shape[0] - 1
        for e in range(self.table.shape[0] - 1):
            self.rows_used = max(self.rows_used, self.table[e, 1] + self.table[e, 2] + 1)
        if self.total < 1 or len(reward) < self.rows_used or self.guide.shape[0] != ((self.total - 1) >> shift) + 1:
            raise ValueError("the index does not fit the columns")
        n = self.index_out.shape[0]
        if not n == self.reward_out.shape[0] == self.terminal_out.shape[0] == self.discount_out.shape[0]:
            raise ValueError("the outputs differ in length")

    def __dealloc__(self):
        PyMem_Free(self.operations)

    cdef Operation *more(self, const uint8_t[:, ::1] source, out, bint at_next) except NULL:
        if source.shape[0] < self.rows_used or len(out) != self.index_out.shape[0]:
            raise ValueError("the column or the output is too short")
        cdef Operation *grown = <Operation *>PyMem_Realloc(self.operations, (self.operation_count + 1) * sizeof(Operation))
        if grown == NULL:
            raise MemoryError()
        self.operations = grown
        cdef Operation *one = &grown[self.operation_count]
        one.source, one.at_next, one.code, one.count, one.repeat_first = &source[0, 0], at_next, -1, 1, False
        self.operation_count += 1
        return one

    def add_copy(self, source, out, Py_ssize_t count, bint at_next, bint repeat_first):
        cdef const uint8_t[:, ::1] rows = source
        cdef uint8_t[:, :] target = out
        if count < 1 or target.shape[1] != count * rows.shape[1] or target.strides[1] != 1:
            raise ValueError("the output does not fit the column")
        cdef Operation *one = self.more(rows, out, at_next)
        one.out, one.stride, one.width, one.count, one.repeat_first = &target[0, 0], target.strides[0], rows.shape[1], count, repeat_first
        self.kept += [source, out]

    def add_int64(self, source, out, bint at_next):
        code = CODES[source.dtype.str]
        raw = source.view("u1")
        cdef const uint8_t[:, ::1] rows = raw
        cdef int64_t[:, :] target = out
        if code < 2 or target.shape[1] != source.shape[1] or target.strides[1] != 8:
            raise ValueError("the output does not fit the column")
        cdef Operation *one = self.more(rows, out, at_next)
        one.out, one.stride, one.width, one.code = <uint8_t *>&target[0, 0], target.strides[0], source.shape[1], code
        self.kept += [raw, out]

    def sample(self, uint64_t seed, uint64_t step, uint32_t stream):
        cdef int64_t[CHUNK] numbers
        cdef Py_ssize_t n = self.index_out.shape[0], drawn = 0, some
        with nogil:
            while drawn < n:
                some = min(<Py_ssize_t>CHUNK, n - drawn)
                draw_some(seed, step, stream, <uint64_t>self.total, drawn, some, numbers)
                self.fill(numbers, drawn, some)
                drawn += some

    def gather(self, const int64_t[::1] numbers not None):
        cdef Py_ssize_t n = self.index_out.shape[0], done = 0, size, i
        if numbers.shape[0] != n:
            raise ValueError("one number per sample is due")
        for i in range(n):
            if numbers[i] < 0 or numbers[i] >= self.total:
                raise IndexError("a transition number is out of range")
        with nogil:
            while done < n:
                size = min(<Py_ssize_t>CHUNK, n - done)
                self.fill(&numbers[done], done, size)
                done += size

    cdef void fill(self, const int64_t *numbers, Py_ssize_t done, Py_ssize_t n) noexcept nogil:
        """Samples done .. done+n-1 of the batch, n <= CHUNK: find all rows first, then copy one column after the other.

        The copies of one column do not wait for each other. Asking for the first line of each row while finding the next ones keeps memory
        busy meanwhile (256 transitions of 1 M: 26 to 24 us); asking for every line of the rows is not faster.
        """
        cdef Chunk chunk
        cdef Operation *one
        cdef Py_ssize_t i, k
        for i in range(n):
            offrl_prefetch(&self.guide[numbers[i] >> self.shift])
        for i in range(n):
            offrl_prefetch(&self.table[self.guide[numbers[i] >> self.shift], 0])
        for i in range(n):
            self.find(numbers[i], done + i, i, &chunk)
            for k in range(self.operation_count):
                one = &self.operations[k]
                offrl_prefetch(one.source + (chunk.after[i] if one.at_next else chunk.row[i]) * one.width)
        self.rewards(&chunk, done, n)
        for i in range(self.operation_count):
            if self.operations[i].code < 0:
                copy_rows(&self.operations[i], &chunk, done, n)
            else:
                convert_rows(&self.operations[i], &chunk, done, n)

    cdef inline void find(self, int64_t number, Py_ssize_t sample, Py_ssize_t i, Chunk *chunk) noexcept nogil:
        cdef Py_ssize_t e = self.guide[number >> self.shift]
        cdef int64_t t, used, first
        while self.table[e + 1, 0] <= number:  # the last line holds the total: it ends there
            e += 1
        t = number - self.table[e, 0]
        first = self.table[e, 1]
        used = min(self.steps, self.table[e, 2] - t)
        chunk.row[i], chunk.after[i], chunk.first[i] = first + t, first + t + used, first
        self.terminal_out[sample] = t + used == self.table[e, 3]
        self.discount_out[sample] = <float>self.powers[used]
        self.index_out[sample] = first + t

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


cdef void copy_rows(const Operation *one, Chunk *chunk, Py_ssize_t done, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i, k, missing, count = one.count, width = one.width
    cdef int64_t *last = &chunk.after[0] if one.at_next else &chunk.row[0]
    cdef uint8_t *to
    cdef int64_t start
    for i in range(n):
        to = one.out + (done + i) * one.stride
        start = last[i] - count + 1
        if start >= chunk.first[i]:
            offrl_copy(to, one.source + start * width, count * width)
            continue
        missing = chunk.first[i] - start  # frames before the episode began
        if one.repeat_first:
            for k in range(missing):
                offrl_copy(to + k * width, one.source + chunk.first[i] * width, width)
        else:
            memset(to, 0, missing * width)
        offrl_copy(to + missing * width, one.source + chunk.first[i] * width, (count - missing) * width)


cdef void convert_rows(const Operation *one, Chunk *chunk, Py_ssize_t done, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i, k
    cdef int64_t *last = &chunk.after[0] if one.at_next else &chunk.row[0]
    cdef int64_t *to
    for i in range(n):
        to = <int64_t *>(one.out + (done + i) * one.stride)
        for k in range(one.width):
            to[k] = offrl_whole(one.source, last[i] * one.width + k, one.code)
