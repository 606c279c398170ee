"""What changed between two states of the contracts, and whether anybody who relies on them breaks.

Belongs here: comparing contracts, and reading them as they were at a Git revision. Does not belong
here: rules on data (quality/).
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from profilehouse.contract_quality import QualityRule
from profilehouse.contracts import CONTRACTS_DIR, Column, Contract, load_contracts
from profilehouse.errors import ProfilehouseError

INCOMING = ("sources", "stream")
"""Kinds whose records others send: more demands break the senders. The others are read: fewer
promises break the readers."""


@dataclass(frozen=True)
class Change:
    """One difference of a dataset, in words."""

    dataset: str
    what: str
    breaking: bool


def contracts_at(revision: str) -> dict[str, Contract]:
    """The contracts as they were at a Git revision.

    Raises:
        ProfilehouseError: where Git has no such revision, or one of them cannot be read.
    """
    names = _git("ls-tree", "-r", "--name-only", revision, f"{CONTRACTS_DIR.name}/").split()
    with TemporaryDirectory() as folder:
        for name in names:
            if not name.endswith(".odcs.yaml"):
                continue
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_git("show", f"{revision}:{name}"), "utf-8")
        return dict(load_contracts(Path(folder) / CONTRACTS_DIR.name))


def changed_since(revision: str) -> set[str]:
    """Names of the contracts and SQL files that differ from a Git revision, new ones among them."""
    _git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    files = _git("diff", "--name-only", revision, "--").split()
    files += _git("ls-files", "--others", "--exclude-standard").split()
    return {
        Path(file).name.partition(".")[0] for file in files if file.endswith((".odcs.yaml", ".sql"))
    }


def changes(before: Mapping[str, Contract], after: Mapping[str, Contract]) -> list[Change]:
    """How contracts differ, by dataset; breaking are those that somebody must be asked about."""
    found: list[Change] = []
    for name in sorted(before.keys() | after.keys()):
        if name not in after:
            found.append(Change(name, "the dataset is gone", True))
        elif name not in before:
            found.append(Change(name, "the dataset is new", False))
        else:
            found += [Change(name, *change) for change in _changes(before[name], after[name])]
    return found


def refused(
    before: Mapping[str, Contract], after: Mapping[str, Contract], found: list[Change]
) -> list[str]:
    """Why the changes must not be merged as they are; nothing where they may.

    A breaking change needs another major version, which says that its users were asked; any other
    needs another version, by which landed days know that they are outdated.
    """
    reasons = []
    for name in dict.fromkeys(change.dataset for change in found):
        if name not in before:
            continue
        of_it = [change for change in found if change.dataset == name]
        breaks = [change.what for change in of_it if change.breaking]
        if name not in after:
            reasons.append(f"{name} is gone: move what uses it first")
            continue
        old, new = before[name].version, after[name].version
        if breaks and old.partition(".")[0] == new.partition(".")[0]:
            reasons.append(
                f"{name}: {'; '.join(breaks)}: agree with {before[name].owner} and who uses it,"
                f" then raise the major version {new}"
            )
        elif old == new:
            reasons.append(f"{name} changed and is version {new} still: raise it")
    return reasons


def _changes(old: Contract, new: Contract) -> Iterator[tuple[str, bool]]:
    incoming = old.kind in INCOMING
    if old.kind != new.kind:
        yield f"it is a contract of {new.kind} instead of {old.kind}", True
    if old.primary_key != new.primary_key:
        keys = (", ".join(key) or "none" for key in (old.primary_key, new.primary_key))
        yield "its key is {1} instead of {0}".format(*keys), True
    columns = {column.name: column for column in new.columns}
    for column in old.columns:
        if column.name not in columns:
            yield f"column {column.name} is gone", True
        else:
            yield from _column_changes(column, columns[column.name], incoming)
    known = {column.name for column in old.columns}
    for column in new.columns:
        if column.name not in known:
            demanded = "mandatory " if column.required else ""
            yield f"{demanded}column {column.name} is new", incoming and column.required
    was = {rule.name: rule for rule in old.quality}
    now = {rule.name: rule for rule in new.quality}
    for name in sorted(was.keys() | now.keys()):
        before, after = was.get(name), now.get(name)
        if before != after:
            what = "gone" if after is None else "new" if before is None else "another"
            yield (
                f"rule {name} is {what}",
                _demands(before, after) if incoming else _demands(after, before),
            )


def _demands(before: QualityRule | None, after: QualityRule | None) -> bool:
    """Whether a rule of severity error demands what it did not before."""
    if after is None or after.severity != "error":
        return False
    return before is None or (before.demand, before.severity) != (after.demand, after.severity)


def _column_changes(old: Column, new: Column, incoming: bool) -> Iterator[tuple[str, bool]]:
    name = old.name
    if old.type != new.type:
        yield f"{name} is {new.type} instead of {old.type}", True
    if old.required != new.required:
        word = "mandatory" if new.required else "optional"
        yield f"{name} is {word} now", new.required == incoming
    if old.personal != new.personal:
        yield f"{name} is {'' if new.personal else 'no longer '}personal", not new.personal
    if old.unique != new.unique:
        yield f"{name} is {'' if new.unique else 'no longer '}unique", new.unique == incoming
    for word, was, now in (
        ("minimum", old.minimum, new.minimum),
        ("maximum", old.maximum, new.maximum),
        ("minLength", old.shortest, new.shortest),
        ("maxLength", old.longest, new.longest),
    ):
        if was != now:
            yield f"{word} of {name} is {now} instead of {was}", _stricter(word, was, now, incoming)
    if old.pattern != new.pattern:
        yield f"pattern of {name} is {new.pattern!r} instead of {old.pattern!r}", True
    if set(old.values) != set(new.values):
        gone, more = set(old.values) - set(new.values), set(new.values) - set(old.values)
        words = [f"{value!r} is no longer among its values" for value in sorted(gone)]
        words += [f"{value!r} is among its values" for value in sorted(more)]
        narrowed = bool(gone) if old.values and new.values else not old.values
        widened = bool(more) if old.values and new.values else not new.values
        yield f"{name}: {', '.join(words)}", narrowed if incoming else widened
    if old.references_severity != new.references_severity:
        yield f"what {name} refers to is a matter of severity {new.references_severity} now", False
    if old.references != new.references:
        yield f"{name} refers to {new.references} instead of {old.references}", False


def _stricter(word: str, was: float | None, now: float | None, incoming: bool) -> bool:
    """Whether a bound that changed breaks senders (tighter) or readers (wider)."""
    low = word.startswith("min")
    infinite = float("-inf") if low else float("inf")
    first, second = (infinite if bound is None else bound for bound in (was, now))
    tighter = second > first if low else second < first
    return tighter == incoming


def _git(*arguments: str) -> str:
    try:
        ran = subprocess.run(  # noqa: S603
            ["git", *arguments],  # noqa: S607
            cwd=CONTRACTS_DIR.parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    except FileNotFoundError as error:
        raise ProfilehouseError("git is not installed; install it to compare contracts") from error
    except subprocess.CalledProcessError as error:
        reason = " ".join(error.stderr.split()) or "no such revision"
        raise ProfilehouseError(f"git {' '.join(arguments)}: {reason}") from error
    return ran.stdout
