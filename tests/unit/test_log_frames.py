"""Blocks of records survive as they were, or are seen to be torn or damaged."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profilehouse.log import murmur2, partition_of
from profilehouse.log.frames import HEAD, Block, decode, decode_head, encode

VALUES = st.lists(st.binary(max_size=200), min_size=1, max_size=20)
INT64 = st.integers(0, 2**63 - 1)


@given(INT64, INT64, VALUES, st.binary(max_size=50), st.binary(max_size=50))
def test_a_block_comes_back_as_it_was_wherever_it_lies(
    first: int, at: int, values: list[bytes], before: bytes, after: bytes
) -> None:
    block = encode(first, at, values)
    assert decode(before + block + after, len(before)) == Block(first, at, values, len(block))
    head = decode_head(block)
    assert head == (first, len(values), len(block))


@given(st.data(), VALUES, VALUES)
def test_of_blocks_torn_at_any_byte_the_whole_ones_remain(
    data: st.DataObject, one: list[bytes], other: list[bytes]
) -> None:
    first, second = encode(0, 1, one), encode(len(one), 2, other)
    torn = (first + second)[: data.draw(st.integers(0, len(first + second) - 1))]
    found, start = [], 0
    while block := decode(torn, start):
        found.append(block.values)
        start += block.size
    assert found == ([one] if len(torn) >= len(first) else [])


@given(st.data(), VALUES)
def test_a_block_with_any_byte_changed_is_damaged(data: st.DataObject, values: list[bytes]) -> None:
    block = bytearray(encode(7, 8, values))
    block[data.draw(st.integers(0, len(block) - 1))] ^= data.draw(st.integers(1, 255))
    assert decode(bytes(block)) is None


@given(st.binary(max_size=200))
def test_noise_is_no_block(noise: bytes) -> None:
    assert decode(noise) is None
    assert decode(bytes(len(noise))) is None
    assert decode_head(bytes(HEAD.size)) is None


@pytest.mark.parametrize(
    ("key", "signed"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_the_hash_is_that_of_kafkas_java_client(key: bytes, signed: int) -> None:
    assert murmur2(key) == signed % 2**32


@given(st.binary(max_size=40), st.integers(1, 1000))
def test_the_partition_is_that_of_kafkas_c_client(key: bytes, partitions: int) -> None:
    from confluent_kafka import murmur2 as theirs  # noqa: PLC0415

    assert partition_of(key, partitions) == theirs(key, partitions)
