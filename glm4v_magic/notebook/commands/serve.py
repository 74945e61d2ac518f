"""Starting a server and asking it: ``%glm4v serve``."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import re
import shutil
import socket
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from glm4v_magic.checkpoints import resolve
from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.checkpoints.places import find_place
from glm4v_magic.core.errors import CheckpointError, OptionError, did_you_mean
from glm4v_magic.core.gpu_spec import APPLE, GPU, parse_gpus
from glm4v_magic.core.installed import installed_version
from glm4v_magic.core.model import Architecture, ModelChoice, Sized
from glm4v_magic.core.model_shape import ModelShape
from glm4v_magic.core.options import PlacementFields, Serving, check, of_command, of_group
from glm4v_magic.core.placement import GivenMap, PlacementOptions
from glm4v_magic.core.plan import Plan
from glm4v_magic.core.server_address import is_address
from glm4v_magic.core.typed_options import flags_of, typed
from glm4v_magic.core.wording import printable
from glm4v_magic.hardware.cpu import cpu_here
from glm4v_magic.hardware.usable import gpus_here
from glm4v_magic.notebook.arguments import ARGUMENTS
from glm4v_magic.notebook.command_line import takes
from glm4v_magic.notebook.commands.context import Context
from glm4v_magic.notebook.commands.plan import (
    as_options,
    named_map,
    names_a_file,
    placement_options,
)
from glm4v_magic.notebook.draft import option_words
from glm4v_magic.notebook.engine_commands import EngineCommand, Wanted, command_of, with_gpus
from glm4v_magic.notebook.launched import LaunchedServer
from glm4v_magic.notebook.live.output import show
from glm4v_magic.notebook.own_options import OWN
from glm4v_magic.notebook.render.progress import line_bundle
from glm4v_magic.outside import expanded, is_file
from glm4v_magic.planning.decision import decide, refuse_other_than_planned
from glm4v_magic.planning.device_map import MPS
from glm4v_magic.planning.files import read_given
from glm4v_magic.planning.followed import planned_gpus
from glm4v_magic.planning.precision import require_quantizable
from glm4v_magic.session.replicas import refuse_beside

__all__ = ["serve"]

_OURS = (
    "device_map",
    "base",
    "lora",
    "image_size",
    "keep",
    "parallel",
    "replicas",
    "cluster",
    "pin",
    "split_vision",
    "reserve",
    "max_memory",
)
"""Options that only our own server follows."""

_NUMBER = re.compile(r"\d+$")
_AMPLE = 2**50
"""Bytes of a GPU that holds whatever a map puts on it."""

_NAMES = {"vllm": "vLLM", "sglang": "SGLang", "own": "Our server"}


@takes("glm4v serve", *ARGUMENTS["serve"])
def serve(context: Context, arguments: Namespace, names: Mapping[str, Any]) -> None:
    """Start a server for a model, with the flags that our plan implies, and ask it from now on.

    The engine is vLLM or SGLang, if it is installed here, or our own server. Its log is shown
    until it answers; it ends with the kernel, with %glm4v unload, and when another is started::

        %glm4v serve zai-org/GLM-4.6V-Flash --engine vllm --gpus 2x24GiB --context 16384
        %glm4v serve demo --engine own
        %glm4v serve GLM-4.1V-9B-Thinking --replicas max

    For another machine, --print shows the command alone; the GPUs need not be here then::

        %glm4v serve zai-org/GLM-4.6V --engine sglang --gpus 4x80GiB --context 16384 --print
    """
    engine = arguments.engine or OWN["engine"].default
    named = named_map(arguments.device_map, names)
    if isinstance(named, os.PathLike):
        named = os.fspath(named)  # which need not be what `str` says
    given = _read_here(named)
    if arguments.model is None and given is None and named is not None:
        shown = printable(str(named))
        raise OptionError(
            f"--map {shown} is not here, so that the model it is for is not known.",
            f"Name the model: %glm4v serve MODEL --map {shown}.",
        )
    if given is None and named is not None and engine == "own":
        _refuse_unknown_map(str(named), names, is_printed=arguments.print)
    model = context.named_in(arguments, given)
    if is_address(model):
        raise OptionError(
            f"{model} is the address of a server, which runs already.",
            f"To ask it: %glm4v load {model}.",
        )
    place = _place(arguments)
    values = {option.name: getattr(arguments, option.name) for option in of_command("serve")}
    values |= context.made_of(arguments, given)
    if named is not arguments.device_map:  # a variable, which a server does not have
        values["device_map"] = named if isinstance(named, str) else _as_text(given)
    command = _command(engine, model, arguments, values, given, place)
    if arguments.print:
        print(command)  # noqa: T201  to be copied, as it is
        for note in command.notes:
            show(line_bundle(note))
        return
    _require(engine, command)
    before = context.launched
    if before is None or not before.is_running or before.url != place.url:
        _require_free(place)  # before the one that is asked now is ended
    if before is None or not before.is_running or before.command != command:
        _start(context, LaunchedServer(command, _NAMES[engine], place.url))
    else:
        context.session.stream_load(place.url).follow()
    server = context.launched
    assert server is not None
    info = context.session.status().info
    of = "" if info is None else printable(info.model)
    show(line_bundle(f"{server.name} serves {of} at {place.url}."))


def _start(context: Context, server: LaunchedServer) -> None:
    """Start a server in place of the previous one, and connect to it.

    The previous one is ended first only if it has the same port, or may fill GPUs of this machine.

    Raises:
        EngineError: if it ends before it answers.
    """
    ran = context.launched if context.launched is not None and context.launched.is_running else None
    is_in_the_way = context.launched is not None and (
        context.launched.url == server.url or bool(gpus_here())
    )
    before = context.end_launched() if is_in_the_way else None
    try:
        if before is not None:
            context.session.unload()
        server.start()
        for line in server.wait():
            if line:
                print(printable(line), flush=True)  # noqa: T201  its log
        context.session.stream_load(server.url).follow()
    except BaseException:
        server.end()
        if before is not None:
            show(line_bundle(f"{before.name} at {before.url} was ended to make room."))
        raise
    context.end_launched()
    context.launched = server
    if ran is not None:
        show(line_bundle(f"{ran.name} at {ran.url} was ended."))


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a server listens."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """URL for this computer."""
        host = "127.0.0.1" if self.host in ("0.0.0.0", "::") else self.host  # noqa: S104
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/v1"


def _place(arguments: Namespace) -> _Place:
    typed_here = typed(arguments, of_group(Serving))
    values = {each.name: typed_here.get(each.name, each.default) for each in of_group(Serving)}
    for name, value in typed_here.items():
        check(name, value)
    if not values["port"]:
        raise OptionError("--port 0 is not a port that can be asked.", "Name one, such as 8001.")
    place = _Place(values["host"], values["port"])
    if not _is_host(place):
        raise OptionError(
            f"--host {printable(place.host)!r} is not the name or address of a computer.",
            "127.0.0.1 is this computer alone, and 0.0.0.0 stands for all addresses of it.",
        )
    return place


def _is_host(place: _Place) -> bool:
    import httpx

    try:
        url = httpx.URL(place.url)
    except httpx.InvalidURL:
        return False
    port = url.port or 80  # which httpx leaves out
    return bool(url.host) and port == place.port and url.path == "/v1" and not url.userinfo


def _read_here(named: GivenMap | None) -> GivenMap | None:
    """Return a plan or map; ``None`` of a file that is not here: a server elsewhere may have it."""
    if named is None or (names_a_file(named) and not is_file(expanded(str(named)))):
        return None
    return read_given(named) or named  # a word is itself


def _refuse_unknown_map(named: str, names: Mapping[str, Any], *, is_printed: bool) -> None:
    """Raise OptionError for a map that is neither here nor likely to be elsewhere.

    Where a line is printed for another machine, a name is that of a file there, unless a variable
    is called much like it.
    """
    maps = (name for name, held in names.items() if isinstance(held, Plan | Mapping))
    known = [name for name in maps if not name.startswith("_")]
    similar = did_you_mean(named, known) if named.isidentifier() else ""
    if similar or not is_printed:
        raise OptionError(
            f"--map {printable(named)} is neither a variable nor a file that is here.",
            similar or "The line for another machine, where it is, is printed with --print.",
        )


def _as_text(given: GivenMap | None) -> str:
    """Return a variable's plan or map as JSON: the server has no variables."""
    content = json.loads(given.to_json()) if isinstance(given, Plan) else given
    return json.dumps(content, separators=(",", ":"))


def _command(
    engine: str,
    model: str,
    arguments: Namespace,
    values: dict[str, Any],
    given: GivenMap | None,
    here: _Place,
) -> EngineCommand:
    options = as_options(placement_options(arguments))
    if engine == "own":
        if isinstance(given, Plan):
            refuse_other_than_planned(given, placement_options(arguments))
        if values["replicas"] is not None:
            refuse_beside(ModelChoice(options=options, device_map=values["device_map"]))
        _refuse_as_the_server_would(model, values, given, options)
        own = option_words(options)
        for option in of_command("serve"):
            value = values[option.name]
            is_plain = isinstance(value, str | int | float) and value is not False
            if option.name not in PlacementFields.__dataclass_fields__ and is_plain:
                own += [flags_of(option)[-1], str(value)]
        wanted = Wanted(model, {}, None, None, 1, None, None, here.host, here.port, own=own)
        return command_of(engine, wanted)
    for name in _OURS:
        if values[name] is not None:
            spelled = flags_of(next(o for o in of_command("serve") if o.name == name))[-1]
            if getattr(arguments, name) is None:
                raise OptionError(
                    f"{printable(model)} was loaded with {spelled} {printable(values[name])}, "
                    "which is of our own server.",
                    f"Take --engine own, or name {printable(model)} in the line, without it.",
                )
            raise OptionError(
                f"{spelled} is of our own server.", "Leave it out, or take --engine own."
            )
    _refuse_adapter(engine, model)
    found, sizes = _architecture(model, values["revision"])
    gpus = gpus_here() if options.gpus is None else parse_gpus(options.gpus)
    wanted = Wanted(
        _known_to_all(model),
        found.config,
        None,
        options.context,
        options.images,
        options.quantize,
        values["revision"],
        here.host,
        here.port,
        thinks=found.thinks,
    )
    if gpus:
        options = replace(options, gpus=None)
        wanted = with_gpus(engine, wanted, sizes, options, gpus, cpu_here())
    return command_of(engine, wanted)


def _refuse_as_the_server_would(
    model: str,
    values: Mapping[str, Any],
    given: GivenMap | None,
    options: PlacementOptions,
) -> None:
    """Raise what our own server says of a model, GPUs that are described, or a plan, as it starts.

    What is not here, such as files of another machine, is left to it.
    """
    made_of = {name: values[name] for name in ("revision", "base", "lora")}
    if is_file(expanded(model)):  # a plan may be made of a configuration alone
        resolve(model, **made_of)
    try:
        found = architecture(model, **made_of)
    except CheckpointError:
        if _is_here(model, made_of):
            raise
        return
    if options.quantize is not None:
        require_quantizable(found.shape(), options.quantize)
    if options.gpus is not None:
        gpus = parse_gpus(options.gpus)
    elif isinstance(given, Plan):
        gpus = planned_gpus(given)
    elif isinstance(given, Mapping):
        gpus = _named_in(given)
    else:
        return
    if given is None and values["device_map"] is not None:
        return
    decide(found, replace(options, gpus=None), gpus, given, loads=False, cpu=cpu_here())


def _named_in(places: Mapping[str, object]) -> tuple[GPU, ...]:
    """Return GPUs for all that a map names: how many a server has, it alone knows.

    A machine with Apple's has no other.
    """
    if MPS in places.values():
        return (GPU(0, APPLE, _AMPLE),)
    numbers = {int(each) for place in places.values() for each in _NUMBER.findall(str(place))}
    return tuple(GPU(index, "GPU", _AMPLE) for index in sorted({0, *numbers}))


def _is_here(model: str, made_of: Mapping[str, Any]) -> bool:
    """Tell whether all that a server would load is here, and nothing to be downloaded."""
    from glm4v_magic.checkpoints.hub import names_a_repository
    from glm4v_magic.checkpoints.sources import find_source

    try:
        named = filter(None, (model, made_of["base"], made_of["lora"]))
        if not all(find_place(name).folders for name in named):
            return False
        place = find_source(model, **made_of).place
    except (CheckpointError, OptionError):
        return True  # something is wrong with what is here
    return bool(place.folders) or not names_a_repository(place.repository)


@dataclass(frozen=True, slots=True)
class _InFp8:
    """A checkpoint in FP8 whose configuration is not here: the same one in bfloat16, at one byte.

    An engine on another machine has its files.
    """

    name: str
    other: Architecture

    @property
    def max_images(self) -> int | None:
        return self.other.max_images

    def shape(self) -> ModelShape:
        full = self.other.shape()
        units = tuple(
            replace(unit, fp8_values=unit.values) if unit.kind == "text_layer" else unit
            for unit in full.units
        )
        return replace(full, name=self.name, fp8=True, units=units)


def _architecture(model: str, revision: str | None) -> tuple[Architecture, Sized]:
    """Return the configuration of a model, and its sizes."""
    try:
        found = architecture(model, revision=revision)
    except CheckpointError:
        place = find_place(model)
        published = place.published
        if place.folders or published is None or published.same_sizes is None:
            raise
        other = architecture(published.same_sizes)
        return other, _InFp8(published.name, other)
    return found, found


def _refuse_adapter(engine: str, model: str) -> None:
    """Raise OptionError if a model is an adapter: other engines take it beside its base only."""
    from glm4v_magic.checkpoints.adapters import holds_adapter

    if any(map(holds_adapter, find_place(model).folders)):
        raise OptionError(
            f"{printable(model)} is an adapter, which {_NAMES[engine]} does not take for a model.",
            "Take --engine own, or merge it into its base (merge_and_unload of peft) and serve the "
            "folder of the result, with the other files of the base.",
        )


def _known_to_all(model: str) -> str:
    """Return the folder or the repository of a model, which other engines know, too."""
    place = find_place(model)
    if place.folders and not place.in_cache:
        return str(place.folders[0])
    return place.repository


def _require_free(place: _Place) -> None:
    """Raise OptionError if another program listens at a place."""
    family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
    with socket.socket(family) as tried:
        tried.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # what has ended is not in the way
        try:
            tried.bind((place.host, place.port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise OptionError(
                    f"Port {place.port} of {place.host} is taken by another program.",
                    f"Choose another (--port). To ask what is there: %glm4v load {place.url}.",
                ) from None


def _require(engine: str, command: EngineCommand) -> None:
    """Raise OptionError unless an engine is installed here."""
    if engine == "vllm" and shutil.which(command.words[0]) is None:
        raise OptionError("vLLM is not installed here.", _elsewhere("vllm"))
    if engine == "vllm" and "--quantization" in command.words:
        _require_quantising_vllm()
    if engine == "sglang" and importlib.util.find_spec("sglang") is None:
        raise OptionError("SGLang is not installed here.", _elsewhere("sglang"))


def _require_quantising_vllm() -> None:
    """Raise OptionError if the vLLM of this environment has no bitsandbytes."""
    version = installed_version("vllm")
    if not version:
        return  # the program on the PATH is of another environment
    numbers = [int(each) if each.isdigit() else 0 for each in version.split(".")]
    if numbers >= [0, 28]:
        raise OptionError(
            f"vLLM {version} does not quantise to 4 bit as it loads: it has no bitsandbytes.",
            "Install 'vllm<0.28', leave --quantize out, or take --engine own.",
        )


def _elsewhere(package: str) -> str:
    return f"Install it with: pip install {package}. For another machine: --print."
