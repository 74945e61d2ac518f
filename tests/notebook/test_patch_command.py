"""`%glm4v patch`: the on-disk patcher from a notebook."""

from __future__ import annotations

import pytest
from standins import eva2clip_splits as splits

NAMES = ("visual.py", "modeling_chatglm.py")


@pytest.fixture
def folder(tmp_path):
    for name in NAMES:
        (tmp_path / name).write_bytes((splits.FOLDER / name).read_bytes())
    return tmp_path


def names_in(folder):
    return {path.name for path in folder.iterdir()} - {".ipython"}


def test_a_dry_run_shows_the_diff_and_writes_nothing(run, folder):
    before = (folder / "visual.py").read_bytes()
    shown = run(f'%glm4v patch "{folder}" --dry-run')
    assert "+++ b/visual.py" in shown
    assert "* self.dense_h_to_4h(features).to(gate.device)" in shown
    assert "Dry run: nothing was written." in shown
    assert (folder / "visual.py").read_bytes() == before
    assert names_in(folder) == set(NAMES)


def test_the_folder_is_patched_once(run, folder):
    shown = run(f"%glm4v patch {folder}")
    assert "+++ b/modeling_chatglm.py" in shown
    assert "visual.py: original kept as visual.py.orig" in shown
    assert b".to(gate.device)" in (folder / "visual.py").read_bytes()
    again = run(f"%glm4v patch {folder}")
    assert "+++" not in again
    assert "Nothing to do: every place is consistent already." in again


def test_the_home_folder_may_be_a_tilde(run, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert "Dry run" in run(f"%glm4v patch ~/{folder.name} --dry-run")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("%glm4v patch nowhere", "The checkpoint folder nowhere does not exist."),
        ("%glm4v patch .", "has no visual.py and no modeling_chatglm.py."),
        ("%glm4v patch", "%glm4v patch needs FOLDER"),
        ("%glm4v patch . --dry", "There is no option --dry. Did you mean --dry-run"),
    ],
)
def test_mistakes_are_one_line(run, line, message):
    error = run(line, fails=True)
    assert message.lower() in error.lower()
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1
