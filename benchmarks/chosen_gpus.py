"""How many GPUs a plan chooses, for 1 to 8 equal ones of 8 to 80 GiB.

    python benchmarks/chosen_gpus.py [--write docs/planning.md]

Prints a table for each model, or writes them between the two markers of a page. It plans only: no
GPU, no weights, a few seconds.
"""

from __future__ import annotations

from collections.abc import Iterator

from placement import markdown_table, print_or_write

from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.errors import DoesNotFitError
from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.core.model_shape import ModelShape, Workload
from glm4v_magic.planning.plan import plan

MODELS = ("GLM-4V-9B", "GLM-4.1V-9B-Thinking")
SIZES = (8, 10, 12, 16, 24, 32, 40, 48, 80)  # GiB
COUNTS = range(1, 9)
CONTEXT = 8192
BEGIN = "<!-- printed by benchmarks/chosen_gpus.py -->"
END = "<!-- end of what benchmarks/chosen_gpus.py printed -->"


def rows(shape: ModelShape) -> Iterator[tuple[str, ...]]:
    """Yield the rows of a model's table, the head first."""
    yield ("GPUs", *(f"{size} GiB" for size in SIZES))
    for count in COUNTS:
        yield (str(count), *(cell(shape, f"{count}x{size}GiB") for size in SIZES))


def cell(shape: ModelShape, gpus: str) -> str:
    """Return what a plan without options uses: ``3: 72% cut``; ``-`` if nothing fits."""
    try:
        found = plan(shape, parse_gpus(gpus), Workload(context=CONTEXT))
    except DoesNotFitError:
        return "-"
    used = [stage for stage in found.stages if stage.units]
    towers = sum(any(unit.startswith("vision") for unit in stage.units) for stage in used)
    return f"{len(used)}: {found.fullness:.0%}{' cut' if towers > 1 else ''}"


def tables() -> str:
    """Return the tables as they stand in the page."""
    parts = []
    for name in MODELS:
        table = markdown_table(rows(architecture(name).shape()))
        parts.append(f"{name}, bfloat16, {CONTEXT:,} tokens of context, one image:\n\n{table}\n")
    return "\n" + "\n".join(parts)


if __name__ == "__main__":
    print_or_write(__doc__ or "", tables, BEGIN, END)
