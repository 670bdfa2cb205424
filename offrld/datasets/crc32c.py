"""CRC-32C (Castagnoli, RFC 3720) in NumPy: the checksum that Google's buckets state for every object.

A block is cut into 4,096 lanes. Their CRCs are computed side by side, with one table look-up per byte of a lane. Then neighbours are joined
in pairs: the CRC of A + B is the CRC of A, advanced by as many zero bytes as B has, xor the CRC of B. This reaches about 250 MB/s; a loop
over bytes in Python reaches 8 MB/s. The standard library has no CRC-32C.
"""

from __future__ import annotations

import functools

import numpy as np

POLYNOMIAL = 0x82F63B78  # reflected
LANES = 1 << 12


def crc32c(data: bytes | memoryview, crc: int = 0) -> int:
    """Return the CRC after ``data``, continued from the CRC ``crc`` of the data before."""
    values = np.frombuffer(data, np.uint8)
    length = len(values) // LANES  # bytes of a lane
    if length:
        crcs = np.zeros(LANES, np.uint32)
        table = _table()
        for column in np.ascontiguousarray(values[: length * LANES].reshape(LANES, length).T):
            crcs = table[(crcs.astype(np.uint8)) ^ column] ^ (crcs >> np.uint32(8))
        joined = length
        while len(crcs) > 1:
            crcs = _moved(crcs[0::2], joined) ^ crcs[1::2]
            joined *= 2
        crc = int(_moved(np.array([crc ^ 0xFFFFFFFF], np.uint32), joined)[0] ^ crcs[0]) ^ 0xFFFFFFFF
    state = crc ^ 0xFFFFFFFF
    table = _table().tolist()
    for byte in values[length * LANES :].tolist():
        state = table[(state ^ byte) & 0xFF] ^ (state >> 8)
    return state ^ 0xFFFFFFFF


@functools.cache
def _table() -> np.ndarray:
    """Return the remainder of each byte, uint32 ``[256]``."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> np.uint32(1)) ^ np.uint32(POLYNOMIAL), table >> np.uint32(1))
    return table


@functools.lru_cache(maxsize=64)
def _mover(zeros: int) -> np.ndarray:
    """Return the effect of ``zeros`` zero bytes on each byte of a state, uint32 ``[4, 256]``; it is linear over bits."""
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)  # image of each bit, by squaring and multiplying
    result, power = bits.copy(), _one_zero(bits)
    while zeros:
        if zeros & 1:
            result = _apply(power, result)
        power = _apply(power, power)
        zeros >>= 1
    places = np.arange(256, dtype=np.uint32)
    return np.stack([_apply(result, places << np.uint32(8 * k)) for k in range(4)])


def _one_zero(states: np.ndarray) -> np.ndarray:
    return _table()[states & np.uint32(0xFF)] ^ (states >> np.uint32(8))


def _apply(matrix: np.ndarray, states: np.ndarray) -> np.ndarray:
    """Apply to every state the linear map whose images of the 32 bits are ``matrix``."""
    out = np.zeros_like(states)
    for bit in range(32):
        out ^= np.where((states >> np.uint32(bit)) & np.uint32(1), matrix[bit], np.uint32(0))
    return out


def _moved(states: np.ndarray, zeros: int) -> np.ndarray:
    tables = _mover(zeros)
    out = tables[0][states & np.uint32(0xFF)]
    for k in range(1, 4):
        out = out ^ tables[k][(states >> np.uint32(8 * k)) & np.uint32(0xFF)]
    return out
