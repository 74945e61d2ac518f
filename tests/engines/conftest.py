"""A scripted server, and a session with its model."""

from __future__ import annotations

import pytest
from scripted_server import MODELS, models, scripted_server

import glm4v_magic
from glm4v_magic.core.server_address import API_KEY
from glm4v_magic.engines.server import patience


@pytest.fixture
def server(monkeypatch):
    """A server of the model ``m`` that answers nothing yet."""
    monkeypatch.delenv(API_KEY, raising=False)
    with scripted_server() as server:
        server.answer(MODELS, models("m"))
        yield server


@pytest.fixture
def session(server):
    session = glm4v_magic.load(server.url)
    yield session
    session.unload()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """A busy server is waited for only in tests that are about that."""
    monkeypatch.setattr(patience, "PATIENCE", 0)
