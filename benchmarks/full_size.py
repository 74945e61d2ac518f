"""Write a checkpoint as large as GLM-4V-9B, of random weights: 26 GiB, to time on a GPU.

    python benchmarks/full_size.py FOLDER [--layers N] [--vision-layers N]

Same widths, depths, vocabulary and image size as the published one, and the embedded model's
tokenizer. Give FOLDER as ``--checkpoint`` to the other benchmarks. Weights are drawn on the GPU if
there is one, and written one shard after another.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from glm4v_magic.checkpoints import resolve
from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.checkpoints.glm4v_9b.layout import weight_shapes

__all__ = ["drawn", "write_published"]


def drawn(seed: int = 0) -> Callable[[str, tuple[int, ...]], Tensor]:
    """Return a function that makes a random weight of a name and shape."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(seed)

    def make(name: str, shape: tuple[int, ...]) -> Tensor:
        if "norm" in name:
            return torch.ones(shape)
        return torch.randn(shape, generator=generator, device=device) / 50

    return make


def write_published(
    folder: Path,
    changes: Mapping[str, Any],
    shards: int,
    make: Callable[[str, tuple[int, ...]], Tensor],
) -> None:
    """Write a checkpoint in GLM-4V-9B's layout and widths, with the embedded model's tokenizer.

    Args:
        folder: where to write it.
        changes: values of ``config.json`` that differ; of the tower, in ``vision_config``.
        shards: number of files.
        make: returns a weight by name and shape; it is written as bfloat16.
    """
    demo = resolve("demo")
    published = architecture("GLM-4V-9B").config
    ids = ("boi_token_id", "eoi_token_id", "pad_token_id", "eos_token_id")
    config = {**published, **changes, **{name: demo.config[name] for name in ids}}
    config["vision_config"] = published["vision_config"] | changes.get("vision_config", {})
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(demo.folder / name, folder)
    places: dict[str, str] = {}
    parts = list(_parts(weight_shapes(config), shards))
    for number, part in enumerate(parts, start=1):
        file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        weights = {name: make(name, shape).bfloat16().cpu() for name, shape in part.items()}
        save_file(weights, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _parts(
    shapes: Mapping[str, tuple[int, ...]], shards: int
) -> Iterator[dict[str, tuple[int, ...]]]:
    """Spread weights over files of about the same size, in their order."""
    total = sum(torch.Size(shape).numel() for shape in shapes.values())
    part: dict[str, tuple[int, ...]] = {}
    filled, done = 0, 0
    for name, shape in shapes.items():
        if filled * shards >= total * (done + 1):
            yield part
            part, done = {}, done + 1
        part[name] = shape
        filled += torch.Size(shape).numel()
    yield part


def main() -> None:
    """Write it and say how long that took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--vision-layers", type=int, default=63)
    parser.add_argument("--shards", type=int, default=15)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    tower = {"num_hidden_layers": arguments.vision_layers}
    changes = {"num_layers": arguments.layers, "vision_config": tower}
    start = time.perf_counter()
    write_published(arguments.folder, changes, arguments.shards, drawn())
    size = sum(file.stat().st_size for file in arguments.folder.glob("*.safetensors"))
    seconds = time.perf_counter() - start
    print(f"{arguments.folder}: {size / 2**30:.1f} GiB written in {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
