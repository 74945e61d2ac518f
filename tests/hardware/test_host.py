"""Memory of the host within a control group."""

from __future__ import annotations

import psutil
import pytest

from glm4v_magic.hardware.host import free_host_bytes, host_bytes

GIB = 2**30
LARGE = 2**62


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


@pytest.mark.parametrize(
    "files",
    [
        {
            "memory.max": f"{GIB}\n",
            "memory.current": f"{GIB // 2}\n",
            "memory.stat": f"anon 5\ninactive_file {GIB // 4}\n",
        },
        {
            "memory/memory.limit_in_bytes": f"{GIB}\n",
            "memory/memory.usage_in_bytes": f"{GIB // 2}\n",
            "memory/memory.stat": f"inactive_file 5\ntotal_inactive_file {GIB // 4}\n",
        },
    ],
)
def test_a_control_group_has_less_than_the_machine(tmp_path, files):
    write(tmp_path, files)
    assert host_bytes(tmp_path) == GIB
    assert free_host_bytes(tmp_path) == 3 * GIB // 4


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"memory.max": "max\n", "memory.current": "5\n"},
        {"memory.max": "\xff", "memory.current": "5\n"},
        {"memory/memory.limit_in_bytes": str(LARGE), "memory/memory.usage_in_bytes": "5"},
    ],
)
def test_without_a_limit_it_is_the_machines(tmp_path, monkeypatch, files):
    write(tmp_path, files)
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert host_bytes(tmp_path) == pytest.approx(memory.total, rel=0.01)
    assert free_host_bytes(tmp_path) == memory.available


def test_more_use_than_the_limit_leaves_nothing(tmp_path):
    write(tmp_path, {"memory.max": "1000", "memory.current": "2000"})
    assert free_host_bytes(tmp_path) == 0
