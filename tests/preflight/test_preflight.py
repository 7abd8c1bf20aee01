"""What `check` says beforehand of disk, memory, caches, versions and architecture; made-up machines, a tiny base."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from appliance.base_model import find as base_model_find
from appliance.base_model import tunable
from appliance.engines import choose, memory
from appliance.errors import EnvironmentUnavailable, HubError
from appliance.findings import Finding
from appliance.hub import client, permissions
from appliance.hub.errors import Unreachable
from appliance.machine import device, disk, host_memory, packages
from appliance.machine.device import Device
from appliance.pipeline import check, merge, stages
from appliance.pipeline import run as pipeline_run
from appliance.pipeline.job import Job
from appliance.preflight import disk_needs, doctor
from appliance.process import files
from appliance.recipe import resolve
from appliance.recipe.fields import DataSection, ModelSection, PublishSection, TrainSection, TuningSection
from appliance.rundir.directory import STAGES, RunDir
from appliance.rundir.token_choice import TokenChoice
from tests.conftest import write_qa

CPU = Device("cpu", "CPU", 16 << 30, "float32")


def look(
    run_path: Path,
    base_dir: Path,
    *,
    rehearse: str = "auto",
    todo: Collection[str] | None = STAGES,
    again: Collection[str] = (),
    **sections: Any,
) -> dict[str, Finding]:
    """What check finds for a run in `run_path`, by name."""
    stage_dir = run_path / "check"
    stage_dir.mkdir(parents=True, exist_ok=True)
    csv_path = write_qa(run_path / "train.csv", [(f"{i}?", "답") for i in range(40)])
    findings = check.run(
        data=DataSection(csv=str(csv_path)),
        model=ModelSection(id=str(base_dir), load_in_4bit=False),
        tuning=sections.get("tuning", TuningSection()),
        train=sections.get("train", TrainSection()),
        publish=sections.get("publish", PublishSection()),
        csv_path=csv_path,
        cache_dir=run_path / "cache",
        get_base=lambda _: base_model_find.resolve(str(base_dir), None, base_dir),
        get_device=lambda: CPU,
        engine="transformers",
        rehearse=rehearse,
        todo=todo,
        again=again,
        stage_dir=stage_dir,
    )
    return {finding.what: finding for finding in findings}


def of_family(folder: Path, base_dir: Path, kind: str) -> Path:
    shutil.copytree(base_dir, folder)
    config = files.read_json(folder / "config.json")
    (folder / "config.json").write_text(json.dumps(config | {"model_type": kind}), encoding="utf-8")
    return folder


# --- settings that are seldom meant


@pytest.mark.parametrize(("rate", "why"), [(2.0, "diverge"), (2e-9, "hardly move"), (2e-2, "diverge")])
def test_an_unusual_learning_rate_is_questioned(rate: float, why: str, tmp_path: Path, base_dir: Path) -> None:
    found = look(tmp_path, base_dir, train=TrainSection(learning_rate=rate))["learning rate"]
    assert (found.verdict, found.found, why in found.fix) == ("warning", f"{rate:g}", True)


@pytest.mark.parametrize("rate", [1e-6, 5e-5, 2e-4, 1e-2])
def test_a_usual_learning_rate_is_not_questioned(rate: float, tmp_path: Path, base_dir: Path) -> None:
    assert "learning rate" not in look(tmp_path, base_dir, train=TrainSection(learning_rate=rate))


def test_an_unusual_learning_rate_no_longer_matters_after_training(tmp_path: Path, base_dir: Path) -> None:
    assert "learning rate" not in look(tmp_path, base_dir, train=TrainSection(learning_rate=2.0), todo=["publish"])


def test_a_local_base_that_is_to_be_published_should_have_a_name(
    tmp_path: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(permissions, "findings", lambda *_: [])
    publish = PublishSection(repo_id="me/shop")
    found = look(tmp_path, base_dir, publish=publish)["base on the Hub"]
    assert (found.verdict, "model.hub_id" in found.fix) == ("warning", True)
    assert "base on the Hub" not in look(tmp_path, base_dir)
    assert "base on the Hub" not in look(tmp_path, base_dir, publish=publish, todo=["train"])


# --- the share of evaluation


def test_the_share_of_evaluation_is_told_before_training(tmp_path: Path, base_dir: Path) -> None:
    """40 rows: 32 train, 4 val. Not where nothing is trained any more."""
    auto = look(tmp_path, base_dir)["evaluation"]
    assert auto.verdict == "ok"
    assert auto.found == "2.7% of the training time: 2 times 4 val rows, before the first step and after the last"
    often = look(tmp_path, base_dir, train=TrainSection(eval_every=1, batch_size=4))["evaluation"]
    assert (often.verdict, often.found.split()[0]) == ("ok", "25.8%")
    outweighs = TrainSection(eval_every=1, micro_batch_size=1, gradient_accumulation_steps=1)
    assert look(tmp_path, base_dir, train=outweighs)["evaluation"].verdict == "warning"
    assert "evaluation" not in look(tmp_path, base_dir, todo=["merge", "publish"])


# --- disk


def test_the_disk_is_asked_for_all_that_is_written(
    tmp_path: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = look(tmp_path, base_dir, tuning=TuningSection(r=64))["disk"]
    assert found.verdict == "ok"
    assert found.needed.endswith("(checkpoints 3.0 MiB, proof 128.0 MiB)")
    monkeypatch.setattr(disk, "free_disk_bytes", lambda _: 600 << 20)
    with pytest.raises(EnvironmentUnavailable, match=r"disk: 600\.0 MiB, needed 65\d\.\d MiB \(checkpoints") as caught:
        look(tmp_path, base_dir, tuning=TuningSection(r=64))
    assert caught.value.hint == "free space, or use --runs-dir"
    (written,) = [line for line in files.read_json(tmp_path / "check" / "table.json") if line["verdict"] == "fails"]
    assert written["what"] == "disk"


def test_a_volume_that_takes_few_further_files_is_refused_whatever_bytes_are_free(
    tmp_path: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs(tmp_path)

    def counts(inodes: int, free: int) -> None:
        seen = {name: getattr(real, name) for name in dir(real) if name.startswith("f_")}
        monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(**seen | {"f_files": inodes, "f_favail": free}))

    counts(1000, 499)
    with pytest.raises(EnvironmentUnavailable, match=r"inodes of /.*: 499 free, needed 500") as caught:
        look(tmp_path, base_dir)
    assert "df -i" in caught.value.hint
    counts(0, 0)  # Btrfs: no limit
    assert not [what for what in look(tmp_path, base_dir) if what.startswith("inodes")]


def test_what_the_run_holds_already_is_not_asked_for_again(
    tmp_path: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Continuing on a disk that is nearly full: checkpoints and merged model are there."""
    monkeypatch.setattr(disk, "free_disk_bytes", lambda _: 600 << 20)
    for folder, name in (("train", "checkpoints"), ("merge", "model")):
        (tmp_path / folder / name).mkdir(parents=True)
    with (tmp_path / "train" / "checkpoints" / "x").open("wb") as file:
        file.truncate(60 << 20)
    os.link(tmp_path / "train" / "checkpoints" / "x", tmp_path / "merge" / "model" / "y")  # no second copy
    assert disk_needs.held_bytes(tmp_path) == 60 << 20
    assert look(tmp_path, base_dir, tuning=TuningSection(r=16))["disk"].verdict == "ok"


def test_what_is_made_anew_is_not_there_yet(tmp_path: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old result is set aside and stays until the new one is done."""
    monkeypatch.setattr(disk, "free_disk_bytes", lambda _: 600 << 20)
    for folder in ("train", "merge"):
        (tmp_path / folder).mkdir()
        with (tmp_path / folder / "x").open("wb") as file:
            file.truncate(60 << 20)
    assert disk_needs.held_bytes(tmp_path, {"merge"}) == 60 << 20
    assert look(tmp_path, base_dir, again=["evaluate", "merge", "publish"])["disk"].verdict == "ok"  # train/ stays
    with pytest.raises(EnvironmentUnavailable, match="disk: "):
        look(tmp_path, base_dir, again=STAGES[3:])


# --- what is done is not judged again


def test_with_training_done_its_memory_and_disk_are_not_asked_for(
    tmp_path: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "training_bytes", lambda *_: 1 << 60)
    with pytest.raises(EnvironmentUnavailable, match="memory for training"):
        look(tmp_path, base_dir)
    rest = look(tmp_path, base_dir, todo=["evaluate", "merge", "publish"], tuning=TuningSection(r=64))
    assert {what for what in rest if "memory" in what} == {"memory for the merge", "memory for the proof"}
    assert rest["disk"].needed.endswith("(proof 128.0 MiB)")
    with pytest.raises(EnvironmentUnavailable, match="memory for training"):  # a rehearsal trains too
        look(tmp_path, base_dir, todo=["rehearse"])
    look(tmp_path, base_dir, todo=["prepare"])


def test_with_the_merge_done_only_little_is_asked_for(
    tmp_path: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_memory, "memory_available_bytes", lambda: 1 << 20)
    monkeypatch.setattr(disk, "free_disk_bytes", lambda _: 1 << 20)
    for todo in (["merge", "publish"], None):
        with pytest.raises(EnvironmentUnavailable, match=r"disk: .*memory for the merge: .*memory for the proof: "):
            look(tmp_path, base_dir, todo=todo)
    found = look(tmp_path, base_dir, todo=["publish"])
    assert not [what for what in found if "memory" in what]
    assert (found["disk"].verdict, found["disk"].needed) == ("warning", "512.0 MiB")


def test_number_types_are_judged_where_something_is_computed_in_them(
    tmp_path: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "overflows", lambda *_: True)
    with pytest.raises(EnvironmentUnavailable, match="number range"):
        look(tmp_path, base_dir, todo=["evaluate"])
    assert "engine" in look(tmp_path, base_dir, todo=["merge", "publish"])


def test_check_is_told_what_this_call_does(tmp_path: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    csv_path = write_qa(tmp_path / "train.csv", [(f"{i}?", "답") for i in range(40)])
    (tmp_path / "shop.yaml").write_text(
        f"name: shop\nengine: transformers\nmodel: {{id: {base_dir}, load_in_4bit: false}}\n"
        f"data: {{csv: {csv_path}}}\n",
        encoding="utf-8",
    )
    resolved = resolve.load(str(tmp_path / "shop.yaml"), environ={})
    told: list[Any] = []

    def listen(**given: Any) -> list[Finding]:
        told.append((given["todo"], given["again"]))
        return []

    monkeypatch.setattr(check, "run", listen)

    def call(until: str, redo: str | None = None) -> Any:
        pipeline_run.run(resolved, RunDir(tmp_path / "run"), tmp_path / "cache", until=until, redo=redo)
        return told[-1]

    assert call("prepare") == (["prepare"], ())
    assert call("prepare", "prepare") == (["prepare"], STAGES[1:])
    assert call("check") == (None, ())
    monkeypatch.setattr(stages, "rehearse", lambda *_, **__: "not needed")
    assert call("rehearse") == (["rehearse"], ())  # prepare is done


# --- the Hub, where a release is to go there


def no_hub(error: HubError, monkeypatch: pytest.MonkeyPatch) -> list[client.Limits]:
    """Whoever looks gets this error; with what patience it was asked."""
    asked: list[client.Limits] = []

    def look(*arguments: Any) -> None:
        asked.append(arguments[-1])
        raise error

    monkeypatch.setattr(permissions, "findings", look)
    return asked


def test_a_hub_that_cannot_be_asked_stops_only_what_has_not_begun(
    tmp_path: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, publish = no_hub(Unreachable("no network"), monkeypatch), PublishSection(repo_id="alice/shop")
    for todo in (STAGES, None):  # a new run; `appliance check`
        with pytest.raises(HubError, match="no network"):
            look(tmp_path, base_dir, publish=publish, todo=todo)
    warning = Finding("Hub", "not reachable: no network", "", "warning", "publishing needs it")
    assert look(tmp_path, base_dir, publish=publish, todo=["prepare", "rehearse", "train"])["Hub"] == warning
    checkpoint = tmp_path / "train" / "checkpoints" / "checkpoint-4"
    checkpoint.mkdir(parents=True)
    assert look(tmp_path, base_dir, publish=publish)["Hub"] == warning
    with pytest.raises(HubError):  # training begins anew
        look(tmp_path, base_dir, publish=publish, again=STAGES[3:])
    checkpoint.rmdir()
    (tmp_path / "train" / "stage.json").touch()
    assert look(tmp_path, base_dir, publish=publish, todo=["publish"])["Hub"] == warning
    assert asked[0] == client.Limits()
    assert asked[-1] == client.BRIEFLY
    (tmp_path / "publish").mkdir()
    (tmp_path / "publish" / "stage.json").touch()
    assert "Hub" not in look(tmp_path, base_dir, publish=publish, todo=["rehearse"])  # published already


def test_a_refusal_of_the_hub_stops_what_has_begun_as_well(
    tmp_path: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "stage.json").touch()
    publish, refusal = PublishSection(repo_id="alice/shop"), Finding("Hub repository", "public", "", "fails", "mend it")
    monkeypatch.setattr(permissions, "findings", lambda *_: [refusal])
    with pytest.raises(HubError, match="Hub repository: public"):
        look(tmp_path, base_dir, publish=publish, todo=["train"])
    no_hub(HubError("the token does not permit this (403)"), monkeypatch)
    with pytest.raises(HubError, match="403"):
        look(tmp_path, base_dir, publish=publish, todo=["train"])


def test_which_errors_count_as_an_unreachable_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken network, an offline client, a Hub with trouble; a refusal is none."""

    def ask(error: Exception) -> HubError:
        def fail(_: str) -> None:
            raise error

        monkeypatch.setattr(permissions, "whoami", fail)
        with pytest.raises(HubError) as caught:
            permissions.findings({"a/b": "model"}, "private", False, None, "hf_x")
        return caught.value

    def answer(status: int) -> HfHubHTTPError:
        return HfHubHTTPError("x", response=httpx.Response(status, request=httpx.Request("GET", "https://hub/api")))

    for error in (httpx.ConnectError("refused"), Unreachable("gave up"), OfflineModeIsEnabled("offline"), answer(503)):
        assert isinstance(ask(error), Unreachable), error
    unsendable = httpx.LocalProtocolError("Illegal header value"), httpx.UnsupportedProtocol("no scheme")
    for refusal in (*(answer(status) for status in (401, 403, 404)), *unsendable):
        assert not isinstance(ask(refusal), Unreachable), refusal


def test_without_hard_links_the_release_is_a_copy(
    tmp_path: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert disk.has_hard_links(tmp_path)
    assert list(tmp_path.iterdir()) == []
    asked: list[bool] = []
    of_run = disk_needs.of_run

    def spied(*arguments: Any, has_hard_links: bool, **others: Any) -> disk_needs.Demand:
        asked.append(has_hard_links)
        return of_run(*arguments, has_hard_links=has_hard_links, **others)

    def refuse(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(disk_needs, "of_run", spied)
    look(tmp_path, base_dir)
    monkeypatch.setattr(os, "link", refuse)
    look(tmp_path, base_dir)
    assert asked == [True, False]


def test_gguf_files_need_room_of_their_own(base_dir: Path) -> None:
    base, tuning, train = base_model_find.resolve(str(base_dir), None, base_dir), TuningSection(), TrainSection()
    without = disk_needs.of_run(base, tuning, train, has_hard_links=False)
    half = disk_needs.of_run(base, tuning, train, has_hard_links=True, gguf=["q8_0"])
    assert half.gguf == base.parameters * 34 // 32
    both = disk_needs.of_run(base, tuning, train, has_hard_links=False, gguf=["q8_0", "q4_k_m"])
    assert both.gguf > half.gguf + 2.6 * base.parameters  # what 4 bits are made from stands beside them
    assert both.release == without.release + both.gguf
    assert both.of(["train", "merge"]).gguf == 0
    assert half.describe().endswith(f"gguf {disk.human(half.gguf)}") is (half.gguf >= 1 << 20)


def test_full_fine_tuning_writes_the_weights_and_their_moments(base_dir: Path) -> None:
    base, tuning = base_model_find.resolve(str(base_dir), None, base_dir), TuningSection(method="full")
    parameters = base.parameters
    linked = disk_needs.of_run(base, tuning, TrainSection(), has_hard_links=True)
    embeddings = base.config["vocab_size"] * base.config["hidden_size"]  # their moments are float32 in adamw_8bit too
    assert (linked.checkpoints, linked.trained) == (4 * ((4 + 2) * parameters + 6 * embeddings), 0)
    exact = disk_needs.of_run(base, tuning, TrainSection(optimizer="adamw_torch"), has_hard_links=True)
    assert exact.checkpoints == 4 * 12 * parameters
    copied = disk_needs.of_run(base, tuning, TrainSection(), has_hard_links=False)
    assert (copied.trained, copied.release) == (4 * parameters, 6 * parameters)


def test_prepare_loads_no_engine_on_a_cpu(tmp_path: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs the tokenizer; peft and bitsandbytes, which the engine of transformers imports, cost a second or two."""
    (tmp_path / "shop.yaml").write_text(
        f"name: shop\nmodel: {{id: {base_dir}, load_in_4bit: false}}\ndata: {{csv: x.csv}}\n", encoding="utf-8"
    )
    job = Job(resolve.load(str(tmp_path / "shop.yaml"), environ={}), RunDir(tmp_path), tmp_path / "cache")
    vars(job).update(device=CPU, tokens=TokenChoice())
    monkeypatch.setattr(choose, "load_engine", None)
    assert job.prompt.prompt_ids([{"role": "user", "content": "가격은?"}])


def test_the_disk_is_looked_at_again_before_the_merge(
    tmp_path: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours after check: nothing is loaded for a proof whose merge will not fit."""

    def no_merge(*_: Any, **__: Any) -> None:
        raise AssertionError("it was begun")

    monkeypatch.setattr(merge, "run", no_merge)
    (tmp_path / "shop.yaml").write_text(
        f"name: shop\nmodel: {{id: {base_dir}, load_in_4bit: false}}\ndata: {{csv: x.csv}}\n", encoding="utf-8"
    )
    resolved = resolve.load(str(tmp_path / "shop.yaml"), environ={})
    job = Job(resolved, RunDir(tmp_path), tmp_path / "cache")
    stage_dir = tmp_path / "merge"
    stage_dir.mkdir()
    monkeypatch.setattr(disk, "free_disk_bytes", lambda _: 5_000_000)
    with pytest.raises(
        EnvironmentUnavailable, match=r"merge: .*not enough disk space for the merged model: 68\d{7} bytes .* 5000000 "
    ) as seen:
        stages.merge(job, stage_dir)
    assert "the same command continues" in seen.value.hint


# --- memory of the host


def test_the_merge_needs_host_memory(tmp_path: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = memory.shape_of({"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                             "num_attention_heads": 32, "vocab_size": 128256})  # fmt: skip
    assert shape
    assert memory.merge_bytes(shape) == 12 * 4096 * 14336 + device.OVERHEAD_BYTES
    assert look(tmp_path, base_dir)["memory for the merge"].verdict == "ok"
    monkeypatch.setattr(host_memory, "memory_limit_bytes", lambda *_: 1 << 29)  # the container's
    with pytest.raises(EnvironmentUnavailable, match=r"memory for the merge: 512\.0 MiB, needed 1\.0 GiB"):
        look(tmp_path, base_dir)


# --- caches, versions, architecture


def test_a_cache_that_cannot_be_written(tmp_path: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert look(tmp_path, base_dir)["cache"].found == f"writing to {tmp_path / 'cache'}: possible"
    locked = [tmp_path]
    monkeypatch.setattr(disk, "may_write", lambda folder: folder not in locked)
    with pytest.raises(EnvironmentUnavailable, match=r"cache: writing to .*cache: denied to"):
        look(tmp_path, base_dir)
    (tmp_path / "hub").mkdir()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))  # may hold all that is needed
    locked[:] = [tmp_path / "hub"]
    found = look(tmp_path, base_dir)["cache"]
    assert (found.verdict, str(tmp_path / "hub") in found.found) == ("warning", True)


def test_versions_are_held_against_the_pins(tmp_path: Path, base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CHECKOUT", tmp_path)
    (tmp_path / "constraints.txt").write_text(f"peft=={packages.versions()['peft']}\n", encoding="utf-8")
    assert look(tmp_path, base_dir)["pins"].verdict == "ok"
    (tmp_path / "constraints.txt").write_text("peft==0.1\n", encoding="utf-8")
    found = look(tmp_path, base_dir)["pins"]
    assert (found.verdict, found.found.partition(" ")[0]) == ("warning", "1")


@pytest.mark.parametrize(("rehearse", "fix"), [("auto", "the rehearsal tries"), ("never", "set rehearse=auto")])
def test_an_untested_architecture_is_a_warning(rehearse: str, fix: str, tmp_path: Path, base_dir: Path) -> None:
    tested = look(tmp_path / "a", base_dir)["architecture"]
    assert (tested.verdict, tested.found) == ("ok", "llama, dense")
    other = of_family(tmp_path / "other", base_dir, "olmo2")
    found = look(tmp_path / "b", other, rehearse=rehearse)["architecture"]
    assert (found.verdict, found.found) == ("warning", "olmo2 is an untested architecture")
    assert found.fix.startswith(fix)


def test_the_families_of_the_tests_are_tested_ones() -> None:
    assert {"llama", "qwen3", "gpt2"} <= tunable.TESTED_TYPES
