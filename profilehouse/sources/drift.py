"""Drift: what becomes of records with fields that their contract does not know.

The contract's property `drift` says it, one of POLICIES: `evolve` lands them whole and reports the
fields, which can be read from the record once the contract has them; `quarantine`, which is meant
where nothing is said, makes each such record a dead letter; `refuse` refuses the whole file. So it
is for payloads that differ from their JSON Schema (payloads.py).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import msgspec

from profilehouse.contracts import Contract
from profilehouse.decode import refusals
from profilehouse.errors import ProfilehouseError
from profilehouse.sources.payloads import differences

POLICIES = ("evolve", "quarantine", "refuse")
_UNKNOWN = re.compile(r"Object contains unknown field `.*`( - at `\$`)?", re.DOTALL)
_FIELDS_TOLD = 5


def policy(source: Contract) -> str:
    """What becomes of the source's records with unknown fields, one of POLICIES.

    Raises:
        ProfilehouseError: where the contract says something else.
    """
    said = source.properties.get("drift", "quarantine")
    if said not in POLICIES:
        raise ProfilehouseError(
            f"{source.path}: drift is {said!r}; it must be one of {', '.join(POLICIES)}"
        )
    return str(said)


def accept(
    source: Contract, records: Sequence[bytes], refused: dict[int, str], file: str | None
) -> Counter[str]:
    """How many records have each unknown field, or differ from their payload's schema in a place.

    Where that is welcome, they are refused no more.

    Args:
        source: the contract.
        records: all of a file.
        refused: the reason by index; changed in place.
        file: where the records are from.

    Raises:
        ProfilehouseError: where the whole file is to be refused.
    """
    drifted = [i for i, reason in refused.items() if _UNKNOWN.fullmatch(reason)]
    payloads = {
        i: found
        for i, record in (enumerate(records) if "payloadSchemas" in source.properties else ())
        if i not in refused and (found := differences(source, record))
    }
    if not drifted and not payloads:
        return Counter()
    said = policy(source)
    known = {column.name for column in source.columns}
    fields: Counter[str] = Counter()
    for i in drifted:
        fields.update(msgspec.json.decode(records[i], type=dict[str, msgspec.Raw]).keys() - known)
    for found in payloads.values():
        fields.update(found)
    if said == "refuse":
        told = ", ".join(f"{name} ({count:,})" for name, count in fields.most_common(_FIELDS_TOLD))
        raise ProfilehouseError(
            f"{file}: has fields that {source.path.name} does not know: {told}; add them to the"
            " contract, or ask the source to deliver it again without them"
        )
    if said == "evolve":
        still = refusals([records[i] for i in drifted], source, unknown_fields=True)
        for place, i in enumerate(drifted):
            if place in still:
                refused[i] = still[place]
            else:
                del refused[i]
    elif payloads:
        refused |= {i: f"Payload differs: {'; '.join(found)}" for i, found in payloads.items()}
    return fields
