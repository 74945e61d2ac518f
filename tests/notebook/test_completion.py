"""What Tab offers."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from IPython.core.completer import provisionalcompleter
from PIL import Image
from shells import ROOT

from glm4v_magic.core.options import OPTIONS
from glm4v_magic.core.typed_options import read_text
from glm4v_magic.notebook.arguments import ARGUMENTS
from glm4v_magic.notebook.command_line import parse, split
from glm4v_magic.notebook.commands import COMMANDS
from glm4v_magic.notebook.completion import complete


class Odd:
    @property
    def ndim(self):
        raise RuntimeError

    def __dir__(self):
        raise RuntimeError


def table(library: str, name: str, columns: str) -> object:
    """Return a table of a library that need not be installed."""
    made = type(name, (), {"__module__": f"{library}.somewhere", columns: ["image", "n"]})
    return made()


TABLES = {
    "frame": table("polars", "DataFrame", "columns"),
    "arrow": table("pyarrow", "Table", "column_names"),
    "batch": table("pyarrow", "RecordBatch", "column_names"),
    "hub": table("datasets", "Dataset", "column_names"),
    "broken": table("polars", "DataFrame", "other"),
}


def hostile() -> dict[str, object]:
    """Return values that raise, whatever Tab asks of them."""

    def fails(*_: object) -> None:
        raise RuntimeError

    raising = dict.fromkeys(
        ("__len__", "__getitem__", "__iter__", "__str__", "keys", "lower"), fails
    )
    raising["__class__"] = property(fails)
    within: list[object] = []
    within.append(within)
    made = {
        f"bad_{base.__name__}": type("Bad", (base,), raising)() for base in (list, dict, str, Odd)
    }
    return {**made, "bad_within": within}


@pytest.fixture
def offered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("cat.png", "CAT2.JPG", "c.json", "notes.txt", ".hidden.png", "two words.png"):
        (tmp_path / name).touch()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "dog.webp").touch()
    names = {
        "cats": ["cat.png"],
        "counts": [1],
        "records": [{"q": "a", "label": "b"}],
        "shape": {},
        "row_of": {"bytes": b"\x89PNG", "path": None},
        "camera": Image.new("RGB", (1, 1)),
        "count": 3,
        "odd": type("Tensor", (Odd,), {})(),
        "pathlib": pathlib,
        "_hidden": [1],
        "df": pd.DataFrame({"image": [1], "two words": [2], 'a"b': [3], "a\"b'": [4], 5: [5]}),
        **TABLES,
        **hostile(),
        6: "x",  # globals() takes it
    }

    def complete_line(line: str) -> list[str] | None:
        found = complete(line, names, ["", "cats", "two words"])
        if found is None:
            return None
        assert line.endswith(found.fragment)
        return [f"{each.text} {each.type}" for each in found.matches]

    return complete_line


def test_the_commands_are_those_there_are():
    assert list(ARGUMENTS) == list(COMMANDS)


TASKS = ("text", "table")
TOP = ("top-k", "top-p")
DF = ('"image"', '"two words"', "'a\"b'", "5")
ITEMS = (
    "arrow",
    "bad_list",
    "bad_within",
    "batch",
    "broken",
    "cats",
    "counts",
    "df",
    "frame",
    "hub",
    "records",
)
LISTS = ("cats", "counts", "records")
IMAGES = ["camera image", "cats image", "cat.png image"]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("%glm4v ", [f"{name} command" for name in COMMANDS]),
        ("%glm4v lo", ["load command"]),
        ("x = %glm4v lo", ["load command"]),
        ("import os\nx = %glm4v lo", ["load command"]),
        ("  a, b = %glm4v lo", ["load command"]),
        ("%glm4v help unl", ["unload command"]),
        ("%glm4v nothing ", []),
        ("%glm4v load de", ["demo model", "demo-4.6v model"]),
        ("%glm4v devices GLM-4V", ["GLM-4V-9B model"]),
        ("%glm4v mem", ["memory command"]),
        ("%glm4v load ph", ["photos/ folder"]),
        ("%glm4v patch ph", ["photos/ folder"]),
        ("%glm4v load --dt", ["--dtype option"]),
        ("%glm4v load --dtype ", ["bfloat16 value", "float16 value", "float32 value"]),
        ("%glm4v load --dtype=fl", ["float16 value", "float32 value"]),
        ("%glm4v load --quantize ", ["8bit value", "4bit value"]),
        ("%glm4v load --lora ", ["photos/ folder"]),
        ("%glm4v load --map s", ["shape variable"]),
        ("%glm4v load --map c", ["c.json file"]),
        ("%glm4v load photos --base GLM-4V", ["GLM-4V-9B model"]),
        ("%glm4v plan GLM-4V-9B --gpus 2xRTX-309", ["2xRTX-3090 GPU", "2xRTX-3090-Ti GPU"]),
        ("%glm4v load --gpus 24GiB+TI", ["24GiB+TITAN-V GPU", "24GiB+TITAN-RTX GPU"]),
        ("%glm4v plan --gpus '2xRTX-309", ["'2xRTX-3090' GPU", "'2xRTX-3090-Ti' GPU"]),
        ("%glm4v plan --gpus c", ["cpu value"]),
        ("%glm4v plan 'GLM-4V", ["'GLM-4V-9B' model"]),
        ("%glm4v load --dtype 'fl", ["'float16' value", "'float32' value"]),
        ("%glm4v load '--dt", []),
        ("%glm4v load --pin v", ["vision= unit"]),
        ("%glm4v load --pin 'vision=0,l", ["'vision=0,layer= unit"]),
        ("%glm4v load --replicas ", ["2 example", "max value"]),
        ("%glm4v load --cluster a", ["auto value"]),
        ("%glm4v plan --json c", ["c.json file"]),
        ("%glm4v plan --json GLM-4V", ["GLM-4V-9B model"]),
        ("%glm4v unload ", []),
        ("%glm4v config top", ["top_p setting", "top_k setting"]),
        ("%glm4v config thinking ", []),
        ("%glm4v load --dtype float16 de", ["demo model", "demo-4.6v model"]),
        ("%glm4v load demo --dtype float16 de", []),
        ("%glm4v load demo --dt", ["--dtype option"]),
        ("%glm4v history cats ", []),
        ("%glm4v export cats c.", ["c.json file"]),
        ("%glm4v preview ca", IMAGES),
        ("x = %glm4v ask ca", IMAGES),
        ("%glm4v ask -f no", ["notes.txt file"]),
        ("%glm4v ask ca", IMAGES),
        ("%%glm4v ca", IMAGES),
        ("\n%%glm4v ca", IMAGES),
        ("%%glm4v cou", []),
        ("%%glm4v row", ["row_of image"]),
        ("%%glm4v cat.png -q ca", IMAGES),
        ("%%glm4v cat.png # ca", []),
        ("%%glm4v C", ["CAT2.JPG image"]),
        ("%%glm4v tw", ['"two words.png" image']),
        ("%%glm4v 'two w", ["'two words.png' image"]),
        ("%%glm4v .h", [".hidden.png image"]),
        ("%%glm4v ./ca", ["./cat.png image"]),
        ("%%glm4v photos/", ["photos/dog.webp image"]),
        ("%%glm4v photos/d", ["photos/dog.webp image"]),
        ('%%glm4v "photos/d', ['"photos/dog.webp" image']),
        ("%%glm4v nowhere/", []),
        ("%%glm4v not", []),
        ("%%glm4v a\0", []),
        ("%%glm4v cat.png --max", ["--max-thinking option", "--max-tokens option"]),
        ("%%glm4v cat.png --top-", ["--top-k option", "--top-p option"]),
        ("%%glm4v cat.png --out co", ["count variable", "counts variable"]),
        ("%%glm4v cat.png -o p", []),
        ("%%glm4v cat.png -o ca", ["camera image", "cats image"]),
        ("%%glm4v cat.png --temperature ", ["0.7 example"]),
        ("%%glm4v cat.png --chat ", ["cats chat"]),
        ("%glm4v ask --chat d", []),
        ("%%glm4v --format ", ["markdown value", "text value", "json value", "code value"]),
        (
            "%%glm4v --choices ",
            [f"{each} variable" for each in ("bad_list", "bad_within", *LISTS)],
        ),
        ("%%glm4v --schema sh", ["shape variable"]),
        ("%%glm4v --schema c", ["c.json file"]),
        ("%%glm4v --cont", ["--continue option"]),
        ("%%glm4v --over ", [*(f"{each} variable" for each in ITEMS), "photos/ folder"]),
        ("%%glm4v bad", []),
        ("%%glm4v --schema bad", ["bad_dict variable"]),
        ("%%glm4v --over df.", ["df.image column"]),
        ("%%glm4v --over df[", [f"df[{key}] column" for key in DF]),
        ("%%glm4v --over df['", [f"df['{key}'] column" for key in ("image", "two words", 'a"b')]),
        ("%%glm4v --over 'df[", [f"'df[{key}]' column" for key in (*DF[:2], "5")]),
        ("%%glm4v --over 'df['", []),
        ("%%glm4v --over \"df['i", ["\"df['image']\" column"]),
        ("%%glm4v --over 'df.", ["'df.image' column"]),
        ("%%glm4v --over 'cat", ["'cats' variable"]),
        ("%%glm4v --over frame.", []),
        ("%%glm4v --over frame[", ['frame["image"] column', 'frame["n"] column']),
        ("%%glm4v --over arrow[", ['arrow["image"] column', 'arrow["n"] column']),
        ("%%glm4v --over batch[", ['batch["image"] column', 'batch["n"] column']),
        ("%%glm4v --over hub[", ['hub["image"] column', 'hub["n"] column']),
        ("%%glm4v --over broken[", []),
        ("%%glm4v --evaluate ", ["label example"]),
        ("%%glm4v --over df --by ", ["image column", '"two words" column', "'a\"b' column"]),
        ("%%glm4v --over df.image --evaluate tw", ['"two words" column']),
        ("%%glm4v --over=hub --by 'n", ["'n' column"]),
        ("%%glm4v --over records --evaluate l", ["label column"]),
        *((f"%%glm4v --over {each} --by ", []) for each in ("bad_list", "broken", "counts")),
        ("%%glm4v --compare rec", ["records variable"]),
        ("%%glm4v --compare demo,demo-", ["demo,demo-4.6v model"]),
        ('%%glm4v --compare "demo, GLM-4V', ['"demo, GLM-4V-9B model']),
        ('%%glm4v --compare "demo,demo temp', ['"demo,demo temperature= option']),
        ('%%glm4v --compare "demo task=t', [f'"demo task={each} value' for each in TASKS]),
        ("%%glm4v --fr", ["--fresh option", "--from option"]),
        ("%glm4v continue --thinking o", ["on value", "off value"]),
        ("%glm4v history ", ["cats chat"]),
        ("%glm4v reset c", ["cats chat"]),
        ("%glm4v retry --t", [f"--{each} option" for each in ("temperature", "thinking", *TOP)]),
        ("%glm4v continue ", ["cats chat"]),
        ("%glm4v export c", ["cats chat", "c.json file"]),  # no export is an image
        ("%glm4v export cats ca", []),  # the chat is named already
        ("%glm4v export foo.json c", []),
        ("%glm4v import c", ["c.json file"]),
        ("%glm4v import foo.json c", []),
        ("%%glm4v cat.png\nWhat is ca", []),
        ("%%glm4v cat.png\nIs this {{cou", ["count variable", "counts variable"]),
        ("%%glm4v cat.png\nIs this {{count}} ca", []),
        ("%%glm4v cat.png\nIs this {{df.ilo", ["iloc attribute"]),
        ("%%glm4v cat.png\nIs this {{odd.", []),
        ("%%glm4v cat.png\nIs this {{nothing.x", []),
        ("%%glm4v --over df.image\nIs this {{row", ["row variable", "row_of image"]),
        ("%%glm4v --over df\nIs it {{row.", ["image column"]),
        ("%%glm4v --over df\nIs it {{row[", [f"{key}] column" for key in DF]),
        ("%%glm4v --over df.image\nIs it {{row['tw", ["'two words'] column"]),
        ("%%glm4v --over records\nIs it {{row.", ["q column", "label column"]),
        ("%glm4v ask --over df 'Is it {{row[\"i", ['"image"] column']),
        ("%glm4v ask --over df \"Is it {{row[i", []),
        ("%%glm4v --over cats\nIs it {{row.", []),
        ("%%glm4v\nIs it {{row.", []),
        ("%glm4v ask cat.png 'Is this {{cou", ["count variable", "counts variable"]),
        ("%%glm4v\nWhat is ca", []),
        ("%%glm4v \t\nIs this {{cou", ["count variable", "counts variable"]),
        (" \n\n  %%glm4v ca", IMAGES),
        ("%%time\n%%glm4v ca", IMAGES),
        ("%%time\n\n%%capture shown\n%%glm4v cat.png\nWhat is ca", []),
        ("%%time\nx = %glm4v ask ca", IMAGES),
        ("%time %glm4v ask ca", IMAGES),
        ("x = %timeit -n 1 %glm4v ask ca", IMAGES),
        (">>> %glm4v ask ca", IMAGES),
        ("for each in x:\n    %glm4v ask ca", IMAGES),
        ("x[-1] = %glm4v ask ca", IMAGES),
        ("d['a-b'] = %glm4v ask ca", IMAGES),
        ('d[f"{k}"], *x = %glm4v ask ca', IMAGES),
        ("x: str = %glm4v ask ca", IMAGES),
        ("d['%glm4v '] = %glm4v ask ca", IMAGES),
        ("%glm4v ask cat.png \\\n --fo", ["--format option"]),
        ("x = %glm4v ask \\\n cat.png \\\n ca", IMAGES),
        ("%glm4v ask 'two \\\nwo", []),
        ("!ls \"it's\n%glm4v ask ca", IMAGES),
        ("f(a,\n%cd photos\n)\n%glm4v ask ca", IMAGES),
        ("# %glm4v ask ca", None),
        ("!echo %glm4v ask ca", None),
        ("%timer %glm4v ask ca", None),
        ("s = '''\n%glm4v ask ca", None),
        ("f(x = %glm4v ask ca", None),
        ("x == %glm4v ask ca", None),
        ("%%glm4v\tca", None),
        ("%glm4v", None),
        ("%%glm4v", None),
        ("x = %glm4vv ", None),
        ("ca", None),
        ("%%time\nca", None),
    ],
)  # fmt: skip
def test_what_is_offered(offered, line: str, found: list[str] | None):
    assert offered(line) == found


def test_every_word_that_is_offered_is_taken():
    words = {name: option.words for name, option in OPTIONS.items() if option.words}
    assert "replicas" in words
    for name, each in words.items():
        for word in each:
            OPTIONS[name].check(read_text(OPTIONS[name], word))


def test_a_name_behind_hundreds_of_others_is_offered(offered):
    for number in range(300):
        Path(f"a{number}.png").touch()
    assert offered("%%glm4v cat") == ["cats image", "cat.png image"]
    assert len(offered("%%glm4v a")) == 200


@pytest.mark.parametrize(
    ("name", "typed", "found"),
    [
        ("it's.png", "", '"it\'s.png"'),
        ("it's.png", "'it", '"it\'s.png"'),
        ('a"q.png', '"a', "'a\"q.png'"),
        ("a\"q's.png", "'a", None),
        ("it's", '"it', "\"it's/"),
        ("-dash.png", "", "./-dash.png"),
        ("-dash.png", "'-d", "'./-dash.png'"),
        ("-two words.png", "", '"./-two words.png"'),
        ("a\nb.png", "a", None),
    ],
)
def test_what_is_inserted_is_read(tmp_path, monkeypatch, name, typed, found):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.touch() if path.suffix else path.mkdir()
    offered = complete(f"%glm4v ask {typed}", {})
    assert [each.text for each in offered.matches] == ([] if found is None else [found])
    if found is not None and path.suffix:
        parsed = parse(COMMANDS["ask"], split(found))
        assert [Path(word).name for word in parsed.words] == [name]


@pytest.fixture
def completions(shell):
    """What Tab offers in the shell, in all, at the end of a text."""

    def offered(text: str) -> list[tuple[str, str]]:
        with provisionalcompleter():
            found = list(shell.Completer.completions(text, len(text)))
        assert all(text[each.start :] == text[each.start : each.end] for each in found)
        return [(each.text, each.type) for each in found]

    return offered


def test_the_shell_offers_it_and_stops_when_unloaded(shell, completions):
    assert completions("%glm4v lo") == [("load", "command")]
    assert completions("%%glm4v --te") == [("--temperature", "option")]
    shell.run_line_magic("unload_ext", "glm4v_magic")
    assert ("load", "command") not in completions("%glm4v lo")
    shell.run_line_magic("load_ext", "glm4v_magic")
    assert completions("%glm4v lo") == [("load", "command")]


@pytest.mark.parametrize(
    "text",
    ["%glm4v zzz ", "%%glm4v imp", "x = %glm4v ask sh", "%glm4v plan --gpus sh", "%glm4v ask -o sh",
     "%%glm4v cat.png\nWhat is imp", "%glm4v unload "],
)  # fmt: skip
def test_nothing_else_is_offered(completions, text):
    Path("shell.txt").touch()
    assert completions(text) == []
    assert completions("imp")  # of Python


def test_in_and_out_are_no_variables_of_the_user(run, completions):
    run("mine = ['cat.png']")
    assert completions("%%glm4v --over ") == [("mine", "variable")]
    assert completions("%%glm4v ") == [("mine", "image")]
    assert completions("%%glm4v -o ") == [("mine", "image")]


FIRST = """
import sys, time
from traitlets.config import Config
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.completer import provisionalcompleter
config = Config()
config.HistoryManager.enabled = False
shell = InteractiveShell.instance(config=config)
shell.run_line_magic("load_ext", "glm4v_magic")
before = time.process_time()
with provisionalcompleter():
    for line in ("%glm4v ", "%glm4v load --", "%%glm4v ", "x = %glm4v ask sh"):
        print(len(list(shell.Completer.completions(line, len(line)))) > 0)
print(time.process_time() - before)
heavy = {"torch", "numpy", "PIL", "glm4v_magic.notebook.commands", "glm4v_magic.session"}
print("heavy:", *heavy & {*sys.modules})
"""


def test_the_first_tab_waits_for_nothing(tmp_path):
    Path(tmp_path, "shapes.png").touch()
    done = subprocess.run(
        [sys.executable, "-c", FIRST],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    *offered, seconds, imported = done.stdout.splitlines()
    assert offered == ["True"] * 4
    assert imported == "heavy:"
    # Of the processor, for others may keep it busy: under 0.1 s a line, the imports included.
    assert float(seconds) < 0.4
