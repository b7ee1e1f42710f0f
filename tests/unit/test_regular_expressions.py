"""No regular expression of ours takes long on any text that a client may send.

The test finds every `re.compile` and every direct call of `re` in the packages, and runs each as it is used over long texts that are made
to hurt: one or two characters again and again, with and without an end that does not match.
"""

import ast
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("gantry_standard", "gantry_runtime", "gantry_gateway", "gantry_blob", "gantry_index", "gantry_renderer", "gantry_workflow")
LONG, SHORT = 64 << 10, 4 << 10
MOST_S = 0.02
BY_OPERATORS = {"storing/coercion.py", "arrivals/rules.py"}
"""Modules that compile what the operator writes into a file of rules; only their own expressions are looked at."""


@dataclass(frozen=True)
class Use:
    """One expression and the methods by which its module uses it."""

    where: str
    pattern: "re.Pattern[str] | re.Pattern[bytes]"
    methods: tuple[str, ...]


def _calls_of_re(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "re":
            yield node, node.func.attr


def uses() -> Iterator[Use]:
    """Yield every expression of the packages that is written down as it is."""
    for path in sorted(path for package in PACKAGES for path in ROOT.glob(f"*/*/{package}/**/*.py")):
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
        constants = {
            target.id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        where = f"{path.parent.name}/{path.name}"
        for call, method in _calls_of_re(tree):
            if method == "escape":
                continue
            try:
                text = _value(call.args[0], constants)
            except ValueError:
                continue
            flags = re.IGNORECASE if "IGNORECASE" in ast.unparse(call) else re.NOFLAG
            name = next((name for name, value in constants.items() if value is call), "")
            methods = set(re.findall(rf"\b{name}\.(fullmatch|match|search|sub|split|findall|finditer)\(", source)) if name else {method}
            yield Use(f"{where} {name or call.lineno}", re.compile(text, flags), tuple(sorted(methods - {"compile"})) or ("fullmatch",))


def _value(node: ast.expr, constants: dict[str, ast.expr]) -> str | bytes:
    """Return a constant, or a sum of constants. Raises ValueError for what is made while it runs."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
        return node.value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _value(node.left, constants), _value(node.right, constants)
        return left + right  # type: ignore[operator]
    if isinstance(node, ast.Name) and node.id in constants:
        return _value(constants[node.id], constants)
    raise ValueError("not a constant")


USES = {use.where: use for use in uses()}


def texts(pattern: str) -> Iterator[str]:
    """Yield texts that make the parts of a pattern meet each other in as many ways as possible."""
    plain = re.sub(r"\\.|[\[\](){}?*+|^$]|[a-zA-Z]-[a-zA-Z]", "", pattern)
    alphabet = sorted({*plain[:12], *' \t\n\\"=;.', "0", "a"})
    for length in (SHORT, LONG):
        for character in alphabet:
            for end in ("", "\x00", "!"):
                yield character * length + end
    for one, other in permutations(alphabet, 2):
        yield (one + other) * (SHORT // 2) + "\x00"
        yield one + other * SHORT + "\x00"


def test_the_expressions_are_found() -> None:
    assert len(USES) > 30
    assert any("negotiation.py _TOKEN" in where for where in USES)


@pytest.mark.parametrize("where", USES)
def test_an_expression_takes_time_in_proportion_to_the_text(where: str) -> None:
    use = USES[where]
    binary = isinstance(use.pattern.pattern, bytes)
    source = use.pattern.pattern.decode("latin-1") if isinstance(use.pattern.pattern, bytes) else use.pattern.pattern
    for text in texts(source):
        value = text.encode("latin-1", "replace") if binary else text
        for method in use.methods:
            run = getattr(use.pattern, method)
            arguments = (b"" if binary else "", value) if method == "sub" else (value,)
            taken_s = min(_time(run, arguments, 1), MOST_S + 1)
            if taken_s > MOST_S:
                # Again: the machine may have been busy.
                taken_s = min(_time(run, arguments, 1) for _ in range(3))
            assert taken_s <= MOST_S, f"{method} of {len(text)} characters {text[:4]!r}… takes {taken_s:.3f} s"


def _time(run: object, arguments: tuple[object, ...], times: int) -> float:
    begin = time.thread_time()
    for _ in range(times):
        answer = run(*arguments)  # type: ignore[operator]
        if hasattr(answer, "__next__"):
            for _ in answer:
                pass
    return time.thread_time() - begin
