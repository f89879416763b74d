"""Random numbers by name, for the choices inside a trigger: hashes, so that all machines and devices agree."""

import hashlib

import numpy as np


class Draws:
    """A stream of numbers named by `words`, by their text: the key 3, numpy's 3 and "3" name the same stream."""

    def __init__(self, *words: object):
        self.name = "\x1f".join(str(word) for word in words)
        self._taken = 0

    def _digest(self, size: int) -> bytes:
        name = f"{self.name}\x1f{self._taken}".encode()
        self._taken += 1
        return hashlib.shake_256(name).digest(size)

    def integer(self, below: int) -> int:
        """The next whole number in 0 ... below - 1, uniform up to 2**-64."""
        return int.from_bytes(self._digest(8), "big") * below >> 64

    def shuffled(self, count: int) -> list[int]:
        """A permutation of 0 ... count - 1."""
        order = list(range(count))
        for last in range(count - 1, 0, -1):
            other = self.integer(last + 1)
            order[last], order[other] = order[other], order[last]
        return order

    def bytes(self, *shape: int) -> np.ndarray:
        """An array of uniform uint8."""
        return np.frombuffer(self._digest(int(np.prod(shape))), dtype=np.uint8).reshape(shape)

    def normal(self, *shape: int) -> np.ndarray:
        """float64, mean 0 and variance 1: twelve uniform numbers less six (Irwin-Hall), the same bits anywhere."""
        raw = np.frombuffer(self._digest(24 * int(np.prod(shape))), dtype=">u2").reshape(*shape, 12)
        return raw.sum(axis=-1, dtype=np.int64) / 65536.0 - 6.0
