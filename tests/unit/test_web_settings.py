"""The collector's settings."""

from __future__ import annotations

import pytest

from profilehouse.errors import ProfilehouseError
from profilehouse.settings import TOKEN_LENGTH, load_settings


def test_a_token_is_not_shown_by_the_settings() -> None:
    token = "a-token-that-is-long-enough"
    settings = load_settings(api_token=token)
    assert settings.api_token is not None
    assert settings.api_token.get_secret_value() == token
    assert token not in repr(settings) + str(settings) + settings.model_dump_json()


@pytest.mark.parametrize("token", ["", "short", "x" * (TOKEN_LENGTH - 1), "with a space, and long"])
def test_a_weak_token_is_refused_and_nowhere_in_the_error(token: str) -> None:
    with pytest.raises(ProfilehouseError, match="PROFILEHOUSE_API_TOKEN is '\\*\\*\\*'") as refused:
        load_settings(api_token=token)
    assert not token or token not in f"{refused.value} {refused.value.__cause__}"


@pytest.mark.parametrize(
    "origins", ["", "*", "https://shop.example", "http://localhost:3000,https://a.b"]
)
def test_origins_are_none_some_or_all(origins: str) -> None:
    assert load_settings(origins=origins).origins == origins


@pytest.mark.parametrize(
    "origins", ["shop.example", "https://a.b/", "https://a.b, https://c.d", "*,https://a.b", "null"]
)
def test_what_is_no_origin_is_refused(origins: str) -> None:
    with pytest.raises(ProfilehouseError, match=r"PROFILEHOUSE_ORIGINS .* must be https://HOST"):
        load_settings(origins=origins)
