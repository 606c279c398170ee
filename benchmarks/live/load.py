"""The load: events of a web site's users, appended to the log as fast as it takes them, or paced.

`python -m benchmarks.live.load EVENTS [--rate R]` appends to the log that PROFILEHOUSE_LOG names.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import accumulate

import click
import numpy as np

from profilehouse.log import open_log
from profilehouse.settings import load_settings

USERS = 1_000_000
HEAD = 1_000
"""The user of rank k has a share in proportion to 1 / (k + HEAD): Zipf's law as Mandelbrot put it.

Without HEAD the first user alone would send 7 % of all events: a robot, not a visitor.
"""

MARKER = "marker-"
"""Users with one event each, whose way to a reader is timed."""

TYPES = ("page_view", "impression", "click", "search", "add_to_cart", "purchase", "custom")
_SHARES = (0.42, 0.28, 0.17, 0.05, 0.04, 0.03, 0.01)
_BLOCK = 50_000
_STEP = 0.01
_SEED = 20260301


class Users:
    """Draws users by rank."""

    def __init__(self, users: int, head: int = HEAD) -> None:
        self._reached = np.cumsum(1.0 / (np.arange(users) + 1 + head))

    def draw(self, chance: np.random.Generator, size: int) -> list[int]:
        """That many ranks."""
        ranks: list[int] = np.searchsorted(
            self._reached, chance.random(size) * self._reached[-1]
        ).tolist()
        return ranks


def user_id(rank: int) -> str:
    """The user of a rank; ranks lie scattered over the ids, as in life."""
    return f"{rank * 2654435761 % 2**32:08x}"


def marker(number: int, rate: int) -> str:
    """The user of a marker; `rate` tells one run's from another's."""
    return f"{MARKER}{rate}-{number}"


def events(
    number: int, users: int = USERS, *, visits: bool = False, seed: int = _SEED
) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of records.

    Args:
        number: of events.
        users: who may send them.
        visits: as a tracker sends them: all with a visitor and a session, a third of them before
            the visitor has logged in. Otherwise only users, as a shop's own servers do.
        seed: the same one gives the same events, but for their time: they happen when they are
            asked for.
    """
    chance = np.random.default_rng(seed)
    drawn = Users(users)
    reached = list(accumulate(_SHARES))
    for first in range(0, number, _BLOCK):
        size = min(_BLOCK, number - first)
        ranks = drawn.draw(chance, size)
        types = np.searchsorted(reached, chance.random(size) * reached[-1]).tolist()
        contents = (chance.pareto(0.8, size) * 50).astype(np.int64) % 20_000
        known = (chance.random(size) < 2 / 3).tolist()
        for n, (rank, kind, content, login) in enumerate(
            zip(ranks, types, contents.tolist(), known, strict=True), first
        ):
            user = user_id(rank)
            who = f'"user_id":"{user}",'
            key = user
            if visits:
                who = f'"anonymous_id":"a-{user}","session_id":"s-{user}-{n % 5}",' + (
                    who if login else ""
                )
                key = user if login else f"a-{user}"
            yield key.encode(), _event(f"{seed:x}-{n}", who, kind, content)


def _event(event_id: str, who: str, kind: int, content: int) -> bytes:
    now = _now()
    bought = f'"order_id":"o-{event_id}","value_cents":{content * 7 + 99},' if kind == 5 else ""
    return (
        f'{{"event_id":"{event_id}","event_type":"{TYPES[kind]}",{who}"content_id":"c-{content}",'
        f'"category":"category {content % 40}",{bought}"occurred_at":"{now}","received_at":"{now}",'
        f'"url":"https://shop.example/contents/c-{content}?from=home","referrer":"",'
        f'"device":"phone","consent":true,"properties":{{"slot":{content % 9},"test":"b"}},'
        '"contract_version":"1.0.0"}'
    ).encode()


def _now() -> str:
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="microseconds")


@click.command()
@click.argument("number", type=click.IntRange(min=1))
@click.option("--rate", type=click.IntRange(min=100), help="Events a second, with markers.")
@click.option("--users", default=USERS, show_default=True, type=click.IntRange(min=1))
@click.option("--visits", is_flag=True, help="As a tracker sends them.")
@click.option("--markers", default=100, show_default=True, help="Markers a second, with --rate.")
@click.option("--seed", default=_SEED)
def main(number: int, rate: int | None, users: int, visits: bool, markers: int, seed: int) -> None:
    """Append NUMBER events."""
    with open_log(load_settings().log) as log, log.producer() as producer:
        source = events(number, users, visits=visits, seed=seed)
        if rate is None:
            for key, value in source:
                producer.append(key, value)
            return
        began, done, marked = time.perf_counter(), 0, 0
        while done < number:
            passed = time.perf_counter() - began
            for _ in range(min(int(passed * rate), number) - done):
                producer.append(*next(source))
                done += 1
                if done * markers // rate > marked:
                    name = marker(marked, rate)
                    who = f'"user_id":"{name}",'
                    producer.append(name.encode(), _event(name, who, 0, 1))
                    marked += 1
            time.sleep(_STEP)


if __name__ == "__main__":
    main()
