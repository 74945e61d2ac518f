"""Tokens per second of a model on the CPU, as a share of the limit that its memory sets.

    python benchmarks/speed_limit.py [--tokens 48] [--threads 1]

The ratio is in `core.speed.MEASURED`, and shown beside the limit of a plan for such a machine. The
limit is that of a plan for a GPU with the bandwidth that summing a large tensor reaches here,
with as many threads, in the same run. It ends with an error unless the ratio is between 0.3 and
1.0: a prediction that is missed by more than that is none. (Only idle machines can tell.)

One thread by default: PyTorch multiplies a float32 matrix by one vector, which is what a decode
step is made of, on one thread (MKL's gemv; all of the CPU time is the caller's), so that more
threads raise the bandwidth of the sum and nothing else.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from larger import write_larger

import glm4v_magic
from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.gpu_spec import GPU
from glm4v_magic.core.model_shape import Workload
from glm4v_magic.planning.plan import plan

SIZE = 2**28  # values, 1 GiB of float32: far more than any cache
LEAST, MOST = 0.3, 1.0
PROMPT = "What is in the image? " * 8


def bandwidth() -> float:
    """Return bytes per second of reading memory, the best of several sums."""
    values = torch.ones(SIZE)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        values.sum()
        seconds.append(time.perf_counter() - began)
    return values.nbytes / min(seconds)


def main() -> None:
    """Print bandwidth, limit, measurement and their ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=48, help="tokens to generate")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        write_larger(Path(folder))
        shape = architecture(folder).shape()
        session = glm4v_magic.load(folder, gpus="cpu", dtype="float32")
        best = 0.0
        speeds = [bandwidth()]
        for _ in range(3):
            answer = session.ask(PROMPT, max_tokens=options.tokens, temperature=0, min_p=None)
            best = max(best, answer.usage.tokens_per_second or 0.0)
            speeds.append(bandwidth())
    fastest = int(max(speeds))
    work = Workload(context=1024, images=0, dtype="float32")
    speed = plan(shape, [GPU(0, "CPU", 2**40, bandwidth=fastest)], work).speed
    assert speed is not None
    limit = speed.tokens_per_second
    assert limit is not None
    print(f"{torch.get_num_threads()} threads, {fastest / 1e9:.1f} GB/s")
    ratio = best / limit
    print(f"at most {limit:.1f} tokens/s, measured {best:.1f}: ratio {ratio:.2f}")
    if not LEAST <= ratio <= MOST:
        raise SystemExit(f"The ratio is not between {LEAST} and {MOST}.")


if __name__ == "__main__":
    main()
