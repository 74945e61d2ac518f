"""Adapters that were trained with peft: their configuration, and which weights they change.

An adapter is merged into the weights of its base as they are read; see `merging`. Nothing here
imports torch, so that plans know about adapters, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from glm4v_magic.checkpoints.files import (
    TensorInfo,
    holds_weights,
    holds_zeros,
    read_json,
    read_tensors_of,
)
from glm4v_magic.checkpoints.foreign import refuse_foreign_folder
from glm4v_magic.checkpoints.hub import ADAPTER_WEIGHTS
from glm4v_magic.checkpoints.quantized import FULL
from glm4v_magic.checkpoints.trained_names import (
    OF_VOCABULARY,
    adapter_part,
    is_of_tokens,
    plain_names,
)
from glm4v_magic.core.errors import CheckpointError
from glm4v_magic.core.hub_page import MAIN_BRANCHES
from glm4v_magic.core.wording import counted, printable
from glm4v_magic.images.messages import one_line
from glm4v_magic.outside import checked

__all__ = [
    "ADAPTER_CONFIG",
    "Adapter",
    "Find",
    "Merges",
    "Part",
    "adapter_beside",
    "holds_adapter",
    "read_adapter",
]

ADAPTER_CONFIG = "adapter_config.json"
_KINDS = ("LORA", "LOHA", "LOKR", "IA3")
"""Kinds that can be merged into the weights of a single module, as peft calls them."""

_OF_PROMPTS = ("PROMPT", "P_TUNING", "PREFIX", "CPT", "CARTRIDGE")
_DTYPES = (*FULL, "F64")

_BEGUN = (True, False, None, "gaussian", "orthogonal", "pissa", "olora", "eva", "lora_ga")
"""Ways to begin a training that can be done again with the adapter and its base alone.

Of others peft draws random numbers (``pissa_niter_N``), asks for what was counted before the
training (``corda``) or for a GPU and scipy (``loftq``).
"""

_FROM_ZERO = (True, False, None, "gaussian", "eva")
"""Those after which an adapter whose product is 0 leaves the weights as they are."""

_ALPHA = 8
"""What is taken for an alpha that is not given."""

_SCALED = (".lora_", ".hada_", ".lokr_")
"""Marks of the matrices whose product is multiplied by alpha."""

_FOREIGN = "Is this the folder of an adapter that peft has saved?"
_MERGE_IT = "Merge it with peft where it was trained (merge_and_unload), and save the result."
_OF_ANOTHER = "Is it an adapter of another model?"


Rank = Annotated[int, Field(ge=1, le=2**14)]  # peft makes matrices of it before it reads them
Index = Annotated[int, Field(ge=0)]
Scale = Annotated[FiniteFloat, Field(ge=-(2**24), le=2**24)]  # huge ones make weights infinite


class _Kind(BaseModel):
    model_config = ConfigDict(strict=True)

    peft_type: str


class _Config(BaseModel):
    model_config = ConfigDict(strict=True)

    peft_type: str
    r: Rank = 8
    rank_pattern: dict[str, Rank] | None = None
    lora_alpha: Scale = _ALPHA
    alpha: Scale = _ALPHA
    alpha_pattern: dict[str, Scale] | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    lora_bias: bool | None = False
    use_rslora: bool | None = False
    use_dora: bool | None = False
    fan_in_fan_out: bool | None = False
    target_parameters: list[str] | None = None
    layer_replication: None = None
    alora_invocation_tokens: list[Index] | None = None
    arrow_config: dict[str, Any] | None = None
    use_qalora: bool | None = False
    kasa_config: dict[str, Any] | None = None
    init_lora_weights: bool | str | None = True
    trainable_token_indices: list[Index] | dict[str, list[Index]] | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """A module that an adapter changes.

    Attributes:
        module: name of the module, as the adapter's files have it.
        rows: first row, and the row past the last, of a weight that holds several modules;
            ``None`` for all.
        tensors: weights of the adapter for this module, by their names in its files.
    """

    module: str
    rows: tuple[int, int] | None
    tensors: Mapping[str, TensorInfo]


@dataclass(frozen=True, slots=True)
class Merges:
    """The changes of an adapter to the weights of its base.

    Attributes:
        config: the adapter's parsed configuration.
        parts: weight of the base -> modules in it that are changed.
        replaced: weights that were trained as a whole, by the base's names.
    """

    config: Mapping[str, Any]
    parts: Mapping[str, tuple[Part, ...]] = field(default_factory=dict)
    replaced: Mapping[str, TensorInfo] = field(default_factory=dict)

    @property
    def modules(self) -> int:
        """Number of the modules that are changed."""
        # peft saves an embedding as a whole beside its changes
        alone = self.replaced.keys() - self._weights.keys()
        return sum(map(len, self._weights.values())) + len(alone) - self.unchanged

    @property
    def unchanged(self) -> int:
        """Number of the modules that it has weights for, but leaves as they are: times 0."""
        return len(self._idle)

    @property
    def is_by_alpha(self) -> bool:
        """Whether all of these are unchanged because peft multiplies their changes by 0."""
        return all(map(self._is_of_no_weight, self._idle))

    @property
    def _idle(self) -> list[Part]:
        return [
            part
            for name, parts in self._weights.items()
            for part in parts
            if name not in self.replaced and (self._is_of_no_weight(part) or self._is_zero(part))
        ]

    def _is_zero(self, part: Part) -> bool:
        """Tell whether the product that changes a module is 0, as it is before a training.

        Where a training begins with a part of the weights themselves, it changes them all the same.
        """
        return (
            self._is_a_product(part)
            and self.config.get("init_lora_weights", True) in _FROM_ZERO
            and any(map(holds_zeros, part.tensors.values()))
        )

    def _is_a_product(self, part: Part) -> bool:
        """Tell whether all that changes a module is a product of an adapter's matrices.

        Where magnitudes were trained beside the directions, those count all the same.
        """
        is_scaled = all(any(mark in key for mark in _SCALED) for key in part.tensors)
        return is_scaled and not self.config.get("use_dora")

    @property
    def _weights(self) -> dict[str, tuple[Part, ...]]:
        return {name: each for name, each in self.parts.items() if not name.endswith(".bias")}

    def _is_of_no_weight(self, part: Part) -> bool:
        """Tell whether peft multiplies all changes of a module by 0."""
        if not self._is_a_product(part):
            return False
        usual = "lora_alpha" if self.config["peft_type"] == "LORA" else "alpha"
        alpha = self.config.get(usual, _ALPHA)
        for pattern, other in (self.config.get("alpha_pattern") or {}).items():
            try:
                is_meant = re.match(rf"(.*\.)?({pattern})$", part.module)  # as peft does
            except re.error:  # as `merging` says, which asks peft
                continue
            if is_meant:
                alpha = other
                break
        return bool(alpha == 0)

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """All weights of the adapter."""
        parts = (part for each in self.parts.values() for part in each)
        return {**self.replaced, **{k: v for part in parts for k, v in part.tensors.items()}}


Find = Callable[[str], tuple[str, tuple[int, int] | None] | None]
"""Name of a weight in an adapter -> its name in the base's files, and its rows there."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter's folder.

    Attributes:
        folder: the folder.
        config: its parsed ``adapter_config.json``.
        base: name or folder of the model that it was trained on; empty if it does not say.
        base_revision: commit, branch or tag of that model; ``None`` for its main branch.
        parts: its weights, by their plain names.
        replaced: weights of modules that were trained as a whole.
    """

    folder: Path
    config: Mapping[str, Any]
    base: str
    parts: Mapping[str, TensorInfo]
    replaced: Mapping[str, TensorInfo]
    base_revision: str | None = None

    @property
    def kind(self) -> str:
        """Kind of the adapter, as peft calls it."""
        return str(self.config["peft_type"])

    def merges(self, tensors: Mapping[str, TensorInfo], find: Find) -> Merges:
        """Return its changes to the weights of a base.

        Args:
            tensors: weights of the base.
            find: finds a weight in them.

        Raises:
            CheckpointError: if it belongs to another model.
        """
        modules: dict[str, dict[str, TensorInfo]] = {}
        for name, info in self.parts.items():
            module = adapter_part(name)
            assert module is not None  # that is what a part is
            modules.setdefault(module, {})[name] = info
        places = {module: find(f"{module}.weight") for module in modules}
        whole = {name: find(name) for name in self.replaced}
        unknown = [name for name, place in {**places, **whole}.items() if place is None]
        if unknown:
            raise CheckpointError(
                f"The adapter {self.folder} changes {counted(len(unknown), 'module')} that its "
                f"base does not have, for example {one_line(unknown[0])}.",
                _OF_ANOTHER,
            )
        parts: dict[str, tuple[Part, ...]] = {}
        for module, place in places.items():
            assert place is not None
            name, rows = place
            part = Part(module, rows, modules[module])
            self._require_sizes(part, tensors[name])
            parts[name] = (*parts.get(name, ()), part)
            bias = find(f"{module}.bias") if self.kind == "IA3" else None
            if bias is not None:  # it scales what a module returns
                name, rows = bias
                parts[name] = (*parts.get(name, ()), Part(module, rows, modules[module]))
        replaced = {}
        for written, place in whole.items():
            assert place is not None
            name, rows = place
            skip = 1 if name in OF_VOCABULARY else 0
            if (
                rows is not None
                or tensors[name].shape[skip:] != self.replaced[written].shape[skip:]
            ):
                raise self._unsuited(written, self.replaced[written], tensors[name])
            replaced[name] = self.replaced[written]
        self._require_tokens({**tensors, **replaced})
        return Merges(self.config, parts, replaced)

    def _require_sizes(self, part: Part, base: TensorInfo) -> None:
        """Raise CheckpointError unless the low-rank product has the shape of its weight."""
        first = part.tensors.get(f"{part.module}.lora_A.weight")
        second = part.tensors.get(f"{part.module}.lora_B.weight")
        if first is None or second is None or len(base.shape) != 2:
            return
        rows = base.shape[0] if part.rows is None else part.rows[1] - part.rows[0]
        if first.shape[1:] != base.shape[1:]:
            raise self._unsuited(f"{part.module}.lora_A", first, base)
        if second.shape[0] != rows:
            raise self._unsuited(f"{part.module}.lora_B", second, base)

    def _require_tokens(self, tensors: Mapping[str, TensorInfo]) -> None:
        """Raise CheckpointError unless the single tokens that were trained are there."""
        given = self.config.get("trainable_token_indices") or ()
        lists = list(given.values()) if isinstance(given, Mapping) else [given]
        indices = [index for each in lists for index in each]
        rows = [tensors[name].shape[0] for name in OF_VOCABULARY if name in tensors]
        if indices and rows and max(indices) >= max(rows):
            raise CheckpointError(
                f"The adapter {self.folder} changes token {max(indices)}, which is beyond the "
                f"{max(rows)} of its base.",
                _OF_ANOTHER,
            )
        if indices and not any(is_of_tokens(name) for name in self.parts):
            raise CheckpointError(
                f"The adapter {self.folder} names single tokens that were trained, and has no "
                "weights for them.",
                "Was it saved as a whole?",
            )

    def _unsuited(self, name: str, info: TensorInfo, base: TensorInfo) -> CheckpointError:
        return CheckpointError(
            f"{one_line(name)} in the adapter {self.folder} has shape {list(info.shape)}, which "
            f"does not suit that of its base, {list(base.shape)}.",
            _OF_ANOTHER,
        )


def holds_adapter(folder: Path) -> bool:
    """Tell whether a folder holds an adapter and no model."""
    return (folder / ADAPTER_CONFIG).is_file() and not holds_weights(folder)


def adapter_beside(folder: Path) -> str | None:
    """Return the file of an adapter's weights that lies beside whole ones, if there is one.

    ``None`` also without its configuration.
    """
    if not (folder / ADAPTER_CONFIG).is_file() or not holds_weights(folder):
        return None
    return next((name for name in ADAPTER_WEIGHTS if (folder / name).is_file()), None)


def read_adapter(folder: Path, tensors: Mapping[str, TensorInfo] | None = None) -> Adapter:
    """Read the configuration and the headers of an adapter.

    Args:
        folder: its folder.
        tensors: its weights, if they are in files with others.

    Raises:
        CheckpointError: if a file is missing or damaged, or the adapter is of a kind that cannot
            be merged.
    """
    file = folder / ADAPTER_CONFIG
    config = read_json(file)
    _require_kind(checked(_Kind, config, str(file), CheckpointError, _FOREIGN).peft_type, file)
    read = checked(_Config, config, str(file), CheckpointError, _FOREIGN)
    _require_mergeable(read, file)
    if tensors is None:
        tensors = _tensors(folder)
    _require_numbers(tensors, folder)
    whole, parts = plain_names(tensors, str(folder))
    if not whole and not parts:
        raise CheckpointError(f"The adapter {folder} holds no weights.", _FOREIGN)
    base = read.base_model_name_or_path or ""
    revision = None if read.revision in MAIN_BRANCHES else read.revision or None
    return Adapter(folder, config, base, parts, whole, revision)


def _require_kind(kind: str, file: Path) -> None:
    """Raise CheckpointError unless adapters of a kind are merged here."""
    if kind not in _KINDS:
        of_prompts = any(each in kind for each in _OF_PROMPTS)
        raise CheckpointError(
            f"{file} describes an adapter of kind {printable(kind)!r}, which "
            f"{'cannot be merged into weights' if of_prompts else 'is not merged here'}.",
            f"Known are {', '.join(_KINDS)}." if of_prompts else _MERGE_IT,
        )


def _require_mergeable(read: _Config, file: Path) -> None:
    """Raise CheckpointError if a configuration asks for what is not merged here."""
    per_token = {
        "an adapter that acts after some tokens alone (alora_invocation_tokens)": (
            read.alora_invocation_tokens
        ),
        "a router of several adapters (arrow_config)": read.arrow_config is not None,
    }
    for what in (name for name, is_there in per_token.items() if is_there):
        raise CheckpointError(
            f"{file} describes {what}, which cannot be merged into weights.",
            f"Known are {', '.join(_KINDS)}.",
        )
    unmerged = {"biases of its own (lora_bias)": read.lora_bias}
    unmerged["means over its inputs (use_qalora)"] = read.use_qalora
    unmerged["a cut base (kasa_config)"] = bool(read.kasa_config)
    unmerged["matrices of experts (target_parameters)"] = bool(read.target_parameters)
    for what in (name for name, is_there in unmerged.items() if is_there):
        raise CheckpointError(
            f"{file} describes an adapter with {what}, which are not merged here.",
            _MERGE_IT,
        )
    if read.init_lora_weights not in _BEGUN:
        raise CheckpointError(
            f"{file} describes an adapter whose training began in a way that cannot be done again "
            f"here, init_lora_weights {printable(str(read.init_lora_weights))!r}.",
            _MERGE_IT,
        )


def _require_numbers(tensors: Mapping[str, TensorInfo], folder: Path) -> None:
    """Raise CheckpointError unless all weights are of a dtype that is trained."""
    for name, info in tensors.items():
        if info.dtype not in _DTYPES:
            raise CheckpointError(
                f"{one_line(name)} in the adapter {folder} is of dtype {info.dtype}, which "
                "adapters are not trained in.",
                "Is the file damaged? Save the adapter again.",
            )


def _tensors(folder: Path) -> dict[str, TensorInfo]:
    for name in ADAPTER_WEIGHTS:
        if (folder / name).is_file():
            return read_tensors_of(folder / name)
    refuse_foreign_folder(folder)
    raise CheckpointError(
        f"{folder} holds an {ADAPTER_CONFIG}, but no {ADAPTER_WEIGHTS[0]}.",
        "It comes with the adapter; copy or download it again.",
    )
