from __future__ import annotations

import subprocess
import sys

import pytest

from profilehouse.errors import ProfilehouseError
from profilehouse.profiles.store import open_store
from profilehouse.profiles.store.lmdb import LmdbStore
from profilehouse.settings import load_settings

VALID = [
    "lmdb:data/profiles",
    "lmdb:/var/lib/profiles",
    "cassandra://127.0.0.1/profiles",
    "cassandra://db-1.example.com:9043,db-2.example.com/house_1",
    "dynamodb://eu-central-1/house-live",
]


@pytest.mark.parametrize("url", VALID)
def test_a_url_names_the_store_and_opening_it_asks_nobody(url: str) -> None:
    with open_store(load_settings(profiles=url).profiles, "a fold") as store:
        assert isinstance(store, LmdbStore) == url.startswith("lmdb:")


@pytest.mark.parametrize(
    "url",
    [
        "lmdb:",
        "lmdb:/",
        "redis:x",
        "cassandra://127.0.0.1",
        "cassandra:///profiles",
        "cassandra://user:secret@127.0.0.1/profiles",
        "cassandra://127.0.0.1/Profiles; DROP",
        "dynamodb://eu-central-1",
        "dynamodb://eu-central-1/a/b",
    ],
)
def test_another_url_is_refused_with_what_it_may_be(url: str) -> None:
    with pytest.raises(ProfilehouseError) as refused:
        load_settings(profiles=url)
    assert "PROFILEHOUSE_PROFILES is" in str(refused.value)
    assert "must be lmdb:FOLDER, cassandra://HOST" in str(refused.value)
    assert "secret" not in str(refused.value)


def test_without_its_driver_cassandra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cassandra", None)
    with pytest.raises(ProfilehouseError, match=r"pip install 'profilehouse\[cassandra\]'"):
        open_store("cassandra://127.0.0.1/profiles", "a fold")


def test_the_stores_are_imported_without_the_drivers_of_the_servers() -> None:
    body = """
        import sys
        import profilehouse.profiles.store.cassandra
        import profilehouse.profiles.store.dynamodb
        import profilehouse.profiles.store.lmdb
        print(sorted({"cassandra", "boto3", "botocore"} & set(sys.modules)))
    """
    command = [sys.executable, "-c", "\n".join(line.strip() for line in body.splitlines())]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout == "[]\n"
