"""Make a vision tower with its own (remote) code consistent on any split over GPUs.

GLM-4V-9B, CogVLM2 and CogAgent share one vision tower. Its classes, and the layers of GLM-4V-9B's
text model, add, multiply and concatenate
the outputs of their submodules and their own parameters as if all of these lived on one GPU;
where they do not, torch says "Expected all tensors to be on the same device". `make_consistent`
finds those classes in a loaded model and lets each call align the operands of its own arithmetic.

How: while the code of such a module runs, but not while one of its submodules does, a
`TorchFunctionMode` looks at the few operations that join tensors. Operands on one device are
passed through; others are copied to the device named in `Kind.keep`. No forward method is
rewritten, so that it does not matter which revision of the code is loaded, nor whether
accelerate's hooks came before or after. It costs about 0.1 ms for each layer of the tower, once
for each image, and 0.05 ms for each step of the text model (measured on one CPU core).

Two limits. `torch.compile` does not trace such modes: patch the source instead
(`python -m glm4v_magic.remote_code.patch`). And a position embedding offloaded by itself stays out
of reach, because its weight is read without a call that would load it: give it a GPU (22 MiB in
bfloat16).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode

from glm4v_magic.core.errors import PlacementError

__all__ = ["Report", "Site", "make_consistent"]


@dataclass(frozen=True)
class Kind:
    """A class of the tower and the place in it where two GPUs can meet.

    Attributes:
        name: short name.
        class_name: the class's name in all of the published code.
        attributes: submodules and parameters that its forward joins.
        what: what moves where, for people.
        keep: device of the result: that of the first operand, or that of the submodule that ran
            last. Chosen so that least is copied: what has crossed to the next GPU stays there.
        inputs_to: submodule to whose device the inputs are moved; empty if they stay. For a class
            that joins its inputs by TorchScript, which no mode sees.
    """

    name: str
    class_name: str
    attributes: tuple[str, ...]
    what: str
    keep: Literal["first", "newest"]
    inputs_to: str = ""


_TOWER = Kind(
    "boundary",
    "EVA2CLIPModel",
    ("boi", "eoi", "linear_proj"),
    "boi and eoi go to the image features",
    "newest",
)
_PARTS = (
    Kind(
        "patch_embedding",
        "PatchEmbedding",
        ("proj", "cls_embedding", "position_embedding"),
        "the class token and the position embedding go to the patches",
        "newest",
    ),
    Kind(
        "residual",
        "TransformerLayer",
        ("attention", "mlp", "input_layernorm", "post_attention_layernorm"),
        "the residual stream goes to the end of its branch",
        "newest",
    ),
    Kind(
        "gated_product",
        "GLU",
        ("gate_proj", "dense_h_to_4h", "dense_4h_to_h"),
        "the second factor goes to the first",
        "first",
    ),
)
_SPLICE = Kind(
    "splice",
    "",
    (),
    "image features and the padding mask go to the word embeddings, position ids to the rotary "
    "embedding",
    "first",
)
# What a model may have beside the tower.
_OTHERS = (
    Kind(
        "text_residual",
        "GLMBlock",
        ("self_attention", "mlp", "input_layernorm", "post_attention_layernorm"),
        "the residual stream goes to the end of its branch",
        "newest",
    ),
    Kind(
        "text_attention",
        "SelfAttention",
        ("query_key_value", "core_attention", "dense"),
        "the rotary embedding, the mask and the cache go to the query",
        "first",
        inputs_to="query_key_value",
    ),
    Kind(
        "second_tower",
        "CrossVisionModel",
        ("vit", "pos_embed"),
        "the position embedding goes to the features",
        "newest",
    ),
)


@dataclass(frozen=True)
class Site:
    """One module whose own arithmetic is aligned: its path in the model, kind, and what moves."""

    module: str
    kind: str
    what: str


@dataclass(frozen=True)
class Report:
    """Result of one call of `make_consistent`.

    Attributes:
        sites: modules made consistent by this call.
        already: modules that an earlier call had made consistent.
    """

    sites: tuple[Site, ...]
    already: tuple[Site, ...] = ()
    _undo: tuple[Callable[[], None], ...] = field(default=(), repr=False, compare=False)

    def undo(self) -> None:
        """Undo what the call changed; a second time does nothing."""
        for take_back in self._undo:
            take_back()

    def __str__(self) -> str:
        return _report_text(self)


def _report_text(report: Report) -> str:
    """Return a line for each module."""
    lines = [f"{site.module or '(model)'}: {site.what}" for site in report.sites]
    if report.already:
        lines.append(f"{len(report.already)} modules were consistent already")
    return "\n".join(lines)


def make_consistent(model: nn.Module) -> Report:
    """Let a model with a vision tower of GLM-4V's form run on any split over GPUs.

    May be called before or after `accelerate.dispatch_model`, any number of times.

    Raises:
        PlacementError: if the model has no such tower, or one with parts of another form; the
            model is unchanged then.
    """
    if not isinstance(model, nn.Module):
        raise PlacementError(f"make_consistent takes a torch model, not a {type(model).__name__}.")
    found = list(_find(model))
    modules = {module for _, module, _ in found}
    sites, already, undo = [], [], []
    for path, module, kind in found:
        site = Site(path, kind.name, kind.what)
        if isinstance(module, _Aligned):
            already.append(site)
        else:
            sites.append(site)
            undo.append(_align(module, kind, modules))
    return Report(tuple(sites), tuple(already), tuple(undo))


def _find(model: nn.Module) -> Iterator[tuple[str, nn.Module, Kind]]:
    """Yield the places in a model, found by the names of classes and attributes."""
    towers = [(path, module) for path, module in model.named_modules() if _is(module, _TOWER)]
    if not towers:
        raise PlacementError(
            f"{type(model).__name__} has no vision tower that is known: looked for "
            f"{_description(_TOWER)}."
        )
    for path, tower in towers:
        for parent_path, parent in model.named_modules():
            if any(child is tower for child in parent.children()):
                yield parent_path, parent, _SPLICE
        yield path, tower, _TOWER
        for kind in _PARTS:
            parts = [(name, part) for name, part in tower.named_modules() if _is(part, kind)]
            if not parts:
                raise PlacementError(
                    f"The vision tower at {path or '(model)'} is not of a form that is known: "
                    f"looked in it for {_description(kind)}."
                )
            for name, part in parts:
                yield f"{path}.{name}" if path else name, part, kind
    for kind in _OTHERS:
        yield from ((path, part, kind) for path, part in model.named_modules() if _is(part, kind))


def _is(module: nn.Module, kind: Kind) -> bool:
    return type(module).__name__ == kind.class_name and all(
        hasattr(module, attribute) for attribute in kind.attributes
    )


def _description(kind: Kind) -> str:
    return f"a module of class {kind.class_name} with {', '.join(kind.attributes)}"


def _align(module: nn.Module, kind: Kind, sites: set[nn.Module]) -> Callable[[], None]:
    """Give a module a class that aligns its own arithmetic; return a function that undoes it.

    Hooks on its submodules note when these run, except on `sites`, which note it themselves.
    The class is changed, not `forward`, because accelerate replaces and restores `forward`, and
    because only a `finally` around the call survives a KeyboardInterrupt: torch runs no hooks then.
    """
    original = type(module)
    names = {"_kind": kind, "__module__": original.__module__, "__doc__": original.__doc__}
    aligned: Any = type(original.__name__, (_Aligned, original), names)
    module.__class__ = aligned
    handles = [
        handle
        for child in _called_children(module)
        if child not in sites
        for handle in (
            child.register_forward_pre_hook(_enter_child),
            child.register_forward_hook(_leave_child),
        )
    ]

    def take_back() -> None:
        for handle in handles:
            handle.remove()
        if type(module) is aligned:
            module.__class__ = original

    return take_back


def _called_children(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the submodules that a module's forward calls; a list of modules is never called."""
    for child in module.children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            yield from _called_children(child)
        else:
            yield child


class _Aligned(nn.Module):
    """Mixed in before a module's class: its calls align their own arithmetic."""

    _kind: Kind

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        windows = _open_windows()
        _enter_child(self, args)
        windows.append(window := _Window(self._kind))
        output = None
        try:
            if self._kind.inputs_to:
                args, kwargs = _at_home(getattr(self, self._kind.inputs_to), args, kwargs)
            window.resume()
            output = super().__call__(*args, **kwargs)
        finally:
            window.suspend()
            windows.remove(window)
            _leave_child(self, args, output)
        return output


class _Threads(threading.local):
    def __init__(self) -> None:
        self.windows: list[_Window] = []


_threads = _Threads()


def _open_windows() -> list[_Window]:
    """Return the windows of the calls running in this thread, innermost last."""
    return _threads.windows


def _enter_child(module: nn.Module, args: object) -> None:
    for window in _open_windows()[-1:]:
        window.depth += 1
        window.suspend()


def _leave_child(module: nn.Module, args: object, output: object) -> None:
    for window in _open_windows()[-1:]:
        window.depth -= 1
        window.newest = next((t.device for t in _tensors(output)), window.newest)
        if window.depth == 0:
            window.resume()


# Operations that require several tensors on one device, as the towers' code and its base classes
# use them; those of the second set write into their first operand or index it.
_JOINS = frozenset(
    {"cat", "concat", "stack", "where", "masked_fill"}
    | {
        form
        for name in ("add", "sub", "mul", "div")
        for form in (name, f"__{name}__", f"__r{name}__")
    }
    | {"__truediv__", "__rtruediv__", "__rdiv__", "__and__", "__or__"}
)
_INTO_FIRST = frozenset(
    {form for name in ("add", "sub", "mul", "div") for form in (f"__i{name}__", f"{name}_")}
    | {"__itruediv__", "__iand__", "__ior__", "masked_fill_", "__getitem__", "__setitem__"}
    | {"index_put", "index_put_", "masked_scatter", "masked_scatter_"}
)


class _Window(TorchFunctionMode):
    """One call of a module; active while its own code runs, not inside its submodules."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.keep = kind.keep
        self.newest: torch.device | None = None
        self.depth = 0
        self._on = False

    def resume(self) -> None:
        if not self._on:
            self.__enter__()
            self._on = True

    def suspend(self) -> None:
        """Leave the stack of modes, unless the module's code put another mode on top."""
        if self._on and _get_current_function_mode() is self:
            self._on = False
            self.__exit__(None, None, None)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self.depth == 0 and (name in _JOINS or name in _INTO_FIRST):
            args, kwargs = self._aligned(name, args, kwargs)
        return func(*args, **kwargs)

    def _aligned(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        devices = [t.device for t in _tensors((args, kwargs)) if _has_place(t)]
        if len(set(devices)) < 2:
            return args, kwargs
        target = devices[0]
        if self.keep == "newest" and name in _JOINS and self.newest in devices:
            target = self.newest
        return _moved(args, target), _moved(kwargs, target)


def _at_home(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return arguments on the device where a module runs: its hook's, else that of its weights."""
    hook = getattr(module, "_hf_hook", None)
    places = [getattr(each, "execution_device", None) for each in getattr(hook, "hooks", (hook,))]
    place = next((each for each in places if each is not None), None)
    if place is None:
        place = next((weight.device for weight in module.parameters()), None)
    if place is None:
        return args, kwargs
    device = torch.device(f"cuda:{place}" if isinstance(place, int) else place)
    return _moved(args, device), _moved(kwargs, device)


def _has_place(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor's device matters to an operation: CUDA accepts CPU scalars anywhere.

    A meta tensor is an offloaded weight that is not loaded; it cannot be copied.
    """
    return tensor.device.type != "meta" and not (tensor.device.type == "cpu" and tensor.dim() == 0)


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _moved(value: Any, device: torch.device) -> Any:
    """Return the same arguments with every tensor on `device`."""
    if isinstance(value, torch.Tensor):
        return value.to(device) if _has_place(value) else value
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_moved(item, device) for item in value)
    return value
