"""The prompt of a result, ``Out[3]:``, written only where a result follows.

IPython's terminal writes the prompt before it asks the formatters, which show nothing of what a
cell has shown already.
"""

from __future__ import annotations

from typing import Any

__all__ = ["write_early", "write_late"]


def write_late(hook: Any) -> None:
    """Let a display hook write the prompt of a result only if it writes the result."""
    prompt, data = hook.write_output_prompt, hook.write_format_data
    waiting = False

    def write_output_prompt() -> None:
        nonlocal waiting
        waiting = True

    def write_format_data(*arguments: Any) -> None:
        nonlocal waiting
        if waiting:
            waiting = False
            prompt()
        data(*arguments)

    hook.write_output_prompt, hook.write_format_data = write_output_prompt, write_format_data


def write_early(hook: Any) -> None:
    """Undo `write_late`."""
    for name in ("write_output_prompt", "write_format_data"):
        vars(hook).pop(name, None)
