"""Will a model run here? Packages, driver, GPUs, disk and hub, with a verdict for each.

`gather` reads versions, GPUs, disk and, if asked, the network; `diagnose` turns these facts into
findings. Neither loads a model or changes anything. Imports `checkpoints`, `planning`, `hardware`
and `core`.
"""

from __future__ import annotations

from glm4v_magic.doctor.diagnosis import diagnose
from glm4v_magic.doctor.facts import MODEL, Facts, gather
from glm4v_magic.doctor.finding import Finding, Verdict

__all__ = ["MODEL", "Facts", "Finding", "Verdict", "diagnose", "gather"]
