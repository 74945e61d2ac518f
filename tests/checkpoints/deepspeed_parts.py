"""Writes a checkpoint as two processes of DeepSpeed do that train it: ``python THIS FROM TO``.

Runs with DeepSpeed's Python, on the CPU; see `test_deepspeed`.
"""

import os
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file


class Part(torch.nn.Module):
    """Modules and parameters by the names that they have in a checkpoint."""

    def put(self, name: str, tensor: torch.Tensor) -> None:
        first, _, rest = name.partition(".")
        if not rest:
            self.register_parameter(first, torch.nn.Parameter(tensor))
            return
        if first not in self._modules:
            self.add_module(first, Part())
        self._modules[first].put(rest, tensor)


def write(rank: int, source: Path, folder: Path) -> None:
    surroundings = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {name: str(value) for name, value in surroundings.items()}
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    deepspeed.comm.torch.build_shm_op = lambda: None  # a faster way between processes: not needed
    model = Part()
    for name, tensor in load_file(source / "model.safetensors").items():
        model.put(name, tensor.bfloat16())
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": True,
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    engine.save_checkpoint(str(folder), tag="global_step500")


if __name__ == "__main__":
    source, folder = map(Path, sys.argv[1:])
    os.environ["MASTER_PORT"] = os.environ.get("MASTER_PORT", "29517")
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.multiprocessing.spawn(write, (source, folder), nprocs=2)
