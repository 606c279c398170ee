"""Keeping secrets out of texts that people read: messages, errors, metadata."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping

HIDDEN = "***"
_SECRET_NAME = re.compile(r"PASSWORD|PASSWD|_PWD|SECRET|TOKEN|_KEY$|CREDENTIAL", re.IGNORECASE)
_SHORTEST = 6
"""Characters: a shorter value would be hidden in words that only look like it."""
_USERINFO = re.compile(r"(?<=://)[^/\s@]*:[^/\s]*@")
_NAMED = re.compile(r"(?i)\b(password|passwd|pwd|secret|token|authorization)(\s*[=:]\s*)\S+")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}")


def secrets_of(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The values of all variables whose name says that they are secret."""
    return [value for name, value in environment.items() if _SECRET_NAME.search(name)]


def without_secrets(text: str, secrets: Iterable[str]) -> str:
    """The text with secrets hidden: those given, passwords in URLs, and what is named as one.

    Args:
        text: to be shown.
        secrets: values that must not be in it.
    """
    for secret in sorted({s for s in secrets if len(s) >= _SHORTEST}, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    text = _BEARER.sub(rf"\1 {HIDDEN}", _USERINFO.sub(f"{HIDDEN}@", text))
    return _NAMED.sub(rf"\1\2{HIDDEN}", text)
