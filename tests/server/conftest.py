"""A tiny model, and our own server in front of it."""

from __future__ import annotations

import golden
import pytest
from served import serving

from glm4v_magic.core.server_address import API_KEY
from glm4v_magic.session.session import Session


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv(API_KEY, raising=False)


@pytest.fixture(scope="session")
def local():
    """A session with the model; tests leave it as it was."""
    session = Session().load(golden.CHECKPOINT)
    yield session
    session.unload()


@pytest.fixture(scope="session")
def engine(local):
    return local.engine


@pytest.fixture(scope="module")
def server(engine):
    with serving(engine) as server:
        yield server
