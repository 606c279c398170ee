"""The warehouse on DuckDB: the common suite, and what only a DuckDB file can show."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings as hypothesis_settings
from hypothesis import strategies as st

pytest.register_assert_rewrite("tests.warehouse_suite")

from profilehouse.contracts import contract  # noqa: E402
from profilehouse.errors import ProfilehouseError  # noqa: E402
from profilehouse.settings import Settings, load_settings  # noqa: E402
from profilehouse.warehouse import open_warehouse  # noqa: E402
from profilehouse.warehouse.load import load_fact, load_history  # noqa: E402
from profilehouse.warehouse.on_duckdb import open_duckdb  # noqa: E402
from tests import warehouse_suite as suite  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent.parent
