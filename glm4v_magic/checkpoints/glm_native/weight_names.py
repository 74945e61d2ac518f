"""Weights in a folder, held against those of the model by name and shape before any is read.

transformers tells what is missing or left over when all is read. It numbers experts by their order,
so that one with another number takes the place of the next, and no word is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from glm4v_magic.core.errors import CheckpointError
from glm4v_magic.core.wording import counted
from glm4v_magic.images.messages import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from glm4v_magic.checkpoints.files import TensorInfo

__all__ = ["require_weights"]

Shapes: TypeAlias = dict[str, tuple[int, ...] | None]
"""Shapes of weights by name; ``None`` where they are not known."""


def require_weights(
    folder: Path,
    tensors: Mapping[str, TensorInfo],
    model: PreTrainedModel,
    *,
    packed: frozenset[str] = frozenset(),
    optional: frozenset[str] = frozenset(),
) -> None:
    """Raise an error unless a folder holds each weight of a model in its shape, and no other.

    Args:
        folder: the folder, for messages.
        tensors: its weights, without what describes others.
        model: the model, on the ``meta`` device.
        packed: modules, by their names in the files, whose matrices are stored in shapes, and with
            tensors, of their own.
        optional: weights that files may leave out.

    Raises:
        CheckpointError: names the first weight that is missing, foreign, or of another shape.
    """
    names = _Names(model)
    stored: dict[str, str] = {}
    whole: dict[str, TensorInfo] = {}
    for name, info in tensors.items():
        around = accumulate(name.split("."), _joined)
        module = next((each for each in around if each in packed and name != f"{each}.bias"), "")
        known_as = names.in_model(f"{module}.weight" if module else name)
        stored.setdefault(known_as, name)
        if not module:
            whole[known_as] = info
    expected = names.expected(stored)
    missing = [name for name in expected if name not in stored and name not in optional]
    if missing:
        raise CheckpointError(
            f"{len(missing)} of {len(expected)} weights are missing in {folder}, the first is "
            f"{missing[0]}.",
            "Config and weights do not belong together, or a shard is not in the index.",
        )
    foreign = sorted(stored[name] for name in stored.keys() - expected.keys())
    if foreign:
        raise CheckpointError(
            f"{folder} holds {counted(len(foreign), 'weight')} that the model does not have, for "
            f"example {one_line(foreign[0])}.",
            "Config and weights do not belong together.",
        )
    for name, info in whole.items():
        shape = expected[name]
        if shape is not None and tuple(info.shape) != shape:
            raise CheckpointError(
                f"{one_line(stored[name])} in {info.file} has shape {list(info.shape)}; "
                f"config.json asks for {list(shape)}.",
                "Config and weights do not belong together; download them again.",
            )


class _Names:
    """Names of a model's weights, and how transformers finds them in files."""

    def __init__(self, model: PreTrainedModel) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter

        self._whole: Shapes = {n: tuple(value.shape) for n, value in model.state_dict().items()}
        self._parts: dict[str, Shapes] = {}
        self._renamings = []
        self._prefix = model.base_model_prefix
        for transform in get_model_conversion_mapping(model):
            if not isinstance(transform, WeightConverter):
                self._renamings.append(transform)
                continue
            for name, shape in self._whole.items():
                if name.endswith(transform.target_patterns[0]) and name not in self._parts:
                    self._parts[name] = dict(_parts(name, shape or (), transform))
        # transformers looks names up by `get`, and takes None for one that is not there.
        self._known = dict.fromkeys(self._whole, True)
        for parts in self._parts.values():
            self._known.update(dict.fromkeys(parts, True))

    def in_model(self, name: str) -> str:
        """Return the name in the model of a weight in the files."""
        from transformers.core_model_loading import rename_source_key

        if name in self._known:
            return name
        return rename_source_key(name, self._renamings, [], self._prefix, self._known)[0]

    def expected(self, found: Mapping[str, object]) -> Shapes:
        """Return the weights of the model; in parts, except those that files hold as a whole."""
        expected: Shapes = {}
        for name, shape in self._whole.items():
            parts = self._parts.get(name)
            expected.update({name: shape} if parts is None or name in found else parts)
        return expected


def _parts(name: str, shape: tuple[int, ...], transform: Any) -> Iterator[tuple[str, Any]]:
    """Yield the parts from which a weight is put together: one of each expert, or each matrix."""
    target, sources = transform.target_patterns[0], transform.source_patterns
    around = name.removesuffix(target)
    for source in sources:
        if "*" not in source:
            yield around + source, None  # they need not be of one size
            continue
        rows, *others = shape[1:]
        for expert in range(shape[0]):
            yield around + source.replace("*", str(expert)), (rows // len(sources), *others)


def _joined(module: str, name: str) -> str:
    return f"{module}.{name}"
