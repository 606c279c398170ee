"""Payloads of others' events against their JSON Schemas: in what they differ, by place.

A source that has them names, in the contract's property `payloadSchemas`, a JSON Schema file beside
the contract (or an absolute path), `.gz` or not. Of each record `payload` is held against the
definition `<event>$<action>` there, else `<event>_event`; an event with neither has no schema.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from profilehouse.contracts import Contract
from profilehouse.errors import ProfilehouseError

if TYPE_CHECKING:
    from jsonschema import Draft7Validator
    from jsonschema.exceptions import ValidationError


class _Event(msgspec.Struct):
    event: str
    payload: dict[str, Any]


def differences(source: Contract, record: bytes) -> list[str]:
    """In what a record's payload differs from its schema: places, never values.

    Args:
        source: the contract; without the property `payloadSchemas` nothing is looked at.
        record: one that satisfies the contract.

    Raises:
        ProfilehouseError: where the schemas cannot be read.
    """
    named = source.properties.get("payloadSchemas")
    if named is None:
        return []
    read = msgspec.json.decode(record, type=_Event)
    validator = _validator(source.path.parent / str(named), read.event, read.payload.get("action"))
    if validator is None:
        return [f"{read.event}: has no schema"]
    errors = validator.iter_errors(read.payload)
    return sorted({f"{read.event}: {told}" for error in errors for told in _told(error)})


def _validator(path: Path, event: str, action: object) -> Draft7Validator | None:
    definitions = _definitions(path)
    names = (f"{event}${action}", f"{event}_event")
    name = next((name for name in names if name in definitions), None)
    return None if name is None else _validator_of(path, name)


@cache
def _validator_of(path: Path, name: str) -> Draft7Validator:
    from jsonschema import Draft7Validator  # noqa: PLC0415

    return Draft7Validator(
        {"$ref": f"#/definitions/{name}", "definitions": dict(_definitions(path))}
    )


@cache
def _definitions(path: Path) -> Mapping[str, Any]:
    try:
        data = path.read_bytes()
        text = gzip.decompress(data) if path.suffix == ".gz" else data
        found: Mapping[str, Any] = msgspec.json.decode(text, type=dict[str, Any])["definitions"]
    except (OSError, EOFError, KeyError, msgspec.MsgspecError) as error:
        raise ProfilehouseError(
            f"{path}: no JSON Schema with definitions ({error}); see the contract's payloadSchemas"
        ) from error
    return found


def _told(error: ValidationError) -> list[str]:
    """Where and how a payload differs, without what is in it; places in arrays are one."""
    place = "".join("[*]" if isinstance(step, int) else f".{step}" for step in error.absolute_path)
    if error.validator == "required":
        lacking = [name for name in error.validator_value if name not in error.instance]
        return [f"{place}.{name} is missing"[1:] for name in lacking]
    if error.validator == "additionalProperties":
        more = [name for name in error.instance if name not in error.schema.get("properties", {})]
        return [f"{place}.{name} is not known"[1:] for name in more]
    return [f"{place[1:] or 'it'} is not of its {error.validator}"]
