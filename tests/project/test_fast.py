"""What `make test-fast` leaves out."""

from pathlib import Path

import pytest
from slow_files import SLOW

TESTS = Path(__file__).parent.parent


@pytest.mark.parametrize("name", SLOW)
def test_a_slow_file_exists_and_says_why(name):
    assert (TESTS / name).is_file()
    assert (TESTS / name).name.startswith("test_")
    assert SLOW[name].strip()
