"""The documents name only what exists: links, headings, paths in backticks; and every page can be reached from the index."""

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
CODE_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
A_PATH = re.compile(r"[\w.-]+(?:/[\w.-]+)*/?")
SUFFIXES = (".py", ".md", ".proto", ".toml", ".yml", ".sh", ".svg", ".tsv", ".c", ".mjs")
WRITTEN_BY_USERS = {"model.py", "bone.json", "out.json"}
"""Files of a reader's own in the examples."""


@cache
def tracked() -> frozenset[str]:
    """Return every file of the repository and every folder that holds one, as paths below the root."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = [path for path in listed.stdout.splitlines() if (ROOT / path).exists()]
    return frozenset(files) | {str(folder) for path in files for folder in Path(path).parents}


def pages() -> list[str]:
    """Return the Markdown files that people read."""
    return sorted(path for path in tracked() if path.endswith(".md") and not path.startswith("."))


def prose(page: str) -> str:
    """Return a page without its blocks of code."""
    return FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """Return the anchors that a code host makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def is_there(path: str) -> bool:
    """Return whether a path, or the end of one (`http/routes.py`, `gateway/http/routes.py`), names a file or folder of the repository."""
    wanted = path.rstrip("/")
    return any(name == wanted or name.endswith((f"/{wanted}", f"/gantry_{wanted}")) for name in tracked())


@pytest.mark.parametrize("page", pages())
def test_every_relative_link_leads_somewhere(page: str) -> None:
    for target in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (ROOT / page).parent / path if path else ROOT / page
        assert linked.resolve().exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(linked), f"{page}: {target}"


@pytest.mark.parametrize("page", pages())
def test_every_path_in_backticks_exists(page: str) -> None:
    for span in CODE_SPAN.findall(prose(page)):
        path = span.partition(":")[0]
        if path.endswith(SUFFIXES) and A_PATH.fullmatch(path) and path not in WRITTEN_BY_USERS and path not in SUFFIXES:
            assert is_there(path), f"{page}: `{span}`"


def test_every_page_is_listed_in_the_index() -> None:
    listed = {target.partition("#")[0] for target in LINK.findall(prose("docs/README.md"))}
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"} <= listed


def test_every_decision_is_listed() -> None:
    listed = LINK.findall(prose("docs/decisions/README.md"))
    assert sorted(listed) == sorted(path.name for path in (ROOT / "docs/decisions").glob("[0-9]*.md"))


def test_every_picture_is_shown_on_a_page() -> None:
    shown = {target.rpartition("/")[2] for page in pages() for target in LINK.findall(prose(page))}
    assert {path.name for path in (ROOT / "docs").glob("*.svg")} <= shown


def test_every_page_that_code_names_exists() -> None:
    for path in tracked():
        if path.endswith((".py", ".yml")) or path == "Makefile":
            for name in re.findall(r"\bdocs/[\w/-]+\.(?:md|svg)\b", (ROOT / path).read_text(encoding="utf-8")):
                assert (ROOT / name).exists(), f"{path}: {name}"
