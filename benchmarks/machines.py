"""On which common machines the models fit, and how fast they can be there at most.

    python benchmarks/machines.py [--write docs/planning.md]

Prints a table for each model, or writes them between the two markers of a page. It plans only: no
GPU, no weights, a few seconds.
"""

from __future__ import annotations

from placement import markdown_table, print_or_write

from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.planning.machines import machine_rows, machines

MODELS = ("GLM-4V-9B", "GLM-4.1V-9B-Thinking", "GLM-4.5V")
CONTEXT = 8192
BEGIN = "<!-- printed by benchmarks/machines.py -->"
END = "<!-- end of what benchmarks/machines.py printed -->"


def tables() -> str:
    """Return the tables as they stand in the page."""
    parts = []
    for name in MODELS:
        found = machines(architecture(name), PlacementOptions(context=CONTEXT))
        table = markdown_table(machine_rows(found))
        parts.append(f"{name}, up to {CONTEXT:,} tokens of context, one image:\n\n{table}\n")
    return "\n" + "\n".join(parts)


if __name__ == "__main__":
    print_or_write(__doc__ or "", tables, BEGIN, END)
