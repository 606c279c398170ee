"""Snowflake's emulator as a server of its own process, for tests and benchmarks.

It shows that the SQL runs and what it computes, not more: it accepts what Snowflake refuses (a
MERGE that finds two rows for one, DDL inside a transaction), and any password.
"""

# ruff: noqa: PLC0415

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 60


@dataclass(frozen=True)
class FakesnowServer:
    """A running emulator. The connector wants some password: set SNOWFLAKE_PASSWORD."""

    port: int

    def url(self, database: str, schema: str) -> str:
        """What PROFILEHOUSE_WAREHOUSE must be; database and schema are made when first used."""
        return (
            f"snowflake://fake@fakesnow/{database}/{schema}"
            f"?host=127.0.0.1&port={self.port}&protocol=http"
        )


@contextmanager
def fakesnow_server() -> Iterator[FakesnowServer]:
    """Run the emulator on a free port of 127.0.0.1; what it holds is in memory and ends with it.

    The listening socket is made here and handed down, so nobody else can answer on its port.
    """
    with TemporaryDirectory(prefix="fakesnow-") as folder:
        log = Path(folder) / "log"
        with socket.create_server(("127.0.0.1", 0)) as listener, log.open("wb") as output:
            port = listener.getsockname()[1]
            process = subprocess.Popen(
                [sys.executable, "-m", "services.fakesnow", str(listener.fileno())],
                cwd=ROOT,
                env={**os.environ, "TMPDIR": folder},
                pass_fds=[listener.fileno()],
                stdout=output,
                stderr=output,
            )
        try:
            _wait(process, port, log)
            yield FakesnowServer(port)
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=START_SECONDS)
        except urllib.error.HTTPError:
            return  # "not found" is an answer
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"fakesnow did not start: {log.read_text()[-2000:]}")


def _serve(file_descriptor: int) -> None:
    import fakesnow.arrow
    import pyarrow as pa
    import pyarrow.compute as pc
    import uvicorn
    from fakesnow import transforms
    from fakesnow.server import app

    to_struct: Any = fakesnow.arrow.timestamp_to_sf_struct
    table_comment = transforms.extract_comment_on_table

    def keep_nulls(times: pa.ChunkedArray) -> pa.StructArray:
        """Without this, a NULL timestamp reaches the client as 1970-01-01."""
        times = times.combine_chunks()
        parts = to_struct(times)
        return pa.StructArray.from_arrays(
            [pc.fill_null(part, 0) for part in parts.flatten()],
            fields=list(parts.type),
            mask=times.is_null(),
        )

    def no_empty_comment(expression: Any) -> Any:
        """Without this, MERGE fails inside a transaction.

        The emulator makes a temporary table for it and notes the comment of that table, although
        it has none, in a second database; DuckDB writes to one database in a transaction.
        """
        transformed = table_comment(expression)
        if transformed.args.get("table_comment", (None, ""))[1] is None:
            del transformed.args["table_comment"]
        return transformed

    vars(fakesnow.arrow)["timestamp_to_sf_struct"] = keep_nulls
    vars(transforms)["extract_comment_on_table"] = no_empty_comment
    config = uvicorn.Config(app, log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=file_descriptor)])


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
