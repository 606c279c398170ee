"""The engine: a library without any Dagster import. Start with contracts.py and settings.py."""
