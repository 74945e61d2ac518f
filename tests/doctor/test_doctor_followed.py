"""What the doctor advises to do outside of this program is done, and it has nothing more to say.

NVML, the driver and the GPUs are stood in for: `nvidia-smi`, a program on PATH, shows and changes
the same state that NVML tells. Torch is a package of that name which starts CUDA where a real one
would; it is installed with pip, from a folder in the form of an index.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pynvml
import pytest
from driver_standin import Described
from driver_standin import Driver as Nvml
from huggingface_hub import constants

import glm4v_magic
from glm4v_magic.core.remarks import PYTHON, worded
from glm4v_magic.doctor import diagnose, gather

GIB = 2**30
PUBLISHED = {"cu118", "cu124", "cu126", "cu128", "cu129", "cu130"}
"""Builds of torch 2.6 and later: pytorch.org/get-started/previous-versions."""

NVIDIA_SMI = """\
import json, os, pathlib, sys
file = pathlib.Path(os.environ["STATE_OF_GPUS"])
state = json.loads(file.read_text())
if sys.argv[1:] == ["-mig", "0"]:
    for gpu in state["gpus"]:
        gpu["mig"] = False
    file.write_text(json.dumps(state))
    sys.exit()
print("| NVIDIA-SMI   CUDA Version: {}.{} |".format(*state["cuda"]))
if not state["gpus"]:
    sys.exit("No devices were found")
for index, gpu in enumerate(state["gpus"]):
    print("|  ", index, gpu["name"], "MIG enabled" if gpu["mig"] else "", "|")
for index, gpu in enumerate(state["gpus"]):
    for pid, size in gpu["holds"].items():
        if pathlib.Path("/proc", pid).exists():
            print(f"|    {index}   N/A  N/A  {pid}      C   python   {size // 2**20}MiB |")
"""

TORCH = """\
import json, os, warnings
__version__ = {version!r}
class version:
    cuda = {cuda!r}
class backends:
    mps = None
class cuda:
    def is_available():
        with open(os.environ["STATE_OF_GPUS"]) as file:
            state = json.load(file)
        if version.cuda is None:
            return False
        if int(version.cuda.partition(".")[0]) > state["cuda"][0]:
            warnings.warn("The NVIDIA driver on your system is too old.")
            return False
        return True
    def is_initialized():
        return False
    def device_count():
        return 0
"""


class Machine(Nvml):
    """A machine whose GPUs are in a file, which `nvidia-smi` shows."""

    def __init__(self, file: Path) -> None:
        self.file = file
        super().__init__([])
        self.state: dict[str, Any] = {"cuda": [12, 6], "gpus": []}
        self.write()

    def write(self) -> None:
        self.file.write_text(json.dumps(self.state))

    @property
    def gpus(self) -> list[Described]:
        return [described(each) for each in json.loads(self.file.read_text())["gpus"]]

    @gpus.setter
    def gpus(self, gpus: list[Described]) -> None:
        assert not gpus, "they are in the file"

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().install(monkeypatch)
        monkeypatch.setattr(pynvml, "nvmlSystemGetDriverVersion", lambda: "560.35")
        monkeypatch.setattr(
            pynvml,
            "nvmlSystemGetCudaDriverVersion_v2",
            lambda: self.state["cuda"][0] * 1000 + self.state["cuda"][1] * 10,
        )

    def add(self, **changes: Any) -> None:
        gpu = {"name": "NVIDIA A100", "gib": 80, "holds": {}, "mig": False, "capability": [8, 0]}
        self.state["gpus"].append(gpu | changes)
        self.write()

    def run_driver(self, *cuda: int) -> None:
        self.state["cuda"] = list(cuda)
        self.write()


def described(gpu: dict[str, Any]) -> Described:
    held = sum(size for pid, size in gpu["holds"].items() if Path("/proc", pid).exists())
    return Described(
        f"GPU-{gpu['name']}",
        gpu["name"],
        (gpu["gib"] * GIB, gpu["gib"] * GIB - held),
        capability=tuple(gpu["capability"]),
        instances=[] if gpu["mig"] else None,
    )


@pytest.fixture
def machine(tmp_path, monkeypatch) -> Machine:
    """A machine without GPUs, with a driver, `nvidia-smi` and a torch that starts CUDA."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    program = tmp_path / "bin/nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\n{NVIDIA_SMI}")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setenv("STATE_OF_GPUS", str(tmp_path / "gpus.json"))
    machine = Machine(tmp_path / "gpus.json")
    machine.install(monkeypatch)
    use_torch(monkeypatch, write_torch(tmp_path / "usual", "2.13.0+cu126", "12.6"))
    return machine


def write_torch(folder: Path, version: str, cuda: str | None) -> Path:
    (folder / "torch").mkdir(parents=True)
    (folder / "torch/__init__.py").write_text(TORCH.format(version=version, cuda=cuda))
    return folder


def use_torch(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Import the torch of a folder, as Python does once it is restarted."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # of the one that was there before
    spec = importlib.util.spec_from_file_location("torch", folder / "torch/__init__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "torch", module)


def said(subject: str, **options: Any) -> str:
    """Return what the doctor says of a subject, unless it is right."""
    found = [each for each in diagnose(gather(**options)) if each.subject == subject]
    wrong = [each for each in found if each.verdict != "ok"]
    return " ".join(f"{worded(e.reason, PYTHON)} {worded(e.next_step, PYTHON)}" for e in wrong)


def nvidia_smi(*arguments: str) -> str:
    done = subprocess.run(
        ["nvidia-smi", *arguments], capture_output=True, text=True, check=False, env=os.environ
    )
    return done.stdout + done.stderr


def test_a_gpu_that_is_not_there_is_given(machine):
    step = "Run nvidia-smi: if it lists no GPU, give one to this machine, container or job"
    assert step in said("GPUs")
    assert "No devices were found" in nvidia_smi()
    machine.add()
    assert "NVIDIA A100" in nvidia_smi()
    assert said("GPUs") == said("cuda:0") == said("CUDA") == ""


def test_a_gpu_in_mig_mode_without_an_instance_leaves_it(machine):
    machine.add(mig=True)
    advice = said("GPUs")
    (arguments,) = re.findall(
        r"if one is in MIG mode without an instance, end that mode with nvidia-smi (.+)\.$", advice
    )
    assert "MIG enabled" in nvidia_smi()
    nvidia_smi(*shlex.split(arguments))
    assert "MIG enabled" not in nvidia_smi()
    assert said("GPUs") == said("cuda:0") == ""


@pytest.fixture
def others() -> Iterator[list[str]]:
    """Process ids of two other programs."""
    running = [subprocess.Popen(["sleep", "600"]) for _ in range(2)]
    # Whoever ended is waited for at once, so that it is gone.
    before = signal.signal(signal.SIGCHLD, lambda *_: [each.poll() for each in running])
    yield [str(each.pid) for each in running]
    signal.signal(signal.SIGCHLD, before)
    for each in running:
        each.kill()
        each.wait()


def test_processes_that_are_not_needed_are_stopped(machine, others):
    needed, other = others
    machine.add(holds={needed: 2 * GIB, other: 60 * GIB})
    advice = said("cuda:0")
    assert "hold 62.00 GiB of it" in advice
    assert "Look for other processes with nvidia-smi and stop those you do not need." in advice
    listed = re.findall(r"(\d+) +C +python +(\d+)MiB", nvidia_smi())
    largest = max(listed, key=lambda each: int(each[1]))[0]
    os.kill(int(largest), signal.SIGTERM)
    while Path("/proc", largest).exists():
        signal.sigtimedwait([], 0.01)
    assert [pid for pid, _ in re.findall(r"(\d+) +C +python +(\d+)", nvidia_smi())] == [needed]
    assert said("cuda:0") == ""


class Index:
    """Builds of torch in the form of an index, and a folder that pip installs into."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.site = folder, folder / "site"

    def publish(self, build: str, cuda: str | None) -> None:
        """Write a wheel, and the page that lists it."""
        page = self.folder / build / "torch"
        page.mkdir(parents=True)
        wheel = page / f"torch-2.13.0+{build}-py3-none-any.whl"
        info = f"torch-2.13.0+{build}.dist-info"
        files = {
            "torch/__init__.py": TORCH.format(version=f"2.13.0+{build}", cuda=cuda),
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0+{build}\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        with zipfile.ZipFile(wheel, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
            record = [f"{name},{hashed(content)}" for name, content in files.items()]
            archive.writestr(f"{info}/RECORD", "\n".join([*record, f"{info}/RECORD,,"]))
        (page / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')

    def run(self, command: str) -> None:
        """Run a command of pip, in an environment of its own and with this index for PyTorch's."""
        pip, *arguments = shlex.split(command.replace(PYTORCH, f"{self.folder.as_uri()}/"))
        assert pip == "pip"
        environment = self.folder / "env"
        if not environment.exists():
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
        here = [sys.executable, "-m", "pip", "--isolated", "--python", environment / "bin/python"]
        subprocess.run([*here, *arguments, "--quiet"], check=True, capture_output=True, text=True)
        (self.site,) = environment.glob("lib/*/site-packages")


PYTORCH = "https://download.pytorch.org/whl/"


def hashed(content: str) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).rstrip(b"=")
    return f"sha256={digest.decode()},{len(content)}"


@pytest.fixture
def index(tmp_path) -> Index:
    found = Index(tmp_path / "index")
    for build in PUBLISHED:
        found.publish(build, f"{build[2:4]}.{build[4:]}")
    found.publish("cpu", None)
    return found


DRIVERS = [
    # the driver's CUDA, a GPU, the build that is there, and the one that is advised
    ((12, 2), (8, 0), "cu130", "cu126"),
    ((12, 2), (8, 0), "cpu", "cu126"),
    ((12, 9), (7, 0), "cu130", "cu126"),
    ((12, 8), (12, 0), "cu130", "cu128"),
    ((13, 0), (10, 0), "cpu", "cu128"),
    ((11, 4), (7, 5), "cu126", "cu118"),
]


@pytest.mark.filterwarnings("ignore:The NVIDIA driver")
@pytest.mark.parametrize(("cuda", "capability", "before", "advised"), DRIVERS)
def test_the_build_of_torch_that_is_named_runs_on_the_driver(
    machine, index, monkeypatch, cuda, capability, before, advised
):
    machine.run_driver(*cuda)
    machine.add(capability=capability)
    index.run(f"pip install torch --index-url {PYTORCH}{before}")
    use_torch(monkeypatch, index.site)
    advice = said("CUDA")
    (command,) = re.findall(r"[Rr]un (pip install .+?),? (?:and|then) restart Python\.$", advice)
    assert ("Update the driver and restart the computer, or run" in advice) == (before != "cpu")
    build = command.rpartition("/")[2]
    assert build == advised
    assert build in PUBLISHED
    index.run(command.replace("--force-reinstall ", ""))
    use_torch(monkeypatch, index.site)
    assert said("CUDA") == advice, "pip leaves the one that is there"
    index.run(command)
    use_torch(monkeypatch, index.site)
    assert said("CUDA") == ""


@pytest.mark.filterwarnings("ignore:The NVIDIA driver")
def test_the_driver_is_updated(machine, index, monkeypatch):
    machine.add()
    index.run(f"pip install torch --index-url {PYTORCH}cu130")
    use_torch(monkeypatch, index.site)
    for before, step in (
        ((12, 2), "Update the driver and restart the computer, or run pip"),
        ((10, 2), "Update the driver; restart the computer."),
    ):
        machine.run_driver(*before)
        assert step in said("CUDA")
        machine.run_driver(13, 0)
        assert said("CUDA") == ""


@pytest.mark.parametrize(("cuda", "build"), [((12, 6), "cu126"), ((12, 7), "cu126")])
def test_the_cuda_of_an_unknown_driver_is_looked_up(machine, index, monkeypatch, cuda, build):
    machine.add()
    machine.run_driver(*cuda)
    index.run(f"pip install torch --index-url {PYTORCH}cpu")
    use_torch(monkeypatch, index.site)
    with monkeypatch.context() as patched:
        patched.setattr(pynvml, "nvmlSystemGetCudaDriverVersion_v2", machine.not_supported)
        step = "Install a build of torch for the CUDA that nvidia-smi names, or for an older one"
        assert f"{step}, then restart Python." in said("CUDA")
        assert f"CUDA Version: {cuda[0]}.{cuda[1]}" in nvidia_smi()  # it may be an older one
        index.run(f"pip install --force-reinstall torch --index-url {PYTORCH}{build}")
        use_torch(monkeypatch, index.site)
        assert said("CUDA") == ""


def test_what_hides_gpus_or_their_order_is_set_right(machine, monkeypatch):
    machine.add()
    machine.add(name="NVIDIA L4")
    (setting,) = re.findall(r"Set (\w+=\w+) and restart Python\.", said("order of GPUs"))
    monkeypatch.setenv(*setting.split("="))
    assert said("order of GPUs") == ""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    advice = said("GPUs")
    assert advice.endswith("is '', which shows no GPU. Unset it and restart Python.")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert said("GPUs") == ""


LOOK = """
import json
from glm4v_magic.core.remarks import PYTHON, worded
from glm4v_magic.doctor import diagnose, gather
for each in diagnose(gather(())):
    if each.subject in ("disk", "Python"):
        step = worded(each.reason, PYTHON), worded(each.next_step, PYTHON)
        print(json.dumps([each.subject, each.verdict, *step]))
"""


def looked_at(program: str | Path = sys.executable, code: str = LOOK, **variables: str) -> Any:
    """Return what the doctor finds in another process, by subject."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    inherited.pop("HUGGINGFACE_HUB_CACHE", None)
    done = subprocess.run(
        [program, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**inherited, **variables},
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {subject: rest for subject, *rest in found}


def below_a_file(folder: Path) -> Path:
    (folder / "file").write_text("")
    return folder / "file/cache"


def of_itself(folder: Path) -> Path:
    (folder / "loop").symlink_to(folder / "loop")
    return folder / "loop"


def to_nowhere(folder: Path) -> Path:
    (folder / "link").symlink_to(folder / "gone")
    return folder / "link/cache"


@pytest.mark.parametrize("place", [below_a_file, of_itself, to_nowhere])
@pytest.mark.parametrize("variable", ["HF_HOME", "HF_HUB_CACHE"])
def test_a_cache_that_can_be_written_to_is_named(tmp_path, place, variable):
    """Also where HF_HOME would change nothing, because another variable stands before it."""
    surroundings = {"HF_HOME": str(tmp_path / "unused"), variable: str(place(tmp_path))}
    verdict, why, step = looked_at(**surroundings)["disk"]
    assert (verdict, " is no folder; GLM-4V-9B takes 25.90 GiB." in why) == ("fail", True)
    form = r"Set (\w+) to a folder that can be written to, and restart Python\."
    (named,) = re.fullmatch(form, step).groups()
    verdict, _, step = looked_at(**{**surroundings, named: str(tmp_path / "new")})["disk"]
    assert verdict == "ok" or step.startswith("Free space")  # there may be too little of it


@pytest.fixture
def open_folder(monkeypatch) -> Iterator[Path]:
    """A folder where other users may go, too, with the caches of all programs in it."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        monkeypatch.setenv("HOME", name)
        monkeypatch.setenv("MODELSCOPE_CACHE", name)
        yield Path(name)


def shut(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Keep everybody out of a folder, the user of the tests too."""
    folder.chmod(0o555)
    is_root = os.geteuid() == 0
    os.seteuid(65534 if is_root else os.geteuid())
    return lambda: os.seteuid(os.getuid())


def gone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Put a folder on a disk that does not answer."""
    usage = shutil.disk_usage

    def ask(path: Any) -> Any:
        if Path(path).is_relative_to(folder):
            raise OSError(errno.ESTALE, "Stale file handle")
        return usage(path)

    monkeypatch.setattr(shutil, "disk_usage", ask)
    return lambda: None


@pytest.mark.parametrize(
    ("spoil", "why"), [(shut, "cannot be written to"), (gone, "Stale file handle")]
)
def test_a_disk_that_takes_nothing_is_left(open_folder, monkeypatch, spoil, why):
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    bad, good = open_folder / "bad", open_folder / "good"
    for each in (bad, good):
        each.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(bad / "hub"))
    restore = spoil(bad, monkeypatch)
    try:
        advice = said("disk", gpus=())
    finally:
        restore()
    assert why in advice
    assert advice.endswith("Set HF_HOME to a folder that can be written to, and restart Python.")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(good / "hub"))
    assert "can be written to" not in said("disk", gpus=())


def test_a_full_disk_is_freed_or_left(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    free = {"small": 10 * GIB, "large": 100 * GIB}
    usage = shutil.disk_usage

    def ask(path: Any) -> Any:
        return usage(path)._replace(free=free[Path(path).name])

    for name in free:
        (tmp_path / name).mkdir()
    monkeypatch.setattr(shutil, "disk_usage", ask)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "small/hub"))
    advice = said("disk", gpus=())
    assert "Free space, or set HF_HOME to a folder on another disk and restart Python." in advice
    with monkeypatch.context() as patched:
        patched.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "large/hub"))
        assert said("disk", gpus=()) == ""
    free["small"] = 30 * GIB
    assert said("disk", gpus=()) == ""


def test_an_environment_with_a_newer_python_is_made(tmp_path):
    old = f'import platform; platform.python_version = lambda: "3.10.12"\n{LOOK}'
    verdict, why, step = looked_at(code=old)["Python"]
    assert (verdict, step) == ("fail", "Make an environment with a newer Python.")
    (oldest,) = re.findall(r"glm4v_magic asks for >=(3\.\d+)\.", why)
    assert sys.version_info >= tuple(map(int, oldest.split(".")))  # this one is such a Python
    made = tmp_path / "made"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", made], check=True)
    (site,) = made.glob("lib/*/site-packages")
    places = (Path(glm4v_magic.__file__).parents[1], sysconfig.get_path("purelib"))
    (site / "installed.pth").write_text("\n".join(map(str, places)))
    assert looked_at(made / "bin/python")["Python"][0] == "ok"
