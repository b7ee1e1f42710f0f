"""Writes the settings tables of docs/operations.md from the settings dataclasses (`make docs`); a test compares."""

import re
import sys
from pathlib import Path

from gantry_blob.settings import BlobSettings
from gantry_gateway.settings import GatewaySettings
from gantry_index.settings import IndexSettings
from gantry_renderer.settings import RendererSettings
from gantry_runtime.process import ProcessSettings
from gantry_runtime.settings import describe
from gantry_workflow.settings import WorkflowSettings

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
SERVICES = {
    "gateway": GatewaySettings,
    "blob": BlobSettings,
    "index": IndexSettings,
    "renderer": RendererSettings,
    "workflow": WorkflowSettings,
}
BEGIN, END = "<!-- settings: written by `make docs` -->", "<!-- end of settings -->"


def tables() -> str:
    """Return the settings of all services as Markdown."""
    common = {name for name, _, _ in describe(ProcessSettings)}
    parts = [("every service", describe(ProcessSettings))]
    parts += [(name, [row for row in describe(cls) if row[0] not in common]) for name, cls in SERVICES.items()]
    lines: list[str] = []
    for title, rows in parts:
        lines += [f"### {title}", "", "| setting | default | what |", "|---|---|---|"]
        lines += [
            f"| `{name}` | {f'`{default}`' if default not in ('', '()', 'None') else ''} | {doc.replace('|', chr(92) + '|')} |"
            for name, default, doc in rows
        ]
        lines.append("")
    return "\n".join(lines)


def _default(text: str) -> str:
    return "" if text in ("", "()", "None") else f"`{text}`"


def page_with(text: str) -> str:
    """Return the page with its tables written anew."""
    return re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: f"{BEGIN}\n\n{tables()}\n{END}", text, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(page_with(PAGE.read_text()))
    sys.exit(0)
