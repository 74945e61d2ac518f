"""The doctor: findings from facts, facts from this machine, and what is shown of them."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from driver_standin import MISSING, Described
from driver_standin import Driver as Nvml
from shells import TINY

from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.core.errors import CheckpointError
from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.core.remarks import PYTHON, Words, worded
from glm4v_magic.doctor import Facts, Finding, diagnose, gather
from glm4v_magic.doctor import facts as doctor_facts
from glm4v_magic.doctor.facts import Disk, Hub, Package, TorchCuda
from glm4v_magic.hardware.driver import Driver, Link
from glm4v_magic.hardware.gpus import FoundGPU
from glm4v_magic.notebook.commands import COMMANDS
from glm4v_magic.notebook.next_steps import CELL
from glm4v_magic.notebook.render.doctor import doctor_bundle, findings_json, findings_text
from glm4v_magic.server.next_steps import HTTP
from glm4v_magic.session.session import Session

GIB = 2**30
ROOT = Path(__file__).parents[2]

SHAPE = architecture("GLM-4V-9B").shape()
PACKAGES = {
    "torch": Package("torch", ">=2.6", "2.13.0+cu126", "2.13.0+cu126"),
    "transformers": Package("transformers", ">=5.18,<6", "5.23.0"),
    "accelerate": Package("accelerate", ">=1.10", "1.15.0"),
    "ipywidgets": Package("ipywidgets", ">=8.1", "8.1.9"),
    "ipykernel": Package("ipykernel", ">=7.0", "7.3.0", extra="notebook"),
    "nvidia-ml-py": Package("nvidia-ml-py", ">=12.560", "13.615.71"),
    "bitsandbytes": Package("bitsandbytes", ">=0.46", "", extra="quantize"),
}


def gpus(count: int, gib: int, **changes: Any) -> tuple[FoundGPU, ...]:
    gpu = FoundGPU(0, "NVIDIA X", total_bytes=gib * GIB, other_bytes=GIB // 2)
    return tuple(replace(gpu, index=index, **changes) for index in range(count))


HEALTHY = Facts(
    shape=SHAPE,
    python="3.11.7",
    python_required=">=3.11",
    packages=tuple(PACKAGES.values()),
    found_gpus=gpus(2, 24),
    driver=Driver("560.35", (12, 6)),
    torch_cuda=TorchCuda("12.6", usable=True),
    links=(Link((0, 1), peer=True, nvlink=True),),
    host_bytes=64 * GIB,
    disk=Disk("/cache", 100 * GIB, 0),
    hub=Hub("https://hub.example", ""),
)


def with_package(name: str, **changes: Any) -> Facts:
    packages = PACKAGES | {name: replace(PACKAGES[name], **changes)}
    return replace(HEALTHY, packages=tuple(packages.values()))


def on(description: str, **changes: Any) -> Facts:
    return replace(
        HEALTHY, found_gpus=(), described=parse_gpus(description), driver=None, links=(), **changes
    )


NO_GPUS = replace(HEALTHY, found_gpus=(), links=(), driver=None, torch_cuda=None)
WITHOUT_NVML = with_package("nvidia-ml-py", installed="")
UNKNOWN_SIZE = replace(
    HEALTHY, found_gpus=gpus(1, 1, name="NVIDIA GB10", total_bytes=None), links=()
)

SCENES: dict[str, tuple[Facts, dict[str, str], list[str]]] = {
    # facts, verdicts that are not ok, and words that must be shown
    "healthy": (
        HEALTHY,
        {},
        ["560.35, runs up to CUDA 12.6", "1 over NVLink", "fits:", "; GLM-4V-9B takes 25.90 GiB"],
    ),
    "no driver": (
        NO_GPUS,
        {"GPUs": "warn", "model": "warn"},
        ["There is no NVIDIA driver", "a CPU is slow", "in float32 takes 5", "doctor --gpus"],
    ),
    "no driver, demo model": (
        replace(NO_GPUS, shape=architecture("demo").shape()),
        {"GPUs": "warn"},
        ["demo in float32 takes 17."],
    ),
    "no driver, little memory": (
        replace(NO_GPUS, host_bytes=8 * GIB),
        {"GPUs": "warn", "model": "fail"},
        ["The host has 8.00 GiB"],
    ),
    "no driver, unknown memory": (
        replace(NO_GPUS, host_bytes=None),
        {"GPUs": "warn", "model": "warn"},
        ["memory is not known"],
    ),
    "no library that asks the driver": (
        replace(NO_GPUS, packages=WITHOUT_NVML.packages),
        {"nvidia-ml-py": "fail", "GPUs": "warn", "model": "warn"},
        ["Without nvidia-ml-py nothing tells", "pip install nvidia-ml-py"],
    ),
    "hidden GPUs": (
        replace(NO_GPUS, driver=HEALTHY.driver, visible=""),
        {"GPUs": "warn", "model": "warn"},
        ["CUDA_VISIBLE_DEVICES is ''"],
    ),
    "no GPU for this process": (
        replace(NO_GPUS, driver=HEALTHY.driver),
        {"GPUs": "warn", "model": "warn"},
        ["finds no GPU"],
    ),
    "old torch": (
        with_package("torch", installed="2.3.0", imported=""),
        {"torch": "fail"},
        ["asks for >=2.6", "2.3.1", 'pip install "torch>=2.6"'],
    ),
    "torch of a container": (
        with_package("torch", installed="2.6.0a0+ecf3bae40a.nv25.1", imported=""),
        {},
        ["2.6.0a0"],
    ),
    "torch of an unknown kind": (
        with_package("torch", installed="git-1234", imported=""),
        {"torch": "warn"},
        ["cannot be compared"],
    ),
    "torch replaced while running": (
        with_package("torch", imported="2.12.0"),
        {"torch": "warn"},
        ["2.13.0+cu126 installed, 2.12.0 imported", "Restart the kernel."],
    ),
    "missing libraries": (
        replace(
            HEALTHY,
            packages=tuple(replace(p, installed="", imported="") for p in PACKAGES.values()),
        ),
        dict.fromkeys(
            ["torch", "transformers", "accelerate", "ipywidgets", "nvidia-ml-py"], "fail"
        ),
        ['pip install "accelerate>=1.10"', "Only the extra 'quantize' needs it."],
    ),
    "the widget trap": (
        with_package("ipykernel", installed="7.4.0"),
        {"ipykernel": "warn"},
        ["Stop button", "ipykernel==7.3.0"],
    ),
    "not installed": (
        replace(HEALTHY, python_required="", packages=()),
        {"Python": "warn"},
        ["pip install"],
    ),
    "old Python": (
        replace(HEALTHY, python="3.10.1"),
        {"Python": "fail"},
        ["asks for >=3.11", "newer Python"],
    ),
    "CUDA newer than the driver": (
        replace(HEALTHY, torch_cuda=TorchCuda("13.0", usable=False)),
        {"CUDA": "fail"},
        ["torch is built for 13.0", "The driver runs up to CUDA 12.6.", "Update the driver"],
    ),
    "CUDA does not start": (
        replace(HEALTHY, torch_cuda=TorchCuda("12.4", usable=False, problem="Error 802.")),
        {"CUDA": "fail"},
        ["Error 802.", "Restart the kernel"],
    ),
    "torch without CUDA": (
        replace(HEALTHY, torch_cuda=TorchCuda("", usable=False)),
        {"CUDA": "fail"},
        ["built without CUDA", "run pip install --force-reinstall torch --index-url", "cu126"],
    ),
    "torch without CUDA, an unknown driver": (
        replace(HEALTHY, torch_cuda=TorchCuda("", usable=False), driver=Driver("560.35", None)),
        {"CUDA": "fail"},
        ["the CUDA that nvidia-smi names"],
    ),
    "a driver older than any build": (
        replace(
            HEALTHY,
            torch_cuda=TorchCuda("12.6", usable=False),
            driver=Driver("440.33", (10, 2)),
        ),
        {"CUDA": "fail"},
        ["runs up to CUDA 10.2. Update the driver; restart the computer."],
    ),
    "torch cannot be imported": (
        replace(HEALTHY, torch_cuda=TorchCuda(None, usable=False, problem="libc10.")),
        {"CUDA": "fail"},
        ["torch cannot be imported", "libc10."],
    ),
    "2 x 8 GiB": (
        on("2x8GiB"),
        {"model": "warn"},
        ["does not fit as it is", "offloading", "5 GPUs of 8.00 GiB would do"],
    ),
    "2 x 8 GiB, nowhere to offload to": (
        on("2x8GiB", host_bytes=1 * GIB),
        {"model": "fail"},
        ["does not fit"],
    ),
    "2 x 12 GiB": (on("2x12GiB"), {"model": "warn"}, ["8-bit weights (", "--quantize 8bit"]),
    "8 x 16 GiB": (
        on("8x16GiB"),
        {},
        [
            "cuda:0-7",
            "vision tower whole on cuda:0",
            "3 of 8 GPUs, the fullest 68% full: as few as leave a fifth of each free; --objective "
            "balance would use all 8, the fullest 31% full.",
            "2 hops",
            "Fewer GPUs would leave less than a fifth of each free.",
            "cuda:3, cuda:4, cuda:5, cuda:6, cuda:7",
        ],
    ),
    "8 x 5 GiB": (on("8x5GiB"), {}, ["cut between its layers", "does not fit on fewer GPUs"]),
    "9 x 5 GiB": (on("9x5GiB"), {}, ["8 hops per token Fewer GPUs would be fuller."]),
    "6 x 1 GiB": (on("6x1GiB"), {"model": "fail"}, ["does not fit"]),
    "a board with unified memory": (
        UNKNOWN_SIZE,
        {"cuda:0": "warn", "model": "warn"},
        ["NVIDIA GB10, size unknown", "--gpus 1x96GiB"],
    ),
    "a GPU in use": (
        replace(HEALTHY, found_gpus=gpus(2, 80, other_bytes=60 * GIB)),
        {"cuda:0": "warn", "cuda:1": "warn"},
        ["hold 60.00 GiB", "nvidia-smi"],
    ),
    "different GPUs": (
        replace(HEALTHY, found_gpus=gpus(2, 24, index_certain=False)),
        {"order of GPUs": "warn"},
        ["CUDA_DEVICE_ORDER=PCI_BUS_ID"],
    ),
    "no peer access": (
        replace(HEALTHY, links=(Link((0, 1), False, False, "the chipset does not support it"),)),
        {"peer access": "warn"},
        ["between cuda:0 and cuda:1", "the chipset does not support it", "host's memory"],
    ),
    "unknown peer access": (
        replace(HEALTHY, links=(Link((0, 1), None, None),)),
        {},
        ["The driver does not tell"],
    ),
    "full disk": (
        replace(HEALTHY, disk=Disk("/cache", 10 * GIB, 2 * GIB)),
        {"disk": "fail"},
        ["takes 25.90 GiB", "2.00 GiB of it are here", "13.90 GiB are short", "HF_HOME"],
    ),
    "downloaded already": (
        replace(HEALTHY, disk=Disk("/cache", 0, 26 * GIB)),
        {},
        ["is here already"],
    ),
    "unknown disk": (
        replace(HEALTHY, disk=None),
        {"disk": "warn"},
        ["without huggingface_hub", "pip install huggingface_hub"],
    ),
    "a disk that does not answer": (
        replace(HEALTHY, disk=Disk("/cache", 0, 0, problem="/cache: OSError: Stale file handle")),
        {"disk": "fail"},
        [
            "/cache cannot be used /cache: oserror: stale file handle; glm",
            "set hf_home to a folder",
        ],
    ),
    "a folder": (replace(HEALTHY, disk=None, is_here=True), {}, ["nothing to download"]),
    "no network": (
        replace(HEALTHY, hub=Hub("https://hub.example", "no answer within 3 s")),
        {"hub": "warn"},
        ["No answer within 3 s.", "local folder"],
    ),
    "hub not asked": (replace(HEALTHY, hub=None), {}, ["doctor --hub"]),
}


def said(findings: tuple[Finding, ...]) -> str:
    return "\n".join(f"{f.subject}: {f.found} {why(f)} {next_step(f)}" for f in findings)


def why(finding: Finding) -> str:
    return worded(finding.reason, CELL)


def next_step(finding: Finding) -> str:
    return worded(finding.next_step, CELL)


@pytest.mark.parametrize("scene", SCENES)
def test_verdicts(scene: str) -> None:
    facts, verdicts, words = SCENES[scene]
    findings = diagnose(facts)
    assert {f.subject: f.verdict for f in findings if f.verdict != "ok"} == verdicts
    text = said(findings).lower()
    assert [word for word in words if word.lower() not in text] == []


@pytest.mark.parametrize("scene", SCENES)
def test_every_warning_says_why_and_what_next(scene: str) -> None:
    for finding in diagnose(SCENES[scene][0]):
        if finding.verdict != "ok":
            assert why(finding).endswith("."), finding
            assert next_step(finding).endswith("."), finding


@pytest.mark.parametrize("words", [PYTHON, HTTP], ids=["Python", "HTTP"])
@pytest.mark.parametrize("scene", SCENES)
def test_only_a_cell_is_told_of_its_kernel(scene: str, words: Words) -> None:
    for each in diagnose(SCENES[scene][0]):
        if each.subject == "ipykernel":  # that is about kernels
            continue
        said = f"{each.found} {worded(each.reason, words)} {worded(each.next_step, words)}"
        assert not re.search(r"\b(kernel|cell|notebook)s?\b", said), said


@pytest.mark.parametrize("scene", SCENES)
def test_commands_in_next_steps_exist(scene: str) -> None:
    for finding in diagnose(SCENES[scene][0]):
        for name, rest in re.findall(r"%glm4v (\w+)([\w\s-]*)", next_step(finding)):
            for option in re.findall(r"--[\w-]+", rest):
                assert option in (COMMANDS[name].__doc__ or ""), finding


@pytest.mark.parametrize("scene", SCENES)
def test_no_line_is_long_and_nothing_is_lost(scene: str) -> None:
    findings = diagnose(SCENES[scene][0])
    text = findings_text(findings)
    assert max(map(len, text.splitlines())) <= 100
    letters = "".join(text.split())
    for finding in findings:
        assert "".join(finding.found.split()) in letters
        assert "".join(next_step(finding).split()) in letters


def test_more_gpus_are_never_called_faster() -> None:
    (idle,) = [f for f in diagnose(on("8x16GiB")) if f.subject == "idle GPUs"]
    assert "no faster" in why(idle)


HOSTILE = Finding(
    "<b>&", "warn", "<script>alert(1)</script>", 'a "quoted"\x1b[2J reason.', "x" * 300
)


class Cells(HTMLParser):
    """Texts of a table's cells, row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows:
            self.rows[-1][-1] += data


def test_html_is_one_table_and_escapes() -> None:
    cells = Cells()
    html = doctor_bundle([HOSTILE, Finding("Python", "ok", "3.11")])["text/html"]
    cells.feed(html.replace("<wbr>", ""))
    assert cells.rows[0] == ["Verdict", "Subject", "Found"]
    told = ("<script>alert(1)</script>", 'a "quoted"[2J reason.', "→ " + "x" * 300)
    assert cells.rows[1] == ["! warn", "<b>&", "".join(told)]
    assert cells.rows[2] == ["✓ ok", "Python", "3.11"]
    assert cells.tags == {
        "table", "caption", "thead", "tbody", "tr", "th", "td", "span", "div", "small", "a",
    }  # fmt: skip


def test_text_breaks_long_words_and_has_no_controls() -> None:
    text = findings_text([HOSTILE])
    assert max(map(len, text.splitlines())) <= 100
    assert "\x1b" not in text
    assert text.splitlines()[-1] == "0 ok, 1 warning, 0 failures"


def test_json_is_the_findings() -> None:
    assert [Finding(**entry) for entry in json.loads(findings_json([HOSTILE]))] == [HOSTILE]


class TestGather:
    def test_this_machine(self) -> None:
        facts = gather()
        assert facts.python == ".".join(map(str, sys.version_info[:3]))
        installed = {package.name: package.installed for package in facts.packages}
        assert {"torch", "transformers", "accelerate", "ipykernel", "bitsandbytes"} <= set(
            installed
        )
        assert "ruff" not in installed
        assert installed["torch"]
        assert facts.shape.name == "GLM-4V-9B"
        assert facts.hub is None

    def test_described_gpus_replace_those_that_are_here(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Nvml([Described()]).install(monkeypatch)
        gpus = parse_gpus("3x12GiB")
        facts = gather(gpus)
        assert (facts.gpus, facts.found_gpus, facts.driver) == (gpus, (), None)

    def test_gpus_that_are_here(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        Nvml([Described("GPU-a"), Described("GPU-b", memory=MISSING)]).install(monkeypatch)
        facts = gather()
        assert facts.torch_cuda is not None
        assert [gpu.uuid for gpu in facts.found_gpus] == ["GPU-a", "GPU-b"]
        assert facts.gpus[0].total_bytes == 40 * GIB
        assert [link.gpus for link in facts.links] == [(0, 1)]

    @pytest.mark.parametrize("model", ["demo", "GLM-4.1V-9B-Thinking", "GLM-4V-9B"])
    def test_any_model(self, model: str) -> None:
        facts = gather(parse_gpus("2x24GiB"), model=model)
        assert facts.shape.name == model
        assert facts.is_here == (model == "demo")
        verdicts = {finding.subject: finding.verdict for finding in diagnose(facts)}
        assert verdicts["model"] == "ok"

    def test_an_unknown_model(self) -> None:
        with pytest.raises(CheckpointError, match=r"Did you mean GLM-4V-9B"):
            gather((), model="GLM-4V-9")

    def test_what_is_downloaded_counts_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        blobs = tmp_path / "hub" / "models--someone--glm-4v-9b" / "blobs"
        snapshot = blobs.parent / "snapshots" / "1"
        for folder in (blobs, snapshot):
            folder.mkdir(parents=True)
        (blobs / "weights").write_bytes(bytes(1000))
        os.symlink(blobs / "weights", snapshot / "weights")
        disk = gather(()).disk
        assert disk is not None
        assert (disk.folder, disk.cached_bytes) == (str(tmp_path / "hub"), 1000)

    def test_needs_no_torch_without_gpus(self) -> None:
        code = (
            "import sys\n"
            "for name in ('torch', 'transformers', 'accelerate'): sys.modules[name] = None\n"
            "from glm4v_magic.doctor import diagnose, gather\n"
            "print(len(diagnose(gather(()))))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert int(done.stdout) > 5


class TestHub:
    @pytest.fixture(autouse=True)
    def no_proxy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
            monkeypatch.delenv(name)

    @pytest.fixture
    def ask(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
        from huggingface_hub import constants

        def ask(endpoint: str, offline: bool = False) -> str:
            monkeypatch.setattr(constants, "ENDPOINT", endpoint)
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
            monkeypatch.setattr(doctor_facts, "HUB_SECONDS", 60.0)  # this computer may be slow
            hub = gather((), hub=True).hub
            assert hub is not None
            assert hub.endpoint == endpoint
            return hub.problem

        return ask

    @pytest.mark.parametrize(("status", "problem"), [(200, ""), (503, "it answers 503")])
    def test_a_server_that_answers(self, ask: Callable[..., str], status: int, problem: str):
        with server(status) as endpoint:
            assert ask(endpoint) == problem

    def test_nobody_listens(self, ask: Callable[..., str]) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            problem = ask(f"http://127.0.0.1:{unused.getsockname()[1]}")
        assert problem.startswith("ConnectError: ")
        assert "refused" in problem

    def test_no_address(self, ask: Callable[..., str]) -> None:
        assert ask("file:///etc/hosts") == "its address is not http or https"

    def test_offline(self, ask: Callable[..., str]) -> None:
        assert ask("http://127.0.0.1:1", offline=True) == "HF_HUB_OFFLINE is set"


@contextlib.contextmanager
def server(status: int) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


class TestCommand:
    def test_shows_a_table(self, run: Callable[..., str]) -> None:
        screen = run("%glm4v doctor --gpus 2x24GiB")
        assert "GLM-4V-9B in bfloat16 fits" in screen
        assert "cuda:0-1" in screen

    def test_another_model(self, run: Callable[..., str]) -> None:
        assert "demo in" in run("%glm4v doctor demo --gpus cpu")

    def test_json(self, run: Callable[..., str]) -> None:
        findings = json.loads(run("%glm4v doctor --json --gpus cpu"))
        assert set(findings[0]) == {"subject", "verdict", "found", "reason", "next_step"}

    def test_hub(self, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert "HF_HUB_OFFLINE is set" in run("%glm4v doctor --hub --gpus cpu")
        assert "not asked" in run("%glm4v doctor --gpus cpu")

    @pytest.mark.parametrize(
        ("line", "words"),
        [("--gpus 2x", "Cannot read '2x'"), ("GLM-4V-9", "Did you mean GLM-4V-9B")],
    )
    def test_mistakes_are_one_line(self, run: Callable[..., str], line: str, words: str) -> None:
        screen = run(f"%glm4v doctor {line}", fails=True)
        assert words in screen
        assert len(screen.strip().splitlines()) == 1


def test_a_folder_that_cannot_be_loaded_is_never_ok(native, tmp_path):
    def verdicts(folder):
        found = diagnose(gather(parse_gpus("1x16GiB"), model=str(folder)))
        return {each.subject: each for each in found if each.subject == "checkpoint"}

    assert verdicts(native("glm46v")) == {}
    folder = shutil.copytree(native("glm46v"), tmp_path / "broken")
    (folder / "tokenizer.json").unlink()
    finding = verdicts(folder)["checkpoint"]
    assert finding.verdict == "fail"
    assert "broken holds no tokenizer.json" in finding.reason
    (folder / "model.safetensors").unlink()
    assert "holds no weights" in verdicts(folder)["checkpoint"].reason


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        ("text_config", {"hidden_act": "nonsense"}, "cannot build"),
        ("rope_parameters", {"mrope_section": [8, 12, 12]}, "shares 32 angles, but a head has 4"),
        ("rope_parameters", {"mrope_section": None}, "shares 32 angles, but a head has 4"),
        ("text_config", {"rope_parameters": None}, "without an mrope_section, [8, 12, 12] shares"),
        ("rope_parameters", {"rope_theta": -1.0}, "rope_theta"),
        ("rope_parameters", {"rope_type": "x"}, "cannot build"),
        ("vision_config", {"num_heads": 5}, "hidden_size 32 has no 5 equal heads"),
        ("text_config", {"num_key_value_heads": 3}, "4 attention heads have no 3 equal groups"),
        ("chat_template.jinja", "{% for", "cannot be rendered: TemplateSyntaxError"),
        ("chat_template.jinja", "{{ 1 / 0 }}", "cannot be rendered: ZeroDivisionError"),
        ("tokenizer.json", "{}", "tokenizer of"),
        ("preprocessor_config.json", "{", "not valid JSON"),
        ("config.json", "{", "not valid JSON"),
    ],
)
def test_what_is_damaged_fails_here_and_as_it_is_loaded(native, tmp_path, file, changes, said):
    folder = shutil.copytree(native("glm46v"), tmp_path / "damaged")
    if isinstance(changes, str):
        (folder / file).write_text(changes)
    else:
        whole = json.loads((folder / "config.json").read_text())
        text = whole["text_config"]
        {**whole, "rope_parameters": text["rope_parameters"]}[file].update(changes)
        (folder / "config.json").write_text(json.dumps(whole))
    try:
        found = diagnose(gather(parse_gpus("1x16GiB"), model=str(folder)))
        reasons = [each.reason for each in found if each.verdict == "fail"]
    except CheckpointError as error:
        reasons = [str(error)]
    assert len(reasons) == 1
    assert said in str(reasons[0])
    session = Session().load(TINY)
    with pytest.raises(CheckpointError, match=re.escape(said)):
        session.load(str(folder))
    assert session.status().info is not None  # the model before is still there
