"""Notes on what a plan chose: how many GPUs, whether the vision tower is cut, and what else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from glm4v_magic.core.options import Objective
from glm4v_magic.core.remarks import Remark, remark
from glm4v_magic.core.wording import counted, sized
from glm4v_magic.planning.search import HEADROOM, NOTICEABLE, Split, Task, best_split, fullest

__all__ = ["choice_note", "tower_note"]

_WHY: Mapping[Objective, str] = {
    "headroom": "as few as leave a fifth of each free",
    "balance": "as empty as any split keeps it",
    "fewest": "as few as fit",
    "fastest": "no split that fits needs less time per token",
}
_OTHERS: Mapping[Objective, tuple[Objective, ...]] = {
    "headroom": ("balance", "fewest"),
    "balance": ("headroom", "fewest"),
    "fewest": ("headroom", "balance"),
    "fastest": ("headroom", "fewest"),
}


def choice_note(task: Task, split: Split) -> Iterator[Remark]:
    """Yield a note on the GPUs that a plan uses, why, and what another objective would use.

    Nothing if there is only one GPU to choose.
    """
    count = len(task.gpus)
    if count == 1:
        return
    used = len(split.stages)
    why = _WHY[task.objective]
    if task.objective == "headroom" and split.partition.fullness > HEADROOM:
        why = "no split leaves a fifth of each free, and none keeps the fullest emptier"
    gpus = f"{_all(count).capitalize()} GPUs" if used == count else f"{used} of {count} GPUs"
    for objective in _OTHERS[task.objective]:
        other = best_split(replace(task, objective=objective), split.offloaded)
        if other is not None and len(other.stages) != used:
            of_other = len(other.stages)
            yield remark(
                "gpus_chosen_of_two",
                gpus=gpus,
                fullness=split.percent,
                why=why,
                other=objective,
                other_gpus=_all(count) if of_other == count else str(of_other),
                other_fullness=other.percent,
            )
            return
    yield remark("gpus_chosen", gpus=gpus, fullness=split.percent, why=why)


def _all(count: int) -> str:
    return "both" if count == 2 else f"all {count}"


def tower_note(task: Task, split: Split) -> Iterator[Remark]:
    """Yield a note on a tower that is cut by default, or kept whole on request and off balance."""
    if not split.is_whole and task.split_vision is not True:
        whole = None if split.offloaded else best_split(replace(task, split_vision=False))
        if whole is None or not whole.is_whole:
            yield remark("tower_is_cut")
            return
        gpus = counted(len(whole.stages), "GPU")
        yield remark("tower_is_cut_for_balance", gpus=gpus, fullness=whole.percent)
    elif split.is_whole and task.split_vision is False and not split.offloaded:
        cut = best_split(replace(task, split_vision=True))
        if cut is not None and cut.partition.fullness < split.partition.fullness * NOTICEABLE:
            gpu, size, _ = fullest(task, split)
            yield remark(
                "tower_could_be_cut",
                tower=sized(sum(unit.weight_bytes for unit in split.units if unit.in_tower)),
                device=gpu.device,
                size=sized(size),
                fullness=split.percent,
                cut=sized(fullest(task, cut)[1]),
                cut_fullness=cut.percent,
            )
