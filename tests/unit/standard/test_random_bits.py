"""Random names: as long as asked for, and never the same bits twice."""

import pytest

from gantry_standard.random_bits import POOL_BYTES, random_hex


@pytest.mark.parametrize("count_bytes", [1, 8, 16, POOL_BYTES])
def test_bits_are_given_once(count_bytes: int) -> None:
    found = [random_hex(count_bytes) for _ in range(3 * POOL_BYTES // count_bytes)] if count_bytes > 1 else [random_hex(1)]
    assert {len(one) for one in found} == {2 * count_bytes}
    assert all(int(one, 16) >= 0 for one in found)
    assert len(set(found)) == len(found)
