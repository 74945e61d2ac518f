"""Checkpoints by repository id: from the cache, from a hub, or one clear line.

The hub is a server in this process that speaks as much of its interface as a download needs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import golden
import pytest
import torch
from huggingface_hub import constants

from glm4v_magic.checkpoints import hub, resolve
from glm4v_magic.core.errors import CheckpointError, OptionError
from glm4v_magic.doctor import gather

REPOSITORY = "someone/tiny-glm-4v"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_WEIGHTS = "pytorch_model.bin"


class Hub(BaseHTTPRequestHandler):
    """Serves `folder` as `repository`, the only public one; `gated/...` exists and is closed."""

    folder = Path()
    asked: list[str] = []  # noqa: RUF012  one list for all requests
    revisions = ("main", COMMIT)
    repository = REPOSITORY
    token = ""
    """What a request must come with; empty for none."""
    unknown = "RepoNotFound"
    """What a request without it is told."""

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        if "whoami" in path:
            user = {"type": "user", "name": "me", "auth": {"accessToken": {"role": "read"}}}
            return self.send(200, json.dumps(user).encode(), {"Content-Type": "application/json"})
        if self.token and self.headers.get("Authorization") != f"Bearer {self.token}":
            return self.send(403, b"", {"X-Error-Code": self.unknown})
        if "gated/" in path:
            return self.send(403, b"", {"X-Error-Code": "GatedRepo"})
        if self.repository not in path:
            return self.send(404, b"", {"X-Error-Code": "RepoNotFound"})
        parts = path.split("/")
        if "resolve" in parts:
            revision, name = parts[parts.index("resolve") + 1 :]
            file = self.folder / name
            if revision not in self.revisions:
                return self.send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            if not file.is_file():
                return self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
            etag = f'"{name}-{file.stat().st_size}"'
            return self.send(
                200,
                file.read_bytes(),
                {"ETag": etag, "X-Repo-Commit": COMMIT},
                with_body=with_body,
            )
        files = sorted(file for file in self.folder.iterdir() if file.is_file())
        if "tree" in parts:
            content: Any = [
                {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": f.name}
                for f in files
            ]
        else:
            siblings = [{"rfilename": file.name} for file in files]
            content = {"id": self.repository, "sha": COMMIT, "siblings": siblings}
        return self.send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def send(
        self, status: int, body: bytes, headers: dict[str, str], *, with_body: bool = True
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_arguments: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    """An empty cache, and a hub at a port that nobody listens at."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    point_to(monkeypatch, "http://127.0.0.1:9")
    return cache


def point_to(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    from huggingface_hub import hf_api

    monkeypatch.setattr(hf_api.api, "endpoint", url)


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[type[Hub]]:
    folder = shutil.copytree(golden.SHARDED, tmp_path / "repository")
    (folder / OTHER_WEIGHTS).write_bytes(b"not wanted")
    (folder / "modeling_chatglm.py").write_text("raise SystemExit")

    class Server(Hub):
        pass

    Server.folder, Server.asked = folder, []
    listening = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    point_to(monkeypatch, f"http://127.0.0.1:{listening.server_port}")
    yield Server
    listening.shutdown()
    thread.join()
    listening.server_close()


def test_a_repository_is_downloaded_once(server):
    with pytest.raises(CheckpointError, match="not in the hub cache"):
        resolve(REPOSITORY)
    assert server.asked == []
    checkpoint = resolve(REPOSITORY, download=True)
    assert checkpoint.name == REPOSITORY
    assert checkpoint.total_bytes == resolve(golden.SHARDED).total_bytes
    assert not list(checkpoint.folder.glob("*.py"))
    assert not (checkpoint.folder / OTHER_WEIGHTS).exists()
    server.asked.clear()
    assert resolve(REPOSITORY, download=True).folder == checkpoint.folder
    assert resolve(REPOSITORY).folder == checkpoint.folder
    assert resolve(REPOSITORY, revision=COMMIT).folder == checkpoint.folder
    assert server.asked == []


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("GLM-4V-9B", "zai-org/glm-4v-9b"),
        ("glm-4v-9b", "zai-org/glm-4v-9b"),
        ("glm-4.1v-9b-thinking", "zai-org/GLM-4.1V-9B-Thinking"),
    ],
)
def test_the_published_name_means_its_repository(server, name, repository, tmp_path, monkeypatch):
    server.repository = repository

    checkpoint = resolve(name, download=True)

    assert checkpoint.name == repository
    assert resolve(repository).folder == checkpoint.folder
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=f"{name}/config.json cannot be read"):
        resolve(name)  # a folder comes first


def test_a_download_that_was_cut_short_goes_on(server):
    shard = resolve(REPOSITORY, download=True).folder / "model-00002-of-00003.safetensors"
    shard.resolve().unlink()
    shard.unlink()
    with pytest.raises(CheckpointError, match="1 of 3 shards are missing"):
        resolve(REPOSITORY)
    server.asked.clear()
    assert resolve(REPOSITORY, download=True).total_bytes
    assert {Path(path).name for path in server.asked if "safetensors" in path} == {shard.name}


def test_another_kind_of_model_is_refused_before_its_weights(server):
    file = server.folder / "config.json"
    file.write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(CheckpointError, match="model of type 'llama'"):
        resolve(REPOSITORY, download=True)
    assert not any("safetensors" in path for path in server.asked)


@pytest.mark.parametrize(
    ("name", "revision", "said"),
    [
        ("someone/else", None, "not in the hub cache, and not on the hub. Check the spelling"),
        (REPOSITORY, "v2", "has no revision 'v2' on the hub"),
        ("gated/model", None, "only to users who accepted its terms. .* hf auth login"),
    ],
)
def test_what_the_hub_does_not_give(server, name, revision, said):
    with pytest.raises(CheckpointError, match=said) as caught:
        resolve(name, revision=revision, download=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("unknown", "said"),
    [
        ("GatedRepo", r"Accept them on its page and log in with: hf auth login\."),
        ("RepoNotFound", r"Check the spelling; a private repository needs a login\."),
    ],
)
def test_who_has_logged_in_is_given_what_is_not_for_all(
    server, tmp_path, monkeypatch, unknown, said
):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    server.token, server.unknown = "hf_right", unknown
    with pytest.raises(CheckpointError, match=said):
        resolve(REPOSITORY, download=True)
    program = Path(sys.executable).with_name("hf")
    subprocess.run(
        [program, "auth", "login", "--token", server.token],
        env={**os.environ, "HF_ENDPOINT": constants.ENDPOINT},
        check=True,
        capture_output=True,
    )
    assert resolve(REPOSITORY, download=True).tensors


def test_a_name_is_spelt_right(server):
    with pytest.raises(CheckpointError, match="Check the spelling"):
        resolve("someone/tiny-glm-4w", download=True)
    assert resolve("someone/tiny-glm-4v", download=True).tensors


def test_without_a_network_the_folder_is_given_or_the_cache_of_another_machine(
    server, tmp_path, monkeypatch
):
    said = (
        "Download it where there is a network and give its folder, or start Python with HF_HOME "
        "set to the folder that its cache (hub) is in."
    )
    there = tmp_path / "there"
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(constants, "HF_HUB_CACHE", str(there / "hub"))
        folder = resolve(REPOSITORY, download=True).folder
    point_to(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match=re.escape(said)):
        resolve(REPOSITORY, download=True)
    assert resolve(folder).tensors
    line = f"from glm4v_magic.checkpoints import resolve; print(resolve({REPOSITORY!r}).folder)"
    surroundings = {**os.environ, "HF_HOME": str(there), "HF_ENDPOINT": constants.ENDPOINT}
    surroundings.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", line], env=surroundings, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == str(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="the page's lines are of a shell")
def test_what_the_page_of_installing_does_for_machines_without_a_network(server, tmp_path):
    """Its lines, of another repository and in another place: a folder, and a shared cache."""
    page = (Path(__file__).parents[2] / "docs" / "install.md").read_text(encoding="utf-8")
    section = page.partition("\n## Without a network\n")[2].partition("\n## ")[0]
    section = section.replace("zai-org/glm-4v-9b", REPOSITORY).replace("/data/", f"{tmp_path}/")
    of_folder, of_cache, *_ = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    (line,) = re.findall(r"%glm4v load (\S+)", section)
    program = str(Path(sys.executable).parent)
    surroundings = {**os.environ, "HF_ENDPOINT": constants.ENDPOINT}
    surroundings["PATH"] = os.pathsep.join([program, surroundings["PATH"]])
    for name in ("HF_HOME", "HF_HUB_CACHE"):
        surroundings.pop(name, None)

    def run(shell):
        done = subprocess.run(
            ["sh", "-ec", shell], env=surroundings, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1]

    run(of_folder)
    online, offline = of_cache.split("export HF_HUB_OFFLINE=1")
    home, download = online.strip().split("\n")
    run(f"{home}\n{download}")

    server.token, before = "nobody has it", len(server.asked)
    load = "from glm4v_magic.session.session import Session; s = Session().load({!r}); "
    load = f'python -c "{load}print(s.ask({{!r}}, max_tokens=2, temperature=0).usage.new_tokens)"'
    for name in (line, REPOSITORY):
        command = load.format(name, "What?").replace("\\", "")
        assert run(f"{home}\nexport HF_HUB_OFFLINE=1{offline}\n{command}") in ("1", "2")
    assert len(server.asked) == before


def test_without_a_network():
    said = r"not, or not wholly, in the hub cache \(.*\), and the hub cannot be reached. Download"
    with pytest.raises(CheckpointError, match=said):
        resolve(REPOSITORY, download=True)


def test_the_users_wish_to_stay_offline_is_named(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="and HF_HUB_OFFLINE is set"):
        resolve(REPOSITORY, download=True)


@pytest.mark.parametrize("text", ["cats", "./a/b", "/a/b", "a/b/c", "~/model", "a b/c", "a/.."])
def test_paths_are_never_asked_for(server, text):
    with pytest.raises(CheckpointError, match="no such folder"):
        resolve(text, download=True)
    assert server.asked == []
    assert not hub.names_a_repository(text)


def test_a_misspelt_folder_is_not_asked_for(server, tmp_path, monkeypatch):
    (tmp_path / "models" / "glm-4v").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"no such folder.*Did you mean glm-4v\?"):
        resolve("models/glm-4w", download=True)
    assert server.asked == []


def test_a_folder_has_no_revision():
    for name in ("demo", str(golden.CHECKPOINT)):
        with pytest.raises(OptionError, match="not a repository of the hub"):
            resolve(name, revision="main")


@pytest.fixture
def adapter(server, tmp_path):
    """An adapter as the repository."""
    from safetensors.torch import save_file

    server.folder = tmp_path / "adapter"
    server.folder.mkdir()
    described = {
        "peft_type": "LORA",
        "r": 2,
        "target_modules": ["dense"],
        "base_model_name_or_path": str(golden.CHECKPOINT),
    }
    (server.folder / "adapter_config.json").write_text(json.dumps(described))
    module = "base_model.model.transformer.encoder.layers.0.self_attention.dense"
    parts = {"lora_A": torch.ones(2, 64), "lora_B": torch.ones(64, 2)}
    weights = {f"{module}.{name}.weight": part for name, part in parts.items()}
    save_file(weights, server.folder / "adapter_model.safetensors")
    return server


def test_an_adapter_is_downloaded_once_and_merged_into_its_base(adapter):
    server = adapter
    with pytest.raises(CheckpointError, match="not in the hub cache"):
        resolve(REPOSITORY)
    found = resolve(REPOSITORY, download=True)
    assert (found.name, found.folder) == (REPOSITORY, golden.CHECKPOINT)
    server.asked.clear()
    again = resolve(golden.CHECKPOINT, lora=REPOSITORY, download=True)
    assert server.asked == []
    assert again.stamp == found.stamp != resolve(golden.CHECKPOINT).stamp


SAME = {"itself": {"model": REPOSITORY}, "onto a model": {"model": "demo", "lora": REPOSITORY}}
WAYS = {
    "itself": lambda **more: resolve(REPOSITORY, **more),
    "onto a model": lambda **more: resolve(golden.CHECKPOINT, lora=REPOSITORY, **more),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("is_link", [False, True])
def test_the_download_of_an_adapter_that_was_stopped_goes_on(adapter, monkeypatch, way, is_link):
    look = WAYS[way]
    expected = look(download=True)
    (weights,) = Path(constants.HF_HUB_CACHE).glob(
        "models--*/snapshots/*/adapter_model.safetensors"
    )
    weights.resolve().unlink()
    if not is_link:
        weights.unlink()
    adapter.asked.clear()
    for kind in (look, lambda **more: gather((), **SAME[way], **more)):
        with pytest.raises(CheckpointError) as caught:
            kind()
        what = f"The download of {REPOSITORY} was stopped before its weights."
        assert str(caught.value) == f"{what} A load goes on with it."
    assert not adapter.asked
    with monkeypatch.context() as offline:
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        for more in ({}, {"download": True}):
            with pytest.raises(CheckpointError, match=r"or not wholly, .* HF_HUB_OFFLINE is set"):
                look(**more)
    adapter.asked.clear()
    assert look(download=True).stamp == expected.stamp
    assert [path for path in adapter.asked if path.endswith(weights.name)]
    adapter.asked.clear()
    assert look().stamp == expected.stamp


def test_why_the_weights_of_an_adapter_cannot_be_downloaded_is_said(adapter, monkeypatch):
    def full(*_arguments, **_more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    with pytest.raises(CheckpointError, match=f"{REPOSITORY} cannot be downloaded: No space left"):
        resolve(REPOSITORY, download=True)


def test_what_is_neither_a_model_nor_an_adapter_is_said_as_before(server):
    (server.folder / "config.json").unlink()
    with pytest.raises(CheckpointError) as caught:
        resolve(REPOSITORY, download=True)
    assert "\n" not in str(caught.value)
    assert REPOSITORY in str(caught.value)
