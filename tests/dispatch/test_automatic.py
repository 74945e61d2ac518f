"""The device map of transformers, which needs no GPU."""

from __future__ import annotations

import pytest

from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.errors import DeviceMapError
from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.dispatch.automatic import automatic
from glm4v_magic.dispatch.module_tree import tree_of
from glm4v_magic.planning.device_map import check


def test_automatic_is_what_transformers_chooses_for_these_capacities():
    published = architecture("GLM-4V-9B").build_meta("bfloat16")
    gpus = parse_gpus("8x16GiB")
    found = check(automatic(published, gpus), tree_of(published), gpus)
    # its known fault: the GPUs at the end stay empty
    assert set(found.values()) == set(range(6))
    small = automatic(published, parse_gpus("1x16GiB"))
    assert "cpu" in small.values()
    assert "disk" not in small.values()
    # 25.90 GiB of weights, and a tenth of an only GPU is left alone
    assert "cpu" in automatic(published, parse_gpus("1x28GiB")).values()
    assert automatic(published, parse_gpus("1x29GiB")) == {"": 0}
    with pytest.raises(DeviceMapError, match="at least one GPU"):
        automatic(published, ())
