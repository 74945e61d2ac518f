"""Every option once: its name, type, range, default, meaning, and who has it.

The groups below are the table. A field of a group is an option, and `option` describes it: what
its value must be, what it means if it is not given, and where it can be given. The magics' parser,
the settings, the checks of Python arguments, the fields of the server, the help and the reference
page are made from it. A new option is one field here, and its use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, fields, replace
from typing import Any, Literal, TypeVar, get_args

from glm4v_magic.core.option import Option, Who, option
from glm4v_magic.core.option_forms import dtype_of, pins_of, sizes_of
from glm4v_magic.core.option_values import (
    is_choices,
    is_name,
    is_pins,
    is_replicas,
    is_sizes,
    is_unicode,
    read_choices,
    read_pins,
    read_replicas,
    read_sizes,
    read_time,
)

__all__ = [
    "DTYPES",
    "EFFORTS",
    "FORMATS",
    "LEAST_PENALTY",
    "MOST_IMAGES",
    "OBJECTIVES",
    "OPTIONS",
    "QUANTIZATIONS",
    "TASKS",
    "AnswerForm",
    "ChatChoice",
    "Comparing",
    "Effort",
    "Format",
    "ImageParts",
    "KnownAnswers",
    "Loading",
    "ManyRows",
    "MemorySizes",
    "Objective",
    "PlacementFields",
    "Quantization",
    "Sampling",
    "Serving",
    "SettingsOnly",
    "Task",
    "TaskChoice",
    "VideoParts",
    "check",
    "of_command",
    "of_group",
    "of_python",
    "of_requests",
    "of_settings",
    "taken",
]

Format = Literal["markdown", "text", "json", "code"]
FORMATS: tuple[Format, ...] = get_args(Format)
"""Formats of an answer, the default first."""

LEAST_PENALTY = 1e-3
"""Least repetition penalty, and inverse of the highest; far beyond them logits are not finite."""

Objective = Literal["headroom", "balance", "fewest", "fastest"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)

Task = Literal["text", "table", "formula", "extract"]
TASKS: tuple[Task, ...] = get_args(Task)
"""Tasks with a published prompt, of a model that reads documents."""

Quantization = Literal["8bit", "4bit"]
QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)

Effort = Literal["low", "high", "max"]
EFFORTS: tuple[Effort, ...] = get_args(Effort)
"""How much a model may think, where it has the choice."""

DTYPES = ("bfloat16", "float16", "float32")
"""Dtypes of weights, cache and activations."""

MemorySizes = float | tuple[float, ...] | tuple[tuple[int | str, float], ...]
"""GiB of every GPU, of each, or by GPU index and ``cpu``."""

Group = TypeVar("Group")


_ASK = ("cell", "ask", "preview")
_AGAIN = ("retry", "continue")
_PLAN = ("plan", "devices", "load", "serve")

_MANY = ("map", "evaluate")

_SAMPLED = Who(
    (*_ASK, *_AGAIN),
    ("ask", "retry", "carry_on", *_MANY, "compare", "trace"),
    setting=True,
    request=True,
)
_FORMED = Who((*_ASK, *_AGAIN), ("ask", "retry", "carry_on", *_MANY, "compare"))
_ASKED = Who(_ASK, ("ask", "draft", "trace"))
_OF_VIDEO = Who(_ASK, ("ask", "draft", *_MANY, "compare", "trace"))
_OF_IMAGES = Who(_ASK)
_MAPPED = Who(_ASK, _MANY)
_PLACED = Who((*_PLAN, "check"), ("load", "dry_run"))
_MADE_OF = Who(("load", "plan", "check", "doctor", "serve"), ("load",))
_SERVED = Who(("serve",))
_SETTING = Who(setting=True)

_AT_LEAST_ONE: Mapping[str, Any] = {
    "demand": "a whole number of at least 1",
    "holds": lambda value: value >= 1,
}
_AT_LEAST_ZERO: Mapping[str, Any] = {
    "demand": "a whole number of at least 0",
    "holds": lambda value: value >= 0,
}
_ABOVE_ZERO: Mapping[str, Any] = {"demand": "a number above 0", "holds": lambda value: value > 0}
_OWN = "the checkpoint's own"
_LARGEST_SEED = 2**63 - 1
MOST_IMAGES = 100
"""Most images that one question may have."""
_MOST_MEGAPIXELS = 178  # Pillow refuses more by itself


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen, how many there may be, and whether the model thinks first.

    Attributes:
        max_tokens: maximum number of generated tokens.
        temperature: 0 is greedy; ``None`` leaves it to the checkpoint's generation config, as for
            the next four.
        top_p: nucleus size in (0, 1].
        top_k: number of most likely tokens to sample from.
        min_p: least probability of a token, relative to that of the likeliest.
        repetition_penalty: above 1 discourages repetition.
        seed: random seed; ``None`` draws one, and the answer reports it.
        thinking: whether the model thinks first, if it can; ``None`` takes the model's default.
        effort: how much the model thinks, where it has the choice; ``None`` for its own.
        max_thinking: maximum number of tokens of its thinking, that of an answer which is carried
            on included; then its end is written and the answer follows. ``None`` for no limit, or
            half of `max_tokens` before an answer of a form.
        logprobs: number of likeliest tokens to tell at each place of the answer, 0 for the chosen
            one alone; ``None`` tells no probabilities.
    """

    max_tokens: int = option(
        512,
        "Longest answer, in tokens.",
        _SAMPLED,
        **_AT_LEAST_ONE,
        metavar="N",
        example="64",
    )
    temperature: float | None = option(
        None,
        "0 is greedy; higher values are more random.",
        _SAMPLED,
        "a number of at least 0 (0 is greedy)",
        lambda value: value >= 0,
        metavar="T",
        unset=_OWN,
        example="0.7",
    )
    top_p: float | None = option(
        None,
        "Nucleus size, above 0 and at most 1.",
        _SAMPLED,
        "a number above 0 and at most 1",
        lambda value: 0 < value <= 1,
        metavar="P",
        unset=_OWN,
        example="0.9",
    )
    top_k: int | None = option(
        None,
        "Sample only from this many of the likeliest tokens.",
        _SAMPLED,
        **_AT_LEAST_ONE,
        metavar="K",
        unset=_OWN,
    )
    min_p: float | None = option(
        None,
        "Leave out tokens less probable than this share of the likeliest one's probability.",
        _SAMPLED,
        "a number from 0 to 1",
        lambda value: 0 <= value <= 1,
        metavar="P",
        unset=_OWN,
        example="0.1",
    )
    repetition_penalty: float | None = option(
        None,
        "Above 1 discourages repeats.",
        replace(_SAMPLED, setting=False),
        f"a number from {LEAST_PENALTY:g} to {1 / LEAST_PENALTY:g}",
        lambda value: LEAST_PENALTY <= value <= 1 / LEAST_PENALTY,
        metavar="P",
        unset=_OWN,
        example="1.1",
    )
    seed: int | None = option(
        None,
        "Random seed; the same one repeats a sampled answer exactly.",
        replace(_SAMPLED, setting=False),
        "a whole number from 0 to 2**63 - 1",
        lambda value: 0 <= value <= _LARGEST_SEED,
        metavar="N",
        unset="a new one, which the answer tells,",
    )
    thinking: bool | None = option(
        None,
        "Whether the model thinks before it answers, if it can. What it thought is shown apart "
        "from the answer.",
        replace(_SAMPLED, request=False),  # a request has it in chat_template_kwargs
        "True, False or None",
        unset="the model's own choice",
    )
    effort: Effort | None = option(
        None,
        "How much the model thinks, if it has the choice, as GLM-5.3 does.",
        replace(_SAMPLED, setting=False, request=False),  # of a request it is reasoning_effort
        choices=EFFORTS,
        unset="the model's own choice",
        example="low",
    )
    max_thinking: int | None = option(
        None,
        "Longest thinking, in tokens; then the model is made to answer.",
        replace(_SAMPLED, setting=False),
        **_AT_LEAST_ZERO,
        metavar="N",
        unset="no limit, but half of the answer's tokens before an answer of a form,",
        example="256",
    )
    logprobs: int | None = option(
        None,
        "How certain the model was of each token, and so many likeliest ones beside it: words are "
        "shaded, and the answer has tokens.",
        replace(_SAMPLED, setting=False, request=False),  # of a request it is top_logprobs
        "a whole number from 0 to 20 (0 is the chosen token alone)",
        lambda value: 0 <= value <= 20,
        metavar="K",
        example="3",
    )


class ChatChoice:
    """Chat that a question belongs to."""

    follow_up: bool = option(
        False,
        "Go on with the chat of the latest answer, its images included.",
        _ASKED,
        "True or False",
        spelled="continue",
        short="c",
    )
    chat: str | None = option(
        None,
        "Go on with the chat of this name, or begin it.",
        _ASKED,
        "a name",
        lambda value: bool(value.strip()),
        metavar="NAME",
        example="shapes",
    )
    system: str | None = option(
        None,
        "System message at the beginning of the conversation: how to answer.",
        Who(_ASK, ("ask", "draft", *_MANY, "compare", "trace"), setting=True),
        "text",
        metavar="TEXT",
        example='"Answer in one word."',
    )


class AnswerForm:
    """The form of an answer."""

    format: Format | None = option(
        None,
        "json and code are found in the answer and are its value. In a notebook code also goes "
        "into the next cell, unless there are many rows.",
        _FORMED,
        choices=FORMATS,
        unset=FORMATS[0],
        example="json",
    )
    schema: object = option(
        None,
        "JSON Schema for the format json: in a notebook a variable, or a file. The model does not "
        "see it, so say in the question what you want; an answer that breaks it is asked for once "
        "more.",
        _FORMED,
        metavar="SCHEMA",
        example="schema.json",
    )
    choices: list[str] | None = option(
        None,
        "The answer is one of these texts: the likeliest, or drawn by their probabilities. The "
        "answer has these, too, as its choices. A model thinks before it only if it is asked to. "
        "In a notebook a variable, or texts with commas.",
        _FORMED,
        "a list of at least two different texts, none of them empty or with whitespace around it",
        is_choices,
        metavar="A,B",
        read=read_choices,
        example="yes,no",
    )
    regex: str | None = option(
        None,
        "Regular expression that the whole answer matches. There is no look-around in it and no "
        "backreference.",
        _FORMED,
        "a regular expression",
        lambda value: value != "" and is_unicode(value),
        metavar="PATTERN",
        example="[0-9]{4}",
    )


class TaskChoice:
    """Task of a model that reads documents."""

    task: Task | None = option(
        None,
        "Ask GLM-OCR in the prompt that it was trained on: for the text, the table or the formula "
        "of an image, in place of a question, or extract, for the JSON that the question holds or "
        "the schema describes.",
        Who(_ASK, ("ask", *_MANY, "compare")),
        choices=TASKS,
        example="table",
    )


class ImageParts:
    """Part of an image that is sent."""

    page: int | None = option(
        None,
        "Page of a PDF or TIFF, frame of a GIF; from 1.",
        _OF_IMAGES,
        "a whole number",  # which pages there are depends on the image
        metavar="N",
        example="1",
    )
    crop: str | None = option(
        None,
        "Part of the image: left, top, width, height. Whole numbers are pixels, with a decimal "
        "point fractions of the image, with % percent of it.",
        _OF_IMAGES,
        "text",
        metavar="X,Y,W,H",
        example="0.5,0,0.5,1",
    )


class VideoParts:
    """Part of a video that is looked at."""

    fps: float | None = option(
        None,
        "Frames per second to look at in a video; the rate of frames that are given, such as those "
        "of a list in a variable.",
        _OF_VIDEO,
        **_ABOVE_ZERO,
        metavar="N",
        unset="the model's own choice",
        example="2",
    )
    start: float | None = option(
        None,
        "Where to begin in a video, in seconds or as 1:20.",
        _OF_VIDEO,
        "a number of seconds of at least 0",
        lambda value: value >= 0,
        metavar="TIME",
        spelled="from",
        read=read_time,
        unset="its beginning",
        example="1:00",
    )
    end: float | None = option(
        None,
        "Where to end in a video, in seconds or as 1:20.",
        _OF_VIDEO,
        "a number of seconds above 0",
        lambda value: value > 0,
        metavar="TIME",
        spelled="to",
        read=read_time,
        unset="its end",
        example="1:20",
    )


class Comparing:
    """One question to several models or settings."""

    compare: str | None = option(
        None,
        "Ask several models or settings the same and show their answers side by side: models and "
        "addresses with commas, each with settings if need be, or a variable with a list of them. "
        "What is loaded stays loaded.",
        Who(_ASK),
        "models or settings",
        lambda value: bool(value.strip()),
        metavar="A,B",
        example='"demo,demo temperature=1"',
    )


class ManyRows:
    """One prompt for many rows."""

    over: str | None = option(
        None,
        "Ask the same about each item: a list of images, clips or values, a folder, a pattern, the "
        "pages of a PDF, a pandas Series, df.column. {{item}}, {{index}}, {{row.name}} differ from "
        "row to row.",
        Who(_ASK),
        "text",
        metavar="ITEMS",
        example="photos",
    )
    batch_size: int | None = option(
        None,
        "Number of rows to ask at once; in 8 bit what a row says may depend on the others.",
        _MAPPED,
        **_AT_LEAST_ONE,
        metavar="N",
        unset="8, but 1 of a large model on the CPU and 16 of a server,",
    )
    fresh: bool = option(
        False, "Ask all rows again, those answered before included.", _MAPPED, "True or False"
    )
    raw: bool = option(False, "Leave {{expression}} as it is.", _MAPPED, "True or False")
    save: object = option(
        None,
        "File to write. Rows go into a Parquet file as they are answered, for more of them than "
        "memory holds; the same call goes on where it stopped, also after a crash. A plan goes "
        "into a JSON file, for a load to follow.",
        Who((*_ASK, "plan"), _MANY),
        "the name of a file",
        is_name,
        metavar="FILE",
        example="rows.parquet",
    )


class KnownAnswers:
    """Rows whose answers are known, to hold the model's against."""

    evaluate: str | None = option(
        None,
        "Column with the expected answers: tells how many rows are right, and of choices whether "
        "their probabilities mean what they say.",
        Who(_ASK),
        "the name of a column",
        lambda value: bool(value.strip()),
        metavar="COLUMN",
        example="label",
    )
    by: object = option(
        None,
        "Column that divides the rows into kinds, each of which is scored by itself, too.",
        Who(_ASK, ("evaluate",)),
        metavar="COLUMN",
        example="kind",
    )
    bins: int | None = option(
        None,
        "Number of bins of equal width for the calibration of probabilities.",
        Who(_ASK, ("evaluate",)),
        "a whole number from 1 to 100",
        lambda value: 1 <= value <= 100,
        metavar="N",
        unset="10",
        example="5",
    )


@dataclass(frozen=True, slots=True)
class PlacementFields:
    """How a model is to be placed; `core.placement.PlacementOptions` checks it."""

    gpus: str | None = option(
        None,
        "GPUs to use, such as 2x16GiB, 2xT4 or 24GiB@936GB/s; cpu for none.",
        Who((*_PLAN, "check", "doctor"), ("load",)),
        "a description such as 2x16GiB",
        metavar="SPEC",
        words=("cpu",),
        unset="those that are here",
    )
    context: int | None = option(
        None,
        "Context length in tokens (prompt and answer, images included) to plan for.",
        _PLACED,
        **_AT_LEAST_ONE,
        metavar="N",
        unset="the model's longest, or the longest that fits,",
        example="8192",
    )
    images: int = option(
        1,
        "Number of images in a prompt to plan for.",
        _PLACED,
        f"a whole number from 0 to {MOST_IMAGES}, the most that a question may have",
        lambda value: 0 <= value <= MOST_IMAGES,
        metavar="N",
        example="1",
    )
    image_size: int | None = option(
        None,
        "Largest image that the model sees, as the side of a square in pixels: larger ones are "
        "scaled down to as many pixels, in their own proportions, and frames of videos, too.",
        _PLACED,
        "a whole number from 28 to 65,536",
        lambda value: 28 <= value <= 2**16,
        metavar="N",
        unset="the model's own limit, or what the planned context has room for,",
        example="1120",
    )
    batch: int = option(
        1,
        "Batch size to plan for: prompts answered at once.",
        _PLACED,
        "a whole number from 1 to 4,096",
        lambda value: 1 <= value <= 4096,
        metavar="N",
    )
    objective: Objective = option(
        OBJECTIVES[0],
        "headroom uses as few GPUs as leave a fifth of each free, balance keeps the fullest GPU as "
        "empty as possible, fewest uses as few GPUs as fit, fastest fills the fast GPUs first.",
        _PLACED,
        choices=OBJECTIVES,
        metavar="GOAL",
        example="fewest",
    )
    dtype: str | None = option(
        None,
        f"Data type of the weights: {', '.join(DTYPES)}.",
        _PLACED,
        choices=DTYPES,
        metavar="DTYPE",
        normal=dtype_of,
        unset="as published on GPUs; on the CPU bfloat16 where that is faster, or float32",
        example="float16",
    )
    quantize: Quantization | None = option(
        None,
        f"The text part's linear layers in {' or '.join(QUANTIZATIONS)}.",
        _PLACED,
        choices=QUANTIZATIONS,
        noun="quantisation",
        metavar="KIND",
        example="4bit",
    )
    max_memory: MemorySizes | None = option(
        None,
        "GiB to use of each GPU at most: one number, one for each GPU, such as 20,10, or by "
        "device, such as 0=10GiB,cpu=30GiB: other GPUs stay empty, and cpu is host memory for "
        "layers that do not fit.",
        _PLACED,
        "a number of GiB above 0, one for each GPU, or a size by device",
        is_sizes,
        metavar="GIB",
        read=read_sizes,
        normal=sizes_of,
        example="14,14,14,10",
    )
    reserve: float | None = option(
        None,
        "GiB of each GPU to leave alone.",
        _PLACED,
        "a number of GiB of at least 0",
        lambda value: value >= 0,
        metavar="GIB",
        unset="3 % of its size",
        example="1.5",
    )
    split_vision: bool | None = option(
        None,
        "Whether the vision tower is cut between its layers wherever that balances better, or "
        "stays whole if it fits.",
        _PLACED,
        "True, False or None",
        unset="cut where that makes the fullest GPU noticeably emptier",
        example="off",
    )
    offload: bool = option(
        False, "If no split fits, keep layers in host memory.", _PLACED, "True or False"
    )
    pin: tuple[tuple[str, int], ...] = option(
        (),
        "Units pinned to GPUs: vision, embedding, layer (all of them), layer.7, head. For example "
        "vision=0,layer.7=1,head=1.",
        _PLACED,
        "units and the GPU of each",
        is_pins,
        metavar="UNIT=GPU",
        read=read_pins,
        normal=pins_of,
    )


class Loading:
    """Which model to load, and how to reach it."""

    device_map: object = option(
        None,
        "Follow this device map or plan, or a JSON file of either, instead of making a plan; a "
        "device, such as 0, takes the whole model.",
        Who(("load", "check", "serve"), ("load",)),
        metavar="FILE",
        spelled="map",
        example="map.json",
    )
    revision: str | None = option(
        None,
        "Commit, branch or tag of the repository.",
        _MADE_OF,
        "text",
        metavar="SHA",
        example="main",
    )
    base: object = option(
        None,
        "Model that an adapter (LoRA) was trained on, if MODEL is an adapter's folder and what it "
        "says itself is not right here.",
        _MADE_OF,
        "a folder or a name",
        is_name,
        metavar="MODEL",
        example="~/models/glm-4v-9b",
    )
    lora: object = option(
        None,
        "Folder of an adapter (LoRA), as peft saves it, to merge into the model as it is loaded.",
        _MADE_OF,
        "a folder or a name",
        is_name,
        metavar="FOLDER",
        example="~/adapters/receipts",
    )
    served_model: str | None = option(
        None,
        "Name of the model on a server; needed if the server has several.",
        Who(("load",), ("load",)),
        "a name",
        metavar="NAME",
        example="glm-4.1v",
    )
    timeout: float | None = option(
        None,
        "Longest silence of a server, in seconds.",
        Who(("load",), ("load",)),
        "a number of seconds above 0",
        lambda value: value > 0,
        metavar="S",
        unset="300",
        example="120",
    )
    keep: float | None = option(
        None,
        "GiB for keeping the KV cache of earlier prompts and images, so that a follow-up question "
        "reads only what is new; 0 keeps nothing.",
        Who(("load", "serve"), ("load",)),
        "a number of GiB of at least 0",
        lambda value: value >= 0,
        metavar="GIB",
        unset="half of what the plan leaves free, or 1 without a plan,",
        example="2",
    )

    replicas: object = option(
        None,
        "Copies of the model in processes of their own, which share the rows of a map: a number, "
        "or max for as many as the GPUs hold. Each has its own plan, on as few GPUs as hold it; "
        "without GPUs the cores are divided.",
        Who(("load", "serve"), ("load",)),
        "a whole number of at least 1, or max",
        is_replicas,
        metavar="N",
        read=read_replicas,
        words=("max",),
        unset="one in this process",
        example="2",
    )
    cluster: str | None = option(
        None,
        "Address of the Ray cluster whose machines take the replicas; auto is the one that this "
        "machine is part of.",
        Who(("load", "serve"), ("load",)),
        "an address",
        lambda value: bool(value.strip()),
        metavar="HOST:PORT",
        words=("auto",),
        unset="this machine alone",
        example="10.0.0.5:6379",
    )


class Patching:
    """How a checkpoint's code is patched."""

    dry_run: bool = option(False, "Show the diff, write nothing.", Who(("patch",)), "True or False")


class Serving:
    """Where the server listens, and how many requests it answers at once."""

    host: str = option(
        "127.0.0.1",
        "Where to listen; on this computer only, or on 0.0.0.0 for all others as well.",
        _SERVED,
        "a name or an address",
        lambda value: bool(value.strip()),
        metavar="HOST",
        example="localhost",
    )
    port: int = option(
        8000,
        "Port to listen on; 0 is any free one.",
        _SERVED,
        "a whole number from 0 to 65535",
        lambda value: 0 <= value <= 65535,
        metavar="N",
        example="8001",
    )
    parallel: int | None = option(
        None,
        "Number of requests to answer at once.",
        _SERVED,
        **_AT_LEAST_ONE,
        metavar="N",
        unset="16, but 1 of a large model on the CPU,",
        example="4",
    )


class SettingsOnly:
    """Settings of a notebook that are not options of a question."""

    model: str | None = option(
        None,
        "Model of the first question, and of a load that names none: folder, repository id, demo, "
        "or the address of a server.",
        Who(python=("ask", "retry", "carry_on", "compare", *_MANY), setting=True),
        "a folder, a name or an address",
        is_name,
        unset="demo",
    )
    stop_button: bool = option(
        True,
        "Show a Stop button while answers are being written, where one can work.",
        _SETTING,
        "true or false",
    )
    debug: bool = option(
        False,
        "Show the traceback of an error instead of one line.",
        Who(("every",), setting=True),
        "true or false",
    )
    megapixels: float = option(
        128.0,
        "Largest image that is read, in megapixels.",
        _SETTING,
        f"a number above 0 and at most {_MOST_MEGAPIXELS}",
        lambda value: 0 < value <= _MOST_MEGAPIXELS,
    )
    download_seconds: float = option(
        30.0,
        "Longest download of an image, in seconds.",
        _SETTING,
        **_ABOVE_ZERO,
    )
    allow_private: bool = option(
        False,
        "Whether a URL may lead to this computer or its private network.",
        _SETTING,
        "true or false",
    )


_GROUPS: tuple[type, ...] = (
    Sampling,
    ChatChoice,
    AnswerForm,
    TaskChoice,
    ImageParts,
    VideoParts,
    ManyRows,
    KnownAnswers,
    Comparing,
    PlacementFields,
    Loading,
    Patching,
    Serving,
    SettingsOnly,
)


def of_group(group: type) -> tuple[Option, ...]:
    """Return the options of a group, in its order."""
    described: Mapping[str, Any] = getattr(group, "__dataclass_fields__", None) or vars(group)
    return tuple(
        Option(name, group.__annotations__[name], each.default, **each.metadata)
        for name, each in described.items()
        if isinstance(each, Field) and each.metadata
    )


OPTIONS: dict[str, Option] = {each.name: each for group in _GROUPS for each in of_group(group)}
"""The whole table, by name."""


def of_command(command: str) -> tuple[Option, ...]:
    """Return the options of a command; see `Who`."""
    return tuple(each for each in OPTIONS.values() if command in each.who.commands)


def of_python(method: str) -> tuple[Option, ...]:
    """Return the options of a method of `Session`."""
    return tuple(each for each in OPTIONS.values() if method in each.who.python)


def of_settings() -> tuple[Option, ...]:
    """Return the options that are settings."""
    return tuple(each for each in OPTIONS.values() if each.who.setting)


def of_requests() -> tuple[Option, ...]:
    """Return the options that are fields of a request to the server."""
    return tuple(each for each in OPTIONS.values() if each.who.request)


def check(name: str, value: object, label: str | None = None) -> None:
    """Raise OptionError unless `value` suits the option `name`; see `Option.check`."""
    OPTIONS[name].check(value, label)


def taken(group: type[Group], options: Mapping[str, Any]) -> Group:
    """Return a group, such as `Sampling`, made from its own options among `options`."""
    names = {each.name for each in fields(group)}  # type: ignore[arg-type]  # a dataclass
    return group(**{name: value for name, value in options.items() if name in names})
