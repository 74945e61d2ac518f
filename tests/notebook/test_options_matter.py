"""Every option of every command changes what its command does.

Each option is tried twice in a shell on the tiny checkpoint, without it and with it; nothing else
differs. What the user sees must differ, and where a pattern is given, it must be seen with the
option only. No option is left out: `test_every_option_is_tried`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace

import pytest
from PIL import Image
from shells import TINY
from standins import eva2clip_splits
from test_options import OPTIONS

RATE = re.compile(r"(?: ·|,) \d[\d.,]* (?:tokens|rows)/s\b")  # told of 50 ms and more
VOLATILE = re.compile(r"\d[\d.,]* ?(ms|s|min|h)\b|\d\d:\d\d:\d\d|Out\[\d+\]: |last answer .*")
GREEDY = "--temperature 0 --max-tokens 4"
AS_JSON = f"{GREEDY} --format json"
ROWS = f"{GREEDY} --over many"
TABLE = f"{GREEDY} --over table --choices ja,no"
OF_TABLE = "{{row.kind}}?"
ASKED = f'%glm4v ask "What?" {ROWS}'
HISTORY = "%glm4v history"
SEED = "print('seed:', _.seed)"
TOKENS = "print('tokens:', len(_.tokens or ()))"
SAMPLED = "--temperature 1 --seed 1 --max-tokens 4"


@dataclass(frozen=True)
class Trial:
    """How an option is tried.

    Attributes:
        option: with its value.
        line: the rest of the line, options and images.
        shows: pattern of what is seen with the option only; ``None``: any difference will do.
        question: of commands that ask one.
        instead: the question beside the option, where that takes the place of one.
        before, after: code that is run around the command; what the latter prints is seen.
        fails: whether the command fails, without the option and with it.
    """

    option: str
    line: str = ""
    shows: str | None = None
    question: str = "What?"
    instead: str | None = None
    before: str = ""
    after: str = ""
    fails: tuple[bool, bool] = (False, False)


EARLIER = '%glm4v ask "Before?" --chat pets --temperature 0 --max-tokens 2'

# What an answer is made of, for all commands that make one.
ANSWERS = {
    "--out": Trial("--out got", GREEDY, "True", after="print('got' in globals())"),
    "--max-tokens": Trial("--max-tokens 2", GREEDY, r"\b2 tokens out"),
    "--temperature": Trial("--temperature 0", "--max-tokens 4", "seed: None", after=SEED),
    "--top-p": Trial("--top-p 0.0001", SAMPLED),
    "--top-k": Trial("--top-k 1", SAMPLED),
    "--min-p": Trial("--min-p 1", SAMPLED),
    "--repetition-penalty": Trial("--repetition-penalty 9", "--temperature 0 --max-tokens 24"),
    "--seed": Trial("--seed 7", "--temperature 1 --max-tokens 4", r"seed 7\b"),
    "--format": Trial("--format json", GREEDY, r"\{\s*\}"),
    "--schema": Trial("--schema kind", AS_JSON, r"(?m)^7$"),
    "--logprobs": Trial("--logprobs 2", GREEDY, "tokens: [1-9]", after=TOKENS),
    "--choices": Trial("--choices ja,no", GREEDY, r"(?m)^no +\d+\.\d%"),
    "--regex": Trial("--regex [0-9]{3}", GREEDY, r"(?m)^[0-9]{3}$"),
    "--thinking": Trial("--thinking on", GREEDY, "does not think", fails=(False, True)),
    "--effort": Trial("--effort low", GREEDY, "effort low", fails=(False, True)),
    "--max-thinking": Trial("--max-thinking 9", GREEDY, "thinking to limit", fails=(False, True)),
    "--quiet": Trial("--quiet", GREEDY, r"\A…?\s*\Z"),
}  # fmt: skip

# What a prompt is made of, for all commands that send or show one.
PROMPTS = {
    "--continue": Trial("--continue", GREEDY, "(?s)Before.*What", before=EARLIER, after=HISTORY),
    "--chat": Trial("--chat pets", GREEDY, "pets", after="%glm4v chats"),
    "--system": Trial('--system "Be brief."', GREEDY, "Be brief", after=HISTORY),
    "--file": Trial("--file question.txt", GREEDY, "Which colour", instead="", after=HISTORY),
    "--task": Trial("--task text", GREEDY, "has no task text", instead="", fails=(False, True)),
    "--page": Trial("--page 2", f"two.gif {GREEDY}", "page 2"),
    "--crop": Trial("--crop 0,0,90,60", f"cat.png {GREEDY}", "90 x 60"),
    "--fps": Trial("--fps 2", GREEDY, "--fps is about a video", fails=(False, True)),
    "--from": Trial("--from 0:01", GREEDY, "--from is about a video", fails=(False, True)),
    "--to": Trial("--to 0:02", GREEDY, "--to is about a video", fails=(False, True)),
    "--over": Trial("--over many", GREEDY, r"many/0\.png"),
    "--raw": Trial("--raw", GREEDY, r"\{\{1 \+ 1}}", question="{{1 + 1}}?", after=HISTORY),
    "--debug": Trial("--debug", "missing.png", "Traceback", fails=(True, True)),
}  # fmt: skip

QUESTIONS = ANSWERS | PROMPTS | {
    "--batch-size": Trial("--batch-size 2", f"{ROWS} --fresh", "2 at once"),
    "--fresh": Trial("--fresh", ROWS, r"3 of 3 rows answered\.", before=ASKED),
    "--save": Trial(
        "--save rows.parquet",
        ROWS,
        "saved: 3",
        after="import os, pandas\n"
        "there = os.path.exists('rows.parquet')\n"
        "print('saved:', there and len(pandas.read_parquet('rows.parquet')))",
    ),
    "--preview": Trial("--preview", GREEDY, "nothing was sent"),
    "--compare": Trial(
        "--compare 'temperature=0,max-tokens=2'", GREEDY, "2 of 2 answered"
    ),
    "--evaluate": Trial("--evaluate label", TABLE, "of 2 rows right", question=OF_TABLE),
    "--by": Trial("--by kind", f"{TABLE} --evaluate label", "by kind", question=OF_TABLE),
    "--bins": Trial("--bins 7", f"{TABLE} --evaluate label", "in 7 bins", question=OF_TABLE),
}  # fmt: skip

UNFINISHED = '%glm4v ask cat.png "Before?" --temperature 0 --max-tokens 2'
AGAIN = {name: replace(trial, before=UNFINISHED) for name, trial in ANSWERS.items()} | {
    "--debug": Trial("--debug", before="%glm4v reset --all", shows="Traceback", fails=(True, True))
}

# What was begun is not in the form: it is carried on, and then is none, or that cannot be.
CARRIED_ON = {
    "--format": Trial("--format json", GREEDY, "holds no JSON", fails=(False, True)),
    "--schema": Trial("--schema kind", AS_JSON, "asked once more", fails=(True, False)),
    "--choices": Trial("--choices ja,no", GREEDY, "cannot be carried on", fails=(False, True)),
    "--regex": Trial("--regex [0-9]{3}", GREEDY, "No match of the regex", fails=(False, True)),
}
CARRIED_ON = {name: replace(trial, before=UNFINISHED) for name, trial in CARRIED_ON.items()}
RETRIED = {
    "--format": Trial(
        "--format json",
        GREEDY,
        "breaks off after 4 tokens",
        before=UNFINISHED,
        fails=(False, True),
    ),
    "--schema": Trial("--schema kind", AS_JSON, r"\b7\b", before=UNFINISHED, fails=(True, False)),
}

# A preview shows the prompt itself, of a follow-up the chat before it too.
PREVIEWS = {name: replace(trial, after="") for name, trial in PROMPTS.items()} | {
    "--chat": Trial("--chat pets", shows="Before", before=EARLIER),
    "--continue": Trial("--continue", shows="Before", before=EARLIER),
}

TWO_GPUS = "glm-4v-9b --gpus 2x24GiB"
PLANS = {
    "--gpus": Trial("--gpus 4x16GiB", TWO_GPUS, "cuda:3"),
    "--context": Trial("--context 1800", TWO_GPUS, "1,800 tokens"),
    "--images": Trial("--images 2", TWO_GPUS, "takes 1 image", fails=(False, True)),
    "--image-size": Trial("--image-size 560", "GLM-OCR --gpus 1x24GiB", "560 x 560"),
    "--batch": Trial("--batch 3", TWO_GPUS, r"batch of 3"),
    "--objective": Trial("--objective fewest", "glm-4v-9b --gpus 3x16GiB"),
    "--dtype": Trial("--dtype float32", "glm-4v-9b --gpus 4x24GiB", "float32"),
    "--quantize": Trial("--quantize 4bit", TWO_GPUS, "4bit|4-bit"),
    "--max-memory": Trial("--max-memory 20,18", TWO_GPUS, "17.28"),
    "--reserve": Trial("--reserve 5", TWO_GPUS, "19.00"),
    "--split-vision": Trial("--split-vision off", "glm-4v-9b --gpus 5x10GiB"),
    "--offload": Trial("--offload", "glm-4v-9b --gpus 1x24GiB", fails=(True, False)),
    "--pin": Trial("--pin vision=1", TWO_GPUS, "cuda:1[^:]*[Vv]ision"),
    "--debug": Trial("--debug", "glm-4v-9b --gpus 2xmany", "Traceback", fails=(True, True)),
}  # fmt: skip

CHECKED = f"{TINY} --gpus 2x1GiB"
CHECKS = {
    "--gpus": Trial("--gpus 3x1GiB", CHECKED, "cuda:2"),
    "--map": Trial("--map map.json", CHECKED, "by map"),
    "--context": Trial("--context 64", CHECKED, "prompt of 65 tokens"),
    "--images": Trial("--images 0", CHECKED),
    "--image-size": Trial("--image-size 560", CHECKED, "in the same size", fails=(False, True)),
    "--batch": Trial("--batch 2", CHECKED),
    "--dtype": Trial("--dtype bfloat16", CHECKED, "bfloat16"),
    "--objective": Trial("--objective balance", CHECKED),
    "--quantize": Trial("--quantize 8bit", CHECKED, "8bit, as planned"),
    "--max-memory": Trial("--max-memory 0.51,0.6", CHECKED),
    "--reserve": Trial("--reserve 0.9", CHECKED, "does not fit", fails=(False, True)),
    "--split-vision": Trial(
        "--split-vision off", f"{TINY} --gpus 4x1GiB --objective balance --context 8"
    ),
    "--offload": Trial(
        "--offload", f"{TINY} --gpus 1x1GiB --max-memory 0.2978", fails=(True, False)
    ),
    "--pin": Trial("--pin head=1", CHECKED),
    "--json": Trial("--json", CHECKED, r"\A\s*\{"),
    "--debug": Trial("--debug", f"{TINY} --gpus 2xmany", "Traceback", fails=(True, True)),
}

LOADS = {
    "--gpus": Trial("--gpus 1x1GiB", "--objective balance", "devices +cuda:0\n"),
    "--context": Trial("--context 64"),
    "--images": Trial("--images 2", fails=(False, True), shows="takes 1 image"),
    "--image-size": Trial("--image-size 560", shows="in the same size", fails=(False, True)),
    "--batch": Trial("--batch 2"),
    "--objective": Trial("--objective balance"),
    "--dtype": Trial("--dtype bfloat16", shows="bfloat16"),
    "--quantize": Trial("--quantize 2bit", fails=(False, True), shows="8bit and 4bit"),
    "--max-memory": Trial("--max-memory 0.6,0.51,0.1,0.1"),
    "--reserve": Trial("--reserve 0.1"),
    "--split-vision": Trial("--split-vision off", "--objective balance --context 8"),
    "--offload": Trial("--offload", "--gpus 1x1GiB --max-memory 0.2978", fails=(True, False)),
    "--pin": Trial("--pin head=1"),
    "--map": Trial("--map map.json"),
    "--served-model": Trial("--served-model x", shows="about a server", fails=(False, True)),
    "--timeout": Trial("--timeout 3", shows="about a server", fails=(False, True)),
    "--keep": Trial("--keep -1", shows="at least 0", fails=(False, True)),
    "--replicas": Trial("--replicas 0", shows="at least 1, or max", fails=(False, True)),
    "--cluster": Trial("--cluster here:1", shows="about replicas", fails=(False, True)),
    "--debug": Trial("--debug", "--context 0", "Traceback", fails=(True, True)),
}

PRINTED = (
    "--gpus 2x1GiB", "--context 64", "--images 0", "--image-size 560", "--batch 2",
    "--objective balance", "--dtype bfloat16", "--quantize 4bit", "--max-memory 0.5",
    "--reserve 0.1", "--split-vision off", "--pin head=1", "--map map.json",
    "--keep 1", "--lora x", "--host localhost", "--port 8001",
    "--parallel 3", "--replicas 2", "--cluster auto",
)  # fmt: skip
SERVES = {
    each.split()[0]: Trial(each.replace(" ", "="), "demo --print", each) for each in PRINTED
} | {
    "--base": Trial("--base x", "demo --print", "is not an adapter", fails=(False, True)),
    "--revision": Trial("--revision=main", "GLM-OCR --print", "--revision main"),
    "--engine": Trial("--engine vllm", "glm-4v-9b --gpus 1x40GiB --print", "vllm serve"),
    "--offload": Trial(
        "--offload",
        "glm-4v-9b --engine vllm --gpus 1x16GiB --context 2048 --print",
        "keeps layers",
        fails=(True, True),
    ),
    "--print": Trial(
        "--print", "glm-4v-9b --engine vllm --gpus 1x40GiB", "vllm serve", fails=(True, False)
    ),
    "--debug": Trial("--debug", "demo --print --gpus 2xmany", "Traceback", fails=(True, True)),
}


UNPATCHED = f"""\
import shutil
shutil.rmtree("code", ignore_errors=True)
shutil.copytree({str(eva2clip_splits.FOLDER)!r}, "code");"""


def failing(line):
    return {"--debug": Trial("--debug", line, "Traceback", fails=(True, True))}


def made_of(line=""):
    here = "demo --gpus 2x1GiB" if line == TWO_GPUS else line
    return {
        "--base": Trial("--base x", line, "is not an adapter", fails=(False, True)),
        "--revision": Trial("--revision main", here, "has no revision", fails=(False, True)),
        "--lora": Trial("--lora nowhere", line, "no adapter 'nowhere'", fails=(False, True)),
    }


TRIALS = {
    "": QUESTIONS,
    "ask": QUESTIONS,
    "preview": PREVIEWS,
    "continue": AGAIN | CARRIED_ON,
    "retry": AGAIN | RETRIED,
    "chats": failing("x"),
    "history": failing("nobody"),
    "inspect": failing("nobody")
    | {
        "--against": Trial(
            "--against dogs", "", "no chat 'dogs'", before='%glm4v ask "What?"', fails=(False, True)
        )
    },
    "reset": failing("nobody --all")
    | {"--all": Trial("--all", before=EARLIER + '\n%glm4v ask "What?"', after="%glm4v chats")},
    "export": failing("here.txt"),
    "import": failing("nowhere.json"),
    "plan": PLANS | made_of(TWO_GPUS) | {
        "--json": Trial("--json", TWO_GPUS, r"\A\s*\{"),
        "--save": Trial("--save plan.json", TWO_GPUS, "The plan is in plan.json"),
        "--machines": Trial("--machines", "glm-4v-9b", "2xT4"),
    },
    "devices": PLANS
    | {
        "--offload": Trial("--offload", "glm-4v-9b --gpus 1x24GiB", "in host memory"),
        "--batch": Trial("--batch 3", TWO_GPUS, r"\b3 rows|batch of 3")},
    "memory": failing("x"),
    "check": CHECKS | made_of(TWO_GPUS),
    "load": LOADS | made_of(),
    "serve": SERVES,
    "unload": failing("x"),
    "status": failing("x"),
    "doctor": failing("--gpus many")
    | made_of("demo")
    | {
        "--gpus": Trial("--gpus 2x16GiB", shows="cuda:0-1 .*16.00 GiB each"),
        "--hub": Trial("--hub", "demo", "HF_HUB_OFFLINE is set"),
        "--json": Trial("--json", "--gpus 2x16GiB", r"\A\s*\["),
    },
    "config": failing("colour"),
    "patch": failing("nowhere")
    | {"--dry-run": Trial("--dry-run", "code", "nothing was written", before=UNPATCHED)},
    "help": failing("x"),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def short_tracebacks(module_shell):
    """Those of IPython take longer than most commands."""
    mode = module_shell.InteractiveTB.mode
    module_shell.InteractiveTB.set_mode("Plain")
    yield
    module_shell.InteractiveTB.set_mode(mode)


@pytest.fixture(autouse=True)
def folder(run, tiny, tmp_path, monkeypatch):
    """What the lines of the tables name."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    Image.linear_gradient("L").resize((320, 240)).convert("RGB").save(tmp_path / "cat.png")
    first, second = Image.new("RGB", (9, 9)), Image.new("RGB", (9, 9), "red")
    first.save(tmp_path / "two.gif", save_all=True, append_images=[second])
    (tmp_path / "many").mkdir()
    for index in range(3):
        Image.new("RGB", (9, 9), (80 * index, 0, 0)).save(tmp_path / "many" / f"{index}.png")
    (tmp_path / "question.txt").write_text("Which colour?", encoding="utf-8")
    (tmp_path / "map.json").write_text(json.dumps({"model": 1, "lm_head": 0}), encoding="utf-8")
    run("%glm4v reset --all")
    run("kind = {'const': 7}")
    run("table = [{'label': 'ja', 'kind': 1}, {'label': 'no', 'kind': 2}]")


def typed(command, line, question):
    """Return the code of a cell that runs `command`."""
    if command == "":
        return f"%%glm4v {line}\n{question}\n"
    if command in ("ask", "preview"):
        quoted = f'"{question}"' if question else ""
        return f"%glm4v {command} {line} {quoted}"
    return f"%glm4v {command} {line}"


def seen(run, command, trial, *, with_option):
    """Return what a user sees; times and speeds, which differ from run to run, are left out."""
    if trial.before:
        run(trial.before)
    question = trial.question
    if with_option and trial.instead is not None:
        question = trial.instead
    line = f"{trial.line} {trial.option if with_option else ''}"
    if command == "load":
        shown = seen_of_a_load(run, line, fails=trial.fails[with_option])
    else:
        shown = run(typed(command, line, question), fails=trial.fails[with_option])
    if trial.after:
        shown += run(trial.after)
    return VOLATILE.sub("…", RATE.sub("", shown))


@pytest.fixture(scope="module")
def seen_without():
    """What was seen without an option, by command and trial: many options are tried on one line."""
    return {}


def plain(run, seen_without, command, trial):
    """Return what is seen without the option.

    It is run twice for the first option whose trial takes any difference.
    """
    anything = trial.shows is None
    key = (command, replace(trial, option="", shows=None, instead=None, fails=trial.fails[:1]))
    times = 2 if anything else 1
    shown = seen_without.setdefault(key, [])
    while len(shown) < times:
        shown.append(seen(run, command, trial, with_option=False))
        run("%glm4v reset --all")
    assert shown == shown[:1] * len(shown), "it differs by itself"
    return shown[0]


def seen_of_a_load(run, line, *, fails):
    """Return what loading onto three virtual GPUs shows, and where everything went."""
    run("%glm4v unload")
    run("from glm4v_magic.virtual_gpus import VirtualGPUs")
    run("_gpus = VirtualGPUs('4x1GiB')\n_gpus.__enter__();")
    try:
        shown = run(f"%glm4v load {TINY} {line}", fails=fails)
        plan = "get_ipython().find_line_magic('glm4v').__self__.context.session.plan"
        return shown + run("%glm4v status") + run(f"plan = {plan}; print(plan)")
    finally:
        run("%glm4v unload")
        run("_gpus.__exit__(None, None, None)")


OF_ASK = ("--out", "--max-tokens", "--file", "--over", "--debug")


@pytest.mark.parametrize(
    ("command", "name"),
    [
        pytest.param(
            command,
            name,
            # It takes what a cell takes, through the same parser.
            marks=pytest.mark.nightly if command == "ask" and name not in OF_ASK else (),
        )
        for command, trials in TRIALS.items()
        for name in trials
    ],
)
def test_an_option_changes_what_its_command_does(run, seen_without, command, name):
    trial = TRIALS[command][name]
    without = plain(run, seen_without, command, trial)
    with_it = seen(run, command, trial, with_option=True)
    # That the command repeats the option is no difference.
    without, with_it = (shown.replace(trial.option, "") for shown in (without, with_it))
    assert with_it != without
    if trial.shows is not None:
        assert re.search(trial.shows, with_it), with_it
        assert not re.search(trial.shows, without), without


# Of a line for %glm4v ask that is previewed, these say how the answer is made or where it goes.
WITHOUT_MEANING = set(QUESTIONS) - set(PREVIEWS) - {"--compare"}  # which it refuses


@pytest.mark.parametrize("name", sorted(WITHOUT_MEANING))
def test_a_preview_takes_every_option_of_ask(run, name):
    trial = QUESTIONS[name]
    is_of_rows = name in ("--batch-size", "--fresh", "--save", "--evaluate", "--by", "--bins")
    over = "--over many" if is_of_rows else ""
    over += " --evaluate label" if name in ("--by", "--bins") else ""
    schema = "--format json" if name == "--schema" else ""
    plain = run(f'%glm4v preview {over} {schema} "What?"')
    assert run(f'%glm4v preview {over} {schema} {trial.option} "What?"') == plain
    assert "nothing was sent" in plain


def test_every_option_is_tried():
    for command, action in (parameter.values for parameter in OPTIONS):
        name = action.option_strings[-1]
        assert name in TRIALS[command] or (
            command == "preview" and name in {*WITHOUT_MEANING, "--compare"}
        )
