"""What transformers' automatic placement does to GLM-4V, beside our plan.

    python benchmarks/placement.py [--gpus 2-16] [--markdown | --write docs/automatic-placement.md]

Everything runs on virtual GPUs without data, so that no GPU and no weights are needed: some sixty
dry runs, a process for each model, two minutes on two idle cores. `--write` replaces the text
between the two markers of that page.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.errors import DoesNotFitError
from glm4v_magic.core.gpu_spec import GPU, parse_gpus
from glm4v_magic.core.model import Architecture
from glm4v_magic.core.model_shape import ModelShape, Workload
from glm4v_magic.core.placement import DeviceMap
from glm4v_magic.core.plan import Plan
from glm4v_magic.core.wording import gib
from glm4v_magic.dispatch.automatic import automatic
from glm4v_magic.dry_run.report import DryRunReport
from glm4v_magic.dry_run.run import dry_run
from glm4v_magic.planning.device_map import place_of
from glm4v_magic.planning.plan import plan

if TYPE_CHECKING:
    from torch import nn

MODELS = ("GLM-4V-9B", "GLM-4.1V-9B-Thinking")
GPUS = "2-16"
SIZES = (8, 11, 12, 16, 24, 48, 80)  # GiB
AMPLE = 80  # GiB: the shape of a split shows where no GPU is too small
CONTEXT_BYTES = GPU(0, "GPU", 16 * 2**30).overhead_bytes  # of CUDA, whatever the size
CONTEXT = 8192
IMAGE_SIZE = 1120  # of the models that have a choice, as GLM-4V-9B has none
BEGIN = "<!-- printed by benchmarks/placement.py -->"
END = "<!-- end of what benchmarks/placement.py printed -->"

Row = tuple[str, ...]


@dataclass
class Lab:
    """One model, and the dry runs made of it so far."""

    model: Architecture
    shape: ModelShape = field(init=False)
    meta: Any = field(init=False)
    _automatic: dict[tuple[Any, ...], DryRunReport] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.shape = self.model.shape()
        self.meta = self.model.build_meta("bfloat16")

    def plan(self, gpus: Sequence[GPU]) -> Plan | None:
        """Return our most balanced plan; ``None`` if nothing fits."""
        try:
            return plan(self.shape, gpus, self._workload, objective="balance")
        except DoesNotFitError:
            return None

    def run(self, gpus: Sequence[GPU], placed: Plan) -> DryRunReport:
        """Make a dry run of a plan."""
        return self._dry_run(gpus, placed)

    @property
    def _workload(self) -> Workload:
        size = None if self.shape.token_side is None else IMAGE_SIZE
        return Workload(context=CONTEXT, image_size=size)

    def _dry_run(self, gpus: Sequence[GPU], placed: Plan | str) -> DryRunReport:
        size = self._workload.image_size
        return dry_run(self.model, gpus, placed, context=CONTEXT, image_size=size)

    def run_automatic(self, gpus: Sequence[GPU]) -> tuple[DeviceMap, DryRunReport | None]:
        """Return the automatic map, and its dry run unless weights would stay in host memory."""
        found = automatic(self.meta, gpus)
        if "cpu" in found.values():
            return found, None
        key = tuple(sorted((name, str(place)) for name, place in found.items()))
        if key not in self._automatic:
            tell(f"{self.model.name}: dry run of the automatic map for {len(gpus)} GPUs")
            self._automatic[key] = self._dry_run(gpus, "auto")
        return found, self._automatic[key]


def tell(text: str) -> None:
    """Report progress on stderr."""
    print(text, file=sys.stderr, flush=True)


def equal_gpus(lab: Lab, counts: Sequence[int]) -> str:
    """Return a table of how both split the model over equal GPUs; cells are automatic / ours."""
    head = ("GPUs", "idle GPUs", "fullest, GiB", "× best", "copies", "hops", "KiB", "refused")
    rows: list[Row] = [head]
    refused: dict[str, list[int]] = {}
    for count in counts:
        gpus = parse_gpus(f"{count}x{AMPLE}GiB")
        _, found = lab.run_automatic(gpus)
        ours = lab.plan(gpus)
        if found is None or ours is None:
            raise AssertionError(f"{count} GPUs of {AMPLE} GiB are too small")
        tell(f"{lab.model.name}: dry run of the plan for {count} GPUs")
        planned = lab.run(gpus, ours)
        least = planned.fullest.peak_bytes + CONTEXT_BYTES
        sides = zip(measured(found, least), measured(planned, least), strict=True)
        rows.append((str(count), *(" / ".join(pair) for pair in sides)))
        for problem in found.problems:
            where = f"`{problem.module}`, {problem.phase}: `{problem.code}`"
            refused.setdefault(where, []).append(count)
    notes = [
        f"- {where}: {', '.join(map(str, sorted(set(seen))))} GPUs"
        for where, seen in refused.items()
    ]
    return "\n".join([markdown_table(rows), *(["", "Refused:", "", *notes] if notes else [])])


def measured(report: DryRunReport, least: int) -> Row:
    """Return one side of a row of `equal_gpus`."""
    between = [hop for hop in report.copies if "cpu" not in (hop.source, hop.target)]
    size = sum(hop.decode_bytes for hop in between)
    fullest = report.fullest.peak_bytes + CONTEXT_BYTES
    return (
        str(sum(gpu.peak_bytes == 0 for gpu in report.gpus)),
        gib(fullest),
        f"{fullest / least:.2f}",
        str(report.gpu_copies()[1]),
        str(report.decode_hops),
        f"{size / 2**10:.0f}",
        str(len(report.problems)),
    )


def what_fits(lab: Lab, counts: Sequence[int]) -> Iterator[Row]:
    """Yield rows of whether the model fits: both, ours only, auto only, or neither."""
    yield ("GPUs", *(f"{size} GiB" for size in SIZES))
    for count in counts:
        cells = []
        for size in SIZES:
            gpus = parse_gpus(f"{count}x{size}GiB")
            ours = lab.plan(gpus) is not None
            auto = fits_automatically(lab, gpus)
            both = {(True, True): "both", (True, False): "**ours**", (False, True): "auto"}
            cells.append(both.get((ours, auto), "-"))
        yield (str(count), *cells)


def fits_automatically(lab: Lab, gpus: Sequence[GPU]) -> bool:
    """Tell whether the automatic map runs: all weights on GPUs, no GPU overfull, no error."""
    _, report = lab.run_automatic(gpus)
    if report is None or report.problems:
        return False
    capacity = gpus[0].usable_bytes  # the dry run may have been that of larger GPUs
    return all(gpu.total_bytes <= capacity for gpu in report.gpus)


# The module tree of GLM-4V-9B's own code: names, order and shapes of the published weights.
HIDDEN, FFN, QKV, VOCABULARY = 4096, 13696, 4608, 151552
WIDE, MLP, PATCHES = 1792, 15360, 6401
UNSPLITTABLE = "GLMBlock"  # all that the published code declares
TOWER = "transformer.vision"

SITES = {
    "residual": "a border inside a vision layer: its input + the output of its branch",
    "boi/eoi": "the tower's end on another GPU than the begin and end vectors",
    "GLU": "a border between the two factors of the gated projection",
    "patches": "a border between patches, class token and position table",
}


def published_weights() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes of the published weights, in the order of the published modules."""
    yield "transformer.embedding.word_embeddings.weight", (VOCABULARY, HIDDEN)
    for index in range(40):
        layer = f"transformer.encoder.layers.{index}"
        yield f"{layer}.input_layernorm.weight", (HIDDEN,)
        yield f"{layer}.self_attention.query_key_value.weight", (QKV, HIDDEN)
        yield f"{layer}.self_attention.query_key_value.bias", (QKV,)
        yield f"{layer}.self_attention.dense.weight", (HIDDEN, HIDDEN)
        yield f"{layer}.post_attention_layernorm.weight", (HIDDEN,)
        yield f"{layer}.mlp.dense_h_to_4h.weight", (2 * FFN, HIDDEN)
        yield f"{layer}.mlp.dense_4h_to_h.weight", (HIDDEN, FFN)
    yield "transformer.encoder.final_layernorm.weight", (HIDDEN,)
    yield "transformer.output_layer.weight", (VOCABULARY, HIDDEN)
    yield f"{TOWER}.boi", (1, 1, HIDDEN)
    yield f"{TOWER}.eoi", (1, 1, HIDDEN)
    yield f"{TOWER}.patch_embedding.cls_embedding", (1, WIDE)
    yield from with_bias(f"{TOWER}.patch_embedding.proj", (WIDE, 3, 14, 14))
    yield f"{TOWER}.patch_embedding.position_embedding.weight", (PATCHES, WIDE)
    for index in range(63):
        layer = f"{TOWER}.transformer.layers.{index}"
        yield from with_bias(f"{layer}.input_layernorm", (WIDE,))
        yield from with_bias(f"{layer}.attention.query_key_value", (3 * WIDE, WIDE))
        yield from with_bias(f"{layer}.attention.dense", (WIDE, WIDE))
        yield from with_bias(f"{layer}.mlp.fc1", (MLP, WIDE))
        yield from with_bias(f"{layer}.mlp.fc2", (WIDE, MLP))
        yield from with_bias(f"{layer}.post_attention_layernorm", (WIDE,))
    projection = f"{TOWER}.linear_proj"
    yield f"{projection}.linear_proj.weight", (HIDDEN, HIDDEN)
    yield from with_bias(f"{projection}.norm1", (HIDDEN,))
    yield f"{projection}.dense_h_to_4h.weight", (FFN, HIDDEN)
    yield f"{projection}.gate_proj.weight", (FFN, HIDDEN)
    yield f"{projection}.dense_4h_to_h.weight", (HIDDEN, FFN)
    yield from with_bias(f"{TOWER}.conv", (HIDDEN, WIDE, 2, 2))


def with_bias(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield a weight and its bias."""
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def published_tree() -> Any:
    """Return empty modules with the published weights, on ``meta``: all that placement reads."""
    import torch
    from torch import nn

    block = type(UNSPLITTABLE, (nn.Module,), {})
    root = nn.Module()
    for name, shape in published_weights():
        *path, attribute = name.split(".")
        owner: nn.Module = root
        for depth, part in enumerate(path):
            if part not in owner._modules:
                is_block = path[: depth + 1][:-1] == ["transformer", "encoder", "layers"]
                owner.add_module(part, block() if is_block else nn.Module())
            owner = owner.get_submodule(part)
        weight = torch.empty(shape, dtype=torch.bfloat16, device="meta")
        owner.register_parameter(attribute, nn.Parameter(weight))
    tree: Any = root
    tree._no_split_modules = [UNSPLITTABLE]
    tree.all_tied_weights_keys = {}
    return tree


def refused_sites(device_map: Mapping[str, Any], tree: nn.Module) -> list[str]:
    """Return the operations of the published tower that a map breaks, in the order of `SITES`."""
    places = {name: place_of(device_map, name) for name, _ in tree.named_parameters()}

    def apart(*names: str) -> bool:
        return len({place for name, place in places.items() if name.startswith(names)}) > 1

    projection = f"{TOWER}.linear_proj"
    cut = {
        "residual": any(apart(f"{TOWER}.transformer.layers.{index}.") for index in range(63)),
        "boi/eoi": apart(f"{TOWER}.boi", f"{TOWER}.eoi", f"{projection}.dense_4h_to_h"),
        "GLU": apart(f"{projection}.dense_h_to_4h", f"{projection}.gate_proj"),
        "patches": apart(f"{TOWER}.patch_embedding."),
    }
    return [site for site in SITES if cut[site]]


def published_code(counts: Sequence[int]) -> Iterator[Row]:
    """Yield rows of where the published code of GLM-4V-9B fails under its automatic map."""
    yield ("GPUs", "first published code", "with the known patch", "idle")
    tree = published_tree()
    for count in counts:
        found = automatic(tree, parse_gpus(f"{count}x{AMPLE}GiB"))
        sites = refused_sites(found, tree)
        # the known patch fixes the residuals and the begin and end vectors
        left = [site for site in sites if site in ("GLU", "patches")]
        idle = count - len(set(found.values()))
        yield (str(count), ", ".join(sites) or "-", ", ".join(left) or "-", str(idle or "-"))


def markdown_table(rows: Iterable[Row]) -> str:
    """Return rows, the first of them the head, as a table with aligned columns."""
    content = list(rows)
    widths = [max(map(len, column)) for column in zip(*content, strict=True)]
    lines = [
        "| " + " | ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in content
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")
    return "\n".join(lines)


def sections(counts: Sequence[int]) -> Iterator[tuple[str, str]]:
    """Yield headings and tables."""
    published = markdown_table(published_code(counts))
    yield "The published code of GLM-4V-9B under its automatic map", published
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(MODELS), context) as pool:
        for parts in pool.map(of_model, MODELS, repeat(counts)):
            yield from parts


def of_model(name: str, counts: Sequence[int]) -> list[tuple[str, str]]:
    """Return headings and tables of one model."""
    lab = Lab(architecture(name))
    return [
        (f"{name} on equal GPUs, automatic / ours", equal_gpus(lab, counts)),
        (f"Where {name} fits", markdown_table(what_fits(lab, counts))),
    ]


def write_between_markers(page: Path, text: str, begin: str = BEGIN, end: str = END) -> None:
    """Replace the text between the markers of a page."""
    content = page.read_text(encoding="utf-8")
    if content.count(begin) != 1 or content.count(end) != 1:
        raise SystemExit(f"{page} must hold each marker once: {begin} and {end}")
    head, _, rest = content.partition(begin)
    page.write_text(f"{head}{begin}\n{text}\n{end}{rest.partition(end)[2]}", encoding="utf-8")


def print_or_write(purpose: str, tables: Callable[[], str], begin: str, end: str) -> None:
    """Print tables, or with ``--write PAGE`` write them between two markers of a page."""
    parser = argparse.ArgumentParser(description=purpose.partition("\n")[0])
    parser.add_argument("--write", type=Path, metavar="PAGE", help="into this page")
    options = parser.parse_args()
    if options.write:
        write_between_markers(options.write, tables(), begin, end)
    else:
        print(tables())


def main() -> None:
    """Print the tables, or write them into a page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gpus", default=GPUS, help="a number of GPUs, or a range")
    parser.add_argument("--markdown", action="store_true", help="headings as in the page")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="into this page")
    options = parser.parse_args()
    first, _, last = options.gpus.partition("-")
    counts = range(int(first), int(last or first) + 1)

    parts = []
    for heading, table in sections(counts):
        mark = "## " if options.markdown or options.write else ""
        parts.append(f"{mark}{heading}\n\n{table}\n")
        if not options.write:
            print(parts[-1], flush=True)
    if options.write:
        write_between_markers(options.write, "\n" + "\n".join(parts))


if __name__ == "__main__":
    main()
