"""Widgets that must react while a cell runs."""

from __future__ import annotations

from typing import Any

__all__ = ["hear_while_busy"]


def hear_while_busy(*controls: Any) -> None:
    """Make controls react while a cell runs; call it again whenever one has changed.

    ipykernel 7.4.0 (`ipykernel.comm.comm.BaseComm._reply_subshell_for`) sends what comes in on a
    comm to the loop that last sent on it: the main one, which is busy until the cell ends, once a
    cell has made or changed the widget. 7.3.0 followed the front end, which in JupyterLab means a
    thread of its own, and without this attribute 7.4.0 does too.
    """
    for control in controls:
        comm = getattr(control, "comm", None)
        if hasattr(comm, "_reply_subshell_id"):
            vars(comm).pop("_reply_subshell_id", None)
