# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Compiled kernels: the samplers that gather transitions and windows. `_gather_py.py` documents them. No GIL, no allocation per batch."""

from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from ._memory cimport dtype_code, offrl_copy, offrl_double, offrl_prefetch, offrl_whole
from ._random cimport CHUNK, draw_some, permute_some
from ._returns cimport Returns, Sums, covers, sum_at

from ._kernels_py import sides


cdef inline int64_t positive(int64_t x) noexcept nogil:
    return -x if x < 0 else x


cdef struct Operation:
    const uint8_t *source
    uint8_t *out
    Py_ssize_t width        # bytes per row of the source; for integers, items per row
    Py_ssize_t stride       # bytes from one sample of the output to the next
    Py_ssize_t count        # rows copied, ending at the transition's row or the next one
    bint at_next
    bint repeat_first
    int code                # -1: copied as bytes; otherwise the dtype of integers that become int64


cdef struct Chunk:
    int64_t[CHUNK] row      # the transition's row
    int64_t[CHUNK] after    # the row where its return ends
    int64_t[CHUNK] first    # the first row of its episode


cdef class Gatherer:
    cdef const int64_t[:, ::1] table
    cdef const int32_t[::1] guide
    cdef int64_t rows_used, total
    cdef uint64_t a, b       # the result of sides(total)
    cdef Py_ssize_t size     # samples per batch
    cdef int shift
    cdef Operation *operations
    cdef Py_ssize_t operation_count
    cdef list kept           # keeps alive the arrays behind the pointers

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
        cdef int code = dtype_code(source)
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
        """Prefetch what ``find`` will read."""
        cdef Py_ssize_t i
        for i in range(n):
            offrl_prefetch(&self.guide[numbers[i] >> self.shift])
        for i in range(n):
            offrl_prefetch(&self.table[self.guide[numbers[i] >> self.shift], 0])

    cdef inline Py_ssize_t find(self, int64_t number) noexcept nogil:
        """Return the episode of a transition."""
        cdef Py_ssize_t e = self.guide[number >> self.shift]
        while self.table[e + 1, 0] <= number:  # the last line holds the total, so the loop ends there
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
        self.reward, self.reward_code = reward.view("u1"), dtype_code(reward)
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
            if not covers(&returns.sums, self.table[e, 1], self.table[e, 1] + positive(self.table[e, 3])):
                raise ValueError("the returns are of other episodes")
        self.returns, self.returns_out, self.remaining_out, self.last, self.failure = returns, out, remaining, last, failure

    cdef void fill(self, const int64_t *numbers, Py_ssize_t done, Py_ssize_t n) noexcept nogil:
        """Find all rows first, then copy column by column.

        The copies of one column do not depend on each other. Prefetching the first cache line of each row while the next rows are found
        keeps memory busy (256 of 1 M transitions: 24 us instead of 26); prefetching every line of the rows is not faster.
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
        """Compute the returns."""
        cdef Py_ssize_t i, e
        cdef int64_t t, steps
        for i in range(n):
            e = self.find(numbers[i])
            t, steps = numbers[i] - self.table[e, 0], positive(self.table[e, 3])
            if t > self.last[e]:
                self.returns_out[done + i], self.remaining_out[done + i] = self.failure, 1
            else:
                self.returns_out[done + i] = <float>sum_at(&self.returns.sums, chunk.row[i], chunk.first[i] + steps)
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
        self.reward, self.reward_code, self.returns = reward.view("u1"), dtype_code(reward), returns
        self.reward_out, self.mask_out, self.returns_out, self.terminal_out = reward_out, mask_out, returns_out, terminal_out
        self.timesteps_out, self.index_out, self.length = timesteps_out, index_out, reward_out.shape[1]
        for array in (reward_out, mask_out, returns_out, terminal_out, timesteps_out):
            if array.shape != (self.size, self.length) or array.strides[1] != array.itemsize:
                raise ValueError("the outputs differ in shape")
        for e in range(self.table.shape[0] - 1):
            if not covers(&returns.sums, self.table[e, 1], self.table[e, 1] + positive(self.table[e, 3])):
                raise ValueError("the returns are of other episodes")

    def add_copy(self, source, out, Py_ssize_t count, bint repeat_first):
        self.add_bytes(source, out, self.length, count, False, repeat_first)

    def add_int64(self, source, out):
        self.add_whole(source, out, self.length, False)

    cdef void fill(self, const int64_t *numbers, Py_ssize_t done, Py_ssize_t n) noexcept nogil:
        """Fill as Transitions does; prefetch only a window's first lines, because the hardware prefetcher fetches the next ones."""
        cdef Chunk chunk  # after: the row of the window's first real step
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
        """Fill everything but a window's columns; backwards, because a return is a reward plus the next return."""
        cdef Py_ssize_t i, missing = self.length - (end - start + 1)
        cdef float *mask = &self.mask_out[sample, 0]
        cdef float *reward = &self.reward_out[sample, 0]
        cdef float *returns = &self.returns_out[sample, 0]
        cdef float *ends = &self.terminal_out[sample, 0]
        cdef int64_t *timesteps = &self.timesteps_out[sample, 0]
        cdef double value = sum_at(&self.returns.sums, end + 1, first + positive(terminal)), one
        for i in range(missing):
            mask[i], reward[i], returns[i], ends[i], timesteps[i] = 0, 0, 0, 0, 0
        for i in range(missing, self.length):
            mask[i], ends[i], timesteps[i] = 1, 0, start - first + 1 + i - missing
        ends[self.length - 1] = end - first + 1 == terminal
        for i in range(self.length - 1, missing - 1, -1):
            one = offrl_double(&self.reward[0], start + i - missing, self.reward_code)
            value = one + self.returns.sums.gamma * value
            reward[i], returns[i] = <float>one, <float>value


cdef void copy_windows(const Operation *one, const Chunk *chunk, Py_ssize_t done, Py_ssize_t n, Py_ssize_t length) noexcept nogil:
    cdef Py_ssize_t i, k, missing, size = one.count * one.width
    cdef const uint8_t *ahead
    cdef uint8_t *to
    cdef int64_t row
    for i in range(n):
        to = one.out + (done + i) * one.stride
        if i + 1 < n and one.count == 1:  # prefetch the next window while this one is copied
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
    """Copy the rows that end at ``last``, of an episode that starts at ``first``."""
    cdef Py_ssize_t k, missing, count = one.count, width = one.width
    cdef int64_t start = last - count + 1
    if start >= first:
        offrl_copy(to, one.source + start * width, count * width)
        return
    missing = first - start  # frames before the episode's start
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
