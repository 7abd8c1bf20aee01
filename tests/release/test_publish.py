"""The release: every gate is asked and recorded; each one, broken, refuses with exit code 6 and leaves no release."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from appliance.base_model import base as base_model_base
from appliance.errors import EnvironmentUnavailable, GateRefused, HubError, RunDirError
from appliance.hub import token as hub_token
from appliance.hub import upload
from appliance.process import files, redact
from appliance.release import gates, reload
from tests.conftest import read_csv
from tests.helpers.finished import SIDES, FinishedRun, edit_json, finished_run
from tests.helpers.spoilers import (
    added,
    another_adapter,
    configured,
    edited,
    flip_a_weight,
    logged,
    measured,
    record_again,
    refused_in_training,
    replaced,
    widen_a_norm,
)

ALL_GATES = {
    "eos_is_the_last_label", "eos_is_trained_once", "padding_is_not_trained", "bos_as_at_inference", "pad_is_not_eos",
    "tuned_model_stops", "best_val_loss_again", "merged_equals_trained", "not_worse", "best_is_what_was_kept",
    "best_is_released", "adapter_names_its_base", "proven_is_released", "sixteen_bits", "only_known_files",
    "no_remote_code", "one_prompt_everywhere", "same_tokens", "same_special_ids", "generation_config_sane",
    "release_is_clean", "logs_are_clean", "no_secret_in_the_run", "tokenizer_is_the_bases",
}  # fmt: skip
CANARY = "hf_" + "c4n4ry" * 6


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, base_dir: Path) -> FinishedRun:
    return finished_run(tmp_path_factory.mktemp("whole") / "run", base_dir)


@pytest.fixture
def run(whole: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FinishedRun:
    """A copy that a test may spoil. The reload happens in this process."""
    shutil.copytree(whole.path, tmp_path / "run")
    monkeypatch.setattr(reload, "run_module", _here)
    monkeypatch.setattr(redact, "names_here", lambda: ("hongkildong", "seoul-07"))
    monkeypatch.setattr(hub_token, "saved_token", lambda _: None)
    return FinishedRun(tmp_path / "run", whole.base)


def _here(_module: str, arguments: list[str], _log: Path) -> tuple[int, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("appliance.process.child.die_with_parent", lambda: None)
        reload.main(Path(arguments[0]))
    return 0, ""


def test_every_gate_is_asked_and_recorded(run: FinishedRun) -> None:
    run.publish()
    listed = run.hub_json()["gates"]
    assert {gate["name"] for gate in listed} == ALL_GATES
    assert len(listed) == len(ALL_GATES)
    assert all(gate["passed"] and {"measured", "bound", "meaning"} <= set(gate) for gate in listed)
    assert {path.name for path in run.release.iterdir()} == {"model", "adapter"}
    assert run.hub_json()["overridden"] == []
    assert {path.name for path in (run.path / "publish").iterdir()} == {"hub.json", "release", "stage.json"}


def test_a_fresh_process_reloads_the_release(whole: FinishedRun, tmp_path: Path) -> None:
    """The real process, once: nothing is patched, and its request does not stay."""
    shutil.copytree(whole.path, tmp_path / "run")
    run = FinishedRun(tmp_path / "run", whole.base)
    run.publish(adapter=False)
    assert {path.name for path in (run.path / "publish").iterdir()} == {
        "hub.json", "release", "stage.json", "roundtrip.log",
    }  # fmt: skip
    measured = {gate["name"]: gate["meaning"] for gate in run.hub_json()["gates"]}
    assert "of 13 conversations" in measured["one_prompt_everywhere"]


BROKEN: dict[str, tuple[Callable[[Path], None], set[str]]] = {
    **{
        f"train: {name}": (refused_in_training(name), {name})
        for name in ("eos_is_the_last_label", "bos_as_at_inference")
    },
    "does not stop": (measured(stops={"tuned": 0.0}), {"tuned_model_stops"}),
    "no row fits": (measured(stops={"tuned": None, "base": None, "rows_that_fit": 0}), {"tuned_model_stops"}),
    "other val loss": (measured(val_loss={"again": 1.501}), {"best_val_loss_again"}),
    "val loss is NaN": (measured(val_loss={"again": float("nan")}), {"best_val_loss_again"}),
    "proof refused": (edited("merge/proof.json", passed=False), {"merged_equals_trained"}),
    "proof without gates": (edited("merge/proof.json", passed=False, gates=[]), {"merged_equals_trained"}),
    "worse": (edited("evaluate/metrics.json", verdict="worse"), {"not_worse"}),
    "another adapter": (another_adapter, {"best_is_what_was_kept", "best_is_released"}),
    "a flipped weight": (flip_a_weight, {"proven_is_released"}),
    "a float32 tensor": (widen_a_norm, {"sixteen_bits"}),
    "a float32 config": (configured("config.json", dtype="float32"), {"sixteen_bits"}),
    "a local path": (
        edited("train/adapter/adapter_config.json", base_model_name_or_path="/models/base"),
        {"adapter_names_its_base"},
    ),
    "another base": (
        edited("train/adapter/adapter_config.json", base_model_name_or_path="tiny-llama-2"),
        {"adapter_names_its_base"},
    ),
    "a revision of nowhere": (edited("train/adapter/adapter_config.json", revision="main"), {"adapter_names_its_base"}),
    "a pickle": (added("merge/model/pytorch_model.bin"), {"only_known_files"}),
    "an optimizer": (added("train/adapter/optimizer.pt"), {"only_known_files"}),
    "code": (added("merge/model/modeling_x.py", "import os"), {"only_known_files"}),
    "rows": (added("merge/model/train.csv", "row"), {"only_known_files"}),
    "remote code": (configured("config.json", auto_map={"AutoModel": "x.Y"}), {"no_remote_code"}),
    "remote code of a tokenizer": (
        configured("tokenizer_config.json", extra={"auto_map": {"AutoTokenizer": ["x.Y", None]}}),
        {"no_remote_code"},
    ),
    "another template": (
        replaced("chat_template.jinja", "### Response:\\n", "### Response: "),
        {"one_prompt_everywhere"},
    ),
    "another pad": (
        configured("tokenizer_config.json", pad_token="</s>"),
        {"same_special_ids", "tokenizer_is_the_bases"},
    ),
    "shorter texts": (configured("tokenizer_config.json", model_max_length=8), {"tokenizer_is_the_bases"}),
    "another eos": (configured("generation_config.json", eos_token_id=7), {"same_special_ids"}),
    "pads with eos": (configured("generation_config.json", pad_token_id=2), {"same_special_ids"}),
    "answers cut": (configured("generation_config.json", max_length=20), {"generation_config_sane"}),
    "settings that contradict": (
        configured("generation_config.json", do_sample=False, temperature=0.6),
        {"generation_config_sane"},
    ),
    "a token in the template": (
        replaced("chat_template.jinja", "{%- for message", f"{{#- {CANARY} -#}}{{%- for message"),
        {"release_is_clean"},
    ),
    "a token in the log": (logged(f"GET /x Authorization: Bearer {CANARY}"), {"logs_are_clean"}),
    "a signed link in the log": (logged("GET https://s3.x/a?X-Amz-Signature=0123456789abcdef"), {"logs_are_clean"}),
    "a name in the log": (logged("connected from seoul-07"), {"logs_are_clean"}),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_gate_refuses(case: str, run: FinishedRun) -> None:
    spoil, names = BROKEN[case]
    spoil(run.path)
    with pytest.raises(GateRefused) as caught:
        run.publish()
    assert caught.value.exit_code == 6
    assert run.refused() == names
    assert all(f"{name}: " in str(caught.value) for name in names)
    assert CANARY not in str(caught.value)
    assert CANARY not in (run.path / "publish" / "hub.json").read_text(encoding="utf-8")
    assert {path.name for path in (run.path / "publish").iterdir()} <= {"hub.json", "started.json", "roundtrip.log"}
    assert "passport" not in files.read_json(run.path / "run.json")


def test_only_the_verdict_can_be_overridden(run: FinishedRun) -> None:
    edit_json(run.path / "evaluate" / "metrics.json", verdict="worse")
    with pytest.raises(GateRefused, match="not_worse: worse, bound better or not proven") as caught:
        run.publish()
    assert "--even-if-worse" in caught.value.hint

    run.publish(even_if_worse=True)

    assert run.refused() == {"not_worse"} == set(run.hub_json()["overridden"])
    for part in ("model", "adapter"):
        assert "Released despite this verdict" in (run.release / part / "README.md").read_text(encoding="utf-8")
    measured(stops={"tuned": 0.1, "rows_that_fit": 20})(run.path)
    with pytest.raises(GateRefused, match=r"tuned_model_stops: 0\.1") as caught:
        run.publish(even_if_worse=True)
    assert "--even-if-worse" not in caught.value.hint


def test_a_card_says_nothing_of_an_override_that_was_not_needed(run: FinishedRun) -> None:
    run.publish(even_if_worse=True)
    assert "Released despite" not in (run.release / "model" / "README.md").read_text(encoding="utf-8")
    assert run.hub_json()["overridden"] == []


def test_bounds_are_the_recipes(run: FinishedRun) -> None:
    measured(stops={"tuned": 0.5, "rows_that_fit": 20})(run.path)
    with pytest.raises(GateRefused, match=r"tuned_model_stops: 0\.5, bound 0\.8"):
        run.publish()
    run.publish(min_stop_rate=0.5)
    with pytest.raises(GateRefused, match="not_worse: not proven, bound better"):
        run.publish(min_stop_rate=0.5, require_improvement=True)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # datasets leaves the CSVs open
def test_rows_are_released_only_when_asked_for(run: FinishedRun) -> None:
    from datasets import load_dataset

    run.publish(dataset=True, adapter=False)
    folder = run.release / "dataset"
    assert {path.name for path in folder.iterdir()} == {"train.csv", "val.csv", "test.csv", "rows.csv", "README.md"}
    assert read_csv(folder / "rows.csv") == [
        {"instruction": row[1], "input": row[2], "output": row[3], "side": side}
        for side, rows_of_side in SIDES.items()
        for row in rows_of_side
    ]
    rows = load_dataset(str(folder), cache_dir=str(run.path.parent / "cache"))
    assert {name: len(part) for name, part in rows.items()} == {"train": 12, "validation": 3, "test": 5}
    assert rows["test"][0]["instruction"] == "사과 15? 👍🏽"


def test_the_notebooks_split_is_released_in_the_notebooks_files(run: FinishedRun) -> None:
    edit_json(run.path / "prepare" / "stage.json", inputs={"data.split": "notebook"})
    run.publish(dataset=True, adapter=False)
    folder = run.release / "dataset"
    for name, sides in (("train_ds.csv", ("train", "val")), ("test_ds.csv", ("test",))):
        wanted = [row[1:] for side in sides for row in SIDES[side]]
        assert [tuple(row.values()) for row in read_csv(folder / name)] == wanted
        assert (folder / name).read_bytes().startswith(b"instruction,input,output\n")
    replayed = gates.of_files(
        run.release, run.path, public_id=run.base.public_id, revision=run.base.revision, dataset=True
    )
    assert all(gate.passed for gate in replayed)


def test_a_card_without_examples_shows_no_row(run: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run.publish(examples=False)
    card = (run.release / "model" / "README.md").read_text(encoding="utf-8")
    assert "맛있어요" not in card
    from appliance.release import card as release_card

    leaky = release_card.model_card
    monkeypatch.setattr(release_card, "model_card", lambda facts: leaky(facts) + "\n| 사과! 맛있어요 15. |\n")
    with pytest.raises(GateRefused, match=r"release_is_clean: 1, .*model/README\.md: text of a CSV row"):
        run.publish(examples=False)


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({}, False),
        ({"examples": True}, True),
        ({"examples": True, "visibility": "public"}, True),
        ({"examples": None}, True),  # the default of earlier versions
        ({"examples": None, "visibility": "public"}, False),
    ],
    ids=["default", "true", "true, public", "null", "null, public"],
)
def test_a_card_shows_rows_only_if_asked_to(settings: dict[str, Any], shown: bool, run: FinishedRun) -> None:
    run.publish(adapter=False, **settings)
    card = (run.release / "model" / "README.md").read_text(encoding="utf-8")
    assert ("맛있어요" in card) == shown
    assert ("This card shows no rows of the data; `publish.examples: true`" in card) != shown


@pytest.mark.parametrize(
    "place",
    [
        "appliance.log",
        "train/adapter/adapter_config.json",
        "merge/model/tokenizer_config.json",
        "metadata",
        "card",
        "run.json",
    ],
)
def test_a_canary_token_is_found_wherever_it_is(place: str, run: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token of another shape than the Hub's, known from the environment: every place, and never printed."""
    token = "sk-canary-0123456789-abcdef"
    monkeypatch.setenv("MY_SERVICE_TOKEN", token)
    if place == "metadata":
        file = run.path / "train" / "adapter" / "adapter_model.safetensors"
        save_file(load_file(file), file, metadata={"format": "pt", "note": token})
        best = {"adapter_model.safetensors": files.sha256_of(file)}
        edit_json(run.path / "train" / "fit.json", best_files=best)
    elif place == "card":
        from appliance.release import card as release_card

        card = release_card.model_card
        monkeypatch.setattr(release_card, "model_card", lambda facts: card(facts) + token)
    elif place == "appliance.log":
        logged(token)(run.path)
    else:
        edit_json(run.path / place, note=token)
        record_again(run.path)
    with pytest.raises(GateRefused) as caught:
        run.publish()
    wanted = {"appliance.log": "logs_are_clean", "run.json": "no_secret_in_the_run"}.get(place, "release_is_clean")
    assert wanted in run.refused()
    written = str(caught.value) + (run.path / "publish" / "hub.json").read_text(encoding="utf-8")
    assert token not in written
    assert (place.rpartition("/")[2] in written) or place in ("metadata", "card")


def test_the_names_of_what_is_published_are_no_traces(run: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redact, "names_here", lambda: ("hongkildong",))
    edit_json(run.path / "merge" / "model" / "config.json", made_for="hongkildong/shop")
    record_again(run.path)
    with pytest.raises(GateRefused, match="the name of this host or user"):
        run.publish()

    def reached(*_: object, **__: object) -> None:
        raise HubError("every gate has let it pass")

    monkeypatch.setattr(upload, "publish", reached)
    with pytest.raises(HubError, match="every gate"):
        run.publish(repo_id="hongkildong/shop")
    assert run.refused() == set()
    assert run.release.is_dir()


def test_a_release_that_does_not_load_is_refused(run: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "run_module", lambda *_: (1, "ValueError: no such tokenizer"))
    with pytest.raises(GateRefused, match="does not load with plain transformers") as caught:
        run.publish()
    assert "roundtrip.log" in caught.value.hint
    assert "refused" in run.hub_json()["message"]
    assert not run.release.exists()
    monkeypatch.setattr(reload, "run_module", lambda *_: (-9, ""))
    with pytest.raises(EnvironmentUnavailable, match="killed by signal 9"):
        run.publish()


def test_a_stage_that_recorded_nothing_is_named(run: FinishedRun) -> None:
    (run.path / "train" / "gates.json").unlink()
    with pytest.raises(RunDirError, match=r"train/gates\.json is missing") as caught:
        run.publish()
    assert "--redo train" in caught.value.hint


def test_full_fine_tuning_releases_the_best_checkpoints_weights(
    base_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "run_module", _here)
    run = finished_run(tmp_path / "run", base_dir, full=True)
    run.publish()
    assert ALL_GATES - {gate["name"] for gate in run.hub_json()["gates"]} == {
        "best_is_released", "adapter_names_its_base",
    }  # fmt: skip
    file = run.path / "train" / "model" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(GateRefused, match="best_is_what_was_kept: 1"):
        run.publish()


def test_a_base_of_the_hub_is_named_with_its_commit(run: FinishedRun) -> None:
    base = base_model_base.Base(run.base.dir, "maker/base", "0123abc", None)
    of_hub = FinishedRun(run.path, base)
    with pytest.raises(GateRefused, match="adapter_names_its_base: tiny-llama, bound maker/base@0123abc"):
        of_hub.publish()
    named = {"base_model_name_or_path": "maker/base", "revision": "0123abc"}
    edit_json(run.path / "train" / "adapter" / "adapter_config.json", **named)
    of_hub.publish()


def test_a_local_base_is_named_as_it_is_known_on_the_hub(run: FinishedRun) -> None:
    """Said after training: the trained adapter keeps the folder's name."""
    trained = run.path / "train" / "adapter" / "adapter_config.json"
    before = trained.read_bytes()
    base = base_model_base.Base(run.base.dir, "maker/base", "0123abc", None, is_folder=True)
    FinishedRun(run.path, base).publish()
    released = files.read_json(run.release / "adapter" / "adapter_config.json")
    assert (released["base_model_name_or_path"], released["revision"]) == ("maker/base", "0123abc")
    assert trained.read_bytes() == before
    assert "base_model: maker/base" in (run.release / "model" / "README.md").read_text(encoding="utf-8")
