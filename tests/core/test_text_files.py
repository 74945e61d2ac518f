"""Files that are written: what is there and of another kind is not replaced."""

from __future__ import annotations

import json

import pytest

from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.conversation import Conversation, Message
from glm4v_magic.core.errors import ConversationError, OptionError
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.core.text_files import replace_text
from glm4v_magic.dry_run.files import report_to_json
from glm4v_magic.dry_run.run import dry_run
from glm4v_magic.planning.decision import make_plan
from glm4v_magic.session.chat_file import from_json, write_chat

CHAT = Conversation((Message("user", "What?"), Message("assistant", "A circle.")))

OTHERS = {
    "a configuration": json.dumps({"model_type": "glm4v"}),
    "a device map": json.dumps({"model": 0}),
    "a list": "[]",
    "no JSON": "# Notes\n",
    "nested too deep": "[" * 10**5,
}


@pytest.fixture(scope="module")
def model():
    return architecture("demo")


def plan_of(model, gpus="1x1GiB"):
    return make_plan(model, PlacementOptions(gpus=gpus))


@pytest.mark.parametrize("other", OTHERS)
def test_a_file_of_another_kind_is_not_replaced(model, run, tmp_path, monkeypatch, other):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(OTHERS[other])
    with pytest.raises(OptionError) as caught:
        plan_of(model).save(file)
    other_name = "Give another name."
    said = f"The plan cannot be written to {file}: a file of another kind is there. {other_name}"
    assert str(caught.value) == said
    with pytest.raises(ConversationError, match=other_name):
        write_chat(file, CHAT, "it")
    for line in ("plan demo --gpus 1x1GiB --save", "plan demo --gpus 1x1GiB --json",
                 "check demo --gpus 1x1GiB --json"):  # fmt: skip
        shown = run(f"%glm4v {line} config.json")
        assert "but cannot be written to config.json: a file of another kind is there." in shown
        assert other_name in shown
        assert "is in other" in run(f"%glm4v {line} other{len(line)}.json")  # as said
    plan_of(model).save(tmp_path / "p.json")
    write_chat(tmp_path / "c.json", CHAT, "it")
    assert file.read_text() == OTHERS[other]


def test_a_file_of_the_same_kind_is_replaced(model, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "plan.json"
    for before in (
        "",
        " \n",
        plan_of(model, "2x1GiB").to_json(),
        "\ufeff" + plan_of(model).to_json(),
    ):
        file.write_text(before)
        made = plan_of(model)
        if before == " \n":  # not empty, and no plan
            with pytest.raises(OptionError):
                made.save(file)
            continue
        made.save(file)
        assert file.read_text() == made.to_json() + "\n"
    assert "is in plan.json" in run("%glm4v plan demo --gpus 2x1GiB --save plan.json")
    for _ in range(2):
        assert "is in report.json" in run("%glm4v check demo --gpus 1x1GiB --json report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report.keys() == json.loads(report_to_json(dry_run(model, "1x1GiB"))).keys()
    for _ in range(2):
        write_chat(tmp_path / "chat.json", CHAT, "it")
    link = tmp_path / "link.json"
    link.symlink_to("plan.json")
    plan_of(model).save(link)
    assert link.is_symlink()


def test_a_large_chat_is_written_again(model, tmp_path):
    """Images are in it: it may take hundreds of megabytes."""
    chat = Conversation((Message("user", "What?"), Message("assistant", "é" * 2**25)))
    file = tmp_path / "chat.json"
    write_chat(file, CHAT, "it")
    for _ in range(2):
        write_chat(file, chat, "it")
    assert from_json(file.read_text()) == ("it", chat)
    with pytest.raises(OptionError, match="a file of another kind is there"):
        plan_of(model).save(file)
    plan = tmp_path / "plan.json"
    keys = json.loads(plan_of(model).to_json())
    plan.write_text(json.dumps(dict(reversed(keys.items()))))  # another program has written it
    plan_of(model).save(plan)
    plan.write_text(json.dumps({"model": "é" * 2**25}, ensure_ascii=False))
    with pytest.raises(OptionError, match="a file of another kind is there"):
        plan_of(model).save(plan)


def test_what_is_no_json_is_replaced_as_a_whole(tmp_path):
    file = tmp_path / "chat.md"
    for text in ("# One\n", "# Two\n"):
        replace_text(file, text)
        assert file.read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["chat.md"]
