"""Ids: version 7, unique, and in the order of time."""

import time
import uuid

from proxy.ids import new_id


def test_an_id_is_a_uuid_of_version_7():
    parsed = uuid.UUID(new_id())
    assert parsed.version == 7
    assert parsed.variant == uuid.RFC_4122


def test_ids_are_unique_and_sort_by_time():
    ids = [new_id() for _ in range(10_000)]
    assert len(set(ids)) == len(ids)
    early = new_id()
    time.sleep(0.002)
    assert early < new_id()
