"""Virtual GPUs against CUDA: what mixes devices is taken on both or refused by both.

    pytest -m gpu -s tests/virtual_gpus/test_virtual_gpus_real_cuda.py

prints every deviation, two minutes on 16 cores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.virtual_gpus.mixed_devices import OTHERWISE_ON_CUDA
from tests.virtual_gpus.mixtures import LOST, NOT_HERE, TAKEN, Key, deviations

ROOT = Path(__file__).parents[2]


def outcomes(kind: str, elsewhere: str, file: Path, *options: str) -> dict[Key, str]:
    """Try mixtures in an interpreter that has not used CUDA."""
    command = [sys.executable, "-m", "tests.virtual_gpus.mixtures", kind, elsewhere]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--write", str(file), *options], cwd=ROOT, env=environment, timeout=560
    )
    assert done.returncode == 0
    rows = json.loads(file.read_text(encoding="utf-8"))
    return {Key(*row[:-1]): row[-1] for row in rows}


def told(found: dict[str, list[str]]) -> str:
    lines = [f"{name}: {text}" for name, texts in found.items() for text in texts]
    return "\n".join([f"{len(lines)} deviations of {len(found)} operators", *lines])


@pytest.mark.gpu
@pytest.mark.parametrize(("elsewhere", "gpus"), [("cpu", 1), ("cuda:1", 2)])
def test_every_operator_raises_exactly_where_cuda_does(elsewhere, gpus, tmp_path):
    if torch.cuda.device_count() < gpus:
        pytest.skip(f"needs {gpus} CUDA GPUs")
    processes = ("--processes", str(max(1, min(12, (os.cpu_count() or 2) - 2))))
    real, virtual = (
        outcomes(kind, elsewhere, tmp_path / f"{kind}.json", *processes)
        for kind in ("cuda", "virtual")
    )
    found = deviations(real, virtual)
    sys.stdout.write(told(found) + "\n")
    ran = [key for key, outcome in real.items() if not outcome.startswith(NOT_HERE)]
    assert len(ran) > 0.8 * len(real) > 10_000
    assert found.keys() == OTHERWISE_ON_CUDA.keys(), told(found)


DEADLY = """
import os, sys
from tests.virtual_gpus import mixtures
call = mixtures.call

def calls_or_dies(operator, arguments):
    devices = {str(leaf.device) for leaf in mixtures.tree_flatten(arguments)[0][:2]}
    if operator.name == "atan2" and len(devices) > 1:
        os._exit(1)
    return call(operator, arguments)

mixtures.call = calls_or_dies
numbers = [at for at, each in enumerate(mixtures.operators()) if each.name in ("atan2", "cross")]
mixtures.operators = lambda found=mixtures.operators(): [found[at] for at in numbers]
mixtures.main()
"""


def test_a_process_that_dies_is_known_by_what_it_tried_and_another_goes_on(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", DEADLY, "virtual", "cpu", "--processes", "1"]
    file = tmp_path / "tried.json"
    subprocess.run([*command, "--write", str(file)], cwd=ROOT, check=True, timeout=300)
    found = {Key(*row[:-1]): row[-1] for row in json.loads(file.read_text(encoding="utf-8"))}
    died = {key for key, outcome in found.items() if outcome == LOST}
    assert {key.name for key in died} == {"atan2"}
    assert {key.name for key in found} == {"atan2", "cross"}
    dead = min(died)
    assert deviations(found, {**found, dead: TAKEN}).keys() == {"atan2"}
    assert not deviations(found, {**found, dead: f"{NOT_HERE}: no kernel"})
