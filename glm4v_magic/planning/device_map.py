"""Device maps: checking them against the names of a model's modules and weights.

A device map assigns devices to modules or single parameters: ``{"model.vision": 0, "lm_head": 1,
"model.language_model": "cpu"}``. Of entries for a module and for something inside it, the inner one
counts, as in accelerate. Mistakes are found before anything is loaded, and reported in one
line with a guess at what was meant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from glm4v_magic.core.errors import DeviceMapError, did_you_mean
from glm4v_magic.core.gpu_spec import APPLE, GPU
from glm4v_magic.core.model_shape import ModuleTree
from glm4v_magic.core.placement import DeviceMap, Place
from glm4v_magic.core.remarks import Remark, remark

__all__ = ["EXAMPLE", "MPS", "OwnNames", "check", "place_of", "present", "settle"]


EXAMPLE = 'A device map is a JSON object such as {"model.vision": 0, "lm_head": 1}.'
MPS = "mps"
"""What a map may call Apple's GPU, which has a number in plans as all others have."""

_LONGEST_NAME = 200  # of a module that is worth searching for similar ones

OwnNames = Callable[[str, ModuleTree], "tuple[str, ...] | None"]
"""What `Architecture.own_names` does."""


def settle(
    device_map: Mapping[str, Place], tree: ModuleTree, gpus: Sequence[GPU], own_names: OwnNames
) -> tuple[DeviceMap, tuple[Remark, ...]]:
    """Check a device map, its names in the model's own or the published vocabulary.

    What no published file holds needs no entry: buffers that are computed go where the weights
    around them are, and a weight with two names needs one.

    Args:
        device_map: as for `check`.
        tree: likewise.
        gpus: likewise.
        own_names: finds the names here that a published one stands for.

    Returns:
        The map as `check` returns it, and notes on what was translated.

    Raises:
        DeviceMapError: as `check`.
    """
    if not device_map:
        raise DeviceMapError("The device map is empty.", EXAMPLE)
    apple: Place = next((gpu.index for gpu in gpus if gpu.name == APPLE), MPS)
    device_map = {name: apple if place == MPS else place for name, place in device_map.items()}
    known = {*tree.modules, *tree.tensors}
    translated: dict[str, tuple[str, ...]] = {}
    for name in device_map:
        if name not in known:
            found = own_names(name, tree)
            if found is None:
                raise DeviceMapError(*_unknown(name, tree))
            translated[name] = found
    own: DeviceMap = {name: place for name, place in device_map.items() if name in known}
    for name in translated:
        _check_there(name, device_map[name], gpus)
    votes = _votes(device_map, translated)
    _check_twice(device_map, own, translated, tree)
    own |= {name: places.most_common(1)[0][0] for name, places in votes.items()}
    if not own:
        raise DeviceMapError("The device map names nothing of the model.", EXAMPLE)
    own |= _tied(own, tree)
    _check_coverage(own, [name for name in tree.tensors if name not in tree.computed])
    own |= _computed(own, tree)
    divided = sum(len(places) > 1 for places in votes.values())
    checked = check(own, tree, gpus)
    if translated or any(_outer(checked, name) is not None for name in checked):
        checked = _compressed(checked, tree)
    return checked, tuple(_translations(translated, divided))


def _votes(
    device_map: Mapping[str, Place], translated: Mapping[str, tuple[str, ...]]
) -> dict[str, Counter[Place]]:
    """Return the devices of each name here, by how many published names give it one."""
    named: dict[str, list[str]] = {}
    for published, names in translated.items():
        for name in names:
            named.setdefault(name, []).append(published)
    votes = {}
    for name, all_of_it in named.items():
        outer = {_outer(dict.fromkeys(all_of_it, 0), each) for each in all_of_it}
        votes[name] = Counter(device_map[each] for each in all_of_it if each not in outer)
    return votes


def _check_twice(
    device_map: Mapping[str, Place],
    own: Mapping[str, Place],
    translated: Mapping[str, tuple[str, ...]],
    tree: ModuleTree,
) -> None:
    """Raise DeviceMapError if a name here and a published one put the same weights elsewhere."""
    for published, names in translated.items() if own else ():
        inside = set(_inside(names, tree))
        for name, place in own.items():
            if place != device_map[published] and inside == set(_inside((name,), tree)):
                raise DeviceMapError(
                    f"The device map has {name!r} under two names, and on several devices.",
                    "Leave one of them out.",
                )


def _inside(names: Sequence[str], tree: ModuleTree) -> Iterator[str]:
    for tensor in tree.tensors:
        if any(not name or f"{tensor}.".startswith(f"{name}.") for name in names):
            yield tensor


def _translations(translated: Mapping[str, tuple[str, ...]], divided: int) -> Iterator[Remark]:
    renamed = {name: own for name, own in translated.items() if own}
    if renamed:
        name, own = next(iter(renamed.items()))
        yield remark("names_translated", count=len(renamed), name=name, own=own[0])
    if divided:
        yield remark("experts_together", count=divided)


def _tied(places: DeviceMap, tree: ModuleTree) -> DeviceMap:
    """Return devices for weights that the map has under another name."""
    implied: DeviceMap = {}
    for name, first in tree.ties.items():
        of_name, of_first = place_of(places, name), place_of(places, first)
        if of_name is None and of_first is not None:
            implied[name] = of_first
        elif of_first is None and of_name is not None:
            implied[first] = of_name
    return implied


def _computed(places: DeviceMap, tree: ModuleTree) -> DeviceMap:
    """Return devices for the buffers that the map leaves out."""
    found = {
        name: _around(places, name, tree.tensors)
        for name in tree.tensors
        if name in tree.computed and place_of(places, name) is None
    }
    return {name: place for name, place in found.items() if place is not None}


def _around(places: DeviceMap, name: str, tensors: Sequence[str]) -> Place | None:
    """Return the device of the first weight in the smallest module around `name` that has one."""
    while name:
        name = name.rpartition(".")[0]
        inside = (place_of(places, each) for each in tensors if each.startswith(f"{name}."))
        place = next((each for each in inside if each is not None), None)
        if place is not None:
            return place
    return None


def _compressed(places: DeviceMap, tree: ModuleTree) -> DeviceMap:
    """Return the same map with as few entries as name no tensor twice."""
    of_module: dict[str, set[Place]] = {}
    for tensor in tree.tensors:
        place, name = place_of(places, tensor), tensor
        assert place is not None  # `check` raises for a map with gaps
        of_module.setdefault(tensor, set()).add(place)
        while name:
            name = name.rpartition(".")[0]
            of_module.setdefault(name, set()).add(place)
    named: DeviceMap = {}
    for name in (*tree.modules, *tree.tensors):
        if len(of_module.get(name, ())) == 1 and name not in named and _outer(named, name) is None:
            (named[name],) = of_module[name]
    return named


def check(device_map: Mapping[str, Place], tree: ModuleTree, gpus: Sequence[GPU]) -> DeviceMap:
    """Check a device map against a model and the GPUs.

    Args:
        device_map: name of a module or parameter -> GPU index or ``cpu``. The empty name is the
            whole model. `planning.files.read_given` takes other ways to write a device.
        tree: the model's modules and weights; `dispatch.module_tree.tree_of` lists them.
        gpus: available GPUs.

    Returns:
        The map without entries that repeat that of the module around.

    Raises:
        DeviceMapError: if the map is empty, misses a weight, names an unknown module or GPU,
            or separates tied weights.
    """
    if not device_map:
        raise DeviceMapError("The device map is empty.", EXAMPLE)
    known = {*tree.modules, *tree.tensors}
    for name, place in device_map.items():
        if name not in known:
            raise DeviceMapError(*_unknown(name, tree))
        _check_there(name, place, gpus)
    _check_coverage(device_map, tree.tensors)
    _check_ties(device_map, tree.ties)
    return {
        name: place
        for name, place in device_map.items()
        if (outer := _outer(device_map, name)) is None or device_map[outer] != place
    }


def _check_there(name: str, place: Place, gpus: Sequence[GPU]) -> None:
    if place == "cpu" or place in {gpu.index for gpu in gpus}:
        return
    device = place if place == MPS else f"GPU {place}"
    wrong = f"The device map puts {_called(name)} on {device}, but {present(gpus)}."
    if gpus:
        raise DeviceMapError(wrong, "Put it on one that is there, or on the cpu.")
    raise DeviceMapError(wrong, code="no_gpu_for_map")


def place_of(device_map: Mapping[str, Place], name: str) -> Place | None:
    """Return the device of a module or parameter: its entry, or that of the module around it."""
    while name not in device_map:
        if not name:
            return None
        name = name.rpartition(".")[0]
    return device_map[name]


def _unknown(name: str, tree: ModuleTree) -> tuple[str, str]:
    if len(name) > _LONGEST_NAME:
        return f"The device map names {name!r:.80}..., which the model does not have.", ""
    # Suggest continuations of the part of the name that exists: hundreds of layers look alike.
    parent = name
    while parent and parent not in tree.modules:
        parent = parent.rpartition(".")[0]
    prefix = f"{parent}." if parent else ""
    siblings = {
        prefix + other.removeprefix(prefix).partition(".")[0]
        for other in (*tree.modules, *tree.tensors)
        if other.startswith(prefix) and other != parent
    }
    hint = did_you_mean(name, sorted(siblings)) or did_you_mean(name, tree.modules)
    if not hint:
        some = ", ".join(sorted(siblings)[:4])
        hint = f"{parent or 'The model'} holds {some}." if some else ""
    return f"The device map names {name!r}, which the model does not have.", hint


def present(gpus: Sequence[GPU]) -> str:
    """Return which GPUs there are, as the second part of a sentence."""
    if len(gpus) > 1:
        return f"there are GPUs {gpus[0].index} to {gpus[-1].index}"
    return f"there is GPU {gpus[0].index} only" if gpus else "there is none"


def _outer(places: Mapping[str, Place], name: str) -> str | None:
    """Return the innermost entry around `name`, if any."""
    while name:
        name = name.rpartition(".")[0]
        if name in places:
            return name
    return None


def _check_coverage(places: Mapping[str, Place], tensors: Sequence[str]) -> None:
    missing = [name for name in tensors if place_of(places, name) is None]
    if not missing:
        return
    largest = _largest(missing, tensors)
    rest = f" and {len(largest) - 1} more" if len(largest) > 1 else ""
    raise DeviceMapError(
        f"The device map gives {largest[0]!r}{rest} no device.", "Every weight needs one."
    )


def _largest(missing: Sequence[str], tensors: Sequence[str]) -> list[str]:
    """Return the fewest modules that cover `missing` and hold no other tensor."""
    placed = [name for name in tensors if name not in set(missing)]
    found: dict[str, None] = {}
    for tensor in missing:
        name = tensor
        while "." in name:
            outer = name.rpartition(".")[0]
            if any(other.startswith(outer + ".") for other in placed):
                break
            name = outer
        found[name] = None
    return list(found)


def _check_ties(places: Mapping[str, Place], ties: Mapping[str, str]) -> None:
    """Raise DeviceMapError if a weight with two names gets two devices."""
    for name, other in ties.items():
        if place_of(places, other) != place_of(places, name):
            raise DeviceMapError(
                f"The device map separates {other!r} and {name!r}, which are one weight."
            )


def _called(name: str) -> str:
    return repr(name) if name else "the whole model"
