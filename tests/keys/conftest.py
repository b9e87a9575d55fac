"""What tests of keys need: a PostgreSQL that goes away and comes back."""

import contextlib

import pytest
from django.db import connection


@pytest.fixture
def postgres_away(monkeypatch):
    """Within the context every connection this process makes to PostgreSQL is refused, as when the server is down."""

    @contextlib.contextmanager
    def away():
        connection.close()
        connection.close_pool()
        present = connection.settings_dict["OPTIONS"]
        nowhere = {name: value for name, value in present.items() if name != "pool"} | {"host": "/nowhere"}
        connection.settings_dict["OPTIONS"] = nowhere
        try:
            yield
        finally:
            connection.close()
            connection.settings_dict["OPTIONS"] = present

    return away
