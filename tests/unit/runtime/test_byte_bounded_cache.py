"""Values are kept within a number of bytes, the least recently used one goes."""

from gantry_runtime.byte_bounded_cache import ByteBoundedCache, CountBoundedCache


def test_what_was_used_last_is_kept_and_bytes_are_counted() -> None:
    cache = ByteBoundedCache[bytes](80, len)
    for name in "abcdefgh":
        cache.put(name, name.encode() * 10)
    assert cache.used_bytes == 80
    assert cache.get("a") == b"a" * 10
    cache.put("i", b"i" * 10)
    assert (cache.get("b"), cache.get("a"), cache.used_bytes) == (None, b"a" * 10, 80)
    assert cache.pop("a") == b"a" * 10
    assert (cache.pop("a"), cache.get("a"), cache.used_bytes) == (None, None, 70)
    cache.put("c", b"x")
    assert (cache.get("c"), cache.used_bytes) == (b"x", 61)


def test_what_needs_more_than_an_eighth_of_the_room_is_not_kept() -> None:
    cache = ByteBoundedCache[bytes](80, len)
    cache.put("large", b"x" * 11)
    assert (cache.get("large"), cache.used_bytes) == (None, 0)


def test_entries_may_be_bounded_too_and_what_is_dropped_to_make_room_is_told() -> None:
    told: list[bytes] = []
    cache = ByteBoundedCache[bytes](80, len, most_entries=3, dropped=told.append)
    for name in "abcd":
        assert cache.put(name, name.encode())
    assert (told, len(cache), cache.used_bytes) == ([b"a"], 3, 3)
    assert cache.pop("b") == b"b"
    assert not cache.put("large", b"x" * 11)
    assert told == [b"a"]
    cache.clear()
    assert (told, len(cache), cache.used_bytes, cache.get("c")) == ([b"a"], 0, 0, None)


def test_a_number_of_values_is_kept_and_the_one_used_longest_ago_goes() -> None:
    cache = CountBoundedCache[str, int](3)
    for number, name in enumerate("abc", 1):
        assert cache.put(name, number) == number
    assert cache.get("a") == 1
    cache.put("d", 4)
    assert [name in cache for name in "abcd"] == [True, False, True, True]
    cache.put("c", 30)
    cache.put("e", 5)
    assert [cache.get(name) for name in "acde"] == [None, 30, 4, 5]
    assert (cache.pop("c"), cache.pop("c"), len(cache)) == (30, None, 2)
    cache.clear()
    assert (len(cache), cache.get("d")) == (0, None)
