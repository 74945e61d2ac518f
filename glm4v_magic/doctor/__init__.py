"""What is here, whether it will do for a model, and what to do where it will not.

`gather` reads versions, GPUs, disk and, if asked, the network; `diagnose` is a function of what
was gathered. Neither loads a model or changes anything.
"""

from __future__ import annotations

from glm4v_magic.doctor.diagnosis import diagnose
from glm4v_magic.doctor.facts import MODEL, Facts, gather
from glm4v_magic.doctor.finding import Finding, Verdict

__all__ = ["MODEL", "Facts", "Finding", "Verdict", "diagnose", "gather"]
