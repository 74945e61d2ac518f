"""Questions in the published prompts of GLM-OCR."""

from __future__ import annotations

import json

import pytest

from glm4v_magic.calls.refusals import refuse_task
from glm4v_magic.calls.tasks import asked
from glm4v_magic.core.errors import OptionError
from glm4v_magic.core.options import TASKS

EXTRACT = "请按下列JSON格式输出图中信息:\n"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "dates": {"type": "array", "items": {"type": "string"}},
        "sex": {"anyOf": [{"type": "null"}, {"enum": ["f", "m"]}]},
        "rows": {"items": {"properties": {"价": {"type": "number"}}}},
    },
    "$defs": {"address": {"properties": {"street": {}, "next": {"$ref": "#/$defs/address"}}}},
}


@pytest.mark.parametrize(
    ("task", "prompt"),
    [
        ("text", "Text Recognition:"),
        ("table", "Table Recognition:"),
        ("formula", "Formula Recognition:"),
        (None, "Hm?"),
    ],
)
def test_the_published_prompts(task, prompt):
    assert asked("" if task else "Hm?", task) == prompt


def test_values_to_extract_are_written_as_json():
    text = ' {"name": ""}\n'
    assert asked(text, "extract") == EXTRACT + '{"name": ""}'
    assert asked(text, "extract", SCHEMA) == EXTRACT + '{"name": ""}'
    assert asked('[{"a": ""}]', "extract") == EXTRACT + '[{"a": ""}]'


def test_a_schema_describes_what_to_extract():
    prompt = asked(" ", "extract", SCHEMA)
    assert prompt.startswith(EXTRACT + '{\n    "name": "",\n')
    example = json.loads(prompt.removeprefix(EXTRACT))
    assert list(example) == ["name", "address", "dates", "sex", "rows"]
    assert (example["dates"], example["sex"], example["rows"]) == ([""], "", [{"价": ""}])
    assert example["address"]["street"] == ""
    assert '"价": ""' in prompt


@pytest.mark.parametrize(
    ("text", "task", "schema", "said"),
    [
        ("What?", "table", None, "The task table has a prompt of its own, and there is a question"),
        ("the name", "extract", None, "What is to be extracted is not valid JSON: "),
        ("[" * 10**5, "extract", None, "What is to be extracted is not valid JSON: "),
        ("7", "extract", None, "What is to be extracted is not a JSON object with names."),
        ("{}", "extract", None, "What is to be extracted is not a JSON object with names."),
        ("", "extract", None, "There is nothing to extract."),
        ("", "extract", True, "There is nothing to extract."),
        ("", "extract", {"type": "string"}, "There is nothing to extract."),
        ("", "extract", {"$ref": "#/$defs/none"}, "There is nothing to extract."),
        ("", "extract", {"$ref": "#"}, "There is nothing to extract."),
    ],
)
def test_what_cannot_be_asked_is_refused(text, task, schema, said):
    with pytest.raises(OptionError) as caught:
        asked(text, task, schema)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("task", TASKS)
def test_other_models_refuse_by_name(task):
    refuse_task(task, "a server's", None, 1)
    refuse_task(task, "GLM-OCR", TASKS, 1)
    refuse_task(None, "demo", (), 0)
    with pytest.raises(OptionError, match=f"demo has no task {task}: the tasks are those of GLM"):
        refuse_task(task, "demo", (), 1)
