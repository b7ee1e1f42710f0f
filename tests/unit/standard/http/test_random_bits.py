"""Random names: as long as asked for, and never the same bits twice."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from gantry_standard.http.random_bits import POOL_BYTES, random_hex


@pytest.mark.parametrize("count_bytes", [1, 8, 16, POOL_BYTES])
def test_bits_are_given_once(count_bytes: int) -> None:
    found = [random_hex(count_bytes) for _ in range(3 * POOL_BYTES // count_bytes)] if count_bytes > 1 else [random_hex(1)]
    assert {len(one) for one in found} == {2 * count_bytes}
    assert all(int(one, 16) >= 0 for one in found)
    assert len(set(found)) == len(found)


def test_threads_get_bits_of_their_own() -> None:
    with ThreadPoolExecutor(8) as threads:
        found = [one for some in threads.map(lambda _: [random_hex(8) for _ in range(2000)], range(16)) for one in some]
    assert len(set(found)) == len(found) == 32_000
