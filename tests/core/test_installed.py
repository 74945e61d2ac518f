"""Versions of installed packages."""

from __future__ import annotations

from importlib import metadata

from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.core.installed import installed_version
from glm4v_magic.doctor import diagnose, gather
from glm4v_magic.hardware.gpus import import_torch_if_needed
from glm4v_magic.planning.packages import require_bitsandbytes


def test_the_version_of_a_package():
    assert installed_version("pytest") == metadata.version("pytest")
    assert installed_version("no-such-package") == ""


def test_what_an_install_left_behind_is_no_package(tmp_path, monkeypatch):
    for name in ("torch", "bitsandbytes", "transformers"):
        (tmp_path / f"{name}-1.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert installed_version("torch") == ""
    import_torch_if_needed()
    require_bitsandbytes("They")
    found = {each.subject: each for each in diagnose(gather(parse_gpus("1x8GiB")))}
    assert (found["transformers"].verdict, found["transformers"].found) == ("fail", "not installed")
