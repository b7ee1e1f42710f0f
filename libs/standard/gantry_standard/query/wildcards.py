"""Wildcard matching: `*` stands for any characters, also none; `?` stands for exactly one.

A pattern comes from a client, so matching takes time in proportion to the value, whatever the pattern. It never becomes a regular
expression: several stars in one would take time that grows with a power of the length.

Source: PS3.4 §C.2.2.2.4.
"""

from dataclasses import dataclass
from functools import lru_cache

MAX_CHARACTERS = 256
"""Longest pattern. LO has at most 64 characters and a component group of PN too; UC, LT, ST and UT have more."""
MAX_STARS = 16


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern, ready to be matched.

    The pattern without its stars is a row of tokens. A set of states, one bit each, says how many tokens may have been consumed so far;
    each character of the value moves the whole set with three operations.

    Attributes:
        consumes: by character, the states whose next token is that character or `?`.
        consumes_any: the states whose next token is `?`.
        stays: the states with a star before the next token; they stay whatever the character is.
        end: the state in which all tokens are consumed.
    """

    consumes: dict[str, int]
    consumes_any: int
    stays: int
    end: int

    def matches(self, value: str) -> bool:
        """Say whether the whole value matches."""
        consumes, consumes_any, stays = self.consumes, self.consumes_any, self.stays
        states = 1
        for character in value:
            states = (states & consumes.get(character, consumes_any)) << 1 | states & stays
            if not states:
                return False
        return bool(states & self.end)


@lru_cache(4096)
def compiled(pattern: str) -> Pattern:
    """Return a pattern that can be matched. `check` says which patterns are taken from a client."""
    consumes: dict[str, int] = {}
    consumes_any, stays, state = 0, 0, 1
    for character in pattern:
        if character == "*":
            stays |= state
            continue
        if character == "?":
            consumes_any |= state
        else:
            consumes[character] = consumes.get(character, 0) | state
        state <<= 1
    return Pattern({character: states | consumes_any for character, states in consumes.items()}, consumes_any, stays, state)


def check(pattern: str) -> None:
    """Refuse a pattern that the stores could need long for: Elasticsearch makes an automaton of it, SQLite tries each star's places.

    Raises:
        ValueError: it is longer than `MAX_CHARACTERS`, or has more stars than `MAX_STARS`.
    """
    if len(pattern) > MAX_CHARACTERS:
        raise ValueError(f"a value with wildcards has {len(pattern)} characters, at most {MAX_CHARACTERS} are matched")
    if (stars := pattern.count("*")) > MAX_STARS:
        raise ValueError(f"a value has {stars} asterisks, at most {MAX_STARS} are matched")
