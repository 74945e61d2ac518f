"""The pytest fixture `virtual_gpus`, for tests of your own device maps.

pytest finds it by itself where this package is installed. It costs nothing until a test asks for
it: PyTorch is imported then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from glm4v_magic.virtual_gpus.context import VirtualGPUs

__all__ = ["virtual_gpus"]


@pytest.fixture
def virtual_gpus() -> Iterator[Callable[..., VirtualGPUs]]:
    """Give this computer virtual GPUs for the rest of the test: ``virtual_gpus("4x16GiB")``.

    Takes what `VirtualGPUs` takes and returns it, its block entered; the end of the test leaves it.
    """
    from glm4v_magic.virtual_gpus.context import VirtualGPUs

    with ExitStack() as blocks:
        yield lambda gpus, **options: blocks.enter_context(VirtualGPUs(gpus, **options))
