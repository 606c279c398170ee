"""Dagster assets, thin: each says what it is and calls the engine. No logic that a test of the
engine could not reach belongs here."""
