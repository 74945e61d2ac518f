"""What `make test-fast` leaves out."""

import ast
from pathlib import Path

import pytest
from slow_files import SLOW

TESTS = Path(__file__).parent.parent


@pytest.mark.parametrize("name", SLOW)
def test_a_slow_file_exists_and_says_why(name):
    assert (TESTS / name).is_file()
    assert (TESTS / name).name.startswith("test_")
    assert SLOW[name].strip()


# Helpers and libraries of tests that start a server, a browser, a kernel or a terminal.
STARTING = {"image_server", "jupyter_client", "lab", "nbclient", "playwright", "served"}
FIXTURES = {"jupyter", "kernel_folder"}


def starts(file):
    """Names in a file that start something."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        match node:
            case ast.Import():
                found |= {each.name.partition(".")[0] for each in node.names} & STARTING
            case ast.ImportFrom(module=str(module)):
                found |= {module.partition(".")[0]} & STARTING
            case ast.FunctionDef():
                found |= {each.arg for each in node.args.args} & FIXTURES
    return found


@pytest.mark.parametrize(
    "file", sorted(TESTS.rglob("test_*.py")), ids=lambda file: file.relative_to(TESTS).as_posix()
)
def test_what_starts_a_server_a_browser_or_a_kernel_is_left_out(file):
    assert file.relative_to(TESTS).as_posix() in SLOW or not starts(file)
