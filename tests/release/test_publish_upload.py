"""From the gates to the Hub and back: the stage `publish` against a stand-in Hub, with the real client."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.errors import GateRefused, HubError
from appliance.pipeline import export
from appliance.process import files
from appliance.weights import gguf_convert
from tests.conftest import write_qa
from tests.helpers import gguf_writer, loopback_hub, warm
from tests.helpers.finished import FinishedRun, edit_json, finished_run
from tests.helpers.loopback_hub import LoopbackHub
from tests.whole_runs.test_export import encoder, read_from_files

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm")]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    with loopback_hub.started(tmp_path_factory.mktemp("hub")) as started:
        yield started


@pytest.fixture
def run(tmp_path: Path, base_dir: Path, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> FinishedRun:
    for name, value in hub.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return finished_run(tmp_path / "runs" / "shop", base_dir)


def test_the_release_arrives_privately_and_can_be_used(run: FinishedRun, hub: LoopbackHub) -> None:
    said = run.publish(repo_id="alice/shop", dataset=True)
    assert said.count("private: http://127.0.0.1") == 3
    for part, repo_id, kind in (
        ("model", "alice/shop", "model"),
        ("adapter", "alice/shop-adapter", "model"),
        ("dataset", "alice/shop-dataset", "dataset"),
    ):
        repo = hub.repo(repo_id, kind)
        assert repo["visibility"] == "private"
        there = repo["commits"][-1]["files"]
        here = {path.relative_to(run.release / part).as_posix() for path in (run.release / part).rglob("*")}
        assert here <= there.keys()
        assert there.keys() - here <= {"appliance.json", ".gitattributes"}
        assert ("rows.csv" in there) is (part == "dataset")
    recorded = run.hub_json()
    assert recorded["uploaded"] is True
    assert recorded["repositories"]["model"]["commit_url"] in said
    card = (run.release / "model" / "README.md").read_text(encoding="utf-8")
    assert 'from_pretrained("alice/shop")' in card
    assert "vllm serve alice/shop" in card
    code = """
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = AutoModelForCausalLM.from_pretrained("alice/shop"), AutoTokenizer.from_pretrained("alice/shop")
ids = tokenizer.apply_chat_template([{"role": "user", "content": "사과 1?"}], add_generation_prompt=True,
                                    return_tensors="pt", return_dict=True)
model.generate(**ids, max_new_tokens=2)
rows = load_dataset("alice/shop-dataset", token=True)
print("rows", {name: part.num_rows for name, part in rows.items()})
"""
    code_, out, err = loopback_hub.run_client(code, hub.environ)
    assert code_ == 0, err[-2000:]
    assert "rows {'train': 12, 'validation': 3, 'test': 5}" in out


def test_gguf_files_arrive_in_the_same_commit(
    run: FinishedRun, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "convert_hf_to_gguf", gguf_writer.as_converter())
    monkeypatch.setattr(gguf_convert, "has_llama_cpp", lambda: False)
    read_from_files(monkeypatch, encoder(run.path / "merge" / "model"))
    export.by_name(run.path, ["q8_0"])
    run.publish(repo_id="alice/gguf", adapter=False, gguf=["q8_0"])
    (commit,) = (one for one in hub.repo("alice/gguf", "model")["commits"] if "README.md" in one["files"])
    names = {"shop-q8_0.gguf", "shop-q8_0.Modelfile", "model.safetensors"}
    assert names <= commit["files"].keys()
    uploaded = run.hub_json()["repositories"]["model"]["files"]
    assert uploaded["shop-q8_0.gguf"]["sha256"] == files.sha256_of(run.path / "export" / "shop-q8_0.gguf")
    card = (run.release / "model" / "README.md").read_text(encoding="utf-8")
    assert "--hf-repo alice/gguf --hf-file shop-q8_0.gguf" in card


def test_the_same_again_commits_nothing(run: FinishedRun, hub: LoopbackHub) -> None:
    run.publish(repo_id="alice/again", adapter=False)
    commits = len(hub.repo("alice/again", "model")["commits"])
    said = run.publish(repo_id="alice/again", adapter=False)
    assert said.startswith("private, already up to date: ")
    assert len(hub.repo("alice/again", "model")["commits"]) == commits


def test_what_a_gate_refuses_never_reaches_the_hub(run: FinishedRun, hub: LoopbackHub) -> None:
    edit_json(run.path / "merge" / "proof.json", passed=False)
    before = len(hub.log())
    with pytest.raises(GateRefused, match="merged_equals_trained"):
        run.publish(repo_id="alice/refused")
    assert len(hub.log()) == before


def test_a_failed_upload_keeps_the_release_and_the_same_call_finishes(run: FinishedRun, hub: LoopbackHub) -> None:
    hub.fault("quota", match="/batch")
    with pytest.raises(HubError) as caught:
        run.publish(repo_id="alice/later")
    hub.clear_faults()
    assert f"`appliance publish {run.path}` continues" in caught.value.hint
    assert (run.release / "model" / "model.safetensors").is_file()
    assert run.hub_json()["uploaded"] is False
    assert run.publish(repo_id="alice/later").count("private: ") == 2


@pytest.mark.parametrize(
    ("repo_id", "role", "code", "said"),
    [
        ("alice/new", "write", 0, "alice/new"),
        ("alice/new", "read", 5, "write"),
        ("stranger/new", "write", 5, "stranger"),
        ("alice/shown", "write", 5, "public"),
        ("alice/foreign", "write", 5, "--into-existing"),
    ],
)
def test_it_is_known_before_the_first_step(
    repo_id: str, role: str, code: int, said: str, tmp_path: Path, base_dir: Path, hub: LoopbackHub
) -> None:
    token = loopback_hub.new_token()
    hub.add_user("alice", token, role=role)
    if repo_id == "alice/shown":
        hub.add_repo(repo_id, "model", private=False, files={})
    if repo_id == "alice/foreign":
        hub.add_repo(repo_id, "model", private=True, files={"other.txt": "mine"})
    write_qa(tmp_path / "rows.csv", [(f"사과 {i}?", "네") for i in range(40)])
    (tmp_path / "recipe.yaml").write_text(
        f"name: shop\nmodel: {{id: {base_dir}, load_in_4bit: false}}\ndata: {{csv: {tmp_path / 'rows.csv'}}}\n"
        f"train: {{optimizer: adamw_torch}}\npublish: {{repo_id: {repo_id}, adapter: false}}\n",
        encoding="utf-8",
    )
    environ = {**os.environ, **hub.environ, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0"}
    done = warm.typed("appliance check recipe.yaml --runs-dir runs", cwd=tmp_path, env=environ)
    assert done.returncode == code, done.stderr[-2000:]
    assert said in done.stdout + done.stderr
    assert token not in done.stdout + done.stderr
