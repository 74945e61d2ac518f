"""Three hundred inputs that cannot be used: one clear line each, and the session goes on."""

from __future__ import annotations

import os

import hostile_files
import pytest
from hostile_inputs import CASES, CELLS, CELLS_WITH_A_SERVER, LINES
from image_server import Server
from shells import TINY

from glm4v_magic.core.errors import Glm4vError, OptionError
from glm4v_magic.notebook.settings import read

INPUTS = [(form, error, *row) for form, error, rows in CASES for row in rows]
ASK = "%glm4v ask 'Hello' -o said --temperature 0 --max-tokens 2 --quiet"


def code_of(form, text, url):
    if form in (CELLS, CELLS_WITH_A_SERVER):
        return f"%%glm4v {text.replace('{url}', url)}\nWhat is this?"
    return f"%glm4v {text}" if form == LINES else text


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server()
    photo = tmp_path_factory.getbasetemp() / "served.png"
    hostile_files.Image.new("RGB", (8, 6), "red").save(photo)
    server.answer("/403", b"", status=403)
    server.answer("/500", b"", status=500)
    server.answer("/html", b"<p>", kind="text/html")
    server.answer("/json", b"{}", kind="application/json")
    server.answer("/empty", b"")
    server.answer("/text-as-png", b"no image")
    server.answer("/cut", photo.read_bytes(), length="too long")
    server.answer("/slow", server.silence, length=None)
    server.redirect("/loop", "/loop")
    server.redirect("/to-file", "file:///etc/passwd")
    server.redirect("/to-ftp", "ftp://127.0.0.1/x")
    server.answer("/svg", b"<svg/>", kind="image/svg+xml")
    server.answer("/nothing-said", b"hello", kind=None)
    yield server
    server.close()


@pytest.fixture(scope="module")
def prepared(module_shell, tmp_path_factory):
    """The shell in a folder of odd files, with odd variables and a loaded model."""
    before, mode = os.getcwd(), module_shell.InteractiveTB.mode
    module_shell.InteractiveTB.set_mode("Minimal")  # else most of the time is spent on tracebacks
    folder = tmp_path_factory.mktemp("hostile")
    hostile_files.fill(folder)
    os.chdir(folder)
    proxies = {name: os.environ.pop(name) for name in list(os.environ) if "_proxy" in name.lower()}
    for code in (
        hostile_files.VARIABLES,
        f"%glm4v load {TINY}",
        ASK,
    ):
        module_shell.run_cell(code).raise_error()
    yield module_shell, module_shell.user_ns["said"].text
    os.environ.update(proxies)
    os.chdir(before)
    module_shell.InteractiveTB.set_mode(mode)


def settings_of(shell):
    return next(each for each in shell.configurables if type(each).__name__ == "Glm4v")


@pytest.mark.parametrize(
    ("form", "error", "text", "said"),
    INPUTS,
    ids=[f"{number}-{text[:30]!a}" for number, (_, _, text, _) in enumerate(INPUTS)],
)
def test_an_input_gets_one_clear_line(prepared, server, capsys, form, error, text, said):
    shell, greeting = prepared
    code, settings = code_of(form, text, server.url), settings_of(shell)
    settings.allow_private = form == CELLS_WITH_A_SERVER
    # Short only where nothing ever comes: a busy computer takes its time for all else.
    settings.download_seconds = 1 if text.endswith("/slow") else 60
    capsys.readouterr()
    failure = shell.run_cell(code).error_in_exec
    line = capsys.readouterr().err
    assert type(failure).__name__ == "UsageError"
    assert failure.__context__ is failure.__cause__ is None
    assert line.startswith("UsageError: ")
    assert len(line.strip().splitlines()) == 1
    assert said in line
    settings.debug = True
    try:
        failure = shell.run_cell(code).error_in_exec
    finally:
        settings.debug = False
    assert type(failure) is error
    assert isinstance(failure, Glm4vError)
    shell.run_cell(ASK).raise_error()
    assert shell.user_ns["said"].text == greeting


def test_there_are_enough_of_each_kind():
    assert len({(form, text) for form, _, text, _ in INPUTS}) == len(INPUTS) >= 290


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "hot"), ("temperature", -1), ("temperature", float("nan")),
        ("max_tokens", 0), ("max_tokens", 1.5), ("max_tokens", "many"), ("max_tokens", True),
        ("top_p", 0), ("top_p", 2), ("top_k", 0), ("model", 3), ("system", b"x"),
        ("debug", "maybe"), ("stop_button", "no"), ("megapixels", 0), ("megapixels", 1e9),
        ("download_seconds", 0), ("allow_private", None), ("temprature", 1), ("", 1),
    ],
)  # fmt: skip
def test_a_setting_gets_one_clear_line(tmp_path, name, value):
    with pytest.raises(OptionError, match=r"IPython's configuration is ") as caught:
        read({name: value}, {}, tmp_path)
    assert "\n" not in str(caught.value)
