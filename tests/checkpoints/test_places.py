"""Names as people type them, and where the files are looked for: load, plan and doctor agree."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import golden
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

import glm4v_magic.checkpoints
from glm4v_magic.checkpoints import resolve
from glm4v_magic.checkpoints.architecture import architecture
from glm4v_magic.checkpoints.files import is_cut_short
from glm4v_magic.checkpoints.hub import snapshot_in
from glm4v_magic.checkpoints.names import named
from glm4v_magic.checkpoints.places import find_place
from glm4v_magic.core.errors import CheckpointError, OptionError
from glm4v_magic.core.gpu_spec import parse_gpus
from glm4v_magic.core.hub_page import HubPage, read_hub_page
from glm4v_magic.core.placement import PlacementOptions
from glm4v_magic.core.remarks import worded
from glm4v_magic.doctor import diagnose, gather
from glm4v_magic.dry_run.run import dry_run
from glm4v_magic.notebook.next_steps import CELL
from glm4v_magic.planning.decision import decide, make_plan
from glm4v_magic.session.session import Session

COMMIT = "0123456789abcdef0123456789abcdef01234567"
UNSEEN = (
    "Revision v2 is not here and was not looked at (a load asks the hub whether there is one): "
    "sizes are those of the published main branch."
)


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """An empty cache of the hub, and an empty home."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MODELSCOPE_CACHE", raising=False)
    return tmp_path / "hub"


def download(hub, repository, source=golden.CHECKPOINT):
    """Put a checkpoint into the cache of the hub."""
    root = hub / f"models--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    return shutil.copytree(source, root / "snapshots" / COMMIT)


def found_by_all(name, folder):
    """Load, plan and doctor use the files of a folder."""
    assert resolve(name).folder == folder
    assert architecture(name).shape().max_context == 256
    facts = gather((), model=name)
    assert (facts.is_here, facts.fault, facts.shape.max_context) == (True, None, 256)


def add_revision(hub, repository, revision, context):
    """Put another revision of a checkpoint into the cache of the hub."""
    root = hub / f"models--{repository.replace('/', '--')}"
    commit = COMMIT[::-1]
    (root / "refs" / revision).write_text(commit)
    folder = shutil.copytree(golden.CHECKPOINT, root / "snapshots" / commit)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "seq_length": context}))
    return folder


@pytest.mark.parametrize("repository", ["zai-org/glm-4v-9b", "somebody/tuned"])
def test_a_revision_is_planned_checked_and_looked_at_as_it_is_loaded(hub, repository):
    folder = download(hub, repository)
    other = add_revision(hub, repository, "v1", 128)
    for name, revision, found, context in (
        (repository, None, folder, 256),
        (repository, "main", folder, 256),
        (repository, "v1", other, 128),
        (f"https://huggingface.co/{repository}/tree/v1", None, other, 128),
        (f"https://huggingface.co/{repository}/tree/v1", "v1", other, 128),
    ):
        assert resolve(name, revision=revision).folder == found
        assert architecture(name, revision=revision).shape().max_context == context
        facts = gather((), model=name, revision=revision)
        assert (facts.is_here, facts.fault) == (True, None)
        assert facts.shape.max_context == context


def test_a_revision_that_is_not_here(hub, tmp_path):
    download(hub, "somebody/tuned")
    folder = shutil.copytree(golden.CHECKPOINT, tmp_path / "mine")
    for look in (architecture, lambda name, revision: gather((), model=name, revision=revision)):
        with pytest.raises(CheckpointError, match=r"'somebody/tuned' of the revision v2: no such"):
            look("somebody/tuned", revision="v2")
        for name in ("demo", str(folder), str(folder / "config.json")):
            with pytest.raises(OptionError, match=r"has no revision v2\. Leave the"):
                look(name, revision="v2")
            assert look(name, revision=None)
    with pytest.raises(OptionError, match="The page is of the revision v1, and v2 is asked for"):
        architecture("https://huggingface.co/somebody/tuned/tree/v1", revision="v2")


PAGE = "https://huggingface.co/zai-org/glm-4v-9b/tree/v2"


@pytest.mark.parametrize(("name", "revision"), [("GLM-4V-9B", "v2"), (PAGE, None)])
def test_of_a_published_revision_that_is_not_here_the_sizes_are_said_to_be_others(
    hub, name, revision
):
    download(hub, "zai-org/glm-4v-9b")
    facts = gather(parse_gpus("1x1GiB"), model=name, revision=revision)
    assert facts.shape.max_context == 8192  # the tiny one in the cache has 256
    (found,) = (each for each in diagnose(facts) if each.subject == "revision")
    assert (found.verdict, worded(found.reason, CELL)) == ("warn", UNSEEN)
    assert facts.disk is not None
    assert facts.disk.cached_bytes == 0
    model = architecture(name, revision=revision)
    options = PlacementOptions(context=64, images=0)
    made = make_plan(model, options, parse_gpus("2x80GiB"))
    assert UNSEEN in [worded(each, CELL) for each in made.notes]
    for how in ("plan", "auto", made):
        tried = dry_run(model, "2x80GiB", how, context=64, images=0)
        assert [worded(each, CELL) for each in tried.notes].count(UNSEEN) == 1
    # where the plan is loaded it has been found
    placed = decide(model, PlacementOptions(), parse_gpus("2x80GiB"), made)
    assert placed.plan is not None
    assert UNSEEN not in [worded(each, CELL) for each in (*placed.notes, *placed.plan.notes)]


@pytest.mark.parametrize("revision", [None, "main", "master"])
def test_nothing_is_said_of_the_main_branch(revision):
    for name in ("GLM-4V-9B", "GLM-OCR"):
        assert architecture(name, revision=revision).shape().unseen_revision == ""
    assert architecture("GLM-OCR", revision="x\ny").shape().unseen_revision == "x\ny"


@pytest.mark.parametrize("repository", ["zai-org/glm-4v-9b", "THUDM/glm-4v-9b", "thudm/GLM-4V-9B"])
@pytest.mark.parametrize(
    "name", ["GLM-4V-9B", "glm-4v", "glm4v", "THUDM/glm-4v-9b", "zai-org/GLM-4V-9B", "glm-4v-9b "]
)
def test_a_download_is_found_whoever_owned_it(hub, repository, name):
    found_by_all(name, download(hub, repository))


@pytest.mark.parametrize(
    "name",
    [
        "https://huggingface.co/zai-org/glm-4v-9b",
        "https://huggingface.co/THUDM/GLM-4V-9B/tree/main?x=1#a",
        "hf.co/zai-org/glm-4v-9b/",
        "https://www.modelscope.cn/models/ZhipuAI/glm-4v-9b/summary",
        "models--zai-org--glm-4v-9b",
    ],
)
def test_addresses_of_pages_are_names_of_repositories(hub, name):
    found_by_all(name, download(hub, "zai-org/glm-4v-9b"))


@pytest.mark.parametrize(
    ("page", "revision"),
    [
        ("https://huggingface.co/a/b/tree/refs%2Fpr%2F3", "refs/pr/3"),
        ("https://huggingface.co/a/b/commit/abc123", "abc123"),
        ("https://huggingface.co/a/b/blob/main/config.json", None),
        ("https://modelscope.cn/models/a/b/files?version=v2", "v2"),
        ("https://modelscope.cn/models/a/b/summary?Revision=master", None),
    ],
)
def test_the_revision_of_a_page(page, revision):
    assert read_hub_page(page) == HubPage("a/b", revision)


@pytest.mark.parametrize("path", ["api/models/a/b", "settings/tokens", "blog/x", "a/b/tree/.."])
def test_pages_that_show_no_repository(path):
    assert read_hub_page(f"https://huggingface.co/{path}") is None


def test_the_folder_of_a_repository_in_the_cache_is_its_snapshot(hub):
    found_by_all(str(hub / "models--someone--tiny"), download(hub, "someone/tiny"))


@pytest.mark.parametrize("main", [b"\xff\xfe", b"", b"../../..", b"/etc", b".", b"gone"])
def test_what_a_cache_calls_main_is_a_name_or_passed_over(hub, main):
    folder = download(hub, "someone/tiny")
    (hub / "models--someone--tiny" / "refs" / "main").write_bytes(main)
    assert snapshot_in(hub / "models--someone--tiny") == folder


def test_a_page_of_a_revision(hub):
    download(hub, "someone/tiny")
    (hub / "models--someone--tiny" / "refs" / "v1").write_text("1" * 40)
    page = "hf.co/someone/tiny/tree/v1"
    with pytest.raises(CheckpointError, match="someone/tiny"):
        architecture(page)  # that revision is not here
    with pytest.raises(OptionError, match="of the revision v1, and v2 is asked for"):
        resolve(page, revision="v2")
    shutil.copytree(golden.CHECKPOINT, hub / "models--someone--tiny" / "snapshots" / ("1" * 40))
    assert resolve(page).folder.name == "1" * 40


@pytest.mark.parametrize("name", ["https://huggingface.co/zai-org", "hf.co/datasets/a/b", "hf.co"])
def test_pages_of_no_model_are_named(name):
    for look in (resolve, architecture, Session().load):
        with pytest.raises(CheckpointError, match="is a page, but not that of a model"):
            look(name)


@pytest.mark.parametrize("name", ["someone/Tiny-GLM", "someone/tiny-glm"])
def test_the_hub_knows_no_case(hub, name):
    found_by_all(name, download(hub, "Someone/tiny-glm"))


@pytest.mark.parametrize(
    ("given", "root"),
    [
        (None, "home/.cache/modelscope/hub"),
        (None, "home/.cache/modelscope/hub/models"),
        ("ms", "ms"),
        ("ms", "ms/models"),
        ("ms", "ms/hub/models"),
    ],
)
@pytest.mark.parametrize(
    "folder", ["ZhipuAI/GLM-4___1V-9B-Thinking", "ZhipuAI/GLM-4.1V-9B-Thinking"]
)
@pytest.mark.parametrize("name", ["glm-4.1v", "ZhipuAI/GLM-4.1V-9B-Thinking"])
def test_what_modelscope_has_downloaded_is_found(tmp_path, monkeypatch, given, root, folder, name):
    if given is not None:
        monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / given))
    found_by_all(name, shutil.copytree(golden.CHECKPOINT, tmp_path / root / folder))
    with pytest.raises(CheckpointError, match="no checkpoint"):
        resolve(name, revision="v2")  # there are no revisions in that cache


def by_branches(root, repository, *branches):
    """Put revisions of a checkpoint where ModelScope does since its version 1.39."""
    snapshots = root / "models" / repository.replace("/", "--") / "snapshots"
    return [shutil.copytree(golden.CHECKPOINT, snapshots / each) for each in branches]


@pytest.mark.parametrize("cache", ["hub", "home", "modelscope"])
def test_a_cache_that_one_may_not_enter_holds_nothing(monkeypatch, cache):
    assert resolve(golden.CHECKPOINT)
    known = architecture("GLM-4V-9B").shape()  # modules are imported by one who may
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        shut = Path(name) / cache
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(Path(name, "hub")))
        monkeypatch.setenv("HOME", str(Path(name, "home")))
        if cache == "modelscope":
            monkeypatch.setenv("MODELSCOPE_CACHE", str(shut))
        for inner in ("models", ".cache/modelscope/models"):
            shutil.copytree(golden.CHECKPOINT, shut / inner / "zai-org/glm-4v-9b")
        download(shut, "zai-org/glm-4v-9b")
        is_root = os.geteuid() == 0
        shut.chmod(0o700 if is_root else 0o000)
        try:
            os.seteuid(65534 if is_root else os.geteuid())
            assert find_place("GLM-4V-9B").folders == ()
            assert architecture("GLM-4V-9B").shape() == known
        finally:
            os.seteuid(os.getuid())
            shut.chmod(0o755)
        assert find_place("GLM-4V-9B").folders


@pytest.mark.parametrize(("given", "root"), [(None, "home/.cache/modelscope"), ("ms", "ms")])
@pytest.mark.parametrize("branches", [["v0", "master", "main"], ["v0", "main"], ["v1.0"]])
@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("GLM-4.6V-Flash", "ZhipuAI/GLM-4.6V-Flash"),
        ("https://modelscope.cn/models/me/My-GLM", "me/My-GLM"),
        ("me/My-GLM", "me/My-GLM"),
    ],
)
def test_what_modelscope_has_downloaded_by_branches_is_found(
    tmp_path, monkeypatch, given, root, branches, name, repository
):
    if given is not None:
        monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / given))
    folders = by_branches(tmp_path / root, repository, *branches)
    main = folders[min(1, len(folders) - 1)]
    found_by_all(name, main)
    found_by_all(str(main.parent.parent), main)
    for asked in ("main", "master"):
        assert resolve(name, revision=asked).folder == main
    for branch, folder in zip(branches, folders, strict=True):
        if branch not in ("main", "master"):
            assert resolve(name, revision=branch).folder == folder
            assert architecture(name, revision=branch).shape().max_context == 256
    for asked in ("v2", "../../../x", "..", "/etc"):
        with pytest.raises(CheckpointError, match="no checkpoint"):
            resolve(name, revision=asked)


def test_of_several_revisions_without_a_main_one_none_is_guessed(tmp_path):
    root = tmp_path / "home" / ".cache" / "modelscope"
    folder, _ = by_branches(root, "me/tuned", "v1", "v2")
    with pytest.raises(CheckpointError, match="There is no checkpoint 'me/tuned'"):
        resolve("me/tuned")
    assert resolve("me/tuned", revision="v1").folder == folder
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="There is no checkpoint 'me/tuned'"):
        resolve("me/tuned", revision="v1")


@pytest.mark.parametrize("name", ["ZhipuAI/../../x", "../x", "a/b/c", "ZhipuAI/"])
def test_a_name_leads_out_of_no_cache(tmp_path, name):
    root = tmp_path / "home" / ".cache" / "modelscope" / "hub"
    root.mkdir(parents=True)
    shutil.copytree(golden.CHECKPOINT, tmp_path / "home" / ".cache" / "x")
    with pytest.raises(CheckpointError):
        resolve(name)


def test_a_whole_download_is_taken_before_one_that_was_cut_short(hub):
    cut = download(hub, "zai-org/glm-4v-9b")
    (cut / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        resolve("GLM-4V-9B")
    facts = gather((), model="GLM-4V-9B")
    assert (facts.is_here, facts.fault) == (False, None)  # it goes on when it is loaded
    found_by_all("GLM-4V-9B", download(hub, "THUDM/glm-4v-9b"))


@pytest.mark.parametrize(
    ("name", "shown", "values"),
    [
        ("GLM-4.1V-9B-Base", "GLM-4.1V-9B-Base", 10_290_000_000),
        ("zai-org/glm-4.1v-9b-base", "GLM-4.1V-9B-Base", 10_290_000_000),
        ("glm-4.1v", "GLM-4.1V-9B-Thinking", 10_290_000_000),
        ("glm_4v_9b", "GLM-4V-9B", 13_906_000_000),
        ("GLM-4.6v-flash", "GLM-4.6V-Flash", 10_290_000_000),
    ],
)
def test_names_that_can_be_planned_without_files(name, shown, values):
    shape = architecture(name).shape()
    assert shape.name == shown
    assert shape.values == pytest.approx(values, rel=0.01)


@pytest.mark.parametrize("damage", ["tokenizer.model", "model.safetensors", "config.json"])
@pytest.mark.parametrize("where", ["folder", "cache"])
def test_doctor_says_ok_of_nothing_that_load_refuses(hub, tmp_path, where, damage):
    if where == "cache":
        name, folder = "GLM-4V-9B", download(hub, "zai-org/glm-4v-9b")
    else:
        folder = shutil.copytree(golden.CHECKPOINT, tmp_path / "folder")
        name = str(folder)
    file = folder / damage
    if damage == "config.json":
        config = json.loads(file.read_text())
        file.write_text(json.dumps({**config, "boi_token_id": 311}))
    else:
        file.write_bytes(file.read_bytes()[:-40])
    facts = gather((), model=name)
    assert facts.fault is not None
    verdicts = {each.subject: each.verdict for each in diagnose(facts)}
    assert verdicts["checkpoint"] == "fail"


@pytest.mark.parametrize("left", ["a broken link", "a stopped download", "nothing"])
@pytest.mark.parametrize("file", ["tokenizer.json", "preprocessor_config.json"])
def test_a_download_that_was_cut_before_the_tokenizer_goes_on(hub, monkeypatch, left, file):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    source = Path(glm4v_magic.checkpoints.__file__).parent / "demo-4.6v"
    folder = download(hub, "me/tuned", source)
    (folder / file).unlink()
    if left == "a broken link":
        (folder / file).symlink_to("../../blobs/gone")
    elif left == "a stopped download":
        blobs = hub / "models--me--tuned" / "blobs"
        blobs.mkdir()
        (blobs / "abc.incomplete").touch()
    asked = []

    def goes_on(repository, revision):
        asked.append(repository)
        (folder / file).unlink(missing_ok=True)
        shutil.copy(source / file, folder / file)
        return folder

    facts = gather((), model="me/tuned")
    verdicts = {each.subject: each.verdict for each in diagnose(facts)}
    if left == "nothing":  # the repository may have none, and a load would find no other
        assert verdicts["checkpoint"] == "fail"
        return
    assert (facts.is_here, facts.fault, verdicts.get("checkpoint")) == (False, None, None)
    monkeypatch.setattr("glm4v_magic.checkpoints.hub.download", goes_on)
    monkeypatch.setattr("glm4v_magic.checkpoints.hub.download_config", lambda *_: folder)
    resolve("me/tuned", download=True).require_usable()
    assert asked == ["me/tuned"]


NOT_HERE = {
    "a published name": ("GLM-4V-9B", {}),
    "half a download": ("GLM-4V-9B", {"lacks": "model.safetensors"}),
    "a revision": ("GLM-4V-9B", {"lacks": None, "revision": "v2"}),
    "the base of an adapter": ("adapter", {}),
    "the base that is given": ("adapter", {"base": "GLM-4V-9B"}),
    "under an adapter": ("GLM-4V-9B", {"lora": "adapter"}),
}


@pytest.mark.parametrize("case", NOT_HERE)
def test_doctor_says_ok_of_nothing_that_a_load_would_have_to_download_offline(
    hub, tmp_path, monkeypatch, case
):
    name, made_of = NOT_HERE[case]
    made_of = dict(made_of)
    if "lacks" in made_of:
        folder, lacking = download(hub, "zai-org/glm-4v-9b"), made_of.pop("lacks")
        if lacking:
            (folder / lacking).unlink()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adapter").mkdir()
    described = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["dense"]}
    described["base_model_name_or_path"] = "zai-org/glm-4v-9b"
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(described))
    weights = {f"base_model.model.dense.lora_{each}.weight": torch.ones(1, 1) for each in "AB"}
    save_file(weights, tmp_path / "adapter" / "adapter_model.safetensors")

    def judged():
        facts = gather((), model=name, **made_of)
        verdicts = {each.subject: each for each in diagnose(facts)}
        return facts, verdicts.get("checkpoint")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    facts, finding = judged()
    assert (facts.is_here, finding) == (False, None)  # a load downloads it
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    facts, finding = judged()
    assert not facts.is_here
    assert finding.verdict == "fail"
    with pytest.raises(CheckpointError, match="and HF_HUB_OFFLINE is set") as caught:
        resolve(name, download=True, **made_of)
    assert (finding.reason, *finding.next_step) == caught.value.text
    if case == "a published name":
        download(hub, "zai-org/glm-4v-9b")
        facts, finding = judged()
        assert (facts.is_here, finding) == (True, None)


@pytest.mark.parametrize("name", ["a" * 300, f"zai-org/{'a' * 300}"])
def test_a_name_longer_than_any_file_has_is_not_found(name):
    with pytest.raises(CheckpointError, match=r"There is no checkpoint '"):
        resolve(name)
    with pytest.raises(CheckpointError, match=r"There is no configuration '"):
        architecture(name)


@pytest.mark.parametrize("name", ["CogVLM", "CogAgent"])
def test_cogvlm_is_named_with_what_can_be_done(tmp_path, name):
    config = {"architectures": [f"{name}ForCausalLM"], "vision_config": {}, "hidden_size": 4096}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for look in (resolve, architecture):
        with pytest.raises(CheckpointError) as caught:
            look(tmp_path)
        assert f"a model of {name} (" in str(caught.value)
        assert "%glm4v patch" in worded(caught.value.text, CELL)


def test_a_mirror_of_the_hub_is_asked(tmp_path):
    asked = []

    class Mirror(BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()

        def log_message(self, *_arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        code = (
            "from glm4v_magic.checkpoints import resolve\n"
            "try:\n    resolve('GLM-4.1V-9B-Base', download=True)\n"
            "except Exception as error:\n    print(error)\n"
        )
        address = f"http://127.0.0.1:{server.server_port}"
        surroundings = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path)}
        surroundings = {
            name: value
            for name, value in surroundings.items()
            if not name.lower().endswith("_proxy") and name != "HF_HUB_OFFLINE"
        }
        done = subprocess.run(
            [sys.executable, "-c", code], env=surroundings, capture_output=True, text=True
        )
        server.shutdown()
        thread.join()
    assert "not on the hub" in done.stdout, done.stderr
    assert asked == ["/zai-org/GLM-4.1V-9B-Base/resolve/main/config.json"]


TRAINED = {
    "peft": lambda name: f"base_model.model.{name}",
    "peft, unloaded": lambda name: (
        "base_model.model." + name.replace("dense.weight", "dense.base_layer.weight")
    ),
    "data parallel": lambda name: f"module.{name}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "compiled layers": lambda name: name.replace("encoder.", "encoder._orig_mod."),
}


@pytest.mark.parametrize("tool", TRAINED)
def test_prefixes_of_training_tools_are_taken_off(tmp_path, tool):
    folder = shutil.copytree(golden.CHECKPOINT, tmp_path / "trained")
    weights = load_file(folder / "model.safetensors")
    renamed = {TRAINED[tool](name): weight for name, weight in weights.items()}
    assert renamed.keys() != weights.keys()
    save_file(renamed, folder / "model.safetensors")
    expected = resolve(golden.CHECKPOINT).load(dtype=torch.float32).model.state_dict()
    found = resolve(folder).load(dtype=torch.float32).model.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in found.items())


def test_adapters_that_are_not_merged_are_named(tmp_path):
    folder = shutil.copytree(golden.CHECKPOINT, tmp_path / "trained")
    weights = load_file(folder / "model.safetensors")
    more = "transformer.encoder.layers.0.self_attention.dense.lora_A.default.weight"
    save_file({**weights, more: torch.zeros(2, 2)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="not merged, for example"):
        resolve(folder)


@pytest.mark.parametrize("form", ["one", "sharded", "old", "nested"])
def test_weights_of_trainers_in_pickles(tmp_path, form):
    folder = shutil.copytree(golden.CHECKPOINT, tmp_path / "trained")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if form == "sharded":
        names = sorted(weights)
        parts = {"pytorch_model-1.bin": names[::2], "pytorch_model-2.bin": names[1::2]}
        for file, held in parts.items():
            torch.save({name: weights[name] for name in held}, folder / file)
        index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    else:
        content = {"state_dict": weights, "step": 3} if form == "nested" else weights
        zipped = form != "old"
        torch.save(content, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    expected = resolve(golden.CHECKPOINT)
    found = resolve(folder)
    assert found.total_bytes == expected.total_bytes
    same = expected.load(dtype=torch.float32).model.state_dict()
    for name, weight in found.load(dtype=torch.float32).model.state_dict().items():
        assert torch.equal(weight, same[name])


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"x": Evil()}, "holds more than weights"),
        ({"step": 3}, "holds no weights by name"),
        ([torch.zeros(2)], "holds no weights by name"),
        ({"transformer.x": torch.zeros(2, dtype=torch.complex64)}, "complex64, which is not read"),
        ({"transformer.x": torch.zeros(2)}, "weights are missing"),
    ],
)
def test_pickles_that_are_no_weights(tmp_path, monkeypatch, content, said):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(golden.CHECKPOINT, tmp_path / "trained")
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=said) as caught:
        resolve(folder)
    assert "\n" not in str(caught.value)
    assert not os.path.exists("executed")


def test_a_pickle_that_was_cut_short(tmp_path):
    folder = shutil.copytree(golden.CHECKPOINT, tmp_path / "trained")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    file = folder / "pytorch_model.bin"
    torch.save(weights, file)
    for size in (file.stat().st_size // 2, 100, 0):
        os.truncate(file, size)
        with pytest.raises(CheckpointError, match=r"pytorch_model.bin"):
            resolve(folder)


@pytest.mark.parametrize(("before", "after"), [("bfloat16", "float16"), ("float32", "bfloat16")])
def test_a_model_that_was_saved_in_another_dtype_has_that(native, tmp_path, before, after):
    """transformers leaves the dtype of the text part in config.json as it was loaded."""
    source, folder = native("glm46v"), shutil.copytree(native("glm46v"), tmp_path / "saved")
    model = AutoModelForImageTextToText.from_pretrained(source, dtype=getattr(torch, before))
    model.to(getattr(torch, after)).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    assert (config["dtype"], config["text_config"]["dtype"]) == (after, before)
    assert architecture(folder).shape().dtype == after
    known = architecture(folder)
    made = make_plan(known, PlacementOptions(gpus="1x1GiB", context=256))
    assert made.workload.dtype == after
    saved = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").state_dict()
    loaded = resolve(folder).load(dtype=getattr(torch, made.workload.dtype)).model.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in saved.items())


@pytest.mark.parametrize("kind", ["chatglm", "glm46v", "glm_ocr", "glm5_next"])
def test_which_dtype_of_a_configuration_counts(native, tmp_path, kind):
    source = golden.CHECKPOINT if kind == "chatglm" else native(kind)
    config = json.loads((source / "config.json").read_text())
    for at, text, expected in (
        ({"dtype": "float16", "torch_dtype": "float32"}, {}, "float16"),
        ({"torch_dtype": "float16"}, {"dtype": "bfloat16"}, "float16"),
        ({}, {"dtype": "float16"}, "float16"),
        ({}, {"torch_dtype": "float16"}, "float16"),
    ):
        given = {key: each for key, each in config.items() if key not in ("dtype", "torch_dtype")}
        given |= at
        if "text_config" in given:
            given["text_config"] = {**given["text_config"], "dtype": None, **text}
        elif not at:
            continue
        (tmp_path / "config.json").write_text(json.dumps(given))
        assert architecture(tmp_path).shape().dtype == expected


def in_shards(folder):
    """Save its weights in shards, in place of one file."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="300KB")
    assert (folder / "model.safetensors.index.json").exists()
    return model


@pytest.mark.parametrize("left", ["index", "index and shards"])
def test_a_file_of_weights_counts_before_shards_as_in_transformers(native, tmp_path, left):
    folder = shutil.copytree(native("glm46v"), tmp_path / "c")
    model = in_shards(folder)
    loaded = resolve(folder)
    before = loaded.stamp
    assert not loaded.load(dtype=torch.float32).notes
    shards = {path: path.read_bytes() for path in folder.glob("model-*.safetensors")}
    assert len(shards) > 1
    before_it = model.lm_head.weight.detach().clone()
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    model.save_pretrained(folder)  # which leaves the index of before
    if left == "index and shards":
        for path, content in shards.items():
            path.write_bytes(content)
    else:
        assert not any(path.exists() for path in shards)
    expected = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    found = resolve(folder).load(dtype=torch.float32)
    assert torch.equal(expected.lm_head.weight, model.lm_head.weight)
    assert torch.equal(found.model.lm_head.weight, model.lm_head.weight)
    assert found.notes == (
        "model.safetensors.index.json and its shards are left out, as there is a model.safetensors",
    )
    facts = gather((), model=str(folder))
    assert (facts.is_here, facts.fault) == (True, None)
    assert not is_cut_short(folder)
    assert resolve(folder).stamp != before
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("gone")
    if left == "index and shards":  # a link to nothing is no file for transformers either
        old = resolve(folder).load(dtype=torch.float32).model.lm_head.weight
        assert torch.equal(old, before_it)
    else:
        with pytest.raises(CheckpointError, match="shards are missing"):
            resolve(folder)


@pytest.mark.parametrize("kind", ["safetensors", "pickles"])
def test_so_it_does_for_glm_4v_9b(tmp_path, kind):
    folder = shutil.copytree(golden.SHARDED, tmp_path / "c")
    shards = {path.name: load_file(path) for path in folder.glob("model-*.safetensors")}
    weights = {name: weight for shard in shards.values() for name, weight in shard.items()}
    name = "transformer.output_layer.weight"
    new = weights | {name: weights[name] + 1}
    if kind == "safetensors":
        save_file(new, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        for file in folder.glob("model*.safetensors*"):
            file.unlink()
        for shard, held in shards.items():
            torch.save(held, folder / shard.replace(".safetensors", ".bin"))
        placed = {
            each: shard.replace(".safetensors", ".bin")
            for each, shard in index["weight_map"].items()
        }
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": placed}))
        old = resolve(folder).load(dtype=torch.float32).model.state_dict()
        torch.save(new, folder / "pytorch_model.bin")
    found = resolve(folder).load(dtype=torch.float32)
    head = found.model.state_dict()["lm_head.weight"]
    assert torch.equal(head, new[name].float())
    assert any("shards are left out" in note for note in found.notes)
    if kind == "pickles":
        assert torch.equal(old["lm_head.weight"], weights[name].float())


def test_a_vocabulary_that_has_grown(tmp_path):
    folder = shutil.copytree(golden.CHECKPOINT, tmp_path / "grown")
    weights = load_file(folder / "model.safetensors")
    for name in ("transformer.embedding.word_embeddings.weight", "transformer.output_layer.weight"):
        weights[name] = torch.cat([weights[name], weights[name][:3]])
    save_file(weights, folder / "model.safetensors")
    loaded = resolve(folder).load(dtype=torch.float32)
    rows = json.loads((folder / "config.json").read_text())["padded_vocab_size"] + 3
    assert loaded.model.get_output_embeddings().weight.shape[0] == rows
    assert any(f"a vocabulary of {rows:,}" in note for note in loaded.notes)
    assert architecture(folder).shape().values > architecture(golden.CHECKPOINT).shape().values


def test_shards_without_their_index(tmp_path):
    folder = shutil.copytree(golden.SHARDED, tmp_path / "shards")
    (folder / "model.safetensors.index.json").unlink()
    expected = resolve(golden.SHARDED).load(dtype=torch.float32).model.state_dict()
    found = resolve(folder).load(dtype=torch.float32).model.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in found.items())
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"1 of 3 shards are missing .* model-00002-of"):
        resolve(folder)


def test_the_folder_of_a_trainer_names_those_of_its_steps(tmp_path):
    for step in (500, 1000):
        shutil.copytree(golden.CHECKPOINT, tmp_path / f"checkpoint-{step}")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")  # which has no say beside them
    for look in (resolve, architecture):
        with pytest.raises(CheckpointError, match="2 folders with one: checkpoint-1000, checkp"):
            look(tmp_path)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("glm4.1v", "GLM-4.1V-9B-Thinking"),
        ("GLM4.5V", "GLM-4.5V"),
        ("glm_4.6v_flash", "GLM-4.6V-Flash"),
        ("GLM 4.6V", "GLM-4.6V"),
        ("THUDM/glm4v-9b", "GLM-4V-9B"),
        ("zai-org/GLM-4.5V/", "GLM-4.5V"),
        ("GLM OCR", "GLM-OCR"),
        ("glmocr", "GLM-OCR"),
    ],
)
def test_names_of_published_checkpoints_as_people_type_them(typed, meant):
    assert named(typed).name == meant
    assert architecture(typed).name == meant


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("Demo", "demo"),
        ("demo/", "demo"),
        ("demo4.6v", "demo-4.6v"),
        ("DEMO-4.6V", "demo-4.6v"),
        ("demo_4.6v", "demo-4.6v"),
    ],
)
def test_names_of_the_embedded_models_as_people_type_them(typed, meant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for look in (find_place, resolve, architecture):
        assert look(typed).name == meant
    assert resolve(typed).notice
    facts = gather((), model=typed)
    assert (facts.fault, facts.shape) == (None, architecture(meant).shape())
    (tmp_path / typed).mkdir()  # one's own folder of this name
    if typed != "demo/":
        assert find_place(typed).folders == (Path(typed),)
    for other in ("demos", "a/demo", "glm4", "4.5v"):
        assert named(other) is None
        assert find_place(other).name == other


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architectures": 3}, "has no 'model_type'"),
        ({"architectures": [], "model_type": None}, "has no 'model_type'"),
        (
            {"architectures": [3, "CogVLM"], "model_type": ["glm4v"]},
            r"of type \"\['glm4v'\]\" with",
        ),
        ({"model_type": "glm4v", "text_config": 3}, "for 'text_config': it should be an object"),
        ({"model_type": "chatglm", "text_config": []}, "of type 'chatglm' without a vision tower"),
    ],
)
def test_keys_of_the_wrong_type_are_named_in_one_line(tmp_path, config, message):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message) as caught:
        architecture(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("index", "is_short"),
    [
        ({"weight_map": {"a": "one.safetensors"}}, False),
        ({"weight_map": {"a": "two.safetensors"}}, True),
        ({"weight_map": {"a": 3}}, False),  # damaged, as is said where it is read
        ({"weight_map": []}, False),
        ([], False),
    ],
)
def test_an_index_tells_whether_a_download_was_cut_short(tmp_path, index, is_short):
    (tmp_path / "one.safetensors").touch()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert is_cut_short(tmp_path) is is_short
