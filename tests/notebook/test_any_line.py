"""Lines, cells and servers with anything in any option: taken, or refused in one line."""

from __future__ import annotations

import json
import random
import shlex

import pytest
from shells import TINY

from glm4v_magic.core.errors import EngineError
from glm4v_magic.core.options import of_command
from glm4v_magic.core.typed_options import flags_of
from glm4v_magic.engines.replicas import cluster
from glm4v_magic.server import command
from glm4v_magic.server.listening import Server

VALUES = (
    "", " ", "0", "-0", "1", "-1", "+1", "1.5", "2", "nan", "-nan", "inf", "-inf", "1e400",
    "-1e400", "1e-400", "9" * 30, "9" * 5000, "0x10", "1_000", "٣", "½", "True", "none", "auto",
    "max", "cpu", "mps", "disk", "cuda", "cuda:0", "cuda:99", "xpu:0", "{}", "[]", "[1, 2]", "null",
    '{"": 0}', '{"": "cpu"}', '{"": NaN}', '{"": 1e400}', '{"a":', '{"": 0, "": 1}',
    '{"format": "plan"}', "=", ",", "a=", "=1", "0=1GiB", "0=1GiB,0=2GiB", "0=nan", "cpu=inf",
    "vision=0", "head=0,head=1", "vision=-1", "nose=0", "vision=1e9", "1,2", "1,nan", ",1", "4x",
    "x4GiB", "0x16GiB", "2x1GiB", "-1x1GiB", "1e9x1GiB", "999999x1GiB", "1x1e400GiB", "1x0GiB",
    "2xT4", "24GiB@nanGB/s", "4bit", "8bit", "2bit", "bfloat16", "torch.float16", "int8", "on",
    "off", "list.json", "plan.json", "changed.json", "folder", "none.json", "cat.png",
    "~nobody-here/x.json", "a\0b.json", "\x1b[2J", "\u202egnp.tac", "a" * 5000, "'", "$HOME",
    "{nothing}", "{1/0}", "--", "-", "%", "made", "loop", "adapter", "here:1", ":",
    "127.0.0.1:99999", "http://127.0.0.1:1/v1",
)  # fmt: skip
MODELS = (str(TINY), str(TINY), str(TINY), "", "no-such-model", "adapter", "cat.png", "folder")
COMMANDS = ("load", "plan", "check", "doctor", "devices", "serve", "cell")
ASK = "%glm4v ask 'Hello' -o said --temperature 0 --max-tokens 2 --quiet"
SEEDS = [pytest.param(seed, marks=[] if seed < 4 else [pytest.mark.nightly]) for seed in range(60)]
EACH = 20  # lines
LONGEST = 1200  # characters of what is said


def words_of(chance, name):
    """Return options of a command with values at random, a good one now and then."""
    words = []
    for option in chance.sample(known := of_command(name), min(len(known), chance.randint(1, 3))):
        words.append(flags_of(option)[-1])
        if option.annotation != "bool" or chance.random() < 0.1:
            is_good = option.example and chance.random() < 0.2
            words.append(str(option.example) if is_good else chance.choice(VALUES))
    return words


def line_of(chance):
    name = chance.choice(COMMANDS)
    words = words_of(chance, name)
    if name == "cell":
        return f"%%glm4v {shlex.join(words)}\nWhat is this?"
    model = chance.choice(MODELS)
    if name == "serve":
        words += ["--print"]  # nothing is started
    return f"%glm4v {name} {shlex.join([model] if model else [])} {shlex.join(words)}"


@pytest.fixture(scope="module")
def prepared(module_shell, tmp_path_factory):
    """The shell in a folder of odd files, with odd variables and a loaded model."""
    folder = tmp_path_factory.mktemp("any")
    (folder / "folder").mkdir()
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1e400}')
    (folder / "list.json").write_text("[1, 2]")
    (folder / "cat.png").write_bytes(b"no image")
    shell, before = module_shell, module_shell.InteractiveTB.mode
    shell.InteractiveTB.set_mode("Minimal")  # else most of the time is spent on tracebacks
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(cluster, "connect", unreachable)
        shell.run_cell(f"made = %glm4v plan {TINY} --gpus 2x1GiB --save plan.json").raise_error()
        content = json.loads((folder / "plan.json").read_text())
        content["workload"]["context"] = 10**15
        (folder / "changed.json").write_text(json.dumps(content))
        shell.run_cell("loop = {'': 0}; loop['a'] = loop; kept = [1, 2]").raise_error()
        yield shell
    shell.InteractiveTB.set_mode(before)


def unreachable(*_):
    raise EngineError("No cluster is here.", "Leave it out.")


@pytest.mark.parametrize("seed", SEEDS)
def test_a_line_or_a_cell_is_carried_out_or_refused_in_one_line(prepared, capsys, seed):
    shell, chance = prepared, random.Random(seed)
    session = shell.magics_manager.registry["Glm4vMagics"].context.session
    shell.run_cell(f"%glm4v load {TINY} --gpus cpu").raise_error()
    shell.run_cell(ASK).raise_error()
    greeting, refused = shell.user_ns["said"].text, 0
    for _ in range(EACH):
        line, engine = line_of(chance), session.engine
        capsys.readouterr()
        failure = shell.run_cell(line).error_in_exec
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err, line
        if failure is None:
            assert session.engine is not None, line
            continue
        refused += 1
        assert type(failure).__name__ == "UsageError", (line, failure)
        assert said.err.startswith("UsageError: "), line
        assert len(said.err.strip().splitlines()) == 1, line
        assert len(said.err) < LONGEST, line
        assert "\x1b" not in said.err.replace("\x1b[0m", ""), line
        assert session.engine is engine, line
    assert refused > EACH // 3
    assert shell.user_ns["kept"] == [1, 2]
    assert set(shell.user_ns["loop"]) == {"", "a"}
    shell.run_cell(f"%glm4v load {TINY} --gpus cpu").raise_error()
    shell.run_cell(ASK).raise_error()
    assert shell.user_ns["said"].text == greeting


@pytest.mark.parametrize("seed", SEEDS)
def test_a_server_starts_or_refuses_in_one_line(prepared, monkeypatch, capsys, seed):
    chance = random.Random(seed)
    monkeypatch.setattr(Server, "open", lambda *_: None)
    monkeypatch.setattr(Server, "serve", lambda _: None)
    for _ in range(EACH):
        model = chance.choice(MODELS)
        words = ["--port", "0", *words_of(chance, "serve")]
        capsys.readouterr()
        try:
            status = command.main([model or "no-such-model", *words])
        except SystemExit as stopped:  # by argparse, after its usage
            status = stopped.code
        said = capsys.readouterr()
        assert status in (0, 1, 2), words
        assert "Traceback" not in said.out + said.err, words
        if status == 1:
            assert said.err.strip(), words
            assert len(said.err.strip().splitlines()) <= 2, words  # who may ask comes before
            assert len(said.err) < LONGEST, words
