"""Shuffled passes with random access: the row at any place of any pass, without a stored order."""

import hashlib

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Words = NDArray[np.uint32]

ROUNDS, FEW_BITS, MORE_ROUNDS = 4, 16, 12
"""Four Feistel rounds make a good shuffle (Luby and Rackoff, 1988) if each half has many bits; few bits need more
rounds, and then a round is cheap."""


def key_of(seed: int, name: str) -> int:
    """Return the 32-bit key of the permutations of one source."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def permuted(ordinals: Integers, size: int, key: int) -> Integers:
    """Return the rows at the places `ordinals` of an endless sequence of shuffled passes over `size` rows.

    Each pass holds every row once, in an order of its own; ordinals 0 to `size` - 1 are the first pass. A Feistel
    network is a bijection whatever its round function is, but only on a power of two. So it permutes the smallest
    power of two that holds `size`, and a result outside is sent through again until it falls inside (cycle walking):
    that is a bijection on the rows, and takes two trips on average at most (four for a single row).

    Args:
        ordinals (`[n]` of `int64`): places in the sequence, in any order.
        size (`int`): the number of rows.
        key (`int`): see `key_of`.

    Returns:
        `[n]` of `int64`: rows, each below `size`.
    """
    if not len(ordinals):
        return ordinals
    # Each half of the network needs at least one bit.
    bits = max(2, (size - 1).bit_length())
    passes = ordinals // size
    places = ordinals - passes * size
    # Every pass has a key of its own. Most calls stay within one pass, so that one key is enough.
    # The factor is 2^32 divided by the golden ratio. It is odd, so different passes never share a key (modulo 2^32
    # passes).
    keys = _mix(np.uint32(key) + passes.astype(np.uint32) * np.uint32(0x9E3779B9))
    if passes.min() == passes.max():
        keys = keys[:1]
    rows = _feistel(places, keys, bits)
    outside = np.flatnonzero(rows >= size)
    # The walk ends: repeated application runs through a cycle that leads back to the start, which is below `size`.
    while outside.size:
        rows[outside] = _feistel(rows[outside], keys[outside] if len(keys) > 1 else keys, bits)
        outside = outside[rows[outside] >= size]
    return rows


def _feistel(values: Integers, keys: Words, bits: int) -> Integers:
    # The halves differ by one bit if `bits` is odd. So they stay in place and are changed in turn; swapping them, as
    # in the textbook form, needs equal halves.
    low_bits = bits // 2
    low_mask, high_mask = np.uint32((1 << low_bits) - 1), np.uint32((1 << (bits - low_bits)) - 1)
    high, low = (values >> low_bits).astype(np.uint32), values.astype(np.uint32) & low_mask
    for index in range(ROUNDS if bits > FEW_BITS else MORE_ROUNDS):
        if index % 2:
            low ^= _mix(high ^ keys) & low_mask
        else:
            high ^= _mix(low ^ keys) & high_mask
        # Each round has a key of its own: with equal round functions, a Feistel network keeps visible structure.
        keys = keys * np.uint32(0x2C1B3C6D) + np.uint32(0x297A2D39)
    return (high.astype(np.int64) << low_bits) | low


def _mix(words: Words) -> Words:
    """Scramble 32-bit words: multiply, shift, multiply, shift (the finaliser of MurmurHash3, shortened)."""
    words = words * np.uint32(0x85EBCA6B)  # a new array; the rest works in it
    words ^= words >> np.uint32(15)
    words *= np.uint32(0xC2B2AE35)
    words ^= words >> np.uint32(14)
    return words
