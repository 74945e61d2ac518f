"""Tasks of a model that reads documents, asked in the prompts published for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from glm4v_magic.calls.prompt import require_string
from glm4v_magic.checkpoints.glm_native.families import OCR_PROMPTS
from glm4v_magic.core.errors import OptionError
from glm4v_magic.outside import json_value

__all__ = ["EXTRACT", "asked"]

EXTRACT = "extract"
_DEEPEST = 20
_EXAMPLE = 'For example: {"name": "", "items": [""]}'


def asked(text: str, task: str | None, schema: object = None) -> str:
    """Return the question of a task: its published prompt.

    The prompt of ``extract`` ends with the JSON to fill in: `text`, or an empty form of `schema`.

    Args:
        text: the question as it was typed; returned as it is if there is no task.
        task: a task of `OCR_PROMPTS`, or ``None``.
        schema: JSON Schema of the answer, if there is one.

    Raises:
        PromptError: if `text` is not a string.
        OptionError: if there is a question beside the task, or nothing to extract.
    """
    text = require_string(text)
    if task is None:
        return text
    if task == EXTRACT:
        return f"{OCR_PROMPTS[task]}\n{_filled_in(text, schema)}"
    if text.strip():
        raise OptionError(
            f"The task {task} has a prompt of its own, and there is a question, too.",
            "Leave one of them out.",
        )
    return OCR_PROMPTS[task]


def _filled_in(text: str, schema: object) -> str:
    """Return the JSON that the model fills in."""
    if text.strip():
        template = json_value(text, "What is to be extracted", OptionError, _EXAMPLE)
        if not isinstance(template, dict | list) or not template:
            raise OptionError("What is to be extracted is not a JSON object with names.", _EXAMPLE)
        return text.strip()
    template = _example(schema, schema) if isinstance(schema, Mapping) else ""
    if not template:
        raise OptionError(
            "There is nothing to extract.",
            'Write the JSON to fill in as the question, {"name": ""}, or give a schema of it.',
        )
    return json.dumps(template, ensure_ascii=False, indent=4)


def _example(schema: Any, whole: Mapping[str, Any], depth: int = 0) -> Any:
    """Return JSON with the structure that a schema asks for, and empty values."""
    if not isinstance(schema, Mapping) or depth > _DEEPEST:
        return ""
    if isinstance(found := schema.get("$ref"), str):
        return _example(_referred(found, whole), whole, depth + 1)
    for name in ("anyOf", "oneOf", "allOf"):
        if isinstance(found := schema.get(name), list):
            examples = [_example(each, whole, depth + 1) for each in found]
            return next(filter(None, examples), "")
    if isinstance(found := schema.get("properties"), Mapping):
        return {name: _example(each, whole, depth + 1) for name, each in found.items()}
    if "items" in schema:
        return [_example(schema["items"], whole, depth + 1)]
    return ""


def _referred(reference: str, whole: Mapping[str, Any]) -> Any:
    """Return what ``#/$defs/name`` refers to; ``None`` if it is not there."""
    found: Any = whole
    for name in reference.removeprefix("#/").split("/"):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found
