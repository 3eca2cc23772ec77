"""Random numbers that depend on a key alone: not on the order of the calls, the threads, or torch's global state."""

from hashlib import sha256

import torch

SEED_BITS = 64


def keyed_generator(key: str, *, bits: int = 63) -> torch.Generator:
    """Return a CPU generator seeded with the first `bits` bits of SHA-256 of `key`.

    Args:
        key (`str`): names the stream, for example `"<seed>:<tensor name>"`.
        bits (`int`): of the seed, at most 64. Part of the definition of a stream: another number, another stream.

    Example:
        >>> torch.equal(torch.rand(2, generator=keyed_generator("a")), torch.rand(2, generator=keyed_generator("a")))
        True
    """
    digest = int.from_bytes(sha256(key.encode()).digest()[: SEED_BITS // 8], "little")
    return torch.Generator().manual_seed(digest >> (SEED_BITS - bits))
