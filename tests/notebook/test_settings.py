"""Settings: their sources, which of them wins, and what is refused."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config
from traitlets.config.loader import DeferredConfigString

from glm4v_magic.core.errors import OptionError
from glm4v_magic.core.options import OPTIONS, Sampling
from glm4v_magic.images import DEFAULT_LIMITS
from glm4v_magic.notebook.render.settings import settings_bundle
from glm4v_magic.notebook.settings import Glm4v, Setting, read

NAMES = Glm4v.names()


@pytest.fixture
def project(tmp_path):
    """Write the section of a project; returns the folder of a notebook in it."""

    def write(section: str, header: str = "[tool.glm4v_magic]"):
        (tmp_path / "pyproject.toml").write_text(f"[project]\nname = 'p'\n{header}\n{section}\n")
        folder = tmp_path / "notebooks" / "deep"
        folder.mkdir(parents=True)
        return folder

    return write


def row(settings: Glm4v, name: str) -> tuple[str, str]:
    (found,) = settings.table(name)
    return found.value, found.source


def error_of(*arguments, **options) -> str:
    with pytest.raises(OptionError) as caught:
        read(*arguments, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_what_is_built_in_is_what_python_callers_get(tmp_path):
    settings = read({}, {}, tmp_path)
    assert settings.max_tokens == Sampling().max_tokens
    assert settings.limits == DEFAULT_LIMITS
    for name in ("temperature", "top_p", "top_k", "min_p", "thinking"):
        assert getattr(settings, name) is getattr(Sampling(), name)
    assert {source for _, source in (row(settings, name) for name in NAMES)} == {"built in"}


def test_each_source_is_stronger_than_the_one_before(project):
    folder = project("max_tokens = 3\ntop_k = 3\ntop_p = 0.3\n")
    file = folder.parent.parent / "pyproject.toml"
    weak = {"max_tokens": 2, "top_k": 2, "top_p": 0.2, "temperature": 0.2}
    settings = read(weak, {"GLM4V_MAX_TOKENS": "4", "GLM4V_TOP_K": "4", "HOME": "x"}, folder)
    assert row(settings, "temperature") == ("0.2", "IPython's configuration")
    assert row(settings, "top_p") == ("0.3", str(file))
    assert row(settings, "top_k") == ("4", "GLM4V_TOP_K")
    settings.update_config(Config({"Glm4v": {"max_tokens": 5}}))
    assert row(settings, "max_tokens") == ("5", "%config")
    assert row(settings, "top_k") == ("4", "GLM4V_TOP_K")
    assert row(settings, "debug") == ("false", "built in")


def test_config_says_so_even_if_the_value_stays(tmp_path):
    settings = read({}, {"GLM4V_MAX_TOKENS": "4"}, tmp_path)
    settings.update_config(Config({"Glm4v": {"max_tokens": 4}}))
    assert row(settings, "max_tokens") == ("4", "%config")
    settings.update_config(Config({"Completer": {"use_jedi": False}}))
    assert row(settings, "debug")[1] == "built in"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("model", "a/b", "a/b"),
        ("model", "'~/x'", "'~/x'"),
        ("max_tokens", "9", 9),
        ("temperature", "0", 0.0),
        ("temperature", "None", None),
        ("top_p", "0.5", 0.5),
        ("top_k", "5", 5),
        ("min_p", "0.1", 0.1),
        ("thinking", "off", False),
        ("thinking", "true", True),
        ("thinking", "None", None),
        ("system", "Be brief.", "Be brief."),
        ("stop_button", "false", False),
        ("debug", "true", True),
        ("debug", "0", False),
        ("megapixels", "12.5", 12.5),
        ("download_seconds", "3", 3.0),
        ("allow_private", "1", True),
        ("max_tokens", "", 512),
    ],
)
def test_text_of_the_environment_and_the_command_line(tmp_path, name, text, value):
    assert getattr(read({}, {f"GLM4V_{name.upper()}": text}, tmp_path), name) == value
    if text:
        assert getattr(read({name: DeferredConfigString(text)}, {}, tmp_path), name) == value


def test_limits_of_images(tmp_path):
    chosen = {"megapixels": 1, "download_seconds": 2, "allow_private": True}
    limits = read(chosen, {}, tmp_path).limits
    assert (limits.megapixels, limits.download_seconds, limits.allow_private) == (1, 2, True)
    assert limits.download_bytes == DEFAULT_LIMITS.download_bytes


BAD = {
    "model": [3],
    "max_tokens": [0, 1.5, "many", True, None],
    "temperature": [-1, float("nan"), "hot", False],
    "top_p": [0, 1.5, float("inf")],
    "top_k": [0, 2.0],
    "min_p": [-0.1, 1.5],
    "thinking": [1, "perhaps"],
    "system": [["Be brief."]],
    "stop_button": [1, "never"],
    "debug": [1, "maybe"],
    "megapixels": [0, 500],
    "download_seconds": [0, float("inf")],
    "allow_private": ["no"],
}


def test_every_setting_has_a_bad_value_here():
    assert set(BAD) == set(NAMES)


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BAD.items() for value in values]
)
def test_a_bad_value_changes_nothing_and_says_what_it_may_be(tmp_path, caplog, name, value):
    settings = read({}, {}, tmp_path)
    before = settings.table()
    settings.update_config(Config({"Glm4v": {name: value}}))
    (said,) = caplog.messages
    assert said.startswith(f"{name} is {value!r}, but must be {OPTIONS[name].demand}")
    assert "\n" not in said
    assert settings.table() == before
    assert f"c.Glm4v.{name} in IPython's configuration is" in error_of({name: value}, {}, tmp_path)


def test_errors_name_the_file_or_the_variable(project, caplog):
    folder = project("temperature = 'hot'")
    file = folder.parent.parent / "pyproject.toml"
    demand = "but must be a number of at least 0 (0 is greedy)."
    assert error_of({}, {}, folder) == f"temperature in {file} is 'hot', {demand}"
    file.write_text("[tool.glm4v_magic]\nmax-tokens = 3")
    assert error_of({}, {}, folder) == (
        f"max-tokens in {file} is not a setting. Did you mean max_tokens?"
    )
    file.write_text("[tool.glm4v_magic]\nxyz = 3")
    assert error_of({}, {}, folder).endswith(f"There are {', '.join(NAMES)}.")
    file.write_text("[tool.glm4v_magic]\ntop_k = ")
    assert error_of({}, {}, folder).startswith(f"{file} cannot be read: Invalid value")
    file.write_bytes(b"[tool.glm4v_magic]\nsystem = '\xff'")
    assert error_of({}, {}, folder).startswith(f"{file} cannot be read: 'utf-8'")
    file.write_bytes("[tool.glm4v_magic]".encode("utf-16"))
    assert read({}, {}, folder).source("top_k") == "built in"
    assert caplog.messages == [f"{file} is not UTF-8, so that nothing in it was read."]
    file.write_bytes(b"[tool.glm4v_magic\r\ntop_k = 3\r\n")
    assert error_of({}, {}, folder).startswith(f"{file} cannot be read: Expected ']'")
    for text in ("[tool]\nglm4v_magic = 3", "tool.glm4v_magic = 3", "[[tool.glm4v_magic]]"):
        file.write_text(text)
        assert (
            error_of({}, {}, folder) == f"{file} cannot be read: tool.glm4v_magic is not a table."
        )
    file.unlink()
    assert error_of({}, {"GLM4V_TEMPERATURE": "hot"}, folder) == (
        f"The environment variable GLM4V_TEMPERATURE is 'hot', {demand}"
    )
    assert error_of({}, {"GLM4V_TEMPRATURE": "1"}, folder) == (
        "The environment variable GLM4V_TEMPRATURE is not a setting. Did you mean temperature?"
    )
    assert "Did you mean top_p" in error_of({"topp": 1}, {}, folder)


@pytest.mark.parametrize("header", ['[tool."glm4v_magic"]', "  [ tool . glm4v_magic ] # ours"])
def test_the_section_in_other_spellings(project, header):
    assert read({}, {}, project("top_k = 7", header)).top_k == 7


@pytest.mark.parametrize(
    "text", ["[tool]\nglm4v_magic.top_k = 7", "[tool]\nglm4v_magic = { top_k = 7 }"]
)
def test_the_section_as_keys(tmp_path, text):
    (tmp_path / "pyproject.toml").write_text(text)
    assert read({}, {}, tmp_path).top_k == 7


@pytest.mark.parametrize("text", ["tool = 3\nglm4v_magic = 3", "[a]\nglm4v_magic = 3", "[tool"])
def test_a_file_without_the_section(tmp_path, text):
    (tmp_path / "pyproject.toml").write_text(text)
    assert read({}, {}, tmp_path).top_k is None


@pytest.mark.parametrize("header", ["[tool.other]", "#[tool.glm4v_magic]", "[tool.glm4v_magic_x]"])
def test_other_sections_are_not_ours(project, header):
    assert read({}, {}, project("top_k = 7", header)).top_k is None


def test_only_the_nearest_file_counts(project):
    folder = project("top_k = 7")
    (folder / "pyproject.toml").write_text("[tool.other]\n")
    assert read({}, {}, folder).top_k is None


def test_a_model_beside_the_file_is_found_from_below(project):
    folder = project("model = './models/a'")
    assert read({}, {}, folder).model == str(folder.parent.parent / "models" / "a")


def test_a_folder_that_is_gone_has_no_project(tmp_path, monkeypatch):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert read({}, {}).top_k is None


def test_a_table_shows_all_and_steers_nothing():
    rows = [
        Setting("system", "<b>\x1b[2J\nBe brief", "%config", "What it is."),
        Setting("top_k", "5", "GLM4V_TOP_K", "More & more."),
    ]
    bundle = settings_bundle(rows)
    assert bundle["text/plain"].splitlines() == [
        "setting  value            where from   meaning",
        "system   <b>[2J Be brief  %config      What it is.",
        "top_k    5                GLM4V_TOP_K  More & more.",
    ]
    html = bundle["text/html"]
    assert "&lt;b&gt;" in html
    assert "More &amp; more." in html
    assert "\x1b" not in html


def test_the_key_of_a_server_is_no_setting_and_nowhere_shown(tmp_path):
    settings = read({}, {"GLM4V_API_KEY": "sesame"}, tmp_path)
    assert "sesame" not in settings_bundle(settings.table())["text/plain"]
    assert "sesame" not in repr(vars(settings))
    assert "is not a setting" in error_of({"api_key": "sesame"}, {}, tmp_path)


# In a shell.


@pytest.fixture
def clean(monkeypatch):
    """An environment without settings."""
    for name in list(os.environ):
        if name.startswith("GLM4V_"):
            monkeypatch.delenv(name)
    return monkeypatch


def loaded(shell: InteractiveShell) -> Glm4v:
    (settings,) = (each for each in shell.configurables if isinstance(each, Glm4v))
    return settings


def test_the_config_magic_sets_and_documents(clean, plain_shell, capsys):
    plain_shell.config.Glm4v.top_k = 3
    clean.setenv("GLM4V_MAX_TOKENS", "9")
    plain_shell.run_line_magic("load_ext", "glm4v_magic")
    settings = loaded(plain_shell)
    assert (settings.top_k, settings.max_tokens) == (3, 9)
    plain_shell.run_line_magic("config", "Glm4v.temperature = 0")
    assert settings.temperature == 0
    capsys.readouterr()
    plain_shell.run_line_magic("config", "Glm4v")
    page = capsys.readouterr().out
    for name in NAMES:
        assert f"Glm4v.{name}=<" in page
    assert "Sample only from this many of the likeliest tokens.\n    Current: 3" in page
    plain_shell.run_line_magic("unload_ext", "glm4v_magic")
    assert not any(isinstance(each, Glm4v) for each in plain_shell.configurables)


def test_a_bad_value_in_the_config_magic_is_one_line(clean, plain_shell, caplog):
    plain_shell.run_line_magic("load_ext", "glm4v_magic")
    plain_shell.run_line_magic("config", "Glm4v.top_p = 2")
    assert caplog.messages == ["top_p is 2, but must be a number above 0 and at most 1."]
    assert loaded(plain_shell).top_p is None
    plain_shell.run_line_magic("unload_ext", "glm4v_magic")


def test_what_the_config_magic_cannot_set_is_taken_back(clean, plain_shell, caplog):
    plain_shell.config.Glm4v.top_k = 3
    plain_shell.run_line_magic("load_ext", "glm4v_magic")
    clean.setattr(logging, "error", lambda *_: pytest.fail("the root logger would tell all else"))
    plain_shell.run_line_magic("config", "Glm4v.temprature = 1")
    plain_shell.run_line_magic("config", "Glm4v.top_k = 'many'")
    assert caplog.messages == [
        "temprature is not a setting. Did you mean temperature?",
        "top_k is 'many', but must be a whole number of at least 1.",
    ]
    assert dict(plain_shell.config.Glm4v) == {"top_k": 3}
    plain_shell.run_line_magic("reload_ext", "glm4v_magic")
    assert loaded(plain_shell).top_k == 3
    plain_shell.run_line_magic("config", "Completer.use_jedi = False")
    assert row(loaded(plain_shell), "top_k") == ("3", "IPython's configuration")
    plain_shell.run_line_magic("unload_ext", "glm4v_magic")


def test_a_bad_environment_stops_the_extension_in_one_line(clean, plain_shell, capsys):
    plain_shell.find_line_magic("load_ext")  # IPython registers its own magics when first used
    before = list(plain_shell.configurables)
    clean.setenv("GLM4V_TEMPERATURE", "hot")
    assert not plain_shell.run_cell("%load_ext glm4v_magic").success
    screen = "".join(capsys.readouterr())
    assert screen.strip().startswith("UsageError: The environment variable GLM4V_TEMPERATURE is")
    assert "then %load_ext glm4v_magic again." in screen
    assert len(screen.strip().splitlines()) == 1
    assert plain_shell.configurables == before
    plain_shell.run_cell("%env GLM4V_TEMPERATURE=")
    assert plain_shell.run_cell("%load_ext glm4v_magic").success
    plain_shell.run_line_magic("unload_ext", "glm4v_magic")


def test_config_command(clean, shell, run):
    lines = run("%glm4v config").splitlines()
    assert [line.split()[0] for line in lines] == ["setting", *NAMES]
    run("%config Glm4v.top_k = 8")
    last = run("%glm4v config top_k").splitlines()[-1]
    assert last.split(maxsplit=3)[:3] == ["top_k", "8", "%config"]
    assert "There is no setting topk. Did you mean top_k" in run("%glm4v config topk", fails=True)
    run("%config Glm4v.top_k = None")


def test_a_model_without_a_name_is_refused_as_it_is_set(clean, shell, run, caplog):
    for name in ("", " "):
        run(f'%config Glm4v.model = "{name}"')
        assert f"model is '{name}', but must be a folder, a name or an address." in caplog.text
    assert run("%glm4v config model").splitlines()[-1].split()[1] == "demo"  # as before


def test_a_model_that_is_set_after_another_was_chosen_waits_and_says_so(clean, shell, run):
    assert "stays in use" not in run('%config Glm4v.model = "demo"')
    run("%glm4v load demo")
    assert "stays in use" not in run("%config Glm4v.top_k = 3")
    line = '%glm4v load "my models/a"'
    screen = run('%config Glm4v.model = "my models/a"')
    assert screen.strip() == f"demo stays in use. To change it: {line}"
    assert "demo is loaded already" in run("%glm4v load")
    run("%config Glm4v.top_k = None")
    run("%config Glm4v.model = None")


def test_debug_for_every_line(clean, shell, run):
    assert "Traceback" not in run("%glm4v load no/such/folder", fails=True)
    run("%config Glm4v.debug = True")
    assert "Traceback" in run("%glm4v load no/such/folder", fails=True)
    assert "Traceback" in run("%%glm4v no.png\nWhat?", fails=True)
    run("%config Glm4v.debug = False")


def test_limits_reach_the_images_of_a_cell(clean, shell, run, photo):
    run("%config Glm4v.megapixels = 0.01")
    assert "at most 0.01 are read" in run("%%glm4v cat.png\nWhat?", fails=True)
    run("%config Glm4v.megapixels = 128")


def test_model_of_the_first_question_and_of_load(clean, shell, run):
    run("%unload_ext glm4v_magic\n%load_ext glm4v_magic")
    run("%config Glm4v.model = 'no/such/folder'")
    assert "no/such/folder, not loaded: the next question loads it" in run("%glm4v")
    for line in ("%%glm4v\nWhat?", "%glm4v load", "%%glm4v --preview\nWhat?"):
        assert "There is no checkpoint 'no/such/folder'" in run(line, fails=True)
    run("%config Glm4v.model = None")
    assert "demo, not loaded" in run("%glm4v")


def test_the_readme_tells_how_to_set_one():
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert "GLM4V_TEMPERATURE" in readme
