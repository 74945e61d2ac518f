"""Advice that can be taken: each next step that a message names is taken here, and works.

By code, for what front ends word themselves, and by sentence, for what is the same everywhere in
the rooms that decide where a model goes. A new one without a test is red, here or in
`test_advice_elsewhere`.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import random
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import golden
import pytest
import torch
from advice import TAKEN, takes
from hints import hints
from PIL import Image
from transformers.utils import import_utils
from transformers.utils.import_utils import BITSANDBYTES_MIN_VERSION

import glm4v_magic
from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.errors import (
    DeviceMapError,
    DoesNotFitError,
    FormatError,
    Glm4vError,
    GPUDescriptionError,
    OptionError,
    OutOfMemoryError,
    PlacementError,
)
from glm4v_magic.core.events import Loading
from glm4v_magic.core.gpu_spec import GPU, parse_gpus
from glm4v_magic.core.model_shape import Workload
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.core.plan import Plan
from glm4v_magic.core.remarks import COMMON, PYTHON, Remark, worded
from glm4v_magic.core.wording import gib
from glm4v_magic.doctor import diagnose, gather
from glm4v_magic.dry_run.run import dry_run
from glm4v_magic.dry_run.text import raise_if_unusable
from glm4v_magic.engines import load_advice, local
from glm4v_magic.hardware import usable
from glm4v_magic.hardware.gpus import FoundGPU
from glm4v_magic.notebook.command_line import parse
from glm4v_magic.notebook.commands import COMMANDS
from glm4v_magic.notebook.commands.plan import placement_options
from glm4v_magic.notebook.next_steps import CELL
from glm4v_magic.planning.costs import price
from glm4v_magic.planning.decision import Placement, decide, make_plan
from glm4v_magic.planning.device_map import EXAMPLE
from glm4v_magic.planning.plan import plan
from glm4v_magic.server.next_steps import HTTP
from glm4v_magic.session.session import Session
from glm4v_magic.virtual_gpus import VirtualGPUs

PACKAGE = Path(glm4v_magic.__file__).parent
TESTS = Path(__file__).parents[1]
GIB = 2**30
TINY = str(golden.CHECKPOINT)
NINE_B = architecture("GLM-4V-9B")

FILLED = "notebook/test_plan_command.py::test_ways_of_transformers_to_fill_gpus"
ELSEWHERE = {
    "fill_in_order": FILLED,
    "less_on_the_first": FILLED,
    "all_rows_interrupted": (
        "notebook/test_over.py::test_an_interrupt_while_the_table_is_printed_loses_nothing"
    ),
    "answer_interrupted": (
        "session/test_session_chats.py::test_where_an_interrupt_leaves_an_answer_is_said"
    ),
    "base_not_here": "checkpoints/test_adapters.py::test_doctor_says_the_whole_advice",
    "chat_not_begun": ("project/test_advice_followed.py::test_a_chat_that_was_not_begun_is_begun"),
    "image_too_large_for_server": (
        "project/test_advice_followed.py::test_a_smaller_image_or_a_part_of_it_is_sent_to_a_server"
    ),
    "interrupted_after_the_answer": (
        "session/test_session_chats.py::test_where_an_interrupt_leaves_an_answer_is_said"
    ),
    "adapter_twice": "checkpoints/test_adapters.py::test_two_adapters_are_refused",
    "base_is_quantised": (
        "checkpoints/test_quantised_before.py::"
        "test_adapters_of_quantised_bases_are_refused_with_the_way_out"
    ),
    "base_beside_lora": (
        "checkpoints/test_quantised_before.py::"
        "test_adapters_of_quantised_bases_are_refused_with_the_way_out"
    ),
    "base_of_no_adapter": "checkpoints/test_adapters.py::test_a_base_is_not_given_for_a_model",
    "too_large_for_float16": (
        "engines/test_not_finite.py::test_float16_overflows_and_float32_does_not"
    ),
    "free_disk": "doctor/test_doctor_followed.py::test_a_full_disk_is_freed_or_left",
    "install_other_torch": (
        "doctor/test_doctor_followed.py::test_the_cuda_of_an_unknown_driver_is_looked_up"
    ),
    "other_folder": "doctor/test_doctor_followed.py::test_a_disk_that_takes_nothing_is_left",
    "set_and_restart": (
        "doctor/test_doctor_followed.py::test_what_hides_gpus_or_their_order_is_set_right"
    ),
    "unset_visible": (
        "doctor/test_doctor_followed.py::test_what_hides_gpus_or_their_order_is_set_right"
    ),
    "update_driver_or_torch": "doctor/test_doctor_followed.py::test_the_driver_is_updated",
    "file_of_other_rows": (
        "mapping/test_row_file.py::test_answers_to_something_else_are_not_replaced"
    ),
    "no_row_answered": (
        "notebook/test_over.py::test_an_interrupt_before_the_first_word_changes_no_variable"
    ),
    "rows_are_alike": ("mapping/test_rows.py::test_the_advice_to_rows_that_are_alike_can_be_taken"),
    "rows_interrupted": (
        "mapping/test_batch.py::test_an_interrupt_keeps_what_is_done_and_the_next_run_goes_on"
    ),
    "load_interrupted": (
        "session/test_load_beside.py::"
        "test_on_a_full_gpu_an_error_says_that_the_model_before_was_released"
    ),
    "other_cluster": (
        "engines/test_replicas_shut_down.py::"
        "test_a_ray_that_is_shut_down_is_told_of_and_each_way_out_works"
    ),
    "fresh_rows_interrupted": (
        "notebook/test_over.py::test_an_interrupt_keeps_rows_and_the_cell_goes_on"
    ),
    "clip_among_images": (
        "notebook/test_video_cell.py::test_a_clip_among_images_is_asked_about_as_the_message_says"
    ),
    "fewer_frames": (
        "notebook/test_video_cell.py::test_a_clip_that_is_too_long_is_looked_at_less_often"
    ),
    "name_column": (
        "project/test_advice_followed.py::test_one_of_several_columns_of_images_is_named"
    ),
    "not_on_virtual_gpus": (
        "checkpoints/test_quantised_before.py::test_virtual_gpus_refuse_what_only_real_ones_hold"
    ),
    "of_cogvlm": "remote_code/test_patch.py::test_the_towers_of_cogvlm2_and_cogagent",
    "port_not_usable": (
        "server/test_command.py::test_a_port_that_another_opens_while_the_model_loads"
    ),
    "retry_interrupted": (
        "session/test_session_chats.py::test_where_an_interrupt_leaves_an_answer_is_said"
    ),
    "row_cut_off": "notebook/test_over_forms.py::test_an_answer_that_was_cut_off_says_so",
    "comparison_interrupted": (
        "notebook/test_compare_command.py::test_an_interrupt_keeps_what_was_said"
    ),
    "comparison_interrupted_without_room": (
        "session/test_comparing.py::test_an_interrupt_without_room_says_what_is_away"
    ),
    "rows_not_saved": "mapping/test_row_file.py::test_a_full_disk_loses_nothing",
    "server_cannot_carry_on": (
        "engines/test_server_engine.py::"
        "test_neither_does_every_server_carry_on_an_answer_without_thinking"
    ),
    "server_cannot_think_on": (
        "engines/test_server_engine.py::test_a_server_that_does_not_carry_it_on_is_understood"
    ),
    "server_has_many_models": (
        "project/test_advice_followed.py::test_a_model_of_a_server_is_named_or_started"
    ),
    "server_has_no_model": (
        "project/test_advice_followed.py::test_a_model_of_a_server_is_named_or_started"
    ),
    "server_is_silent": ("project/test_advice_followed.py::test_a_slow_server_is_given_longer"),
    "take_the_original": (
        "checkpoints/test_quantised_before.py::test_the_original_is_made_as_small_as_it_is_loaded"
    ),
    "thinking_cannot_go_on": "engines/test_server_engine.py::test_a_model_that_does_not_think",
    "too_many_images": (
        "project/test_advice_followed.py::test_a_folder_and_many_images_are_asked_about_one_by_one"
    ),
    "trace_interrupted": (
        "inspect/test_tracing.py::test_the_model_is_as_before_whatever_ends_the_block"
    ),
    "folder_of_images": (
        "project/test_advice_followed.py::test_a_folder_and_many_images_are_asked_about_one_by_one"
    ),
    "four_bit_weights_fit": (
        "notebook/test_engine_flags.py::test_every_way_out_of_vllm_can_be_taken"
    ),
    "install": "project/test_advice_outside.py::test_install",
    "install_if_older": "project/test_advice_outside.py::test_install_if_older",
    "restart": "project/test_advice_outside.py::test_restart",
    "restart_and_look": "project/test_advice_outside.py::test_restart_and_look",
    "stop_in_another_way": (
        "notebook/test_stop_button.py::"
        "test_a_button_of_another_package_is_not_heard_and_the_toolbar_interrupts"
    ),
}
"""Codes that are no matter of placement, and the tests that do what they say and hold its words."""

FACTS = {
    "at_context", "bfloat16_on_cpu", "context_shortened",
    "embedding_offloaded", "experts_together", "four_bit_does_not_fit", "four_bit_still_short",
    "fp8_restored",
    "fp8_stays", "gpus_chosen", "host_allows_less", "layers_offloaded", "names_translated",
    "no_context_fits", "no_room_for_kept", "no_shorter_context_fits",
    "offloading_does_not_fit", "orders_not_all_tried", "planned_for_another",
    "planned_with_adapter",
    "replaced_meanwhile", "scheme_restored",
    "revision_unseen",
    "scheme_stays", "speed_limit", "speed_limit_of_host", "speed_limit_of_host_with_prefill",
    "speed_limit_with_prefill", "speed_measured", "speed_measured_with_prefill", "tower_is_cut",
    "tower_offloaded", "without_gpus",
}  # fmt: skip
"""Codes that say how it is, and advise nothing."""

FRAMES = {
    "answering_ran_out", "loading_ran_out", "named_model", "named_with",
    "of_option", "quoted_model",
    "ran_out_within_answer", "some_ways_out", "ways_out",
}  # fmt: skip
"""Codes whose advice is that of others."""

SENTENCES_OF_OTHERS = {
    "Name the model: %glm4v serve MODEL --map {}.": (
        "notebook/test_serve_command.py::test_a_map_or_plan_in_a_variable_reaches_the_server"
    ),
    "Take --engine own, or name {} in the line, without it.": (
        "checkpoints/test_adapters.py::test_a_server_takes_the_adapter_of_the_model_in_use"
    ),
    "Config and weights do not belong together; download them again.": (
        "checkpoints/test_weight_names.py::test_what_transformers_finds_missing_is_one_line"
    ),
    "Choose another (--port). To ask what is there: %glm4v load {}.": (
        "notebook/test_serve_command.py::test_a_port_that_is_taken"
    ),
    "Shorten it, or start a new conversation.": (
        "project/test_advice_asked.py::test_a_prompt_that_is_too_long"
    ),
    "Is it running there? Leave the address out to use this machine alone.": (
        "engines/test_replicas_shut_down.py::"
        "test_a_ray_that_is_shut_down_is_told_of_and_each_way_out_works"
    ),
    "The port is that of the head node, 6379 by default; 8265 is the dashboard's.": (
        "engines/test_replicas.py::test_the_port_of_the_head_node_is_the_one_to_give"
    ),
    "Install the same version on all machines.": (
        "engines/test_replicas.py::test_another_version_is_told_and_the_same_one_loads"
    ),
    "Ask for fewer replicas, or wait for those jobs.": (
        "engines/test_replicas.py::test_cores_that_other_jobs_use_are_waited_for"
    ),
    "Its log is above.": (
        "notebook/test_serve_command.py::test_a_server_that_ends_before_it_is_ready"
    ),
    "Install 'vllm<0.28', leave --quantize out, or take --engine own.": (
        "notebook/test_serve_command.py::test_a_vllm_that_does_not_quantise"
    ),
    'Different GPUs are joined by +: "{}".': (
        "core/test_gpu_spec.py::test_gpus_that_are_not_joined_by_a_plus"
    ),
    "Give one size for all.": (
        "planning/test_machines.py::test_sizes_for_gpus_one_by_one_are_refused"
    ),
    "Install it with: pip install 'glm4v_magic[lora]'": (
        "checkpoints/test_adapters.py::"
        "test_without_peft_the_extra_is_named_before_anything_is_released"
    ),
    "Leave the address out, or call ray.shutdown() first.": (
        "engines/test_replicas.py::test_another_cluster_than_the_users"
    ),
    "To ask it: %glm4v load {}.": (
        "notebook/test_serve_command.py::test_a_server_that_runs_already_is_asked"
    ),
    "Load it again.": (
        "session/test_load_forms.py::"
        "test_a_model_whose_virtual_gpus_are_gone_says_so_and_can_be_loaded_again"
    ),
    "Use a GPU, or full weights.": (
        "checkpoints/test_quantised_before.py::"
        "test_sizes_that_the_cpu_does_not_compute_are_refused_before_anything_is_released"
    ),
    "A plan of ours keeps together what must be.": (
        "dry_run/test_dry_run.py::test_what_would_not_run_is_raised_as_one_line"
    ),
    "This is a bug of the loader, not of the map, and the model was not kept; load it again, or "
    "with another map.": (
        "session/test_load_with_plan.py::"
        "test_after_a_bug_of_the_loader_it_is_loaded_again_or_with_another_map"
    ),
    "Leave them to others.": ("project/test_advice_outside.py::test_idle_gpus_are_left_to_others"),
    "It has none at all; rows with columns are such as [{'image': 'cat.png'}].": (
        "mapping/test_rows.py::test_rows_without_columns_are_given_some"
    ),
}
"""Sentences that are no matter of placement, and the tests that do what they say."""

# The planner: whatever its refusals and notes name, as it is typed and as it is written in Python.


def typed_ways(text: str) -> Iterator[list[str]]:
    """Yield the options of each way out of a message worded for a cell."""
    for found in re.findall(r"\((--[^;)]+)[;)]", text):
        yield shlex.split(found.replace(",", ""))


def written_ways(text: str) -> Iterator[dict[str, Any]]:
    """Yield the arguments of each way out of a message worded for Python."""
    for found in re.findall(r"\((\w+=[^;)]+)[;)]", text):
        yield eval(f"dict({found})", {"__builtins__": {}}, {"dict": dict})


def options_of(words: list[str]) -> dict[str, Any]:
    return placement_options(parse(COMMANDS["plan"], words))


FILLED = r"\((--[^;)]+); fullest GPU (\d+%)(?: at ([\d,]+) tokens)?\)"
AWAY = r"offloading ([\d.]+) (\w+) to host memory fits(?: at ([\d,]+) tokens)? \((--offload)\)"


def assert_figures(model: Any, given: dict[str, Any], text: str) -> None:
    """A plan by each way out, as it is typed, has the figure that the message gives for it.

    Where the message says for which context it is, it is that of a plan for that context.
    """

    def taken(words: str, context: str) -> Plan:
        asked = {"context": int(context.replace(",", ""))} if context else {}
        options = {**given, **asked, **options_of(shlex.split(words))}
        return make_plan(model, PlacementOptions(**options))

    for words, fullness, context in re.findall(FILLED, text):
        assert f"{taken(words, context).fullness:.0%}" == fullness, (given, words)
        SAID_OF.add("a context" if context else "what is typed")
    for size, unit, context, words in re.findall(AWAY, text):
        made = taken(words, context)
        whole = sum(each.weight_bytes for each in price(model.shape(), made.workload))
        away = whole - sum(stage.weight_bytes for stage in made.stages)
        assert away == pytest.approx(float(size) * {"MiB": 2**20, "GiB": GIB}[unit], rel=0.01)
        SAID_OF.add("a context" if context else "what is typed")


SAID_OF: set[str] = set()
"""What figures of ways out were said to be for."""


def ways_work(model: Any, given: dict[str, Any]) -> set[str]:
    """Take every way out of the refusal of a plan; return their codes, none if there is a plan."""
    try:
        make_plan(model, PlacementOptions(**given))
    except DoesNotFitError as error:
        refusal = error
    else:
        return set()
    assert_figures(model, given, worded(refusal.text, CELL))
    typed = [options_of(words) for words in typed_ways(worded(refusal.text, CELL))]
    written = list(written_ways(worded(refusal.text, PYTHON)))
    assert typed == written
    for way in written:
        taken = make_plan(model, PlacementOptions(**{**given, **way}))
        assert taken.fullness <= 1, (given, way)
    named = {each.code for each in refusal.values.get("ways", ())}
    assert not named & FACTS, "what does not help is numbered as a way out"
    assert len(named) == len(written), "a way out that names no option"
    for reason in refusal.values.get("reasons", ()):
        assert reason.code in FACTS
        assert_hopeless(model, given, reason.code)
    if not named:
        assert "It takes more GPU memory: " in str(refusal)
        enough = replace(PlacementOptions(**given), gpus="8x400GiB")
        assert make_plan(model, enough).fullness <= 1
        NOT_HELPED.append(given)
    return named


def assert_hopeless(model: Any, given: dict[str, Any], code: str) -> None:
    """What a refusal calls hopeless is: nothing that could be done is held back."""
    other = {
        "no_context_fits": {"context": 256},
        "no_shorter_context_fits": {"context": max(given["images"] * 1700, 1)},
        "offloading_does_not_fit": {"offload": True},
        "host_allows_less": {"offload": True},
        "four_bit_still_short": {"quantize": "4bit"},
        "four_bit_does_not_fit": {"quantize": "4bit"},
    }[code]
    with pytest.raises((DoesNotFitError, OptionError)):
        make_plan(model, PlacementOptions(**{**given, **other}))


PLANNER = {
    "shorter_context_fits", "eight_bit_fits", "four_bit_fits", "four_bit_and_offloading_fit",
    "offloading_fits", "offloading_tower_fits",
}  # fmt: skip


NOT_HELPED: list[dict[str, Any]] = []
"""What was asked for where no option helps, and more memory of GPUs does."""


@takes(*PLANNER, "no_way_out")
def test_ways_out_of_a_plan_that_does_not_fit():
    scenes = [
        {"gpus": "2x15GiB"},
        {"gpus": "1x12GiB"},
        {"gpus": "1x24GiB"},
        {"gpus": "1x20GiB"},
        {"gpus": "2x8GiB"},
        {"gpus": "1x11GiB", "offload": True},
        {"gpus": "1x9GiB", "quantize": "4bit"},
        {"gpus": "1x11GiB", "quantize": "4bit", "max_memory": {"cpu": "0GiB"}},
        {"gpus": "1x12GiB", "max_memory": {"cpu": 0}},
        {"gpus": "1x2GiB", "quantize": "4bit", "offload": True},
    ]
    seen = set().union(*(ways_work(NINE_B, {"images": 1, **scene}) for scene in scenes))
    assert seen == PLANNER
    for not_helped in scenes[-3:]:
        assert {"images": 1, **not_helped} in NOT_HELPED


@pytest.mark.parametrize("name", ["GLM-4V-9B", "GLM-4.1V-9B-Thinking", "GLM-4.5V"])
def test_ways_out_on_random_machines(name):
    model, draw = architecture(name), random.Random(name)
    share = model.shape().values * 2 / GIB
    taken = 0
    SAID_OF.clear()
    for _ in range(12):
        count = draw.randint(1, 4)
        sizes = [draw.uniform(0.3, 1.2) * share / count + 0.55 for _ in range(count)]
        given = {
            "gpus": "+".join(f"{size:.2f}GiB" for size in sizes),
            "images": draw.choice([0, 1]),
            "context": draw.choice([None, model.shape().max_context // 2]),
            "offload": draw.random() < 0.2,
            "quantize": draw.choice([None, None, "8bit"]) if model.shape().quantizable else None,
        }
        given["max_memory"] = draw.choice([None, None if given["offload"] else {"cpu": 0}])
        taken += bool(ways_work(model, given))
    assert taken > 2
    assert "what is typed" in SAID_OF


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("GLM-4.6V-Flash", {"gpus": "2xT4", "dtype": "float32"}),
        ("GLM-4.1V-9B-Thinking", {"gpus": "1x10GiB+1x6GiB"}),
        ("GLM-4.1V-9B-Thinking", {"gpus": "2x11GiB", "batch": 2, "reserve": 2.0}),
        ("GLM-4.5V", {"gpus": "2xH100-80GiB"}),
    ],
)
def test_ways_out_say_for_which_context_they_are_where_none_was_asked_for(name, given):
    """Without one a plan is for the longest that fits, which fills the GPUs."""
    SAID_OF.clear()
    assert ways_work(architecture(name), {"images": 1, **given})
    assert {"a context"} == SAID_OF
    SAID_OF.clear()
    assert ways_work(architecture(name), {"images": 1, "context": 8192, **given})
    assert {"what is typed"} == SAID_OF


def test_weights_in_fp8_that_are_to_be_offloaded_are_priced_as_what_they_become():
    shape = NINE_B.shape()
    units = tuple(
        replace(unit, fp8_values=unit.linear_values, fp8_scales=1) if unit.linear_values else unit
        for unit in shape.units
    )
    half = replace(shape, units=units, fp8=True)
    kept = Workload(context=4096, dtype="bfloat16", fp8=True)
    restored = replace(kept, fp8=False)
    whole = sum(unit.weight_bytes for unit in price(half, restored))
    for size in (6, 10, 14):
        gpus = parse_gpus(f"1xH100-{size}GiB")
        with pytest.raises(DoesNotFitError) as caught:
            plan(half, gpus, kept)
        (offered,) = re.findall(r"offloading ([0-9.]+) GiB", str(caught.value))
        taken = plan(half, gpus, restored, offload=True)
        assert offered == gib(whole - sum(stage.weight_bytes for stage in taken.stages))
    with pytest.raises(DoesNotFitError, match="offloading every layer that may be offloaded"):
        plan(half, parse_gpus("1xH100-2.5GiB"), kept)


@takes("speed_unknown")
def test_a_bandwidth_in_the_description_tells_the_speed():
    unknown = str(make_plan(NINE_B, PlacementOptions(gpus="80GiB")))
    (advised,) = re.findall(r"; (\S+) would\.", unknown)
    assert "tokens/s" not in unknown
    known = make_plan(NINE_B, PlacementOptions(gpus=advised.replace("24GiB", "80GiB")))
    assert "tokens/s" in str(known)


@takes("gpus_chosen_of_two", "tower_is_cut_for_balance", "tower_could_be_cut")
@pytest.mark.parametrize(
    ("code", "given"),
    [
        ("gpus_chosen_of_two", {"gpus": "8x24GiB"}),
        ("tower_is_cut_for_balance", {"gpus": "5x10GiB"}),
        ("tower_could_be_cut", {"gpus": "5x10GiB", "split_vision": False}),
    ],
)
def test_notes_promise_what_their_option_gives(code, given):
    made = make_plan(NINE_B, PlacementOptions(**given))
    (note,) = (note for note in made.notes if note.code == code)
    (words,) = re.findall(r"--[a-z-]+ [a-z]+", worded(note, CELL))
    (written,) = re.findall(r'[a-z_]+=(?:"\w+"|True|False)', worded(note, PYTHON))
    option = options_of(shlex.split(words))
    assert option == eval(f"dict({written})", {"__builtins__": {}}, {"dict": dict})
    other = make_plan(NINE_B, PlacementOptions(**{**given, **option}))
    promised = {
        "gpus_chosen_of_two": "other_fullness",
        "tower_is_cut_for_balance": "fullness",
        "tower_could_be_cut": "cut_fullness",
    }[code]
    assert note.values[promised] == f"{other.fullness:.0%}"


# Loading and answering, on virtual GPUs.


@takes("room_for_kept", "Ask for less; 0 keeps nothing.")
def test_less_is_kept():
    with VirtualGPUs("1x1GiB"):
        session = Session().load(TINY)
        assert session.status().kept.budget_bytes > 0
        with pytest.raises(OptionError, match=r"Ask for less; 0 keeps nothing\."):
            session.load(TINY, keep=1e6)
        assert session.load(TINY, keep=0.01).status().kept.budget_bytes == int(0.01 * GIB)
        assert session.load(TINY, keep=0).status().kept.budget_bytes == 0
        session.unload()


@takes("Put some of them on other GPUs or on the cpu, or let a plan take its place.")
def test_a_map_whose_weights_no_gpu_holds_is_another_map_or_a_plan():
    with VirtualGPUs([GIB // 1024, GIB]):
        session = Session().load(TINY, gpus="cpu")
        loaded = session.engine
        with pytest.raises(
            DoesNotFitError, match=r"puts 1\.\d+ MiB of weights on GPU 0, which has 1"
        ):
            session.load(TINY, device_map={"": 0})
        made = make_plan(architecture(TINY), PlacementOptions(gpus="1x1GiB"))
        with pytest.raises(
            DoesNotFitError, match=r"^The plan puts 1\.\d+ MiB of weights on GPU 0,"
        ):
            session.load(TINY, device_map=made)
        assert session.engine is loaded
        text = {"model.vision": 1, "model.language_model": "cpu", "lm_head": "cpu"}
        for way in ({"device_map": {"": 1}}, {"device_map": text}, {}):
            assert session.load(TINY, **way).engine is not loaded
        session.unload()


def occupy(gpu: int, gpus: VirtualGPUs, free: int) -> torch.Tensor:
    """Take what is left of a GPU but `free` bytes."""
    left = gpus.gpus[gpu].total_bytes - gpus.live_bytes[gpu] - free
    return torch.empty(left, dtype=torch.uint8, device=f"cuda:{gpu}")


def load_beside(session: Session, begin: Callable[[], None], **options: Any) -> None:
    """Load the tiny model while another program begins, as its first weight has arrived."""
    has_begun = False
    with pytest.MonkeyPatch.context() as patch:
        # Else threads of transformers fill the GPU while the other program measures what is left.
        patch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")
        for event in session.stream_load(TINY, **options):
            if isinstance(event, Loading) and event.progress.done_bytes and not has_begun:
                has_begun = True
                begin()


@takes("free_memory", "idle_gpus_too")
def test_memory_is_freed_or_idle_gpus_are_used():
    with VirtualGPUs("2x1GiB") as gpus:
        session, others = Session(), []
        with pytest.raises(OutOfMemoryError) as caught:
            load_beside(session, lambda: others.append(occupy(0, gpus, 99_000)))
        assert "free memory there, use the idle GPUs too (objective=" in str(caught.value)
        session.load(TINY, objective="balance")
        assert "cuda:1" in session.status().info.devices
        session.unload()
        others.clear()
        assert session.load(TINY).status().info.devices == ("cuda:0",)
        session.unload()


@takes("more_gpus", "plan_instead_of_map")
def test_more_gpus_or_a_plan_instead_of_a_map():
    with VirtualGPUs("2x1GiB") as gpus:
        session, others = Session(), []
        with pytest.raises(OutOfMemoryError, match=r"use more GPUs.* let a plan take the place of"):
            load_beside(session, lambda: others.append(occupy(0, gpus, 99_000)), device_map={"": 0})
        planned = session.load(TINY, max_memory={1: "1GiB"})
        assert planned.status().info.devices == ("cuda:1",)
        others.clear()
        halves = {"model": 1, "lm_head": 0}
        assert session.load(TINY, device_map=halves).status().info.devices == ("cuda:0", "cuda:1")
        session.unload()


@takes("eight_bit", "four_bit")
@pytest.mark.parametrize(
    ("gpus", "options", "offered"),
    [
        ("H100-24GiB", {}, "8bit"),
        ("H100-18GiB", {}, "4bit"),  # 8 bit has no room
        ("H100-8GiB", {}, None),
        ("V100-24GiB", {}, "4bit"),  # without 8-bit products
        ("V100-24GiB+H100-24GiB", {"device_map": {"": 1}}, "8bit"),  # an idle one has no say
        ("H100-24GiB", {"device_map": {"": 0}}, "8bit"),
        ("H100-24GiB", {"quantize": "8bit"}, "4bit"),
        ("H100-24GiB", {"quantize": "4bit"}, None),
        ("H100-24GiB", {"fp8": True}, None),
        (60, {}, "8bit"),  # GiB of the host
        (20, {}, None),
        (60, {"linear": ((96, 160),)}, "8bit"),
        (60, {"linear": ((96, 160),), "quantize": "8bit"}, None),  # not computed on the CPU
    ],
)
def test_the_mildest_quantisation_that_helps_is_offered(monkeypatch, gpus, options, offered):
    def run_out(**_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. GPU 0 has a total capacity of 8 GiB")

    given, shape = dict(options), replace(NINE_B.shape(), fp8=options.get("fp8", False))
    if "linear" in given:
        units = (replace(each, linear=given["linear"]) for each in shape.units)
        shape = replace(shape, units=tuple(units))
    now = () if isinstance(gpus, int) else parse_gpus(gpus)
    monkeypatch.setattr(load_advice, "gpus_here", lambda: now)
    monkeypatch.setattr(load_advice, "free_host_bytes", lambda: gpus * GIB)
    placement = Placement(
        "float32" if not now else "bfloat16",
        given.get("device_map") or ({"": 0} if now else None),
        quantize=given.get("quantize"),
    )
    checkpoint: Any = SimpleNamespace(
        name="large", architecture=SimpleNamespace(shape=lambda: shape), load=run_out
    )
    with pytest.raises(OutOfMemoryError) as caught:
        local.load(checkpoint, placement)
    said = re.findall(r'in (\dbit) \(quantize="\1"\)', str(caught.value))
    assert said == ([] if offered is None else [offered])
    if now and offered is not None:  # as it says, with what there is
        taken = PlacementOptions(quantize=offered, context=1024, images=0)
        assert decide(NINE_B, taken, now, loads=False).quantize == offered


def test_by_a_plan_the_whole_of_it_has_to_have_room(monkeypatch):
    gpus = parse_gpus("2xH100-24GiB")
    made = make_plan(NINE_B, PlacementOptions(), gpus)
    placement = decide(NINE_B, PlacementOptions(), gpus, made, loads=False)
    for now, offered in (("2xH100-13GiB", "8bit"), ("2xH100-11GiB", "4bit"), ("2xH100-8GiB", None)):
        monkeypatch.setattr(load_advice, "gpus_here", lambda now=now: parse_gpus(now))
        said = worded(load_advice.advice_for_load(NINE_B.shape(), placement), PYTHON)
        assert re.findall(r"in (\dbit)", said) == ([] if offered is None else [offered])
        if offered is not None:
            assert make_plan(NINE_B, PlacementOptions(gpus=now, quantize=offered)).fullness <= 1


def test_what_is_quantised_is_loaded_so():
    pytest.importorskip("bitsandbytes")
    for kind in ("8bit", "4bit"):
        assert Session().load("demo", quantize=kind).status().info.quantize == kind


@takes("shorter_prompt", "longer_context", "fewer_tokens", "larger_reserve")
@pytest.mark.parametrize("context", [32, None])
def test_a_prompt_that_has_no_room(context):
    short = {"text": "What?", "temperature": 0, "max_tokens": 4}
    long = {"text": "word " * 40, "temperature": 0, "max_tokens": 4}
    options = {"objective": "balance", "keep": 0, **({"context": context} if context else {})}
    with VirtualGPUs("2x1GiB") as gpus:
        session = Session().load(TINY, **options)
        before = session.ask(**short).text
        others = [occupy(1, gpus, 60_000)]
        with pytest.raises(OutOfMemoryError) as caught:
            session.ask(**long)
        said = str(caught.value)
        assert session.ask(**short).text == before  # shortened
        others.clear()
        if context is None:
            assert "load it with a larger reserve" in said
            session.load(TINY, **options, reserve=0.4)
            # Others may take what was left alone.
            others.append(occupy(1, gpus, int(0.4 * GIB)))
        else:
            (needed,) = re.findall(r"\(context=(\d+)\)", said)
            session.load(TINY, **{**options, "context": int(needed)})
            assert session.plan.workload.context == int(needed)
        assert session.ask(**long).usage.new_tokens >= 1
        session.unload()


# What loading refuses.


@takes(
    "no_gpu_for_map",
    "Put it on one that is there, or on the cpu.",
    "Name those that are there.",
    "Pin it to one that is there.",
)
def test_maps_for_gpus_that_are_not_here(run):
    assert "on GPU 0, but there is none." in (
        said := run(f"%glm4v load {TINY} --map cuda:0", fails=True)
    )
    for line in (f"load {TINY} --map cpu", f"load {TINY}", "doctor", f"check {TINY} --map cuda:0"):
        assert line.split()[0] == "load" or f"%glm4v {line.split()[0]}" in said
        run(f"%glm4v {line}{' --gpus 2x16GiB' if line.startswith('check') else ''}")
    session = Session()
    with pytest.raises(DeviceMapError, match=r"leave device_map out; diagnose\(gather\(\)\)"):
        session.load(TINY, device_map=0)
    for options in ({"device_map": "cpu"}, {}):
        assert session.load(TINY, **options).status().info.devices == ("cpu",)
        session.unload()
    (found,) = (each for each in diagnose(gather()) if each.subject == "GPUs")
    assert worded(found.reason, PYTHON)
    assert dry_run(architecture(TINY), "2x1GiB", 1, context=64, images=0).works
    demo, gpus = architecture("demo"), parse_gpus("2x8GiB")
    small = {"context": 64}
    for said, wrong, right in (
        ("Put it on one that is there, or on the cpu.", {"given": {"": 2}}, {"given": {"": 1}}),
        ("Pin it to one that is there.", {"pin": {"head": 2}}, {"pin": {"head": 1}}),
        ("Name those that are there.", {"max_memory": {2: "1GiB"}}, {"max_memory": {1: "1GiB"}}),
    ):
        for options, is_wrong in ((wrong, True), (right, False)):
            given = options.pop("given", None)
            asked = PlacementOptions(**({} if given else small), **options)
            if is_wrong:
                with pytest.raises((DeviceMapError, OptionError), match=re.escape(said)):
                    decide(demo, asked, gpus, given)
            else:
                assert decide(demo, asked, gpus, given).device_map
    assert decide(demo, PlacementOptions(), gpus, {"": "cpu"}).device_map == {"": "cpu"}
    with pytest.raises(DeviceMapError, match=r"Name those that are there\."):
        plan(demo.shape(), gpus, Workload(64), order=[0, 2])
    assert plan(demo.shape(), gpus, Workload(64), order=[1, 0]).fullness <= 1


@takes("plan_of_other_gpus")
def test_a_plan_for_gpus_that_are_not_here(run, tmp_path):
    file = tmp_path / "plan.json"
    run(f"%glm4v plan {TINY} --gpus 2x1GiB --objective balance --save {file}")
    for gpus, there in (("cpu", "there is none"), ("1x1GiB", "there is GPU 0 only")):
        with VirtualGPUs(gpus) if gpus != "cpu" else nullcontext():
            run("%glm4v load demo --gpus cpu" if gpus == "cpu" else "%glm4v load demo")
            said = run(f"%glm4v load --map {file}", fails=True)
            assert f"The plan of {TINY} uses GPU " in said
            assert f", but {there}. To plan it for what is here, name the model and leave" in said
            (line,) = re.findall(r"(%glm4v load .*?)\. %glm4v check", said)
            run(line)
            status = run("%glm4v status")
            assert TINY in status
            assert ("cpu" in status) == (gpus == "cpu")
            with pytest.raises(DeviceMapError) as caught:
                Session().load(device_map=file)
            (call,) = re.findall(r"load\((.*?)\)\. A dry run", str(caught.value))
            session = eval(f"Session().load({call})", {"Session": Session})
            assert session.status().info.model == TINY
            session.unload()
    run(f"%glm4v check --map {file} --gpus 2x16GiB")
    assert dry_run(architecture(TINY), "2x16GiB", str(file)).works
    copied = shutil.copytree(TINY, tmp_path / "with blank")
    run(f'%glm4v plan "{copied}" --gpus 2x1GiB --dtype float32 --save {file}')
    said = run(f"%glm4v load --map {file}", fails=True)
    (line,) = re.findall(r"(%glm4v load .*?)\. %glm4v check", said)
    assert line == f'%glm4v load "{copied}" --dtype float32'
    run(line)


@takes("gpus_not_here", "gpu_is_smaller")
def test_gpus_that_are_not_here(monkeypatch):
    with VirtualGPUs("1x1GiB"):
        for description, said in (("4x1GiB", "sees only 1"), ("1x9GiB", "has 1.0 GiB, not")):
            with pytest.raises(GPUDescriptionError, match=said):
                Session().load(TINY, gpus=description)
            assert make_plan(NINE_B, PlacementOptions(gpus="4x16GiB")).fullness <= 1
        for options in ({}, {"gpus": "1x1GiB"}):  # left out, or described as it is
            session = Session().load(TINY, **options)
            assert session.status().info.devices == ("cuda:0",)
            session.unload()


@takes('Describe the GPUs, for example "2x24GiB".')
def test_a_gpu_that_does_not_tell_its_size_is_described(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(usable, "find_gpus", lambda: (FoundGPU(0, "GB10"),))
    with pytest.raises(PlacementError, match='for example "2x24GiB"'):
        usable.usable_gpus(None)
    assert usable.usable_gpus("1x24GiB")[0].total_bytes == 24 * GIB


@takes("quantised_already", "quantised_by_others", "float16_instead", "float16_overflows")
def test_what_cannot_be_quantised_is_placed_without(monkeypatch):
    gpus = parse_gpus("4xV100-32GiB")
    shape = NINE_B.shape()
    bare = tuple(replace(unit, linear=()) for unit in shape.units)
    of_others = replace(shape, scheme="bitsandbytes (8 bits)")
    for changed in (replace(shape, fp8=True), of_others, replace(shape, units=bare)):
        monkeypatch.setattr(type(NINE_B), "shape", lambda _, shape=changed: shape)
        with pytest.raises(OptionError, match=r"[Ll]eave (quantize|it) out") as caught:
            decide(NINE_B, PlacementOptions(quantize="4bit"), gpus)
        assert ("FP8" in str(caught.value)) == changed.fp8
        assert ("the original checkpoint" in str(caught.value)) == (changed is of_others)
        assert decide(NINE_B, PlacementOptions(), gpus).device_map
        monkeypatch.undo()
    chosen = decide(NINE_B, PlacementOptions(context=2048), gpus)
    told = ["float16_instead", "float16_overflows"]
    assert (chosen.dtype, [note.code for note in chosen.notes]) == ("float16", told)
    for dtype in ("bfloat16", "float32"):
        asked = decide(NINE_B, PlacementOptions(context=2048, dtype=dtype), gpus)
        assert (asked.dtype, asked.notes) == (dtype, ())


@takes("eight_bit_is_slow")
def test_four_bit_where_eight_bit_is_slow():
    def told(gpus: str, kind: str) -> list[str]:
        options = PlacementOptions(quantize=kind, context=2048)
        notes = decide(NINE_B, options, parse_gpus(gpus)).notes
        return [worded(note, CELL) for note in notes if note.code == "eight_bit_is_slow"]

    (line,) = told("2xV100-16GB", "8bit")
    assert "8-bit products are slow on V100: " in line
    assert "--quantize 4bit does without them" in line
    assert told("2xV100-16GB", "4bit") == told("2xT4", "8bit") == []


@takes("kernels_missing", "Make a plan for these GPUs.")
def test_weights_in_fp8_are_restored_where_they_cannot_stay(monkeypatch):
    shape = NINE_B.shape()
    units = tuple(replace(unit, fp8_values=unit.linear_values) for unit in shape.units)
    monkeypatch.setattr(
        type(NINE_B), "shape", lambda _: replace(shape, units=units, fp8=True, dtype="bfloat16")
    )
    monkeypatch.setattr(import_utils, "is_kernels_available", lambda: False)
    new, old = parse_gpus("2xH100-80GB"), parse_gpus("2xA100-80GB")
    with pytest.raises(
        OptionError, match=r'pip install "transformers\[kernels\]"; .* \(dtype="bfloat16"\)'
    ):
        decide(NINE_B, PlacementOptions(), new)
    assert not decide(NINE_B, PlacementOptions(dtype="bfloat16"), new).fp8
    kept = make_plan(NINE_B, PlacementOptions(), new)
    assert kept.workload.fp8
    with pytest.raises(DeviceMapError, match="Make a plan for these GPUs"):
        decide(NINE_B, PlacementOptions(), old, kept)
    assert not make_plan(NINE_B, PlacementOptions(dtype="bfloat16"), new).workload.fp8
    assert not decide(NINE_B, PlacementOptions(), old).fp8


@takes("Use 8bit, or a GPU.")
def test_eight_bit_where_four_bit_cannot_be():
    pytest.importorskip("bitsandbytes")
    with pytest.raises(OptionError, match=r"Use 8bit, or a GPU\."):
        Session().load(TINY, quantize="4bit")
    assert Session().load(TINY, quantize="8bit").status().info.quantize == "8bit"


@takes("not_of_a_server")
def test_what_goes_with_an_address(monkeypatch):
    address = "http://127.0.0.1:9/v1"
    with pytest.raises(OptionError, match="Only served_model and timeout go with an address"):
        Session().load(address, context=100)
    with pytest.raises(Glm4vError) as caught:  # nobody is there, which is another matter
        Session().load(address, served_model="m", timeout=1)
    assert not isinstance(caught.value, OptionError)


@takes(
    EXAMPLE,
    "Every weight needs one.",
    "Put the quantised layers on GPUs; the rest may be on the CPU.",
    "Leave one of them out.",
    "Give one number, or one for each GPU.",
    'Describe them: "2x24GiB".',
)
def test_maps_and_options_that_are_put_right(tmp_path):
    demo, gpus = architecture("demo"), parse_gpus("2x8GiB")
    text = "model.language_model"
    split = {"model.vision": 0, text: 1, "lm_head": 1}

    def refused(said: str, given: Any, **options: Any) -> None:
        with pytest.raises((DeviceMapError, OptionError), match=re.escape(said)):
            decide(demo, PlacementOptions(**options), gpus, given)

    refused(EXAMPLE, {})
    refused("Every weight needs one.", {"model.vision": 0})
    refused("Leave one of them out.", {"": 1, "lm_head": 0, "transformer.output_layer": 1})
    assert decide(demo, PlacementOptions(), gpus, {"": 1, "lm_head": 0}).device_map["lm_head"] == 0
    assert decide(demo, PlacementOptions(), gpus, split).device_map == split
    refused("Put the quantised layers on GPUs", {**split, text: "cpu"}, quantize="4bit")
    away = {**split, "model.vision": "cpu"}
    assert decide(demo, PlacementOptions(quantize="4bit"), gpus, away).device_map == away
    refused("Leave one of them out.", split, reserve=1)
    assert decide(demo, PlacementOptions(reserve=1), gpus).plan is not None
    assert decide(demo, PlacementOptions(context=64), gpus, split).device_map == split
    with pytest.raises(OptionError, match="Give one number, or one for each GPU"):
        make_plan(demo, PlacementOptions(max_memory=(1.0, 1.0, 1.0)), gpus)
    for sizes in (1.0, (1.0, 2.0)):
        assert make_plan(demo, PlacementOptions(max_memory=sizes), gpus).fullness <= 1
    with pytest.raises(OptionError, match='Describe them: "2x24GiB"'):
        make_plan(demo, PlacementOptions())
    assert make_plan(demo, PlacementOptions(gpus="2x24GiB")).fullness <= 1


@takes(
    "Leave it out, or make a new plan.",
    "Make a new plan.",
    "Make a plan for this one.",
    "Give its weights devices instead of files.",
)
def test_plans_and_indexes_that_are_put_right():
    demo, gpus = architecture("demo"), parse_gpus("2x8GiB")
    made = make_plan(demo, PlacementOptions(context=64), gpus)
    longer = PlacementOptions(context=128)
    with pytest.raises(OptionError, match=r"Leave it out, or make a new plan\."):
        decide(demo, longer, gpus, made)
    for options, given in ((PlacementOptions(), made), (longer, None)):
        assert decide(demo, options, gpus, given).plan is not None
    longest = replace(made, workload=replace(made.workload, context=10**6))
    with pytest.raises(DeviceMapError, match=r"longer than demo allows .*Make a new plan\."):
        decide(demo, PlacementOptions(), gpus, longest)
    again = make_plan(demo, PlacementOptions(context=64), gpus)
    assert decide(demo, PlacementOptions(), gpus, again).plan == made
    tiny = architecture(TINY)
    with pytest.raises(DeviceMapError, match=r"Make a plan for this one\."):
        decide(tiny, PlacementOptions(), gpus, made)
    assert decide(tiny, PlacementOptions(), gpus).plan is not None
    with pytest.raises(DeviceMapError, match=r"Give its weights devices instead of files\."):
        decide(demo, PlacementOptions(), gpus, {"weight_map": {"lm_head.weight": "a.safetensors"}})
    devices = dict.fromkeys(demo.module_tree().tensors, 0)
    assert set(decide(demo, PlacementOptions(), gpus, devices).device_map.values()) == {0}


@takes("{} holds {}.")
def test_the_modules_that_are_there_are_named():
    demo, gpus = architecture("demo"), parse_gpus("2x8GiB")
    with pytest.raises(DeviceMapError, match="The model holds ") as caught:
        decide(demo, PlacementOptions(), gpus, {"qqq": 0})
    names = caught.value.hint.removeprefix("The model holds ").rstrip(".").split(", ")
    given = dict.fromkeys(names, 0)
    assert decide(demo, PlacementOptions(), gpus, given).device_map == given


@takes("Leave it out.", "Give a larger one.")
def test_images_get_a_size_that_suits_the_model():
    gpus = parse_gpus("4x24GiB")
    with pytest.raises(OptionError, match=r"^image_size has no meaning .* Leave it out\."):
        make_plan(NINE_B, PlacementOptions(image_size=448), gpus)
    assert make_plan(NINE_B, PlacementOptions(), gpus).fullness <= 1
    newer = architecture("GLM-4.1V-9B-Thinking")
    with pytest.raises(OptionError, match=r"no image smaller than .* Give a larger one\."):
        make_plan(newer, PlacementOptions(image_size=28), gpus)
    assert make_plan(newer, PlacementOptions(image_size=448), gpus).fullness <= 1


@takes("Allow more, or use more GPUs.")
def test_more_host_memory_is_allowed():
    little = {0: "16GiB", "cpu": "1GiB"}
    with pytest.raises(DoesNotFitError, match=r"Allow more, or use more GPUs\."):
        make_plan(NINE_B, PlacementOptions(gpus="1x16GiB", offload=True, max_memory=little))
    for way in (
        {"gpus": "1x16GiB", "max_memory": {0: "16GiB", "cpu": "64GiB"}},
        {"gpus": "2x16GiB", "max_memory": {0: "16GiB", 1: "16GiB", "cpu": "1GiB"}},
    ):
        assert make_plan(NINE_B, PlacementOptions(offload=True, **way)).fullness <= 1


@takes(
    "Free memory on the GPUs, allow more of it, or lower the reserve.",
    "Install it with: pip install 'glm4v_magic[quantize]'",
    "Install a newer one with: pip install 'bitsandbytes>={}', and restart Python.",
)
def test_room_is_made(monkeypatch):
    full = [GPU(0, "GPU", 40 * GIB, GIB)]
    with pytest.raises(DoesNotFitError, match="Free memory on the GPUs, allow more of it"):
        plan(NINE_B.shape(), full, reserve=2 * GIB)
    allowed = PlacementOptions(gpus="1x40GiB", reserve=2.0, max_memory=1.0)
    with pytest.raises(DoesNotFitError, match="Free memory on the GPUs, allow more of it"):
        make_plan(NINE_B, allowed)
    assert make_plan(NINE_B, replace(allowed, max_memory=39.0)).fullness <= 1
    assert plan(NINE_B.shape(), [GPU(0, "GPU", 40 * GIB, 39 * GIB)], reserve=2 * GIB).fullness <= 1
    demo = architecture("demo").shape()
    assert plan(demo, full, reserve=0, workload=Workload(dtype="float32")).fullness <= 1
    eight = PlacementOptions(quantize="8bit")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.46.0")
    with pytest.raises(OptionError, match=r"or newer; 0\.46\.0 is installed") as caught:
        decide(architecture("demo"), eight, ())
    asked = re.search(r"'bitsandbytes>=(.+)'", caught.value.hint)[1]
    assert asked == BITSANDBYTES_MIN_VERSION
    monkeypatch.setattr(importlib.metadata, "version", lambda name: f"{asked}.dev1")
    assert decide(architecture("demo"), eight, ()).quantize == "8bit"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OptionError, match="pip install 'glm4v_magic"):
        decide(architecture("demo"), eight, ())
    text = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nquantize = ["bitsandbytes>={asked}"]\n' in text


@takes(
    'Write for example "4x16GiB", "24+16+12GiB", "2xT4", "24GiB@936GB/s" or "cpu".',
    'Describe them, as in "4x16GiB".',
    'Write for example "24GiB@936GB/s".',
)
def test_examples_of_gpus_are_read():
    with pytest.raises(GPUDescriptionError) as caught:
        parse_gpus("4x")
    examples = re.findall('"(.+?)"', str(caught.value))
    assert [len(parse_gpus(example)) for example in examples] == [4, 3, 2, 1, 0]
    with pytest.raises(GPUDescriptionError, match='Write for example "24GiB@936GB/s"'):
        parse_gpus("24GiB@0GB/s")
    assert len(parse_gpus("24GiB@936GB/s")) == 1
    with pytest.raises(OptionError, match='as in "4x16GiB"'):
        dry_run(architecture("demo"), ())
    assert dry_run(architecture("demo"), "1x16GiB", text_tokens=4).works


@takes('Did you mean "{}"?', 'Leave the size out, or the name: "{}{}{}".')
def test_what_is_written_instead_of_a_description_is_read():
    wanted = {
        "2 T4": 2,
        "RTX 3090 x 2": 2,
        "2xT4-64GB": 2,
        "RTX 3090-24": 1,
        "2xRTX-4090-Laptop": 2,
        "2xGTX-1080": 2,
        "4090 Laptop": 1,
    }
    for description, count in wanted.items():
        with pytest.raises(GPUDescriptionError) as caught:
            parse_gpus(description)
        (instead,) = re.findall('"(.+?)"', caught.value.hint)
        assert len(parse_gpus(instead)) == count
    assert len(parse_gpus("2xT4")) == 2


@takes(
    "Use {}more or larger GPUs, or a shorter context.",
    "Use {}more or larger GPUs: the weights alone are larger.",
)
def test_what_a_dry_run_refuses():
    tiny = architecture(TINY)
    report = dry_run(tiny, parse_gpus("1x1MiB"), {"": 0})
    with pytest.raises(DoesNotFitError, match="larger GPUs: the weights alone are larger"):
        raise_if_unusable(report)
    raise_if_unusable(dry_run(tiny, "1x1GiB", {"": 0}))
    small = parse_gpus("1x261MiB")
    report = dry_run(tiny, small, {"": 0})
    with pytest.raises(DoesNotFitError, match="Use a plan of ours, more or larger GPUs, or a"):
        raise_if_unusable(report)
    more = plan(tiny.shape(), parse_gpus("4x262MiB"), objective="balance", reserve=0)
    for gpus, options in (("1x1GiB", {}), ("4x262MiB", {"device_map": more})):
        raise_if_unusable(dry_run(tiny, gpus, **options))


# The doctor.


@takes("describe_gpus", "describe_gpus_with_size", "demo_or_describe_gpus", "ask_the_hub")
@pytest.mark.parametrize(
    "code", ["describe_gpus", "describe_gpus_with_size", "demo_or_describe_gpus", "ask_the_hub"]
)
def test_the_doctor_is_asked_again(code, plain_shell):
    plain_shell.run_line_magic("load_ext", "glm4v_magic")
    text = worded(Remark(code), CELL)
    (line,) = re.findall(r"%(glm4v doctor [^,.]*[\w])", text)
    done = plain_shell.run_cell(f"%{line}")
    assert done.success
    (call,) = re.findall(r"gather\(.*?\)(?:\))?", worded(Remark(code), PYTHON))
    facts = eval(call, {"gather": gather, "parse_gpus": parse_gpus})
    assert diagnose(facts)


@takes("fewer_hops")
def test_fewer_gpus_have_fewer_hops():
    (words,) = re.findall(r"--objective \w+", worded(Remark("fewer_hops"), CELL))
    few = make_plan(NINE_B, PlacementOptions(gpus="8x16GiB", **options_of(shlex.split(words))))
    assert few.hops < make_plan(NINE_B, PlacementOptions(gpus="8x16GiB")).hops


# Questions, as far as a loaded model's options are named.


@takes("leave_thinking_out", "no_thinking_to_limit", "no_such_effort", "answer_cut_off")
def test_options_that_the_model_does_not_have_are_left_out():
    session = Session().load("demo")
    for options, said in (
        ({"thinking": True}, "Leave thinking out"),
        ({"max_thinking": 3}, "Leave max_thinking out"),
        ({"effort": "low"}, "Leave effort out"),
    ):
        with pytest.raises(Glm4vError, match=said):
            session.ask("What?", **options)
    assert session.ask("What?", max_tokens=2).usage.new_tokens <= 2
    image = Image.new("RGB", (56, 56))
    with pytest.raises(FormatError, match=r"allow more \(max_tokens\)"):
        session.ask("Colours?", images=[image], format="json", max_tokens=2)
    assert session.ask("What?", images=[image], max_tokens=64).text


# The guards.


def codes() -> set[str]:
    return {*COMMON, *PYTHON.templates, *CELL.templates, *HTTP.templates}


@takes("faster_split", "speeds_unknown")
def test_the_faster_split_is_had_by_its_objective_and_speeds_by_telling_them():
    def noted(gpus, **options):
        made = make_plan(NINE_B, PlacementOptions(gpus=gpus, context=2048, **options))
        return made, {note.code: worded(note, PYTHON) for note in made.notes}

    gpus = "24GiB@936GB/s+24GiB@300GB/s"
    made, notes = noted(gpus)
    assert 'objective="fastest"' in notes["faster_split"]
    faster, notes = noted(gpus, objective="fastest")
    assert not {"faster_split", "speeds_unknown"} & notes.keys()
    assert faster.speed.tokens_per_second > made.speed.tokens_per_second
    _, notes = noted("24GiB+24GiB@300GB/s", objective="fastest")
    assert "24GiB@936GB/s would tell it" in notes["speeds_unknown"]


def test_every_code_is_taken_or_has_its_place():
    placed = TAKEN | ELSEWHERE.keys() | FACTS | FRAMES
    assert codes() - placed == set(), "advice without a test that takes it"
    assert (ELSEWHERE.keys() | FACTS | FRAMES) <= codes()
    assert not TAKEN & (ELSEWHERE.keys() | FACTS | FRAMES)


@pytest.mark.parametrize("code", sorted(FACTS))
def test_what_is_no_advice_names_nothing_that_could_be_typed(code):
    for words in (CELL, PYTHON, HTTP):
        template = words.templates.get(code) or COMMON[code]
        assert not re.search(r"option:|%glm4v|--\w|session\.|\w+=\w", template)


def words_of(text: str) -> str:
    """Return the words of a text alone, also of a regular expression, one space between them."""
    return " ".join(re.findall(r"[\w']+|--[\w-]+", text.replace("\\", ""))).lower()


def runs(text: str) -> set[str]:
    """Return every four words in a row of a sentence, or a shorter part between values."""
    found = set()
    for part in re.split(r"\{[^}]*\}", text):
        words = words_of(part).split()
        some = min(len(words), 4)
        found |= {" ".join(words[n : n + some]) for n in range(len(words) - some + 1) if some > 1}
    return found


def quoted_in(test: str) -> str:
    """Return all text of a test, of its decorators and of the tables and texts that these name."""
    file, _, name = test.partition("::")
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    found = [each for each in ast.walk(tree) if getattr(each, "name", "") == name]
    tables = [each for each in tree.body if isinstance(each, ast.Assign | ast.AnnAssign)]
    for part in found:  # which grows
        names = {getattr(each, "id", "") for each in ast.walk(part)}
        for each in tables:
            targets = each.targets if isinstance(each, ast.Assign) else [each.target]
            if each not in found and names & {getattr(one, "id", None) for one in targets}:
                found.append(each)
    texts = [
        each.value
        for part in found
        for each in ast.walk(part)
        if isinstance(each, ast.Constant) and isinstance(each.value, str)
    ]
    return " ".join(texts)


def sentences_of(code: str) -> list[str]:
    tables = (COMMON, PYTHON.templates, CELL.templates, HTTP.templates)
    return [table[code] for table in tables if code in table]


def is_taken_in(advice: str, test: str) -> bool:
    """Tell whether a test holds a code, or four words in a row of the sentence."""
    quoted = quoted_in(test)
    said = sentences_of(advice) or [advice]
    return advice in quoted.split() or any(
        run in words_of(quoted) for sentence in said for run in runs(sentence)
    )


ELSEWHERE_AND_OTHERS = {**ELSEWHERE, **SENTENCES_OF_OTHERS}


@pytest.mark.parametrize("advice", ELSEWHERE_AND_OTHERS)
def test_the_tests_elsewhere_hold_what_they_take(advice):
    assert is_taken_in(advice, ELSEWHERE_AND_OTHERS[advice])


def test_a_test_that_is_not_there_or_about_something_else_takes_nothing():
    here = "project/test_advice.py::"
    assert is_taken_in("more_gpus", f"{here}test_more_gpus_or_a_plan_instead_of_a_map")
    assert not is_taken_in("more_gpus", f"{here}test_what_a_dry_run_refuses_not")
    assert not is_taken_in("Describe fewer GPUs (--gpus).", f"{here}test_less_is_kept")


def test_what_others_take_is_said():
    """That all that is said is taken, and the reverse, is seen in `test_advice_elsewhere`."""
    assert SENTENCES_OF_OTHERS.keys() <= {text for _, text in hints()}
