"""Random numbers for names that nobody may guess, taken from the system many at a time: one by one they cost 10 µs each.

For processes that do not fork after their first use.
"""

import os

POOL_BYTES = 4096


class _Pool:
    """Random bytes that were not given to anybody yet."""

    def __init__(self) -> None:
        self._digits = ""
        self._at = 0

    def hex(self, count_bytes: int) -> str:
        """Return random bytes as hex digits.

        Args:
            count_bytes: at most POOL_BYTES.
        """
        end = self._at + 2 * count_bytes
        if end > len(self._digits):
            self._digits = os.urandom(POOL_BYTES).hex()
            self._at, end = 0, 2 * count_bytes
        found = self._digits[self._at : end]
        self._at = end
        return found


random_hex = _Pool().hex
