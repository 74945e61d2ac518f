"""Messages to a user as data: a code with values, which a front end puts into words.

What to do next depends on where one asks: a command with its options in a cell, ``offload=True`` in
Python, a field of the JSON or an option of the server over HTTP. So whoever finds out carries only
a `Remark`, and each front end has its `Words`: code -> template.
A template is that of `str.format`, and its fields are the names of the values::

    >>> worded(remark("server_has_many_models"), PYTHON)
    'Choose one: served_model="NAME".'

A value is a number or a text, another remark, or several remarks: ``{ways}`` makes of those
"a, b or c", ``{ways:numbered}`` "(1) a; (2) b; (3) c", ``{reasons:listed}`` "a; b; c". Where
front ends differ only in how an option is written or what is restarted, the template is in
`COMMON`: ``{option:offload}`` is each one's own spelling, ``{both:quantize=4bit,offload}`` that of
several which go together,
``{named:offload}`` that of the name alone, and ``{process}`` is "the kernel", "Python" or "the
server".

The words for Python are here, and not in a room further up: every room can be used from Python
alone, so this is what `str` of an error says wherever it was raised, and no front end has to be
imported for it. Those for a cell are in `notebook.next_steps`, those for HTTP in
`server.next_steps`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["COMMON", "PYTHON", "Remark", "Text", "Words", "remark", "worded"]


@dataclass(frozen=True, eq=False, slots=True)
class Words:
    """Words of a front end.

    Attributes:
        templates: code -> template; `COMMON` has those that it does not have.
        spelled: writes an option, by name and value, as it is given there; the value is empty for
            an option that is only turned on.
        process: name of the process that a user of this front end restarts.
        named: spells the name of an option alone.
        between: what is written between two options.
    """

    templates: Mapping[str, str]
    spelled: Callable[[str, str], str]
    process: str
    named: Callable[[str], str]
    between: str = " "


@dataclass(frozen=True, slots=True)
class Remark:
    """A message to a user.

    Attributes:
        code: short, stable name of the situation.
        values: numbers, texts or other remarks, by their names in templates.
    """

    code: str
    values: Mapping[str, object] = field(default_factory=dict, hash=False)


def remark(code: str, **values: object) -> Remark:
    """Return a remark, its values given by name."""
    return Remark(code, values)


Text = str | Remark | tuple[str | Remark, ...]
"""Fixed text, a remark that a front end words, or several of them in sequence."""


def worded(text: Text, words: Words) -> str:
    """Return a text in the words of a front end, or in those common to all.

    A code without words is that of a class of errors, whose text says everything: it gives ``""``.
    """
    if isinstance(text, str):
        return text
    if isinstance(text, tuple):
        return " ".join(filter(None, (worded(part, words) for part in text)))
    template = words.templates.get(text.code) or COMMON.get(text.code, "")
    values = {name: _said(value, words) for name, value in text.values.items()}
    own = {
        "option": _Option(words),
        "both": _Both(words),
        "named": _Named(words),
        "process": words.process,
    }
    return template.format_map({**values, **own})


def _said(value: object, words: Words) -> object:
    if isinstance(value, Remark):
        return worded(value, words)
    if isinstance(value, tuple):
        return _Ways([str(_said(each, words)) for each in value])
    return value


class _Ways:
    """Several texts, joined as the format in the template says."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts

    def __format__(self, spec: str) -> str:
        if spec == "numbered":
            return "; ".join(f"({number}) {text}" for number, text in enumerate(self._texts, 1))
        if spec == "listed":
            return "; ".join(self._texts)
        *before, last = self._texts
        return f"{', '.join(before)} or {last}" if before else last


class _Option:
    """An option in a template: ``{option:offload}``, ``{option:context={needed}}``."""

    def __init__(self, words: Words) -> None:
        self._words = words

    def __format__(self, spec: str) -> str:
        name, _, value = spec.partition("=")
        return self._words.spelled(name, value)


class _Both:
    """Options that go together in a template: ``{both:quantize=4bit,offload}``."""

    def __init__(self, words: Words) -> None:
        self._words = words

    def __format__(self, spec: str) -> str:
        return self._words.between.join(
            f"{_Option(self._words):{each}}" for each in spec.split(",")
        )


class _Named:
    """The name of an option in a template: ``{named:{name}}``."""

    def __init__(self, words: Words) -> None:
        self._words = words

    def __format__(self, spec: str) -> str:
        return self._words.named(spec)


def _as_keyword(name: str, value: str) -> str:
    """Spell an option as an argument of a call in Python."""
    switched = {"": True, "on": True, "off": False}
    if value in switched:
        return f"{name}={switched[value]}"
    return f"{name}={value}" if value.isdigit() else f'{name}="{value}"'


COMMON: Mapping[str, str] = {
    "named_model": "{model}",
    "take_the_original": (
        "Take the original checkpoint; {option:quantize=4bit} makes it as small as it is loaded."
    ),
    "base_not_here": "Say where its base is: {option:base={base}}.",
    "base_beside_lora": "Leave {named:base} out, or name that model in place of this one.",
    "base_of_no_adapter": "An adapter for it is given with {option:lora=FOLDER}.",
    "adapter_twice": "Leave {named:lora} out, or name the model that both are for.",
    "of_cogvlm": (
        "To run its own code on several GPUs: python -m glm4v_magic.remote_code.patch FOLDER, in "
        "an environment with transformers 4.42 to 4.48."
    ),
    "room_for_kept": (
        "{room} are left for prompts and images that need not be read again ({device} is "
        "the limit): half of it is used for them, nothing with {option:keep=0}."
    ),
    "no_room_for_kept": (
        "No room is left on {device} for prompts and images that need not be read again."
    ),
    "tower_could_be_cut": (
        "The vision tower ({tower}) stays whole and makes {device} the fullest GPU: "
        "{size}, {fullness}. Cut between its layers ({option:split_vision=on}), the fullest has "
        "{cut}, {cut_fullness}."
    ),
    "speed_unknown": (
        "Speed: unknown, for nothing tells the memory bandwidth of {gpus}; 24GiB@936GB/s would."
    ),
    "speed_limit": (
        "At most {most} tokens/s ({full} with {context} tokens of context), by {by}; expect about "
        "half."
    ),
    "speed_limit_of_host": (
        "At most {most} tokens/s ({full} with {context} tokens of context), by {by}; expect about "
        "{expected}, for the host starts a GPU's work no faster."
    ),
    "speed_limit_with_prefill": (
        "At most {most} tokens/s ({full} with {context} tokens of context), by {by}, and at least "
        "{prefill} for a prompt of that length; expect about half as fast."
    ),
    "speed_limit_of_host_with_prefill": (
        "At most {most} tokens/s ({full} with {context} tokens of context), by {by}; expect about "
        "{expected}, for the host starts a GPU's work no faster. At least {prefill} for a prompt "
        "of that length; expect twice as long."
    ),
    "speed_measured": "Measured on {gpu}: {share} of this limit ({how}).",
    "speed_measured_with_prefill": (
        "Measured on {gpu}: {share} of these tokens/s, and the first token at {prefill} of the "
        "limit's speed ({how})."
    ),
    "gpus_chosen": "{gpus}, the fullest {fullness} full: {why}.",
    "gpus_chosen_of_two": (
        "{gpus}, the fullest {fullness} full: {why}; {option:objective={other}} would use "
        "{other_gpus}, the fullest {other_fullness} full."
    ),
    "faster_split": (
        "{option:objective=fastest} fills the fast GPUs first: at most {most} tokens/s instead of "
        "{now}."
    ),
    "speeds_unknown": (
        "Nothing tells the memory bandwidth of {gpus}; for the choice it counts as that of the "
        "slowest GPU that is known, and all count alike if none is. 24GiB@936GB/s would tell it."
    ),
    "not_on_virtual_gpus": (
        "Outside of their block, a dry run tries such layers with stand-ins; "
        "{option:device_map=cpu} loads them on the CPU."
    ),
    "revision_unseen": (
        "Revision {revision} is not here and was not looked at (a load asks the hub whether there "
        "is one): sizes are those of the published main branch."
    ),
    "context_shortened": (
        "Planned for {context:,} tokens of context: the {longest:,} of the model do not fit."
    ),
    "shorter_context_fits": (
        "a context of {context:,} fits ({option:context={context}}; fullest GPU {fullness})"
    ),
    "at_context": " at {context:,} tokens",
    "eight_bit_fits": (
        "8-bit weights ({size} instead of {before}) fit ({option:quantize=8bit}; fullest "
        "GPU {fullness}{at})"
    ),
    "four_bit_fits": (
        "4-bit weights ({size} instead of {before}) fit ({option:quantize=4bit}; fullest "
        "GPU {fullness}{at})"
    ),
    "offloading_fits": (
        "offloading {size} to host memory fits{at} ({option:offload}), {per_token} of it cross the "
        "bus for every token, at least {seconds} s over {bus}"
    ),
    "offloading_tower_fits": (
        "offloading {size} to host memory fits{at} ({option:offload}), crossing the bus for every "
        "image, at least {seconds} s over {bus}"
    ),
    "eight_bit": "load the text part in 8bit ({option:quantize=8bit})",
    "four_bit": "load the text part in 4bit ({option:quantize=4bit})",
    "longer_context": (
        "load it for this length ({option:context={needed}}): the plan is for {context} tokens"
    ),
    "fewer_tokens": "ask for fewer tokens (max_tokens)",
    "leave_thinking_out": "Leave thinking out.",
    "no_thinking_to_limit": "Leave max_thinking out.",
    "no_such_effort": "Leave effort out.",
    "row_cut_off": "It was cut off at the token limit: allow more (max_tokens).",
    "tower_is_cut": "The vision tower is cut between its layers: whole, it does not fit.",
    "tower_is_cut_for_balance": (
        "The vision tower is cut between its layers: whole ({option:split_vision=off}), it takes "
        "{gpus}, the fullest {fullness} full."
    ),
    "layers_offloaded": (
        "{count} decoder layers ({size}) wait in host memory and cross the bus once per token: "
        "at least {seconds} s over {bus}."
    ),
    "tower_offloaded": (
        "{count} layers of the vision tower ({size}) wait in host memory and cross the bus once "
        "per image: at least {seconds} s over {bus}."
    ),
    "embedding_offloaded": (
        "The embedding ({size}) waits in host memory and crosses the bus once per token: at "
        "least {seconds} s over {bus}."
    ),
    "orders_not_all_tried": (
        "Too many different GPUs to try every order of them; another may balance better."
    ),
    "float16_instead": (
        "In float16, because {gpus} cannot compute in bfloat16 (compute capability below 8.0); a "
        "dtype that is asked for is taken all the same."
    ),
    "without_gpus": "Without GPUs these have no effect: {options}.",
    "planned_for_another": "The plan was made for {planned}.",
    "planned_with_adapter": "The plan was made with the adapter {lora}, which is left out.",
    "names_translated": (
        "The device map has names of the published files ({count}); they are put into those here: "
        "{name} is {own}."
    ),
    "experts_together": (
        "The device map divides {count} weights that are one here, such as the experts of a layer; "
        "each is where most of it was to be."
    ),
    "eight_bit_is_slow": (
        "8-bit products are slow on {gpus}: bitsandbytes has fast ones from compute capability "
        "7.5 on. {option:quantize=4bit} does without them, and takes less memory."
    ),
    "float16_overflows": (
        "In float16 the vision tower of this model has been seen to overflow, into answers of no "
        "sense; where that happens, {option:dtype=float32} takes twice the memory and does not."
    ),
    "too_large_for_float16": (
        "Load it again with {option:dtype=float32}, which takes twice the memory, or with "
        "{option:dtype=bfloat16}, where that is computed in."
    ),
    "fp8_stays": "Weights that were published in FP8 stay so.",
    "bfloat16_on_cpu": (
        "In bfloat16, as published: this CPU has instructions for it ({instructions}), with which "
        "it was measured faster than in float32, and it takes half the memory."
    ),
    "fp8_restored": "Published in FP8, the weights are restored to {dtype}: {why}.",
    "scheme_stays": "The weights stay as they were published: quantised by {scheme}.",
    "scheme_restored": "Published quantised by {scheme}, the weights are restored to {dtype}.",
    "base_is_quantised": (
        "Name the original checkpoint in its place, by {option:base=FOLDER} where the adapter "
        "itself is the model; {option:quantize=4bit} makes it as small as it is loaded."
    ),
    "kernels_missing": (
        'Install it with: pip install "transformers[kernels]"; or restore the weights '
        "({option:dtype=bfloat16})."
    ),
    "fill_in_order": "Leave {named:device_map} out, and take {option:objective=fewest}.",
    "less_on_the_first": "Leave {named:device_map} out, and give GPU 0 less by {named:max_memory}.",
    "quoted_model": '"{model}"',
    "named_with": "{model} {option:{name}={value}}",
    "of_option": "{named:{name}}{rest}",
    "install": "Run {command}, then restart {process}.",
    "install_if_older": "If it is older: {command}, then restart {process}.",
    "install_other_torch": (
        "Install a build of torch for the CUDA that nvidia-smi names, or for an older one, then "
        "restart {process}."
    ),
    "update_driver_or_torch": (
        "Update the driver and restart the computer, or run {command} and restart {process}."
    ),
    "replaced_meanwhile": "It was replaced while {process} was running.",
    "restart": "Restart {process}.",
    "restart_and_look": (
        "Restart {process}; if CUDA does not start then either, nvidia-smi tells whether the "
        "driver works."
    ),
    "stop_in_another_way": (
        "If you use such widgets, interrupt from the toolbar; or: {command}, then restart "
        "{process}."
    ),
    "unset_visible": "Unset it and restart {process}.",
    "set_and_restart": "Set {setting} and restart {process}.",
    "free_disk": (
        "Free space, or set {variable} to a folder on another disk and restart {process}."
    ),
    "other_folder": "Set {variable} to a folder that can be written to, and restart {process}.",
    "not_of_a_server": "Only served_model and timeout go with an address.",
    "port_not_usable": "Choose another port; 0 is any free one.",
    "ways_out": "Ways out: {ways:numbered}.",
    "some_ways_out": "Ways out: {ways:numbered}. But {reasons:listed}.",
    "no_way_out": "It takes more GPU memory: {reasons:listed}.",
    "no_context_fits": "no shorter context fits",
    "no_shorter_context_fits": ("no shorter context fits, the weights alone are {weights}"),
    "four_bit_still_short": (
        "4-bit weights ({size} instead of {before}) are still short by {short}"
    ),
    "four_bit_and_offloading_fit": (
        "4-bit weights ({size} instead of {before}), {away} of them offloaded to "
        "host memory, fit ({both:quantize=4bit,offload}; fullest GPU {fullness}{at})"
    ),
    "four_bit_weights_fit": (
        "4-bit weights ({size} instead of {before}) fit ({option:quantize=4bit})"
    ),
    "four_bit_does_not_fit": ("4-bit weights ({size} instead of {before}) do not fit either"),
    "host_allows_less": (
        "offloading takes {size} of host memory, and {named:max_memory} allows {allowed}"
    ),
    "offloading_does_not_fit": (
        "offloading every layer that may be offloaded does not make it fit"
    ),
    "loading_ran_out": "Nothing is loaded now; {ways}.",
    "answering_ran_out": "The model is still loaded and can be asked again: {ways}.",
    "ran_out_within_answer": (
        "What was said until then is kept. The model is still loaded and can be asked again: "
        "{ways}."
    ),
    "free_memory": "free memory there",
    "more_gpus": "use more GPUs",
    "idle_gpus_too": "use the idle GPUs too ({option:objective=balance})",
    "plan_instead_of_map": "let a plan take the place of the map",
    "shorter_prompt": "shorten the prompt",
    "answer_interrupted": "the answer was interrupted",
    "retry_interrupted": "the new answer was interrupted, and the chat keeps the old one",
    "trace_interrupted": "the traced answer was interrupted, and the model is as before",
    "interrupted_after_the_answer": "the answer had ended already",
    "rows_interrupted": "{answered:,} of {total:,} rows are answered",
    "fresh_rows_interrupted": "{answered:,} of {total:,} rows are answered anew",
    "all_rows_interrupted": "all {total:,} rows are answered",
    "no_row_answered": "no row is answered",
    "comparison_interrupted": "{answered} of {total} models or settings have answered",
    "comparison_interrupted_without_room": (
        "{answered} of {total} models or settings have answered; {released} was released to make "
        "room, and the next question loads it again"
    ),
    "load_interrupted": (
        "the load did not finish; {released} was released to make room, and the next question "
        "loads it again"
    ),
}
"""Words common to all front ends; a front end may replace them by its own."""

_IN_PYTHON = {
    "gpus_not_here": ("Leave gpus out to load; a plan and a dry run work for any description."),
    "no_gpu_for_map": (
        "Put it on the cpu, or leave device_map out; diagnose(gather()) of glm4v_magic.doctor says "
        "why no GPU is found, and a dry run works for any that are described."
    ),
    "named_model": "'{model}'",
    "named_with": "{model}, {option:{name}={value}}",
    "plan_of_other_gpus": (
        "To plan it for what is here, name the model and leave device_map out: load({model}). A "
        "dry run follows a plan on any GPUs that are described."
    ),
    "quantised_already": ("Leave quantize out, or quantise the checkpoint that is not in FP8."),
    "quantised_by_others": "Leave quantize out, or quantise the original checkpoint.",
    "gpu_is_smaller": "Describe it as it is, or leave gpus out.",
    "other_cluster": "Leave cluster out, or end the replicas there first: session.unload().",
    "larger_reserve": "load it with a larger reserve",
    "server_has_no_model": (
        'Start the server with one, or name one it can load: served_model="NAME".'
    ),
    "server_has_many_models": 'Choose one: served_model="NAME".',
    "server_cannot_carry_on": ("Not every server carries an answer on: session.retry() asks anew."),
    "server_cannot_think_on": (
        "Not every server carries on what a model was thinking: session.retry() asks anew."
    ),
    "server_is_silent": "If it is only slow, give it longer: timeout=SECONDS.",
    "image_too_large_for_server": (
        "Ask about a smaller image, or a part of it: image.crop((left, top, right, bottom))."
    ),
    "thinking_cannot_go_on": "To ask again: session.retry().",
    "folder_of_images": "{kinds} session.map asks about each.",
    "too_many_images": "session.map asks the same about each.",
    "chat_not_begun": "chat={name!r} begins one.",
    "clip_among_images": (
        "Ask about it as a video: video=..., or about one of its frames, saved as a PNG."
    ),
    "fewer_frames": "Look at fewer frames (fps=1), or at a part of the video (start, end).",
    "name_column": "Name the one to ask about: column={column!r}.",
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
    "answer_cut_off": (
        "It was cut off at the token limit: allow more (max_tokens), or carry it on: "
        "session.carry_on()."
    ),
    "answer_interrupted": (
        "the answer was interrupted; what was said until then is in the exception's answer, and "
        "session.carry_on() carries it on"
    ),
    "ran_out_within_answer": (
        "What was said until then is in the exception's answer, and session.carry_on() carries it "
        "on. The model is still loaded: {ways}."
    ),
    "retry_interrupted": (
        "the new answer was interrupted; what was said until then is in the exception's answer, "
        "and the chat keeps the old one"
    ),
    "interrupted_after_the_answer": (
        "the answer had ended already; it is in the exception's answer, and in its chat"
    ),
    "file_of_other_rows": (
        "Give another name (save), or ask all rows again in its place: fresh=True."
    ),
    "rows_not_saved": (
        "What was answered is the result of the latest Progress, and all but the latest row in "
        "{journal}; make room and call again."
    ),
    "rows_interrupted": (
        "{answered:,} of {total:,} rows are answered; they are in the exception's result, and "
        "asking the same again goes on"
    ),
    "fresh_rows_interrupted": (
        "{answered:,} of {total:,} rows are answered; they are in the exception's result, and "
        "asking the same without fresh=True goes on"
    ),
    "all_rows_interrupted": "all {total:,} rows are answered; they are in the exception's result",
    "comparison_interrupted": (
        "{answered} of {total} models or settings have answered; what they said is in the "
        "exception's result"
    ),
    "comparison_interrupted_without_room": (
        "{answered} of {total} models or settings have answered; what they said is in the "
        "exception's result. {released} was released to make room, and the next question loads it "
        "again"
    ),
}

PYTHON = Words(_IN_PYTHON, _as_keyword, "Python", str, ", ")
"""Words for callers of the package from Python."""
