# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Compiled kernels: checksums, and one pass that checks, checksums and copies an episode's rows. `_rows_py.py` documents them."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    /* CRC-32 as in zlib, bit-reflected. The portable version processes eight bytes at a time with tables ("slicing by 8"). */
    static uint32_t offrl_crc_table[8][256];

    static void offrl_crc_prepare(void) {
        for (int i = 0; i < 256; i++) {
            uint32_t value = (uint32_t)i;
            for (int k = 0; k < 8; k++) value = (value >> 1) ^ (value & 1 ? 0xEDB88320u : 0u);
            offrl_crc_table[0][i] = value;
        }
        for (int t = 1; t < 8; t++)
            for (int i = 0; i < 256; i++) {
                uint32_t value = offrl_crc_table[t - 1][i];
                offrl_crc_table[t][i] = offrl_crc_table[0][value & 0xFF] ^ (value >> 8);
            }
    }

    static inline uint32_t offrl_word(const uint8_t *p) {
        return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
    }

    static uint32_t offrl_crc_sliced(uint32_t value, const uint8_t *p, size_t n) {   /* value: complemented */
        for (; n >= 8; p += 8, n -= 8) {
            uint32_t low = offrl_word(p) ^ value, high = offrl_word(p + 4);
            value = offrl_crc_table[7][low & 0xFF] ^ offrl_crc_table[6][low >> 8 & 0xFF]
                  ^ offrl_crc_table[5][low >> 16 & 0xFF] ^ offrl_crc_table[4][low >> 24]
                  ^ offrl_crc_table[3][high & 0xFF] ^ offrl_crc_table[2][high >> 8 & 0xFF]
                  ^ offrl_crc_table[1][high >> 16 & 0xFF] ^ offrl_crc_table[0][high >> 24];
        }
        for (; n; p++, n--) value = offrl_crc_table[0][(value ^ *p) & 0xFF] ^ (value >> 8);
        return value;
    }

    #if defined(__x86_64__) && defined(__GNUC__)
    #include <immintrin.h>
    #define OFFRL_FOLDS 1
    static uint64_t offrl_fold_by[4];  /* x^(512+32), x^(512-32), x^(128+32), x^(128-32) modulo the polynomial, reflected */
    static int offrl_folds;

    static uint64_t offrl_power(int n) {
        uint32_t value = 0x80000000u;  /* x^0 */
        while (n--) value = (value >> 1) ^ (value & 1 ? 0xEDB88320u : 0u);
        return (uint64_t)value << 1;
    }

    static void offrl_fold_prepare(void) {
        offrl_fold_by[0] = offrl_power(512 + 32);
        offrl_fold_by[1] = offrl_power(512 - 32);
        offrl_fold_by[2] = offrl_power(128 + 32);
        offrl_fold_by[3] = offrl_power(128 - 32);
        offrl_folds = __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
    }

    /* Fold sixteen bytes into the next ones. */
    #define OFFRL_FOLD(x, by, next) _mm_xor_si128(_mm_xor_si128(_mm_clmulepi64_si128((x), (by), 0x00), _mm_clmulepi64_si128((x), (by), 0x11)), (next))
    #define OFFRL_LOAD16(p) _mm_loadu_si128((const __m128i *)(p))

    /* Gopal et al. 2009, "Fast CRC computation for generic polynomials using PCLMULQDQ instruction". Each 64 bytes are folded into the next
       64. Instead of the paper's reduction, the tables compute the checksum of the last 16. */
    __attribute__((target("pclmul,sse4.1")))
    static uint32_t offrl_crc_folded(uint32_t value, const uint8_t *p, size_t n) {   /* n >= 64 */
        __m128i far = _mm_loadu_si128((const __m128i *)&offrl_fold_by[0]), near = _mm_loadu_si128((const __m128i *)&offrl_fold_by[2]);
        __m128i a = _mm_xor_si128(OFFRL_LOAD16(p), _mm_cvtsi32_si128((int)value));
        __m128i b = OFFRL_LOAD16(p + 16), c = OFFRL_LOAD16(p + 32), d = OFFRL_LOAD16(p + 48);
        uint8_t last[16];
        for (p += 64, n -= 64; n >= 64; p += 64, n -= 64) {
            a = OFFRL_FOLD(a, far, OFFRL_LOAD16(p));
            b = OFFRL_FOLD(b, far, OFFRL_LOAD16(p + 16));
            c = OFFRL_FOLD(c, far, OFFRL_LOAD16(p + 32));
            d = OFFRL_FOLD(d, far, OFFRL_LOAD16(p + 48));
        }
        b = OFFRL_FOLD(a, near, b);
        c = OFFRL_FOLD(b, near, c);
        d = OFFRL_FOLD(c, near, d);
        for (; n >= 16; p += 16, n -= 16) d = OFFRL_FOLD(d, near, OFFRL_LOAD16(p));
        _mm_storeu_si128((__m128i *)last, d);
        return offrl_crc_sliced(offrl_crc_sliced(0, last, 16), p, n);
    }
    #else
    static void offrl_fold_prepare(void) {}
    #endif

    static void offrl_prepare(void) { offrl_crc_prepare(); offrl_fold_prepare(); }

    static inline uint32_t offrl_crc(uint32_t value, const uint8_t *p, size_t n) {   /* as zlib's crc32() */
    #ifdef OFFRL_FOLDS
        if (n >= 64 && offrl_folds) return ~offrl_crc_folded(~value, p, n);
    #endif
        return ~offrl_crc_sliced(~value, p, n);
    }

    /* Whether n numbers are within [low, high] (a NaN is not). The loops have no branch, so that the compiler uses vector instructions. */
    #define OFFRL_WITHIN(type) { \\
        type low, high, x; int outside = 0; \\
        memcpy(&low, lowest, sizeof(type)); memcpy(&high, highest, sizeof(type)); \\
        for (size_t i = 0; i < n; i++) { memcpy(&x, p + i * sizeof(type), sizeof(type)); outside |= !((x >= low) & (x <= high)); } \\
        return !outside; }
    /* Half floats compare as integers once the magnitude bits of negative ones are inverted. */
    #define OFFRL_ORDERED(x) ((int16_t)((x) ^ (((x) >> 15) & 0x7FFF)))
    static int offrl_half_within(const uint8_t *p, size_t n, const uint8_t *lowest, const uint8_t *highest) {
        int16_t low, high, x; int outside = 0;
        memcpy(&low, lowest, 2); memcpy(&high, highest, 2);
        low = OFFRL_ORDERED(low); high = OFFRL_ORDERED(high);
        for (size_t i = 0; i < n; i++) { memcpy(&x, p + 2 * i, 2); x = OFFRL_ORDERED(x); outside |= (x < low) | (x > high); }
        return !outside;
    }
    static int offrl_within(const uint8_t *p, size_t n, int code, const uint8_t *lowest, const uint8_t *highest) {
        switch (code) {
            case 0: OFFRL_WITHIN(float) case 1: OFFRL_WITHIN(double) case 2: OFFRL_WITHIN(int8_t) case 3: OFFRL_WITHIN(int16_t)
            case 4: OFFRL_WITHIN(int32_t) case 5: OFFRL_WITHIN(int64_t) case 6: OFFRL_WITHIN(uint8_t) case 7: OFFRL_WITHIN(uint16_t)
            case 8: OFFRL_WITHIN(uint32_t) case 9: OFFRL_WITHIN(uint64_t) default: return offrl_half_within(p, n, lowest, highest);
        }
    }
    """
    void offrl_prepare() noexcept nogil
    uint32_t offrl_crc(uint32_t, const uint8_t *, size_t) noexcept nogil
    uint32_t offrl_crc_sliced(uint32_t, const uint8_t *, size_t) noexcept nogil
    int offrl_within(const uint8_t *, size_t, int, const uint8_t *, const uint8_t *) noexcept nogil

CODES = {"<f4": 0, "<f8": 1, "|i1": 2, "<i2": 3, "<i4": 4, "<i8": 5, "|u1": 6, "<u2": 7, "<u4": 8, "<u8": 9, "|b1": 6, "<f2": 10}

cdef enum:
    BLOCK = 8192  # bytes checked, checksummed and copied at a time; they stay in the first-level cache

offrl_prepare()


def crc32(data, uint32_t value=0, bint portable=False):
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        with nogil:
            if portable:
                value = ~offrl_crc_sliced(~value, <const uint8_t *>view.buf, view.len)
            else:
                value = offrl_crc(value, <const uint8_t *>view.buf, view.len)
    finally:
        PyBuffer_Release(&view)
    return value


def crc32_rows(const uint8_t[:, ::1] rows not None, Py_ssize_t width, uint32_t[::1] out not None):
    cdef Py_ssize_t i
    if width < 0 or width > rows.shape[1] or out.shape[0] != rows.shape[0]:
        raise ValueError("sizes differ")
    with nogil:
        for i in range(rows.shape[0]):
            out[i] = offrl_crc(0, &rows[i, 0], width)


# --- Rows on their way into a store -----------------------------------------------------------------------------------------------

cdef struct Column:
    uint8_t *buffer         # the collected rows
    Py_ssize_t width        # bytes per row
    Py_ssize_t item         # bytes per number
    int code                # the dtype, as in CODES
    bint checked            # whether the values are checked
    uint8_t[8] low          # the lowest and the highest allowed number, in the dtype
    uint8_t[8] high


cdef uint32_t through(const Column *column, const uint8_t *source, Py_ssize_t size, uint8_t *to, bint check, uint32_t value,
                      bint *fits) noexcept nogil:
    """Check, checksum and copy one column of an episode block by block (``to`` NULL: do not copy)."""
    cdef Py_ssize_t done = 0, some
    while done < size:
        some = min(<Py_ssize_t>BLOCK, size - done)
        if check and column.checked and not offrl_within(source + done, some // column.item, column.code, column.low, column.high):
            fits[0] = False
            return value
        value = offrl_crc(value, source + done, some)
        if to != NULL:
            memcpy(to + done, source + done, some)
        done += some
    return value


cdef uint32_t zeros(Py_ssize_t size, uint32_t value) noexcept nogil:
    """Extend a checksum by ``size`` zero bytes."""
    cdef uint8_t[256] none
    cdef Py_ssize_t some
    memset(none, 0, 256)
    while size > 0:
        some = min(<Py_ssize_t>256, size)
        value = offrl_crc(value, none, some)
        size -= some
    return value


cdef class RowBuffer:
    cdef Column *columns
    cdef Py_ssize_t count, capacity
    cdef list kept           # keeps alive the arrays behind the pointers

    def __cinit__(self, list columns not None):
        cdef uint8_t[:, ::1] rows
        cdef Py_ssize_t k = 0
        cdef Column *column
        self.kept, self.count = [], len(columns)
        self.columns = <Column *>PyMem_Calloc(max(self.count, 1), sizeof(Column))
        if self.columns == NULL:
            raise MemoryError()
        for buffer, dtype, bounds in columns:
            column = &self.columns[k]
            rows = buffer
            if not rows.shape[0] or not rows.shape[1] or rows.shape[1] % dtype.itemsize or (k and rows.shape[0] != self.capacity):
                raise ValueError("the buffers do not fit the columns")
            column.buffer, column.width, column.item = &rows[0, 0], rows.shape[1], dtype.itemsize
            column.code, column.checked, self.capacity = CODES[dtype.str], bounds is not None, rows.shape[0]
            if bounds is not None:
                raw = bounds.tobytes()
                if bounds.dtype != dtype or len(raw) != 2 * column.item:
                    raise ValueError("bounds must be two numbers of the dtype")
                memcpy(column.low, <const uint8_t *>raw, column.item)
                memcpy(column.high, <const uint8_t *>raw + column.item, column.item)
            self.kept.append(buffer)
            k += 1

    def __dealloc__(self):
        PyMem_Free(self.columns)

    def take(self, tuple arrays not None, Py_ssize_t rows, Py_ssize_t at, bint check):
        cdef Py_buffer view
        cdef const Column *column
        cdef uint32_t value = 0
        cdef uint8_t *to
        cdef bint fits = True
        cdef Py_ssize_t k, left
        if len(arrays) != self.count or rows < 0 or (at >= 0 and rows > self.capacity - at):
            raise ValueError("the rows do not fit the buffers")
        for k in range(self.count):
            column = &self.columns[k]
            PyObject_GetBuffer(arrays[k], &view, PyBUF_SIMPLE)
            try:
                left = rows * column.width - view.len
                if left < 0 or view.len % column.width:
                    raise ValueError("an array has too many rows, or rows of another size")
                to = column.buffer + at * column.width if at >= 0 else NULL
                with nogil:
                    value = through(column, <const uint8_t *>view.buf, view.len, to, check, value, &fits)
                    if fits and left:
                        value = zeros(left, value)
                        if to != NULL:
                            memset(to + view.len, 0, left)
            finally:
                PyBuffer_Release(&view)
            if not fits:
                return -1 - k
        return value
