"""Next steps after an error, worded for a cell: magics, commands, options and settings."""

from __future__ import annotations

from glm4v_magic.core.errors import Glm4vError
from glm4v_magic.core.remarks import PYTHON, Text, Words, worded
from glm4v_magic.core.typed_options import as_typed, flag_of
from glm4v_magic.core.wording import printable

__all__ = ["CELL", "PYTHON_IN_CELL", "in_cell", "of_python_in_cell"]

_IN_A_CELL = {
    "of_cogvlm": (
        "To run its own code on several GPUs: %glm4v patch FOLDER, in an environment with "
        "transformers 4.42 to 4.48."
    ),
    "gpus_not_here": (
        "Leave --gpus out to load; %glm4v plan and %glm4v check work for any description."
    ),
    "no_gpu_for_map": (
        "Put it on the cpu, or leave --map out; %glm4v doctor says why no GPU is found, and "
        "%glm4v check works for any that are described (--gpus 2x16GiB)."
    ),
    "plan_of_other_gpus": (
        "To plan it for what is here, name the model and leave --map out: %glm4v load {model}. "
        "%glm4v check follows a plan on any GPUs that are described (--gpus 2x16GiB)."
    ),
    "quantised_already": "Leave --quantize out, or take the checkpoint that is not in FP8.",
    "quantised_by_others": "Leave --quantize out, or take the original checkpoint.",
    "not_of_a_server": "Only --served-model and --timeout go with an address.",
    "gpu_is_smaller": "Describe it as it is, or leave --gpus out.",
    "other_cluster": "Leave --cluster out, or end the replicas there first: %glm4v unload.",
    "fewer_tokens": "ask for fewer tokens (--max-tokens)",
    "larger_reserve": "load it with a larger --reserve",
    "server_has_no_model": (
        "Start the server with one, or name one it can load: --served-model NAME."
    ),
    "server_has_many_models": "Choose one: --served-model NAME.",
    "server_cannot_carry_on": ("Not every server carries an answer on: %glm4v retry asks anew."),
    "server_cannot_think_on": (
        "Not every server carries on what a model was thinking: %glm4v retry asks anew."
    ),
    "server_is_silent": "If it is only slow, give it longer: %glm4v load ... --timeout SECONDS.",
    "image_too_large_for_server": "Ask about a smaller image, or a part of it (--crop).",
    "leave_thinking_out": ("Leave --thinking out (of a setting: %config Glm4v.thinking = None)."),
    "no_thinking_to_limit": "Leave --max-thinking out.",
    "no_such_effort": "Leave --effort out.",
    "thinking_cannot_go_on": "To ask again: %glm4v retry.",
    "folder_of_images": "{kinds} The option --over asks about each.",
    "too_many_images": "The option --over asks the same about each.",
    "chat_not_begun": "--chat {name} begins one.",
    "clip_among_images": (
        "Name it by itself: its file (.mp4), or a variable that holds its path or bytes. Or save "
        "one of its frames as a PNG."
    ),
    "fewer_frames": "Look at fewer frames (--fps 1), or at a part of the video (--from, --to).",
    "name_column": "Name the one to ask about: --over {source}[{column!r}].",
    "rows_are_alike": (
        "Name the column that holds the images (--over df.image), or write {{{{row.name}}}} in the "
        "prompt."
    ),
    "describe_gpus": "See what other GPUs would do: %glm4v doctor --gpus 2x16GiB.",
    "describe_gpus_with_size": ("Describe the GPUs: %glm4v doctor --gpus 1x96GiB, with your size."),
    "demo_or_describe_gpus": (
        "The demo model runs anywhere. To plan for GPUs: %glm4v doctor --gpus 2x16GiB."
    ),
    "ask_the_hub": "Ask with %glm4v doctor --hub.",
    "fewer_hops": (
        "Results are the same. Fewer GPUs have fewer hops: %glm4v plan --objective fewest."
    ),
    "answer_cut_off": (
        "It was cut off at the token limit: allow more (--max-tokens), or carry it on (%glm4v "
        "continue)."
    ),
    "row_cut_off": "It was cut off at the token limit: allow more (--max-tokens).",
    "ran_out_within_answer": (
        "What was said until then is in _; %glm4v continue carries it on. The model is still "
        "loaded: {ways}."
    ),
    "answer_interrupted": "what was said until then is in _; %glm4v continue carries it on.",
    "retry_interrupted": "the chat keeps the old answer; what was said of the new one is in _.",
    "interrupted_after_the_answer": "the answer had ended already; it is in _, and in its chat.",
    "rows_interrupted": (
        "{answered:,} of {total:,} rows are answered; they are in _. Run the cell again to go on."
    ),
    "fresh_rows_interrupted": (
        "{answered:,} of {total:,} rows are answered; they are in _. Run the cell without --fresh "
        "to go on."
    ),
    "all_rows_interrupted": "all {total:,} rows are answered; they are in _.",
    "file_of_other_rows": (
        "Give another name after --save, or ask all rows again in its place: --fresh."
    ),
    "rows_not_saved": (
        "What was answered is in _, and all but the latest in {journal}; make room and run the "
        "cell again."
    ),
    "load_interrupted": (
        "the load did not finish. {released} was released to make room; the next question loads it "
        "again."
    ),
    "no_row_answered": "no row is answered. Run the cell again to go on.",
    "comparison_interrupted": (
        "{answered} of {total} models or settings have answered; what they said is in _."
    ),
    "comparison_interrupted_without_room": (
        "{answered} of {total} models or settings have answered; what they said is in _. "
        "{released} was released to make room; the next question loads it again."
    ),
}

_PYTHON_IN_A_CELL = {
    # Nobody has caught what a cell shows, and there Python keeps it.
    "answer_interrupted": (
        "the answer was interrupted; what was said until then is in sys.last_value.answer, and "
        "session.carry_on() carries it on"
    ),
    "retry_interrupted": (
        "the new answer was interrupted; what was said until then is in sys.last_value.answer, and "
        "the chat keeps the old one"
    ),
    "interrupted_after_the_answer": (
        "the answer had ended already; it is in sys.last_value.answer, and in its chat"
    ),
    "rows_interrupted": (
        "{answered:,} of {total:,} rows are answered; they are in sys.last_value.result, and "
        "asking the same again goes on"
    ),
    "fresh_rows_interrupted": (
        "{answered:,} of {total:,} rows are answered; they are in sys.last_value.result, and "
        "asking the same without fresh=True goes on"
    ),
    "all_rows_interrupted": "all {total:,} rows are answered; they are in sys.last_value.result",
    "comparison_interrupted": (
        "{answered} of {total} models or settings have answered; what they said is in "
        "sys.last_value.result"
    ),
    "comparison_interrupted_without_room": (
        "{answered} of {total} models or settings have answered; what they said is in "
        "sys.last_value.result. {released} was released to make room, and the next question loads "
        "it again"
    ),
}

CELL = Words(_IN_A_CELL, as_typed, "the kernel", flag_of)
"""Words for magics; see `core.remarks`."""

PYTHON_IN_CELL = Words(
    {**PYTHON.templates, **_PYTHON_IN_A_CELL},
    PYTHON.spelled,
    CELL.process,
    PYTHON.named,
    PYTHON.between,
)
"""Words for calls of Python in a cell."""


def in_cell(error: Glm4vError) -> str:
    """Return the text of a magic's error on one line."""
    return _on_one_line(error.text, CELL)


def of_python_in_cell(text: Text) -> str:
    """Return the text of an error or interrupt of a call of Python on one line."""
    return _on_one_line(text, PYTHON_IN_CELL)


def _on_one_line(text: Text, words: Words) -> str:
    return " ".join(printable(worded(text, words)).split())
