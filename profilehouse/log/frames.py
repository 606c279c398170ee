"""Blocks of records as bytes: how the file log frames what it writes.

Belongs here: encoding and decoding, pure. Does not belong here: files (file.py).

    block   checksum u32 | length u32 | first offset i64 | received_at i64 | records u32 | body
    body    length of each record, u32 | the records

All numbers little-endian; `length` is that of the body; the checksum is the CRC-32 of all that
follows it. A block counts whole or not at all.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

MAX_BODY = 16 * 2**20
"""Bytes; no writer makes longer ones, so a longer one is damage."""

HEAD = struct.Struct("<IIqqI")
_CHECKSUM = 4


class Block(NamedTuple):
    """A decoded block: its records, the offset of the first, their time, and its bytes in all."""

    first_offset: int
    received_at: int
    values: list[bytes]
    size: int


class Head(NamedTuple):
    """What the head of a block says; unchecked."""

    first_offset: int
    records: int
    size: int


def encode(first_offset: int, received_at: int, values: Sequence[bytes]) -> bytes:
    """A block of at least one record."""
    body = b"".join([struct.pack(f"<{len(values)}I", *map(len, values)), *values])
    rest = HEAD.pack(0, len(body), first_offset, received_at, len(values))[_CHECKSUM:]
    checksum = zlib.crc32(body, zlib.crc32(rest))
    return b"".join([checksum.to_bytes(_CHECKSUM, "little"), rest, body])


def decode(data: bytes, start: int = 0) -> Block | None:
    """The block that starts there; None where it is cut off or damaged."""
    if len(data) - start < HEAD.size:
        return None
    checksum, length, first_offset, received_at, records = HEAD.unpack_from(data, start)
    body, end = start + HEAD.size, start + HEAD.size + length
    if end > len(data) or not 0 < 4 * records <= length <= MAX_BODY:
        return None
    if zlib.crc32(memoryview(data)[start + _CHECKSUM : end]) != checksum:
        return None
    lengths = struct.unpack_from(f"<{records}I", data, body)
    bounds = accumulate(lengths, initial=body + 4 * records)
    values = [data[begin:stop] for begin, stop in pairwise(bounds)]
    return Block(first_offset, received_at, values, end - start)


def decode_head(data: bytes) -> Head | None:
    """The head that the data begins with; None where it is cut off or cannot be one."""
    if len(data) < HEAD.size:
        return None
    _, length, first_offset, _, records = HEAD.unpack_from(data)
    if not 0 < 4 * records <= length <= MAX_BODY:
        return None
    return Head(first_offset, records, HEAD.size + length)
