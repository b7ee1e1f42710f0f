"""Unguessable random numbers for names. They are read from the system in blocks: a single read costs 10 µs and releases the interpreter
lock. Thread-safe.

A process must not fork after the first use.
"""

import os
import threading

POOL_BYTES = 4096


class _Pool:
    """Unused random bytes."""

    def __init__(self) -> None:
        self._digits = ""
        self._at = 0
        self._lock = threading.Lock()

    def hex(self, count_bytes: int) -> str:
        """Return random bytes as hex digits.

        Args:
            count_bytes: at most POOL_BYTES.
        """
        with self._lock:
            end = self._at + 2 * count_bytes
            if end > len(self._digits):
                self._digits = os.urandom(POOL_BYTES).hex()
                self._at, end = 0, 2 * count_bytes
            digits = self._digits[self._at : end]
            self._at = end
            return digits


random_hex = _Pool().hex
