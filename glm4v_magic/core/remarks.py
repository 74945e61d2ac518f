"""Messages to a user as data: a code with values, which a front end puts into words.

What to do next depends on where one asks: ``%glm4v load MODEL --offload`` in a cell,
``offload=True`` in Python, a field of the JSON or an option of the server over HTTP. So whoever
finds out carries only a `Remark`, and each front end has a table of `Words`: code -> template.
A template is that of `str.format`, and its fields are the names of the values::

    >>> worded(remark("server_has_many_models"), PYTHON)
    'Choose one: served_model="NAME".'

A value is a number or a text, another remark, or several remarks: ``{ways}`` makes of those
"a, b or c", ``{ways:numbered}`` "(1) a; (2) b; (3) c".

The words for Python are here, and not in a room further up: every room can be used from Python
alone, so this is what `str` of an error says wherever it was raised, and no front end has to be
imported for it. Those for a cell are in `notebook.next_steps`, those for HTTP in
`server.next_steps`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["COMMON", "PYTHON", "Remark", "Text", "Words", "remark", "worded"]

Words = Mapping[str, str]
"""Code -> template."""


@dataclass(frozen=True, slots=True)
class Remark:
    """A message to a user.

    Attributes:
        code: which situation it is: a short, stable name.
        values: numbers, texts or other remarks, by the name that templates have for them.
    """

    code: str
    values: Mapping[str, object] = field(default_factory=dict, hash=False)


def remark(code: str, **values: object) -> Remark:
    """Return a remark, its values given by name."""
    return Remark(code, values)


Text = str | Remark | tuple[str | Remark, ...]
"""Fixed text, a remark that a front end words, or several of them in sequence."""


def worded(text: Text, words: Words) -> str:
    """Return a text in the words of a front end, or those common to all.

    A code that neither has is that of a class of errors, which says all in its own text: ``""``.
    """
    if isinstance(text, str):
        return text
    if isinstance(text, tuple):
        return " ".join(filter(None, (worded(part, words) for part in text)))
    template = words.get(text.code) or COMMON.get(text.code, "")
    return template.format_map({name: _said(value, words) for name, value in text.values.items()})


def _said(value: object, words: Words) -> object:
    if isinstance(value, Remark):
        return worded(value, words)
    if isinstance(value, tuple):
        return _Ways([str(_said(each, words)) for each in value])
    return value


class _Ways:
    """Several texts, joined as the template says."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts

    def __format__(self, spec: str) -> str:
        if spec == "numbered":
            return "; ".join(f"({number}) {text}" for number, text in enumerate(self._texts, 1))
        *before, last = self._texts
        return f"{', '.join(before)} or {last}" if before else last


COMMON: Words = {
    "tower_is_cut": "The vision tower is cut between its layers: whole, it does not fit.",
    "layers_offloaded": (
        "{count} decoder layers ({gib} GiB) wait in host memory and cross the bus once per token: "
        "at least {seconds} s over PCIe 4.0 x16."
    ),
    "tower_offloaded": (
        "{count} layers of the vision tower ({gib} GiB) wait in host memory and cross the bus once "
        "per image: at least {seconds} s over PCIe 4.0 x16."
    ),
    "orders_not_all_tried": (
        "Too many different GPUs to try every order of them; another may balance better."
    ),
    "ways_out": "Ways out: {ways:numbered}.",
    "no_shorter_context_fits": ("no shorter context fits, the weights alone are {weights_gib} GiB"),
    "four_bit_still_short": (
        "4-bit weights ({gib} instead of {before_gib} GiB) are still short by {short_gib} GiB"
    ),
    "four_bit_does_not_fit": (
        "4-bit weights ({gib} instead of {before_gib} GiB) do not fit either"
    ),
    "offloading_does_not_fit": (
        "offloading every layer that may be offloaded does not make it fit"
    ),
    "loading_ran_out": "Nothing is loaded now; {ways}.",
    "answering_ran_out": "The model is still loaded and can be asked again: {ways}.",
    "free_memory": "free memory there",
    "more_gpus": "use more GPUs",
    "plan_instead_of_map": "let a plan take the place of the map",
    "shorter_prompt": "shorten the prompt",
}
"""Words common to all front ends; a front end may replace them by its own."""

PYTHON: Words = {
    "gpus_not_here": ("Leave gpus out to load; a plan and a dry run work for any description."),
    "gpu_is_smaller": "Describe it as it is, or leave gpus out.",
    "tower_could_be_cut": (
        "The vision tower ({tower_gib} GiB) stays whole and makes {device} the fullest GPU: "
        "{gib} GiB, {fullness}. Cut between its layers (split_vision=True), the fullest has "
        "{cut_gib} GiB, {cut_fullness}."
    ),
    "shorter_context_fits": (
        "a context of {context:,} fits (context={context}; fullest GPU {fullness})"
    ),
    "four_bit_fits": (
        '4-bit weights ({gib} instead of {before_gib} GiB) fit (quantize="4bit"; fullest GPU '
        "{fullness})"
    ),
    "offloading_fits": (
        "offloading {gib} GiB to host memory fits (offload=True), {token_gib} of it cross the bus "
        "for every token, at least {seconds} s over PCIe 4.0 x16"
    ),
    "offloading_tower_fits": (
        "offloading {gib} GiB to host memory fits (offload=True), crossing the bus for every "
        "image, at least {seconds} s over PCIe 4.0 x16"
    ),
    "four_bit": 'load the text part in 4bit (quantize="4bit")',
    "fewer_tokens": "ask for fewer tokens (max_tokens)",
    "longer_context": (
        "load it for this length (context={needed}): the plan is for {context} tokens"
    ),
    "larger_reserve": "load it with a larger reserve",
    "server_has_no_model": (
        'Start the server with one, or name one it can load: served_model="NAME".'
    ),
    "server_has_many_models": 'Choose one: served_model="NAME".',
    "server_cannot_think_on": (
        "Not every server carries on what a model was thinking: session.retry() asks anew."
    ),
    "server_is_silent": "If it is only slow, give it longer: timeout=SECONDS.",
    "image_too_large_for_server": "Ask about a smaller image, or a part of it (crop).",
    "model_does_not_think": "Leave thinking out.",
    "thinking_cannot_go_on": "To ask again: session.retry().",
    "folder_of_images": "{kinds} session.map asks about each.",
    "chat_not_begun": "chat={name!r} begins one.",
    "rows_are_alike": (
        'Name the column that holds the images (column="image"), or write {{{{row.name}}}} in the '
        "prompt."
    ),
    "describe_gpus": 'See what other GPUs would do: gather(parse_gpus("2x16GiB")).',
    "describe_gpus_with_size": (
        'Describe the GPUs: gather(parse_gpus("1x96GiB")), with your size.'
    ),
    "demo_or_describe_gpus": (
        'The demo model runs anywhere. To plan for GPUs: gather(parse_gpus("2x16GiB")).'
    ),
    "ask_the_hub": "Ask with gather(hub=True).",
    "fewer_hops": 'Results are the same. Fewer GPUs have fewer hops: objective="fewest".',
    "plan_with_fewest": (
        'plan(..., objective="fewest"): {summary}, {hops}. The balanced plan keeps more memory '
        "free."
    ),
    "idle_gpus_or_cut": (
        "Leave them to other programs; or plan(..., split_vision=True): {count} GPUs, the fullest "
        "at {cut_fullness} instead of {fullness}."
    ),
    "answer_cut_off": (
        "It was cut off at the token limit: allow more (max_tokens), or carry it on: "
        "session.carry_on()."
    ),
    "row_cut_off": "It was cut off at the token limit: allow more (max_tokens).",
}
"""Words for callers of the package from Python."""
