"""Whatever a generation_config.json says: answers end, and what is left out is told."""

from __future__ import annotations

import json
import logging
import shutil

import golden
import pytest
import torch
from any_json import ANY_JSON
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import GenerationConfig

from glm4v_magic.checkpoints import resolve
from glm4v_magic.core.constraint import Constraint
from glm4v_magic.core.conversation import Request
from glm4v_magic.core.events import Finished
from glm4v_magic.core.options import Sampling
from glm4v_magic.engines import local
from glm4v_magic.engines.sampling import TokenSampler, call_config, checkpoint_config

ENDS = (3, 5)
NUMBERS = st.one_of(
    st.floats(),
    st.integers(),
    st.sampled_from([0, -1, -0.5, 1e-300, 5e-324, 1e300, 10**400, -(10**400), 2**63, True, False]),
)
ANY_SETTINGS = st.dictionaries(
    st.one_of(st.sampled_from(sorted(vars(GenerationConfig()))), st.text(min_size=1)),
    st.one_of(NUMBERS, ANY_JSON),
)
SAMPLING = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff",
    "repetition_penalty", "no_repeat_ngram_size",
)  # fmt: skip
SAMPLED = st.fixed_dictionaries(
    {"do_sample": st.just(True)}, optional=dict.fromkeys(SAMPLING, NUMBERS)
)

# Each of them was met in a checkpoint that people share, or is a typing error away from one.
ODD = [
    {"num_beams": 4},
    {"num_return_sequences": 2},
    {"max_time": 0.0},
    {"top_k": -1, "do_sample": True},
    {"top_k": 0, "do_sample": True},
    {"temperature": 0.0, "do_sample": True},
    {"temperature": False, "do_sample": True},
    {"temperature": 1e-300, "do_sample": True},
    {"stop_strings": ["a"]},
    {"guidance_scale": 3.0},
    {"penalty_alpha": 0.6, "top_k": 4},
    {"max_length": 1},
    {"max_new_tokens": 0},
    {"min_length": 10**6},
    {"min_new_tokens": 10**6},
    {"bad_words_ids": [[1]]},
    {"suppress_tokens": list(range(100))},
    {"begin_suppress_tokens": [1, 2]},
    {"forced_eos_token_id": 3},
    {"forced_bos_token_id": 3},
    {"eos_token_id": None},
    {"eos_token_id": 7},
    {"eos_token_id": [7, 10**30]},
    {"pad_token_id": "x"},
    {"repetition_penalty": 0},
    {"repetition_penalty": -1.5},
    {"repetition_penalty": 1e300, "do_sample": True},
    {"repetition_penalty": 1e-300, "do_sample": True},
    {"repetition_penalty": float("nan")},
    {"top_p": float("nan"), "do_sample": True},
    {"temperature": float("inf"), "do_sample": True},
    {"top_k": 10**400, "do_sample": True},
    {"exponential_decay_length_penalty": [1, 2.0]},
    {"watermarking_config": {"greenlist_ratio": 1}},
    {"prompt_lookup_num_tokens": 3},
    {"cache_implementation": "quantized"},
    {"use_cache": False},
    {"return_dict_in_generate": True, "output_scores": True},
    {"generate": 1, "to_dict": [2]},
    {"temperature": 2, "repetition_penalty": 2, "do_sample": True},
    {},
]  # fmt: skip
SILENT = {"max_length", "max_new_tokens", "use_cache", "return_dict_in_generate", "output_scores"}


def published(settings):
    config = GenerationConfig()
    vars(config).update(settings)
    return config


def checkpoint_with(folder, text):
    shutil.copytree(golden.CHECKPOINT, folder, dirs_exist_ok=True)
    (folder / "generation_config.json").write_text(text, encoding="utf-8")
    return resolve(folder)


def answer(engine, sampling, constraint=None):
    requests = [Request(golden.conversation("image_text"), sampling, constraint)]
    (found,) = [event for event in engine.stream(requests) if isinstance(event, Finished)]
    return found.generation


@given(st.one_of(ANY_SETTINGS, SAMPLED))
@example({"\n": 0.0})
def test_any_settings(settings):
    config, left_out = checkpoint_config(published(settings), ENDS, 12)
    assert set(ENDS) <= set(config.eos_token_id)
    assert all("\n" not in note and len(note) <= 100 for note in left_out)
    chosen = call_config(config, Sampling(8), room=20)
    sampler = TokenSampler(chosen, 1 if chosen.do_sample else None, "cpu")
    generator = torch.Generator().manual_seed(2)
    ids = torch.tensor([[0, 1, 2, 1]])
    scores = torch.randn(1, 12, generator=generator)
    scores[0, 1] = 0.0
    assert 0 <= sampler.choose(ids, scores) < 12


@pytest.mark.parametrize("settings", ODD, ids=str)
def test_odd_settings_answer_and_are_named_once(tmp_path, caplog, settings):
    checkpoint = checkpoint_with(tmp_path, json.dumps(settings))
    with caplog.at_level(logging.WARNING, logger="glm4v_magic"):
        engine = local.load(checkpoint)
        generation = answer(engine, Sampling(6, seed=1))
        answer(engine, Sampling(6, seed=1))
    assert generation.text
    assert generation.usage.new_tokens <= 6
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == bool(engine.info.notes)
    assert all(note in said[0] and str(tmp_path) in said[0] for note in engine.info.notes)
    odd = {name for name in settings if any(f" {name}=" in note for note in engine.info.notes)}
    used = {*vars(engine.defaults), *SILENT}
    assert settings.keys() - odd <= used


@pytest.mark.parametrize("text", ["{", "[]", "[1]", "null", "", "\ud800", "[" * 10**5, '{"a": NaN'])
def test_a_file_that_is_no_generation_config_is_left_out_and_named_once(tmp_path, caplog, text):
    shutil.copytree(golden.CHECKPOINT, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "generation_config.json"
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    with caplog.at_level(logging.WARNING, logger="glm4v_magic"):
        engine = local.load(resolve(tmp_path))
        found = answer(engine, Sampling(64, temperature=0))
    (note,) = engine.info.notes
    assert note.startswith("generation_config.json ")
    assert note.endswith(", and is left out")
    assert len(note) < 200
    (said,) = [record.getMessage() for record in caplog.records]
    assert note in said
    assert "\n" not in said
    file.unlink()
    without = local.load(resolve(tmp_path))
    assert without.info.notes == ()
    assert found.text == answer(without, Sampling(64, temperature=0)).text


@pytest.mark.parametrize("ids", ["x", -1, 10**30, 1.5, True, {"a": 1}, [5, "x"], [5, -1], [[5]]])
def test_stop_tokens_that_are_no_ids_are_left_out_and_named(tmp_path, ids):
    engine = local.load(checkpoint_with(tmp_path, json.dumps({"eos_token_id": ids})))
    assert engine.info.notes == (
        f"generation_config.json has eos_token_id={ids!r}, which is left out",
    )
    named = {5} if isinstance(ids, list) and 5 in ids else set()
    assert set(engine.defaults.eos_token_id) == {*engine.processor.end_token_ids, *named}
    # Both read the logits of all stop tokens.
    for form in (Constraint(choices=("yes", "no")), Constraint(regex="[a-c]{2}")):
        assert answer(engine, Sampling(8), form).finish_reason == "stop"


def test_a_form_counts_more_than_what_may_not_be_repeated(tmp_path):
    settings = {"no_repeat_ngram_size": 1, "do_sample": True}
    engine = local.load(checkpoint_with(tmp_path, json.dumps(settings)))
    for sampling in (Sampling(8, seed=1), Sampling(8, temperature=0)):
        found = answer(engine, sampling, Constraint(regex="aaa"))
        assert (found.text, found.finish_reason) == ("aaa", "stop")


def test_false_is_no_temperature():
    settings = {"do_sample": True, "temperature": False}
    config, left_out = checkpoint_config(published(settings), ENDS, 12)
    assert config.do_sample
    assert left_out == ("temperature=False",)


def test_a_penalty_that_no_float32_holds_is_left_out():
    assert checkpoint_config(published({"repetition_penalty": 1e-300}), ENDS, 12)[1]
    assert checkpoint_config(published({"repetition_penalty": 1.2}), ENDS, 12)[1] == ()
