"""Dagster asset checks, thin: one module a kind, each says what is checked and calls quality/."""
