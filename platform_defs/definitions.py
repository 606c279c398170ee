"""What Dagster loads: the definitions for the settings of this environment."""

from __future__ import annotations

from platform_defs.build import build_defs
from profilehouse.settings import load_settings

defs = build_defs(load_settings())
