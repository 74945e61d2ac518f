"""What would end the process on virtual GPUs is refused in one line, and works on the CPU.

In a process of its own: where such a refusal is missing, PyTorch ends it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from glm4v_magic.virtual_gpus import VirtualGPUs

PROGRAM = r"""
import json
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.export import draft_export, export
from glm4v_magic.virtual_gpus import VirtualGPUs

double = lambda x: x * 2
squares = lambda x: (x * x).sum()

def dual(primal, tangent):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(forward_ad.make_dual(primal, tangent) * 2).tangent

def moved(to):
    return torch.func.jvp(lambda x: (to(x) * 2).cpu(), (ones,), (ones,))

found = {}
compiled = torch.compile(double, backend="eager")
before = compiled(torch.ones(2)).tolist()
library = torch.library.Library("of_cuda", "DEF")
library.define("kernel(Tensor x) -> Tensor")
library.impl("kernel", double, "CUDA")
library.define("plain(Tensor x) -> Tensor")
library.impl("plain", double, "CompositeExplicitAutograd")
with VirtualGPUs("2x1GiB"):
    ones, gpu, linear = torch.ones(4, 4), torch.ones(4, 4, device="cuda"), nn.Linear(4, 4)
    func, calls = torch.func, {
        "jvp": lambda: func.jvp(double, (gpu,), (gpu,)),
        "jacfwd": lambda: func.jacfwd(double)(gpu),
        "linearize": lambda: func.linearize(double, gpu),
        "hessian": lambda: func.hessian(squares)(gpu),
        "vmap": lambda: func.vmap(lambda x: func.jvp(double, (x,), (x,)))(gpu),
        "jacobian": lambda: torch.autograd.functional.jacobian(
            double, gpu, strategy="forward-mode", vectorize=True
        ),
        "dual": lambda: dual(gpu, gpu),
        "tangent": lambda: dual(ones, gpu),
        "constant": lambda: func.jvp(lambda x: x * gpu[0, 0], (ones,), (ones,)),
        "cuda()": lambda: moved(lambda x: x.cuda()),
        "to(device)": lambda: moved(lambda x: x.to(torch.device("cuda:1"))),
        "to('cuda')": lambda: moved(lambda x: x.to("cuda")),
        "to(1)": lambda: moved(lambda x: x.to(1)),
        "to(device=1)": lambda: moved(lambda x: x.to(device=1)),
        "to(gpu)": lambda: moved(lambda x: x.to(gpu)),
        "type": lambda: moved(lambda x: x.type("torch.cuda.FloatTensor")),
        "export": lambda: export(nn.Linear(4, 4).cuda(), (gpu,)),
        "export, strict": lambda: export(nn.Linear(4, 4).cuda(), (gpu,), strict=True),
        "torch.export": lambda: torch.export.export(nn.Linear(4, 4).cuda(), (gpu,)),
        "draft_export, by its name": lambda: draft_export(nn.Linear(4, 4).cuda(), (gpu,)),
        "draft_export": lambda: torch.export.draft_export(nn.Linear(4, 4).cuda(), (gpu,)),
        "export on the CPU": lambda: export(linear, (ones,)),
    }
    for name, call in calls.items():
        try:
            found[name] = repr(call())
        except NotImplementedError as error:
            found[name] = str(error)
    found["shape"] = func.jvp(lambda x: x * gpu.shape[0], (ones,), (ones,))[1].sum().item()
    found["on the CPU"] = [
        dual(ones, ones).sum().item(),
        func.jvp(double, (ones,), (ones,))[1].sum().item(),
        func.hessian(squares)(torch.ones(2)).tolist(),
    ]
    found["compiled"] = [before, compiled(gpu[0]).tolist(), str(compiled(gpu).device)]
    found["plain"] = str(torch.ops.of_cuda.plain(gpu).device)
    try:
        torch.ops.of_cuda.kernel(gpu)
    except NotImplementedError as error:
        found["kernel"] = str(error)
    found["alive"] = (gpu + 1).sum().item()
found["after"] = compiled(torch.ones(3)).tolist()
export(linear, (ones,))
draft_export(linear, (ones,))
print(json.dumps(found))
"""
FORWARD = "Virtual GPUs compute no gradients, in forward mode neither: run it on the CPU."
EXPORT = (
    "torch.export does not see virtual GPUs: export the model on the CPU, before or after their "
    "block."
)


def test_what_would_end_the_process_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found.pop("shape") == 64
    assert found.pop("on the CPU") == [32, 32, [[2, 0], [0, 2]]]
    assert found.pop("alive") == 32
    assert found.pop("compiled") == [[2, 2], [2, 2, 2, 2], "cuda:0"]
    assert found.pop("after") == [2, 2, 2]
    assert found.pop("plain") == "cuda:0"
    kernel = found.pop("kernel")
    assert kernel.startswith(
        "Virtual GPUs cannot run 'of_cuda::kernel', which is not made for the CPU ("
    )
    assert "\n" not in kernel
    exports = {name for name in found if "export" in name}
    assert len(exports) == 6
    assert {name: found[name] for name in exports} == dict.fromkeys(exports, EXPORT)
    others = found.keys() - exports
    assert {name: found[name] for name in others} == dict.fromkeys(others, FORWARD)


@pytest.mark.skipif(
    not hasattr(torch.accelerator, "get_device_capability"), reason="names of torch 2.13"
)
def test_names_of_accelerator() -> None:
    with VirtualGPUs("2x1GiB", available=True):
        accelerator = torch.accelerator
        tensor = torch.ones(1 << 18, device="cuda:1")
        assert accelerator.get_memory_info(1) == torch.cuda.mem_get_info(1)
        assert accelerator.memory_stats(1) == torch.cuda.memory_stats(1)
        assert accelerator.memory_stats(1)["allocated_bytes.all.current"] == tensor.nbytes
        accelerator.reset_accumulated_memory_stats(1)
        assert accelerator.memory_stats(1)["allocated_bytes.all.allocated"] == 0
        accelerator.empty_host_cache()
        with pytest.raises(RuntimeError, match="doesn't support getting device capabilities"):
            accelerator.get_device_capability()
        with pytest.raises(NotImplementedError, match=r"have no torch.accelerator.Graph: [^\n]*$"):
            accelerator.Graph()


@pytest.mark.parametrize("available", [False, True])
def test_a_summary_of_the_current_gpu(available: bool) -> None:
    with VirtualGPUs("2x1GiB", available=available):
        assert torch.cuda.memory_summary(abbreviated=True) == torch.cuda.memory_summary(0, True)
        tensor = torch.ones(1 << 18, device="cuda:1")
        with torch.cuda.device(1):
            assert tensor.device.index == 1
            assert "|   1024 KiB |" in torch.cuda.memory_summary()


@pytest.mark.parametrize("driver", ["gesvd", "gesvdj", "gesvda"])
def test_drivers_of_cusolver(driver: str) -> None:
    values = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    with VirtualGPUs("1x1GiB"):
        gpu = values.cuda()
        assert torch.linalg.svd(gpu, driver=driver).S.tolist() == [3, 2]
        assert torch.linalg.svdvals(gpu, driver=driver).tolist() == [3, 2]
        with pytest.raises(RuntimeError, match="driver"):
            torch.linalg.svd(values, driver=driver)
        with pytest.raises(RuntimeError, match="driver"):
            torch.linalg.svd(gpu, driver="gels")
