"""Next steps after an error, worded for clients and operators of the server.

A client can change its request, and the operator can start the server differently, so the words
name fields of the request and options of the server's command line.
"""

from __future__ import annotations

from glm4v_magic.core.errors import Glm4vError
from glm4v_magic.core.options import OPTIONS
from glm4v_magic.core.remarks import Words, worded
from glm4v_magic.core.typed_options import as_typed, flag_of

__all__ = ["HTTP", "in_http"]

_OVER_HTTP = {
    "port_not_usable": "Choose another with --port; 0 is any free one.",
    "gpus_not_here": "Start the server without --gpus.",
    "no_gpu_for_map": "Put it on the cpu, or start the server without --map.",
    "plan_of_other_gpus": (
        "Start the server without --map, and with the model that is to be planned for what is "
        "here: {model}."
    ),
    "quantised_already": (
        "Start the server without --quantize, or with the checkpoint that is not in FP8."
    ),
    "quantised_by_others": (
        "Start the server without --quantize, or with the original checkpoint."
    ),
    "gpu_is_smaller": "Describe it as it is, or start the server without --gpus.",
    "other_cluster": "Start the server without --cluster.",
    "eight_bit": "start the server with the text part in 8bit (--quantize 8bit)",
    "four_bit": "start the server with the text part in 4bit (--quantize 4bit)",
    "longer_context": (
        "start the server for this length (--context {needed}): the plan is for {context} tokens"
    ),
    "too_large_for_float16": (
        "Start the server with --dtype float32, which takes twice the memory, or with --dtype "
        "bfloat16, where that is computed in."
    ),
    "larger_reserve": "start the server with a larger --reserve",
    "server_has_no_model": "Start that server with one.",
    "server_has_many_models": "Start that server with one of them.",
    "server_cannot_carry_on": (
        "Not every server carries an answer on: ask again without the unfinished answer."
    ),
    "server_cannot_think_on": (
        "Not every server carries on what a model was thinking: ask again without the unfinished "
        "answer."
    ),
    "server_is_silent": "It may only be slow: ask again later.",
    "no_such_effort": "Leave reasoning_effort out.",
    "leave_thinking_out": "Leave enable_thinking out of chat_template_kwargs.",
    "image_too_large_for_server": "Send a smaller image, or a part of it.",
    "thinking_cannot_go_on": "Ask again without the unfinished answer.",
    "folder_of_images": "{kinds} Send each in a request of its own.",
    "too_many_images": "Send them in several requests.",
    "chat_not_begun": "Send the whole conversation in messages.",
    "clip_among_images": "Send it as a video_url, or one of its frames as a PNG.",
    "fewer_frames": "Send a shorter video.",
    "name_column": "Name the one to ask about: {column!r}.",
    "rows_are_alike": "Send each row in a request of its own.",
    "file_of_other_rows": "Give another name.",
    "rows_not_saved": "What was answered, all but the latest row, is in {journal}.",
    "describe_gpus": "Start the server for other GPUs: --gpus 2x16GiB.",
    "describe_gpus_with_size": "Start the server with --gpus 1x96GiB, with your size.",
    "demo_or_describe_gpus": "The demo model runs anywhere: serve demo.",
    "ask_the_hub": "The hub is asked when a model is downloaded.",
    "fewer_hops": (
        "Results are the same. Fewer GPUs have fewer hops: start the server with --objective "
        "fewest."
    ),
    "answer_cut_off": (
        "It was cut off at the token limit: allow more (max_tokens), or go on with it "
        "(continue_final_message)."
    ),
}


def _named(name: str) -> str:
    """Return an option of the server's command line as it is typed; others are fields."""
    option = OPTIONS.get(name)
    return flag_of(name) if option is not None and "serve" in option.who.commands else name


HTTP = Words(_OVER_HTTP, as_typed, "the server", _named)
"""See `core.remarks`."""


def in_http(error: Glm4vError) -> str:
    """Return the text of an error."""
    return worded(error.text, HTTP)
