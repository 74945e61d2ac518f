"""The on-disk patcher: `visual.py` and `modeling_chatglm.py` of a checkpoint folder."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from standins import eva2clip_splits as splits

from glm4v_magic.checkpoints import resolve
from glm4v_magic.core.errors import CheckpointError
from glm4v_magic.remote_code import patch as command
from glm4v_magic.remote_code.source_patch import plan_patch, write_patch
from glm4v_magic.remote_code.source_sites import edit_modeling, edit_visual
from glm4v_magic.virtual_gpus import MixedDeviceError, VirtualGPUs

VISUAL = (splits.FOLDER / "visual.py").read_bytes()
MODELING = (splits.FOLDER / "modeling_chatglm.py").read_bytes()
CHANGES = {
    "torch.cat((first, patches)": "torch.cat((first.to(patches.device), patches)",
    "weight.unsqueeze(0)  #": "weight.unsqueeze(0).to(patches.device)  #",
    "tokens + seen": "tokens.to(seen.device) + seen",
    "middle + thought": "middle.to(thought.device) + thought",
    "self.act2(self.gate_proj(features)) *": "(gate := self.act2(self.gate_proj(features))) *",
    "* self.dense_h_to_4h(features)": "* self.dense_h_to_4h(features).to(gate.device)",
    "(start, features, end)": "(start.to(features.device), features, end.to(features.device))",
}
MODELING_CHANGES = {
    "pictures[row],": "pictures[row].to(words.device),",
    "rotary[position_ids]": "rotary[position_ids.to(rotary.device)]",
    "padding_mask.unsqueeze(1)": "padding_mask.unsqueeze(1).to(full_mask.device)",
    "padding_mask.unsqueeze(-1) - 1": "(padding_mask.unsqueeze(-1) - 1).to(full_mask.device)",
    "carried + middle": "carried.to(middle.device) + middle",
    "carried + output": "carried.to(output.device) + output",
    "emb(query, rotary_pos_emb)": "emb(query, rotary_pos_emb.to(query.device))",
    "emb(key, rotary_pos_emb)": "emb(key, rotary_pos_emb.to(key.device))",
    "(past_key, key)": "(past_key.to(key.device), key)",
    "(past_value, value)": "(past_value.to(value.device), value)",
    "query, key, value, attention_mask)\n        return self.dense": (
        "query, key, value, attention_mask if attention_mask is None else "
        "attention_mask.to(query.device))\n        return self.dense"
    ),
}


def replaced(source: bytes, changes: dict[str, str]) -> bytes:
    for old, new in changes.items():
        assert source.count(old.encode()) == 1, old
        source = source.replace(old.encode(), new.encode())
    return source


@pytest.fixture
def folder(tmp_path):
    for name, source in (("visual.py", VISUAL), ("modeling_chatglm.py", MODELING)):
        (tmp_path / name).write_bytes(source)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def patched(folder: Path) -> Path:
    write_patch(plan_patch(folder))
    return folder


def test_only_the_expressions_change():
    assert edit_visual(VISUAL).source == replaced(VISUAL, CHANGES)
    assert edit_modeling(MODELING).source == replaced(MODELING, MODELING_CHANGES)


def test_every_site_is_named_with_its_line():
    visual = VISUAL.decode().splitlines()
    sites = edit_visual(VISUAL).sites
    assert [(site.where.partition(".")[0], site.consistent) for site in sites] == [
        ("PatchEmbedding", False),
        ("PatchEmbedding", False),
        ("TransformerLayer", False),
        ("TransformerLayer", False),
        ("GLU", False),
        ("EVA2CLIPModel", False),
    ]
    assert "tokens + seen" in visual[sites[2].line - 1]
    sites = edit_modeling(MODELING).sites
    assert [(site.where, site.what) for site in sites] == [
        ("ChatGLMModel.forward", "image features between the word embeddings"),
        ("ChatGLMModel.forward", "rotary embedding looked up at the positions"),
        *[("ChatGLMPreTrainedModel.get_masks", "padding mask in the full mask")] * 2,
        ("GLMBlock.forward", "residual add after the attention"),
        ("GLMBlock.forward", "residual add after the MLP"),
        *[("SelfAttention.forward", "rotary embedding applied to query and key")] * 2,
        *[("SelfAttention.forward", "cache before the new keys and values")] * 2,
        ("SelfAttention.forward", "mask of the attention"),
    ]


@pytest.mark.parametrize(
    "written",
    [
        pytest.param(lambda s: s.replace(b"\n", b"\r\n"), id="CRLF"),
        pytest.param(lambda s: s.replace(b"\n", b"\r\n", 40), id="mixed line ends"),
        pytest.param(lambda s: s.replace(b"    ", b"\t"), id="tabs"),
        pytest.param(lambda s: s.rstrip(b"\n"), id="no newline at the end"),
        pytest.param(lambda s: b"\xef\xbb\xbf" + s, id="byte order mark"),
        pytest.param(lambda s: "# 视觉模型\n".encode() + s, id="utf-8"),
        pytest.param(lambda s: b"# coding: latin-1\n# \xe9\xff\n" + s, id="latin-1"),
        pytest.param(lambda s: "# coding: gbk\n# 视觉\n".encode("gbk") + s, id="gbk"),
        pytest.param(lambda s: s.replace(b"\n\n\n", b"\n\x0c\n  \n", 3), id="form feeds"),
    ],
)
def test_formatting_and_encoding_stay(written):
    source = written(VISUAL)
    edited = edit_visual(source).source
    assert edited == written(replaced(VISUAL, CHANGES))
    assert edit_visual(edited).source == edited


def test_a_second_edit_finds_everything_consistent():
    for edit, source in ((edit_visual, VISUAL), (edit_modeling, MODELING)):
        once = edit(source)
        twice = edit(once.source)
        assert twice.source == once.source
        assert all(site.consistent for site in twice.sites)
        assert [site.what for site in twice.sites] == [site.what for site in once.sites]


CONSISTENT_FORMS = {
    "residual, as published": (
        "residual add after the MLP",
        {
            "self.post_attention_layernorm(self.mlp(middle))": (
                "self.post_attention_layernorm(self.mlp(middle)).to(middle.device)"
            )
        },
    ),
    "residual, in the sum": (
        "residual add after the attention",
        {"tokens + seen": "tokens + seen.to(tokens.device)"},
    ),
    "residual, through an alias": (
        "residual add after the MLP",
        {
            "thought = self.post": "stream = middle\n        thought = self.post",
            "(self.mlp(middle))": "(self.mlp(stream)).to(device=stream.device)",
            "return middle + thought": "middle = stream\n        return middle + thought",
        },
    ),
    "residual, as a statement": (
        "residual add after the MLP",
        {
            "return middle + thought": (
                "thought = thought.to(middle.device, non_blocking=True)\n"
                "        return middle + thought"
            )
        },
    ),
    "boi and eoi, as published": (
        "boi and eoi around the image features",
        {
            "self.boi.expand(len(features), -1, -1)": (
                "self.boi.expand(len(features), -1, -1).to(features.device)"
            ),
            "self.eoi.expand(len(features), -1, -1)": (
                "self.eoi.expand(len(features), -1, -1).to(features.device)"
            ),
        },
    ),
    "boi and eoi, before the expansion": (
        "boi and eoi around the image features",
        {
            "self.boi.expand(": "self.boi.to(features.device).expand(",
            "self.eoi.expand(": "self.eoi.to(features.device).expand(",
        },
    ),
    "product, by the weight": (
        "product of gate_proj and dense_h_to_4h",
        {
            "* self.dense_h_to_4h(features)": "* self.dense_h_to_4h(features).to("
            "self.gate_proj.weight.device)"
        },
    ),
    "product, by variables": (
        "product of gate_proj and dense_h_to_4h",
        {
            "product = self.act2(self.gate_proj(features)) * self.dense_h_to_4h(features)": (
                "gate = self.act2(self.gate_proj(features))\n"
                "        up = self.dense_h_to_4h(features).to(gate.device)\n"
                "        product = gate * up"
            )
        },
    ),
    "position embedding, out of place": (
        "position embedding added to the patches",
        {
            "patches += self.position_embedding.weight.unsqueeze(0)": (
                "patches = patches + self.position_embedding.weight.to(patches.device).unsqueeze(0)"
            )
        },
    ),
}
MODELING_FORMS = {
    "splice, as published": (
        "image features between the word embeddings",
        {"pictures[row]": "pictures[row].to(words.device)"},
    ),
    "splice, at the tower": (
        "image features between the word embeddings",
        {"self.vision(images)": "self.vision(images).to(words.device)"},
    ),
    "rotary embedding, to the positions": (
        "rotary embedding looked up at the positions",
        {"rotary[position_ids]": "rotary.to(position_ids.device)[position_ids]"},
    ),
}


@pytest.mark.parametrize(
    ("edit", "source", "site", "changes"),
    [pytest.param(edit_visual, VISUAL, *form, id=name) for name, form in CONSISTENT_FORMS.items()]
    + [
        pytest.param(edit_modeling, MODELING, *form, id=name)
        for name, form in MODELING_FORMS.items()
    ],
)
def test_a_form_that_is_consistent_is_left_alone(edit, source, site, changes):
    revised = replaced(source, changes)
    result = edit(revised)
    assert [found.what for found in result.sites if found.consistent] == [site]
    for new in changes.values():
        assert new.encode() in result.source
    assert result.source != revised  # the other places still need it


@pytest.mark.parametrize(
    ("changes", "edited"),
    [
        (
            {"        middle = tokens + seen": "        middle = tokens\n        middle += seen"},
            "middle += seen.to(middle.device)",
        ),
        (
            {
                "        seen = self.input_layernorm(self.attention(tokens))\n": "",
                "middle = tokens + seen": (
                    "tokens = tokens + self.input_layernorm(self.attention(tokens))"
                ),
                "        thought = self.post_attention_layernorm(self.mlp(middle))\n": "",
                "middle + thought": "tokens + self.post_attention_layernorm(self.mlp(tokens))",
            },
            "tokens + self.post_attention_layernorm(self.mlp(tokens)).to(tokens.device)",
        ),
        (
            {
                "patches += self.position_embedding.weight.unsqueeze(0)": (
                    "rows = self.position_embedding.weight.unsqueeze(0)\n"
                    "        patches = patches + rows"
                )
            },
            "patches = patches + rows.to(patches.device)",
        ),
    ],
    ids=["sum in place", "sums in one variable", "position embedding in a variable"],
)
def test_other_ways_to_write_a_sum_are_understood(changes, edited):
    revised = replaced(VISUAL, changes)
    result = edit_visual(revised)
    assert edited.encode() in result.source
    assert len(result.sites) == 6
    assert not any(site.consistent for site in result.sites)
    assert all(site.consistent for site in edit_visual(result.source).sites)


def test_a_folder_with_all_published_corrections_needs_the_remaining_ones_only():
    published = ("residual, as published", "boi and eoi, as published")
    revised = VISUAL
    for name in published:
        revised = replaced(revised, CONSISTENT_FORMS[name][1])
    states = {site.what: site.consistent for site in edit_visual(revised).sites}
    assert states == {
        "class token before the patches": False,
        "position embedding added to the patches": False,
        "residual add after the attention": False,
        "residual add after the MLP": True,
        "product of gate_proj and dense_h_to_4h": False,
        "boi and eoi around the image features": True,
    }


def test_half_of_boi_and_eoi_is_completed():
    revised = replaced(VISUAL, {"self.boi.expand(": "self.boi.to(features.device).expand("})
    assert b"(start, features, end.to(features.device))" in edit_visual(revised).source


def test_a_move_to_a_variable_that_is_assigned_again_does_not_count():
    revised = replaced(
        VISUAL,
        {
            "features = self.linear_proj(features": (
                "start = self.boi.expand(len(features), -1, -1).to(features.device)\n"
                "        features = self.linear_proj(features"
            ),
            "        start = self.boi.expand(len(features), -1, -1)\n": "",
        },
    )
    assert b"(start.to(features.device), features" in edit_visual(revised).source


@pytest.mark.parametrize(
    "before",
    ["if self.training:\n            ", "for _ in ():\n            ", "while False:\n            "],
)
def test_a_move_that_may_be_skipped_does_not_count(before):
    moved = f"        {before}thought = thought.to(middle.device)\n"
    revised = replaced(
        VISUAL, {"        return middle + thought": f"{moved}        return middle + thought"}
    )
    assert b"return middle.to(thought.device) + thought" in edit_visual(revised).source
    always = revised.replace(before.encode(), b"")
    assert b"return middle + thought" in edit_visual(always).source


MOVED_ON = {
    "to a device": "seen.to(tokens.device).to('cuda:0')",
    "to a device by keyword": "seen.to(tokens.device).to(device='cuda:0')",
    "to a device and a type": "seen.to(tokens.device).to('cuda:0', tokens.dtype)",
    "to a variable": "seen.to(tokens.device).to(home)",
    "cuda": "seen.to(tokens.device).cuda()",
    "cuda, not blocking": "seen.to(tokens.device).cuda(non_blocking=True)",
    "cpu": "seen.to(tokens.device).cpu()",
    "type": "seen.to(tokens.device).type('torch.cuda.FloatTensor')",
    "type of another": "seen.to(tokens.device).type_as(self.scale)",
    "to another": "seen.to(tokens.device).to(self.scale)",
    "with more between": "seen.to(tokens.device)[:].contiguous().cuda().float()",
    "in two statements": "seen.to(tokens.device)\n        seen = seen.cuda()",
    "perhaps": "seen.to(tokens.device)\n        if home:\n            seen = seen.cuda()",
    "with the variable": "seen.to(tokens.device)\n        tokens = tokens.cuda()",
    "under another name": "seen.to(tokens.device)\n        seen = (moved := seen).cuda()",
}


@pytest.mark.parametrize("last", MOVED_ON.values(), ids=MOVED_ON)
def test_a_move_that_another_one_undoes_does_not_count(last):
    revised = replaced(
        VISUAL, {"middle = tokens + seen": f"seen = {last}\n{' ' * 8}middle = tokens + seen"}
    )
    result = edit_visual(revised)
    assert not any(site.consistent for site in result.sites)
    assert b"middle = tokens.to(seen.device) + seen" in result.source
    assert all(site.consistent for site in edit_visual(result.source).sites)


@pytest.mark.parametrize(
    "then",
    ["", ".to(tokens.dtype)", ".to(torch.float32)", ".to(dtype=tokens.dtype, copy=True)", ".half()",
     ".type(torch.bfloat16)", "[:].contiguous()"],
)  # fmt: skip
@pytest.mark.parametrize("first", ["", ".cuda()", ".to('cpu')"])
def test_the_last_move_counts(first, then):
    moved = f"middle = tokens + seen{first}.to(tokens.device){then}"
    result = edit_visual(replaced(VISUAL, {"middle = tokens + seen": moved}))
    states = {site.what: site.consistent for site in result.sites}
    assert states["residual add after the attention"]
    assert moved.encode() in result.source


def test_a_copy_of_a_variable_that_moved_since_is_not_where_it_is():
    before = (
        "stream = tokens\n        tokens = tokens.cuda()\n        seen = seen.to(tokens.device)"
    )
    revised = replaced(
        VISUAL, {"middle = tokens + seen": f"{before}\n        middle = stream + seen"}
    )
    result = edit_visual(revised)
    assert not any(site.consistent for site in result.sites)
    assert b"middle = stream.to(seen.device) + seen" in result.source


@pytest.mark.parametrize(
    ("site", "changes", "edited"),
    [
        (
            "residual add after the MLP",
            {"middle + thought": "middle.to(self.mlp.fc1.weight.device) + thought"},
            "middle.to(self.mlp.fc1.weight.device).to(thought.device) + thought",
        ),
        (
            "residual add after the attention",
            {"tokens + seen": "tokens.to(self.attention.weight.device) + seen"},
            "tokens.to(self.attention.weight.device).to(seen.device) + seen",
        ),
        (
            "product of gate_proj and dense_h_to_4h",
            {
                "self.act2(self.gate_proj(features)) * self.dense_h_to_4h(features)": (
                    "self.act2(self.gate_proj(features).cuda()) * "
                    "self.dense_h_to_4h(features).to(self.gate_proj.weight.device)"
                )
            },
            ".to(self.gate_proj.weight.device).to(gate.device)",
        ),
    ],
    ids=["a layer within", "a layer before", "a layer's output moved on"],
)
def test_a_move_to_a_weight_counts_where_the_other_operand_is_of_it(site, changes, edited):
    result = edit_visual(replaced(VISUAL, changes))
    states = {found.what: found.consistent for found in result.sites}
    assert not states[site]
    assert edited.encode() in result.source


def test_a_move_of_the_type_only_does_not_count():
    revised = replaced(VISUAL, {"tokens + seen": "tokens + seen.to(tokens.dtype)"})
    result = edit_visual(revised)
    assert not any(site.consistent for site in result.sites)
    assert b"tokens + seen.to(tokens.dtype).to(tokens.device)" in result.source


def test_a_name_in_use_is_not_taken():
    revised = replaced(
        VISUAL, {"features = self.act1(": "gate = features\n        features = self.act1("}
    )
    assert b"(gate_ := self.act2(" in edit_visual(revised).source


def test_factors_in_variables_need_no_new_name():
    form = CONSISTENT_FORMS["product, by variables"][1]
    revised = replaced(VISUAL, form).replace(b".to(gate.device)", b"")
    assert b"gate * up.to(gate.device)" in edit_visual(revised).source


UNKNOWN = {
    "no residual": {"tokens + seen": "torch.add(tokens, seen)"},
    "a residual of two expressions": {"middle + thought": "(middle * 1) + (thought * 1)"},
    "no product": {
        "self.act2(self.gate_proj(features)) * self": "self.act2(self.gate_proj(features)) @ self"
    },
    "another cat": {"torch.cat((start, features, end)": "torch.hstack((start, features, end)"},
    "boi around an expression": {"(start, features, end)": "(start, features * 1, end)"},
    "no position embedding": {
        "patches += self.position_embedding.weight.unsqueeze(0)": "patches += self.position()"
    },
    "the same residual twice": {"tokens + seen": "tokens + seen\n        middle = middle + seen"},
}


@pytest.mark.parametrize("changes", UNKNOWN.values(), ids=UNKNOWN.keys())
def test_unknown_code_is_refused_and_nothing_changes(folder, changes):
    (folder / "visual.py").write_bytes(replaced(VISUAL, changes))
    before = contents(folder)
    with pytest.raises(CheckpointError, match="nothing was changed") as caught:
        patched(folder)
    assert "\n" not in str(caught.value)
    assert str(folder / "visual.py") in str(caught.value)
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("class GLU(", "class Gated(", "no class GLU"),
        ("class MLP(", "class GLU(", "more than one class GLU"),
        (
            "class GLU(nn.Module):",
            "class GLU(nn.Module):\n    def forward(self):\n        pass\n",
            "no single forward method in class GLU",
        ),
    ],
)
def test_a_class_that_is_not_there_once_is_told(old, new, message):
    with pytest.raises(CheckpointError, match=f"visual.py has {message}; nothing was changed"):
        edit_visual(replaced(VISUAL, {old: new}))


@pytest.mark.parametrize(
    "changes",
    [
        {"torch.cat((words[row, :at], pictures": "torch.cat((other[row, :at], pictures"},
        {"rotary[position_ids]": "rotary.index_select(0, position_ids[0])"},
        {"self.vision(images)": "vision(images)"},
    ],
    ids=["two sources of words", "no lookup", "no tower"],
)
def test_one_unknown_file_leaves_both_as_they_are(folder, changes):
    (folder / "modeling_chatglm.py").write_bytes(replaced(MODELING, changes))
    before = contents(folder)
    with pytest.raises(
        CheckpointError, match=r"modeling_chatglm\.py: ChatGLMModel\.forward has no"
    ):
        patched(folder)
    assert contents(folder) == before


def test_the_original_is_kept(folder):
    result = write_patch(plan_patch(folder))
    assert (folder / "visual.py.orig").read_bytes() == VISUAL
    assert (folder / "modeling_chatglm.py.orig").read_bytes() == MODELING
    assert [file.backup.name for file in result.files] == [
        "visual.py.orig",
        "modeling_chatglm.py.orig",
    ]
    assert len(contents(folder)) == 4


def test_an_older_backup_is_never_overwritten(folder):
    (folder / "visual.py.orig").write_text("mine")
    (folder / "visual.py.orig.1").mkdir()
    patched(folder)
    assert (folder / "visual.py.orig").read_text() == "mine"
    assert (folder / "visual.py.orig.2").read_bytes() == VISUAL


def test_a_backup_with_the_same_content_serves_again(folder):
    patched(folder)
    (folder / "visual.py").write_bytes(VISUAL)
    result = write_patch(plan_patch(folder))
    assert result.files[0].backup == folder / "visual.py.orig"
    assert len(contents(folder)) == 4


def test_a_second_run_writes_nothing(folder):
    patched(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    result = write_patch(plan_patch(folder))
    assert not result.changed
    assert result.diff == ""
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_permissions_stay(folder):
    (folder / "visual.py").chmod(0o640)
    patched(folder)
    for name in ("visual.py", "visual.py.orig"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o640


def test_a_link_into_a_cache_is_replaced_and_the_cache_kept(folder):
    cached = folder / "blobs"
    cached.mkdir()
    (folder / "visual.py").rename(cached / "ab12")
    (folder / "visual.py").symlink_to(cached / "ab12")
    patched(folder)
    assert (cached / "ab12").read_bytes() == VISUAL
    assert not (folder / "visual.py").is_symlink()
    assert (folder / "visual.py").read_bytes() == replaced(VISUAL, CHANGES)


@contextlib.contextmanager
def without_root():
    """Without the right to write everywhere, also where the tests run as root."""
    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(os.getuid())


@pytest.fixture
def shared_folder():
    """A folder with both files that another user can reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path, source in (
            (folder / "visual.py", VISUAL),
            (folder / "modeling_chatglm.py", MODELING),
        ):
            path.write_bytes(source)
            path.chmod(0o666)
        folder.chmod(0o777)
        yield folder
        folder.chmod(0o777)


@pytest.mark.parametrize(
    ("locked", "mode", "reason"),
    [
        (".", 0o555, "Permission denied"),
        ("visual.py", 0o444, "visual.py is read-only"),
        ("modeling_chatglm.py", 0o444, "modeling_chatglm.py is read-only"),
    ],
)
def test_what_cannot_be_written_is_told_and_nothing_changes(shared_folder, locked, mode, reason):
    (shared_folder / locked).chmod(mode)
    before = contents(shared_folder)
    with without_root(), pytest.raises(CheckpointError) as caught:
        patched(shared_folder)
    assert f"cannot be written ({reason}); nothing was changed." in str(caught.value)
    assert "\n" not in str(caught.value)
    assert contents(shared_folder) == before


def test_a_disk_that_fails_between_the_files_leaves_both_as_they_were(folder, monkeypatch):
    replace = Path.replace

    def failing(self, target):
        if Path(target).name == "modeling_chatglm.py":
            raise OSError(28, "No space left on device")
        return replace(self, target)

    before = contents(folder)
    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(CheckpointError, match="No space left on device"):
        patched(folder)
    assert contents(folder) == before


def test_the_command_patches_and_shows_the_diff(folder, capsys):
    assert command.main([str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "-        middle = tokens + seen\n" in shown
    assert "+        middle = tokens.to(seen.device) + seen\n" in shown
    assert "--- a/modeling_chatglm.py\n+++ b/modeling_chatglm.py\n" in shown
    assert "residual add after the MLP: changed\n" in shown
    assert "visual.py: original kept as visual.py.orig\n" in shown
    assert (folder / "visual.py").read_bytes() == replaced(VISUAL, CHANGES)

    assert command.main([str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "@@" not in shown
    assert "residual add after the MLP: consistent already\n" in shown
    assert "Nothing to do: every place is consistent already.\n" in shown


def test_a_dry_run_shows_the_diff_and_writes_nothing(folder, capsys):
    before = contents(folder)
    assert command.main([str(folder), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "+        middle = tokens.to(seen.device) + seen\n" in shown
    assert "residual add after the MLP: to change\n" in shown
    assert "Dry run: nothing was written.\n" in shown
    assert contents(folder) == before


def broken(folder: Path, source: bytes) -> Path:
    (folder / "visual.py").write_bytes(source)
    return folder


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: folder / "absent", "does not exist"),
        (lambda folder: "~nobody-of-this-name/x", "does not exist"),
        (lambda folder: folder / "visual.py", "is not a folder"),
        (lambda folder: folder.parent, "has no visual.py and no modeling_chatglm.py"),
        (lambda folder: broken(folder, b"x = (\n"), "is not valid Python: line "),
        (lambda folder: broken(folder, b"if x:\n  y\n z\n"), "is not valid Python: line "),
        (lambda folder: broken(folder, b"# \xff\n"), "cannot be decoded"),
        (lambda folder: broken(folder, b"# coding: rot26\n"), "cannot be decoded"),
        (lambda folder: broken(folder, b"x = 1\0\n"), "visual.py"),
        (lambda folder: broken(folder, b""), "has no class PatchEmbedding"),
    ],
    ids=[
        "absent",
        "no user",
        "file",
        "empty",
        "syntax",
        "indent",
        "bytes",
        "codec",
        "null",
        "nothing",
    ],
)
def test_what_cannot_be_patched_is_one_line_and_status_1(folder, capsys, prepare, message):
    assert command.main([str(prepare(folder))]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_a_file_that_cannot_be_read(shared_folder, capsys):
    (shared_folder / "visual.py").chmod(0o000)
    with without_root():
        assert command.main([str(shared_folder)]) == 1
    assert "visual.py cannot be read: Permission denied." in capsys.readouterr().err


def test_a_wrong_command_line_is_status_2(capsys):
    with pytest.raises(SystemExit) as caught:
        command.main([])
    assert caught.value.code == 2
    assert "FOLDER" in capsys.readouterr().err


def test_the_help_explains_the_exit_status(capsys):
    with pytest.raises(SystemExit) as caught:
        command.main(["--help"])
    assert caught.value.code == 0
    assert "1 the folder or a copy cannot be patched" in capsys.readouterr().out


def test_it_runs_as_a_module_without_torch_and_transformers(folder):
    script = (
        "import runpy, sys\n"
        "sys.argv[1:] = [sys.argv[1]]\n"
        "try:\n"
        "    runpy.run_module('glm4v_magic.remote_code.patch', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0, end.code\n"
        "heavy = {'torch', 'transformers', 'accelerate', 'numpy', 'PIL', 'IPython', 'pydantic'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.returncode == 0
    assert (folder / "visual.py").read_bytes() == replaced(VISUAL, CHANGES)


@pytest.fixture(scope="module")
def expected():
    return splits.answers(splits.build(splits.load()), "cpu")


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.fixture(scope="module")
def patched_code(tmp_path_factory):
    folder = tmp_path_factory.mktemp("patched")
    shutil.copytree(splits.FOLDER, folder, dirs_exist_ok=True)
    return splits.load(patched(folder))


def test_the_patched_code_is_bit_identical_on_one_device(patched_code, expected):
    assert_equal(splits.answers(splits.build(patched_code), "cpu"), expected)


@pytest.mark.parametrize("home", [0, pytest.param(1, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("site", splits.SITES.values(), ids=splits.SITES.keys())
def test_each_site_passes_patched(patched_code, expected, site, home):
    model = splits.build(patched_code)
    with VirtualGPUs("2x1GiB"):
        splits.place(model, splits.map_apart(model, site.apart, home=home, away=1 - home))
        assert_equal(splits.answers(model), expected)


def code_without(folder: Path, code: str):
    """The stand-in, patched in all places but the lines with `code`."""
    for name, edit in (("visual.py", edit_visual), ("modeling_chatglm.py", edit_modeling)):
        original = (folder / name).read_bytes()
        lines = zip(original.splitlines(), edit(original).source.splitlines(), strict=True)
        text = b"\n".join(old if code.encode() in old else new for old, new in lines)
        (folder / name).write_bytes(text)
    return splits.build(splits.load(folder))


@pytest.mark.parametrize("site", splits.SITES.values(), ids=splits.SITES.keys())
def test_each_site_fails_alone_where_all_others_are_patched(folder, site):
    model = code_without(folder, site.code)
    with VirtualGPUs("2x1GiB"):
        splits.place(model, splits.map_apart(model, site.apart))
        with pytest.raises(MixedDeviceError, match=site.message) as caught:
            splits.run(model, padded=site.padded)
    assert caught.value.problem.module == site.module
    assert site.code in caught.value.problem.source.code


@pytest.mark.parametrize("seed", range(6))
def test_any_map_of_leaves_gives_the_same_logits(patched_code, expected, seed):
    chance = random.Random(seed)
    model = splits.build(patched_code)
    inside_blocks = seed % 2 == 0
    device_map = {name: chance.randrange(5) for name in splits.units(model, inside_blocks)}
    with VirtualGPUs("5x1GiB"):
        splits.place(model, device_map)
        assert_equal(splits.answers(model), expected)


def written(folder: Path, visual: bytes = VISUAL) -> Path:
    folder.mkdir(parents=True)
    (folder / "visual.py").write_bytes(visual)
    (folder / "modeling_chatglm.py").write_bytes(MODELING)
    return folder


COMMIT = "01328faefe122fe605c1c127b62e6031d3ffebf7"
COPIES_OF_THE_HUB = {
    "4.x": f"THUDM/glm-4v-9b/{COMMIT}",
    "5.x": f"THUDM/glm_hyphen_4v_hyphen_9b/{COMMIT}",
}
COPIES_OF_A_FOLDER = {"4.x": "glm-4v-9b", "5.x": "glm_hyphen_4v_hyphen_9b/a1b2"}


@pytest.fixture
def caches(tmp_path, monkeypatch):
    for name in (
        "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_MODULES_CACHE", "TRANSFORMERS_CACHE",
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "modelscope"))
    return tmp_path / "hf"


@pytest.mark.parametrize(
    ("name", "copy"),
    [
        ("THUDM/glm-4v-9b", next(iter(COPIES_OF_THE_HUB.values()))),
        ("thudm/GLM-4V-9B", next(iter(COPIES_OF_THE_HUB.values()))),
        *(("the folder", copy) for copy in COPIES_OF_THE_HUB.values()),
    ],
)
def test_an_id_of_the_hub_is_patched_in_its_cache_and_in_the_copy_that_runs(
    caches, capsys, name, copy
):
    snapshot = written(caches / f"hub/models--THUDM--glm-4v-9b/snapshots/{COMMIT}")
    runs = written(caches / "modules/transformers_modules" / copy)
    other = written(caches / "modules/transformers_modules/THUDM/glm-4-9b" / COMMIT)
    assert command.main([str(snapshot) if name == "the folder" else name]) == 0
    for folder in (snapshot, runs):
        assert (folder / "visual.py").read_bytes() == replaced(VISUAL, CHANGES)
        assert (folder / "modeling_chatglm.py").read_bytes() == replaced(MODELING, MODELING_CHANGES)
    assert (other / "visual.py").read_bytes() == VISUAL
    shown = capsys.readouterr().out
    assert f"{snapshot}\n" in shown
    assert f"{runs}\n" in shown
    assert "Restart every Python process that has loaded this model" in shown


@pytest.mark.parametrize(
    "name", ["THUDM/glm-4v-9b", "https://hub.example.org/THUDM/glm-4v-9b/tree/main"]
)
def test_the_cache_of_transformers_4_is_looked_into_and_pages_are_ids(
    caches, monkeypatch, tmp_path, name
):
    monkeypatch.setenv("TRANSFORMERS_CACHE", str(tmp_path / "own"))
    snapshot = written(tmp_path / f"own/models--THUDM--glm-4v-9b/snapshots/{COMMIT}")
    assert command.main([name]) == 0
    assert (snapshot / "visual.py").read_bytes() == replaced(VISUAL, CHANGES)


@pytest.mark.parametrize("name", ["", " "])
def test_nothing_is_patched_if_nothing_is_named(caches, tmp_path, monkeypatch, capsys, name):
    folder = written(tmp_path / "here")
    monkeypatch.chdir(folder)
    assert command.main([name]) != 0
    assert "No checkpoint is named." in capsys.readouterr().err
    assert (folder / "visual.py").read_bytes() == VISUAL
    assert command.main(["."]) == 0


@pytest.mark.parametrize("copy", COPIES_OF_A_FOLDER.values(), ids=COPIES_OF_A_FOLDER)
def test_the_copy_of_a_folder_is_patched_too(caches, tmp_path, copy):
    folder = written(tmp_path / "models/glm-4v-9b")
    runs = written(caches / "modules/transformers_modules" / copy)
    patched_again = command.patched(folder, dry_run=False)
    assert (runs / "visual.py").read_bytes() == replaced(VISUAL, CHANGES)
    assert "Restart" in patched_again
    assert "Restart" not in command.patched(folder, dry_run=False)


def test_a_copy_of_other_code_is_left_alone(caches, tmp_path, capsys):
    folder = written(tmp_path / "models/glm-4v-9b")
    other = written(caches / "modules/transformers_modules/glm-4v-9b", b"# another model\n")
    assert command.main([str(folder)]) == 0
    assert f"{other} is left as it is: " in capsys.readouterr().out
    assert (other / "visual.py").read_bytes() == b"# another model\n"
    assert (folder / "visual.py").read_bytes() == replaced(VISUAL, CHANGES)


@pytest.mark.parametrize(
    "place", ["hub/ZhipuAI/glm-4v-9b", "models/ZhipuAI--glm-4v-9b/snapshots/master"]
)
def test_an_id_in_the_cache_of_modelscope(caches, tmp_path, place):
    folder = written(tmp_path / "modelscope" / place)
    command.patched("ZhipuAI/glm-4v-9b", dry_run=False)
    assert (folder / "visual.py").read_bytes() == replaced(VISUAL, CHANGES)


def test_an_id_that_was_not_downloaded(caches, capsys):
    assert command.main(["THUDM/glm-4v-9b"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("There is no folder THUDM/glm-4v-9b, and no code of a repository of")
    assert told.count("\n") == 1


POSITION = {
    "features = self.linear_proj(features.flatten(start_dim=2).mT)": (
        "features = features.flatten(start_dim=2).mT\n"
        "        features = self.linear_proj(features + self.pos_embed.unsqueeze(0))"
    )
}


@pytest.mark.parametrize("model", ["cogvlm", "cogagent"])
def test_the_towers_of_cogvlm2_and_cogagent(tmp_path, model, capsys):
    visual = VISUAL if model == "cogvlm" else replaced(VISUAL, POSITION)
    (tmp_path / "visual.py").write_bytes(visual)
    (tmp_path / f"modeling_{model}.py").write_bytes(b"# moves the features itself\n")
    name = {"cogvlm": "CogVLMForCausalLM", "cogagent": "CogAgentForCausalLM"}[model]
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [name]}))
    changes = CHANGES
    if model == "cogagent":
        changes = {**changes, "self.pos_embed.unsqueeze(0)": (
            "self.pos_embed.unsqueeze(0).to(features.device)"
        )}  # fmt: skip
        (tmp_path / "cross_visual.py").write_bytes(
            b"class CrossVisionModel(nn.Module):\n"
            b"    def forward(self, pixels):\n"
            b"        seen = self.vit(pixels)\n"
            b"        return seen + self.pos_embed.unsqueeze(0)\n"
        )
    with pytest.raises(CheckpointError) as caught:
        resolve(tmp_path)
    (advised,) = re.findall(r"python -m (\S+) FOLDER", str(caught.value))
    assert advised == command.__name__
    assert command.main([str(tmp_path)]) == 0  # as it says
    assert "4.42 to 4.48" in capsys.readouterr().out
    assert (tmp_path / "visual.py").read_bytes() == replaced(visual, changes)
    if model == "cogagent":
        assert (
            b"seen + self.pos_embed.unsqueeze(0).to(seen.device)"
            in (tmp_path / "cross_visual.py").read_bytes()
        )
    assert not plan_patch(tmp_path).changed


@pytest.mark.parametrize(
    ("installed", "told"),
    [
        ("4.48.3", "4.42 to 4.48; 4.48.3 is installed here."),
        ("4.49.0", "4.42 to 4.48, not with 4.49.0, which is installed here."),
        ("5.23.0", "4.42 to 4.48, not with 5.23.0, which is installed here."),
    ],
)
def test_it_says_which_transformers_run_the_code(folder, monkeypatch, installed, told):
    monkeypatch.setattr(command, "version", lambda name: installed)
    assert told in command.patched(folder, dry_run=True)
