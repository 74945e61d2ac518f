"""What Tab offers."""

from __future__ import annotations

import pandas as pd
import pytest
from IPython.core.completer import provisionalcompleter
from PIL import Image

from glm4v_magic.notebook.commands import COMMANDS
from glm4v_magic.notebook.completion import complete
from glm4v_magic.notebook.magics import Glm4vMagics


@pytest.fixture
def offered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("cat.png", "CAT2.JPG", "c.json", "notes.txt", ".hidden.png", "two words.png"):
        (tmp_path / name).touch()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "dog.webp").touch()
    names = {
        "cats": [1],
        "shape": {},
        "camera": Image.new("RGB", (1, 1)),
        "count": 3,
        "_hidden": [1],
        "df": pd.DataFrame({"image": [1], "two words": [2]}),
    }

    def complete_line(line: str) -> list[str]:
        return complete(line, names, COMMANDS, Glm4vMagics.glm4v, ["", "cats", "two words"])

    return complete_line


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("%glm4v ", list(COMMANDS)),
        ("%glm4v lo", ["load"]),
        ("%glm4v help unl", ["unload"]),
        ("%glm4v nothing ", []),
        ("%glm4v load de", ["demo", "demo-4.6v"]),
        ("%glm4v devices GLM-4V", ["GLM-4V-9B"]),
        ("%glm4v mem", ["memory"]),
        ("%glm4v load GLM-4V", ["GLM-4V-9B"]),
        ("%glm4v load ph", ["photos/"]),
        ("%glm4v load --dt", ["--dtype"]),
        ("%glm4v load --lora ", ["photos/"]),
        ("%glm4v load photos --base GLM-4V", ["GLM-4V-9B"]),
        ("%glm4v plan GLM-4V-9B --gpus 2xRTX-309", ["2xRTX-3090", "2xRTX-3090-Ti"]),
        ("%glm4v load --gpus 24GiB+T", ["24GiB+TITAN-V", "24GiB+T4", "24GiB+TITAN-RTX"]),
        ("%glm4v unload ", []),
        ("%glm4v config top", ["top_p", "top_k"]),
        ("%glm4v preview ca", ["camera", "cats", "cat.png"]),
        ("%glm4v ask -f no", ["notes.txt"]),
        ("%glm4v ask ca", ["camera", "cats", "cat.png"]),
        ("%%glm4v ca", ["camera", "cats", "cat.png"]),
        ("%%glm4v cat.png -q ca", ["camera", "cats", "cat.png"]),
        ("%%glm4v C", ["CAT2.JPG"]),
        ("%%glm4v photos/", ["photos/dog.webp"]),
        ("%%glm4v photos/d", ["photos/dog.webp"]),
        ("%%glm4v nowhere/", []),
        ("%%glm4v cat.png --max", ["--max-thinking", "--max-tokens"]),
        ("%%glm4v cat.png --top-", ["--top-k", "--top-p"]),
        ("%%glm4v cat.png --out ", []),
        ("%%glm4v cat.png --chat ", ["cats"]),
        ("%glm4v ask --chat d", []),
        ("%%glm4v --format ", ["markdown", "text", "json", "code"]),
        ("%%glm4v --schema ", ["shape", "c.json", "photos/"]),
        ("%%glm4v --cont", ["--continue"]),
        ("%%glm4v --over ", ["cats", "df", "photos/"]),
        ("%%glm4v --over df.im", ["df.image"]),
        ("%%glm4v --fr", ["--fresh", "--from"]),
        ("%glm4v continue --thinking o", ["on", "off"]),
        ("%glm4v history ", ["cats"]),
        ("%glm4v reset c", ["cats"]),
        ("%glm4v retry --t", ["--temperature", "--thinking", "--top-k", "--top-p"]),
        ("%glm4v continue ", ["cats"]),
        ("%glm4v export c", ["cats", "c.json", "cat.png"]),
        ("%glm4v import c", ["c.json"]),
    ],
)
def test_what_is_offered(offered, line: str, found: list[str]):
    assert offered(line) == found


def test_the_shell_offers_it_and_stops_when_unloaded(shell, tmp_path, monkeypatch):
    def completions(line: str) -> set[str]:
        with provisionalcompleter():
            return {item.text for item in shell.Completer.completions(line, len(line))}

    assert "load" in completions("%glm4v lo")
    assert "--temperature" in completions("%%glm4v --te")
    shell.run_line_magic("unload_ext", "glm4v_magic")
    assert "load" not in completions("%glm4v lo")
    shell.run_line_magic("load_ext", "glm4v_magic")
