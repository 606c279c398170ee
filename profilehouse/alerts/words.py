"""The words of messages: one incident in full, or many in a digest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import NamedTuple

from profilehouse.alerts.incidents import Incident, Message, Problem

SAMPLE_SHOWN = 5
LONGEST_TEXT = 600
"""Characters of one value in a message."""
DIGEST_LINES = 300
"""More incidents than these are counted by asset only, so that receivers take the message."""
_SIGNS = {"new": "failing", "worse": "worse", "recovered": "recovered"}


class Text(NamedTuple):
    """What is sent: `kind` is Apprise's, which gives it a colour or a priority."""

    title: str
    body: str
    kind: str


def text_of(message: Message, ui: str) -> Text:
    """One incident, with all that helps to mend it."""
    incident, problem = message.incident, message.incident.problem
    over = message.state == "recovered"
    level = "RECOVERED" if over else problem.severity.upper()
    worse = " (was a warning)" if message.state == "worse" else ""
    lines = [f"{name}: {value}" for name, value in _facts(problem) if value]
    if over:
        lasted = timedelta(seconds=round(message.at - incident.first_at))
        lines = [
            f"Well again after {lasted}; it failed {_times(incident.failures)}.",
            *(line for line in lines if not line.startswith(("expected", "what to do"))),
        ]
    else:
        times = f", {_times(incident.failures)} in a row" if incident.failures > 1 else ""
        lines += [f"since: {_moment(incident.first_at)}{times}"]
        if problem.sample:
            lines += ["sample:", *(f"  {_row(row)}" for row in problem.sample[:SAMPLE_SHOWN])]
    lines += _links(problem, ui)
    lines += [f"incident: {name_of(incident)}"]
    kind = "success" if over else {"error": "failure", "warning": "warning"}[problem.severity]
    return Text(f"[{level}] {_short(problem.title)}{worse}", "\n".join(lines), kind)


def digest_of(messages: Sequence[Message], ui: str) -> Text:
    """Many incidents in one message: a line for each, by asset, the worst first."""
    counts = {state: sum(m.state == state for m in messages) for state in _SIGNS}
    failing = [m for m in messages if m.state != "recovered"]
    errors = sum(m.incident.problem.severity == "error" for m in failing)
    parts = [
        f"{errors} errors, {len(failing) - errors} warnings" if failing else "",
        f"{counts['recovered']} recovered" if counts["recovered"] else "",
    ]
    level = "ERROR" if errors else "WARNING" if failing else "RECOVERED"
    by_asset: dict[str, list[Message]] = defaultdict(list)
    for message in messages:
        by_asset[_place(message.incident.problem)].append(message)
    lines = [f"{len(messages)} messages at once; the newest of each incident is in the UI."]
    left = DIGEST_LINES
    for place, of_place in sorted(by_asset.items(), key=lambda item: (_rank(item[1]), item[0])):
        owners = sorted({owner for m in of_place for owner in m.incident.problem.owners})
        whose = f" ({', '.join(owners)})" if owners else ""
        lines += ["", f"{place}{whose}: {len(of_place)}"]
        if len(of_place) <= left:
            lines += [f"  {_line(message)}" for message in of_place]
            left -= len(of_place)
        paths = dict.fromkeys(m.incident.problem.path for m in of_place)
        lines += [f"  {ui.rstrip('/')}{path}" for path in list(paths)[:1] if path]
    kind = "failure" if errors else "warning" if failing else "success"
    return Text(f"[{level}] {', '.join(p for p in parts if p)}", "\n".join(lines), kind)


def name_of(incident: Incident) -> str:
    """A short name of this very incident, the same however often it is told."""
    text = f"{incident.fingerprint}@{incident.first_at!r}"
    return sha256(text.encode()).hexdigest()[:8]


def _facts(problem: Problem) -> list[tuple[str, str]]:
    return [
        ("asset", problem.asset),
        ("partition", problem.partition),
        ("check", problem.check),
        ("expected", _short(problem.expected)),
        ("observed", _short(problem.observed)),
        ("owner", ", ".join(problem.owners)),
        ("what to do", _short(problem.next_step)),
    ]


def _links(problem: Problem, ui: str) -> list[str]:
    base = ui.rstrip("/")
    page = [f"page: {base}{problem.path}"] if problem.path else []
    return page + ([f"run: {base}/runs/{problem.run_id}"] if problem.run_id else [])


def _line(message: Message) -> str:
    problem = message.incident.problem
    day = f" [{problem.partition}]" if problem.partition else ""
    what = problem.check or problem.title
    level = _SIGNS[message.state] if message.state == "recovered" else problem.severity
    said = "" if message.state == "recovered" else f": {_short(problem.observed, 120)}"
    return f"{level} {what}{day}{said}"


def _place(problem: Problem) -> str:
    return problem.asset or f"{problem.kind}s"


def _rank(messages: Sequence[Message]) -> int:
    failing = [m for m in messages if m.state != "recovered"]
    return 0 if any(m.incident.problem.severity == "error" for m in failing) else 1


def _row(row: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in row.items())


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _moment(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _short(text: str, most: int = LONGEST_TEXT) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"
