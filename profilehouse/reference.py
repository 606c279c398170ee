"""docs/reference.md, from settings and contracts: `python -m profilehouse.reference` writes it.

A test compares the file with what this makes.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from profilehouse.contracts import Contract, contracts_of
from profilehouse.profiles.features import load_declaration, profile_contract
from profilehouse.settings import PREFIX, Settings

FILE = Path(__file__).resolve().parent.parent / "docs" / "reference.md"
_KINDS = {
    "sources": "Sources: what others deliver as files",
    "stream": "Stream: what comes over the event log",
    "lake": "Lake",
    "warehouse": "Warehouse",
    "feed_tables": "Warehouse: tables of sources that are turned on",
}


def reference() -> str:
    """The whole page."""
    parts = [
        "# Reference",
        "Made by `python -m profilehouse.reference` from the settings and the contracts.",
        "## Settings",
        "Environment variables, or lines of a file `.env` in the working directory.",
        _table(("variable", "default", "meaning"), _settings()),
    ]
    for kind, title in _KINDS.items():
        parts.append(f"## {title}")
        parts += [part for contract in contracts_of(kind) for part in _dataset(contract)]
    parts += ["## Profile", *_dataset(profile_contract(load_declaration()))]
    return "\n\n".join(parts) + "\n"


def _settings() -> Iterator[tuple[str, str, str]]:
    tree = ast.parse(inspect.getsource(Settings)).body[0]
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    for field, text in pairwise(body):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        said = text.value.value if isinstance(text, ast.Expr) else ""  # type: ignore[attr-defined]
        default = Settings.model_fields[field.target.id].default
        shown = f"`{default}`" if default not in ("", None) else "none"
        yield f"`{PREFIX}{field.target.id.upper()}`", shown, str(said)


def _dataset(contract: Contract) -> list[str]:
    owner = f"Owner: {contract.owner}. Version {contract.version}."
    key = f" Key: {', '.join(contract.primary_key)}." if contract.primary_key else ""
    columns = (
        (
            f"`{column.name}`",
            f"{column.type}{'' if column.required else ', may be null'}",
            f"{column.description}{' *Personal.*' if column.personal else ''}",
        )
        for column in contract.columns
    )
    return [
        f"### {contract.name}",
        f"{_line(contract.description)} {owner}{key}",
        *_layout(contract),
        _table(("column", "type", "meaning"), columns),
    ]


def _layout(contract: Contract) -> Iterator[str]:
    """How the table lies on disk, and why, where the contract says."""
    if contract.layout_reason:
        parts = f"Partitions: {', '.join(contract.partition_by) or 'none'}."
        order = f"Clusters: {', '.join(contract.cluster_by) or 'none'}."
        yield f"{parts} {order} {_line(contract.layout_reason)}"


def _table(heads: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join(f"| {' | '.join(_line(cell) for cell in line)} |" for line in lines)


def _line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    FILE.write_text(reference(), "utf-8")
