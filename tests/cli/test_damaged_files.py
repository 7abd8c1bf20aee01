"""Damaged files of a base and of a run directory: each is an exit code, with where, what was seen and what to do."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from appliance.pipeline import stages
from appliance.recipe import resolve
from tests.cli.conftest import Appliance
from tests.helpers.models import tiny_base

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DEEP = "[" * 100_000

Spoil = Callable[[Path], object]


def _json(name: str, **changes: Any) -> Spoil:
    """Sets these keys of a JSON file; None removes them."""

    def spoil(folder: Path) -> None:
        found = json.loads((folder / name).read_text(encoding="utf-8")) | changes
        (folder / name).write_text(json.dumps({k: v for k, v in found.items() if v is not None}), encoding="utf-8")

    return spoil


def _text(name: str, text: str) -> Spoil:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


def _cut(name: str, size: int) -> Spoil:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def _weights(change: Callable[[dict[str, Any]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return spoil


def _header(text: bytes) -> Spoil:
    return lambda folder: (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text)


def _without_shard(folder: Path) -> None:
    (folder / "model-00002-of-00004.safetensors").unlink()


def _listed_in(file: str | None) -> Spoil:
    """The index gives the final norm another file, or leaves it out."""

    def spoil(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        index["weight_map"] = {k: v for k, v in index["weight_map"].items() if k != "model.norm.weight"}
        index["weight_map"] |= {"model.norm.weight": file} if file else {}
        (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")

    return spoil


# What is spoilt, how, and what the message says; exit 4 for each.
BASES: dict[str, tuple[Spoil, str]] = {
    "weights cut off": (_cut(WEIGHTS, 9000), "model.safetensors ends after 9000 bytes, its header describes"),
    "weights cut off in the header": (_cut(WEIGHTS, 100), "model.safetensors ends after 100 bytes, within its header"),
    "weights of five bytes": (_cut(WEIGHTS, 5), "model.safetensors is not a safetensors file"),
    "empty weights": (_cut(WEIGHTS, 0), "model.safetensors is empty"),
    "a header that is a list": (_header(b"[]"), "its header holds a list"),
    "a header nested too deeply": (_header(DEEP.encode()), "its header is not JSON"),
    "a tensor without a type": (_header(b'{"a": {"shape": [1]}}'), "its header describes a as"),
    "a negative size": (
        _header(b'{"a": {"dtype": "F16", "shape": [-1], "data_offsets": [0, 0]}}'),
        "its header gives a 0 - 0 bytes for [-1]",
    ),
    "no layer 1": (
        _weights(lambda t: [t.pop(name) for name in list(t) if ".layers.1." in name]),
        "model.layers.1 is missing; config.json names 2 layers",
    ),
    "no up projection in layer 1": (
        _weights(lambda t: t.pop("model.layers.1.mlp.up_proj.weight")),
        "model.layers.1.mlp.up_proj.weight is missing; other layers have it",
    ),
    "other embeddings": (_json("config.json", vocab_size=321), "model.embed_tokens.weight is [320, 64], by config"),
    "another width": (_json("config.json", hidden_size=32), "model.norm.weight is [64], by config.json it is [32]"),
    "more layers": (_json("config.json", num_hidden_layers=3), "model.layers.2 is missing; config.json names 3"),
    "layers as a text": (_json("config.json", num_hidden_layers="12"), "config.json: num_hidden_layers is '12', expec"),
    "NaN": (_json("config.json", hidden_size=float("nan")), "config.json: hidden_size is nan, expected a whole"),
    "a huge size": (_json("config.json", hidden_size=10**400), "config.json: hidden_size is 1000"),
    "EOS of 40 bits": (
        _json("config.json", eos_token_id=10**12),
        "config.json: eos_token_id is 1000000000000, expected",
    ),
    "EOS as a text": (_json("config.json", eos_token_id="2"), "config.json: eos_token_id is '2', expected a token's"),
    "positions in a list": (_json("config.json", max_position_embeddings=[512]), "max_position_embeddings is [512]"),
    "a family that is a list": (_json("config.json", model_type=["llama"]), "model_type is ['llama'], expected a text"),
    "architectures as a number": (_json("config.json", architectures=3), "architectures is 3, expected a list"),
    "a text_config that is a list": (_json("config.json", text_config=[]), "text_config is [], expected an object"),
    "no text_config": (
        _text("config.json", '{"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]}'),
        "is multimodal",
    ),
    "NaN in text_config": (
        _json("config.json", text_config={"hidden_size": float("inf")}),
        "text_config.hidden_size is inf",
    ),
    "config.json as a list": (_text("config.json", "[]"), "config.json is damaged: it holds a list"),
    "config.json as pairs": (_text("config.json", '[["a", 1]]'), "config.json is damaged: it holds a list"),
    "config.json cut off": (_cut("config.json", 40), "config.json is damaged"),
    "config.json nested too deeply": (_text("config.json", DEEP), "nested too deeply"),
    "config.json in other bytes": (
        lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe{}"),
        "config.json is damaged: 'utf-8' codec",
    ),
    "eos_token as a number": (_json("tokenizer_config.json", eos_token=5), "eos_token is 5, expected a text"),
    "eos_token without content": (_json("tokenizer_config.json", eos_token={"a": 1}), "eos_token is {'a': 1}, expect"),
    "tokenizer_config.json as a list": (_text("tokenizer_config.json", "[1]"), "tokenizer_config.json is damaged"),
    "tokenizer_config.json too deep": (_text("tokenizer_config.json", DEEP), "tokenizer_config.json is damaged"),
    "tokenizer.json cut off": (_cut("tokenizer.json", 900), "tokenizer.json is damaged"),
    "tokenizer.json as a list": (_text("tokenizer.json", "[]"), "tokenizer.json is damaged"),
    "a list for generation_config.json": (_text("generation_config.json", "[1]"), "generation_config.json is damaged"),
    "a config nested too deeply": (
        _text("config.json", '{"text_config": ' * 70 + "{}" + "}" * 70),
        "config.json is damaged: its brackets are nested too deeply",
    ),
    "a number of 100,000 digits": (
        _text("config.json", '{"hidden_size": ' + "9" * 100_000 + "}"),
        "config.json is damaged: a number of 100,000 digits, expected at most 1,000",
    ),
    "a huge config.json": (_text("config.json", " " * 5_000_000), "config.json: it has 5,000,000 bytes, expected at m"),
    "NaN in generation_config.json": (
        _json("generation_config.json", temperature=float("nan")),
        "temperature is nan, expected a finite number",
    ),
    "a template that takes all memory": (
        _text("chat_template.jinja", "{{ 'a' * 10**14 }}"),
        "chat_template.jinja: rendering the chat template took more than 2,048 MiB of memory",
    ),
    "a tokenizer that panics": (
        _json(
            "tokenizer.json",
            normalizer={"type": "Replace", "pattern": {"Regex": ""}, "content": "b"},
        ),
        "tokenizer.json: looking for its special tokens failed: PanicException: index out of bounds",
    ),
    "the folder is gone": (shutil.rmtree, "is neither a folder, nor USER/NAME on the Hub"),
    "config.json is gone": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
}
SHARDED: dict[str, tuple[Spoil, str]] = {
    "a shard is missing": (_without_shard, "model-00002-of-00004.safetensors is missing; model.safetensors.index.json"),
    "a shard is cut off": (_cut("model-00003-of-00004.safetensors", 3000), "model-00003-of-00004.safetensors ends"),
    "a shard is empty": (_cut("model-00001-of-00004.safetensors", 0), "model-00001-of-00004.safetensors is empty"),
    "a tensor that its shard lacks": (
        _listed_in("model-00001-of-00004.safetensors"),
        "model-00001-of-00004.safetensors lacks model.norm.weight, which",
    ),
    "a tensor that the index leaves out": (_listed_in(None), "holds model.norm.weight, which"),
    "a file outside": (_listed_in("../model.safetensors"), "names '../model.safetensors', expected the name of a"),
    "a number for a file": (_json(INDEX, weight_map={"a": 1}), "names 1, expected the name of a safetensors file"),
    "no weight_map": (_json(INDEX, weight_map=None), "it has no weight_map"),
    "an index that is a list": (_text(INDEX, "[]"), "index.json is damaged: it holds a list"),
    "an index that is nested too deeply": (_text(INDEX, DEEP), "index.json is damaged: its brackets"),
    "no index": (lambda folder: (folder / INDEX).unlink(), f"there is neither {WEIGHTS} nor {INDEX}"),
}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("sharded") / "tiny", sharded=True)


def _recipe(path: Path, base: Path, csv: Path) -> Path:
    text = f"name: shop\nmodel: {{id: {base}, load_in_4bit: false}}\ndata: {{csv: {csv}}}\n"
    path.write_text(text + "train: {optimizer: adamw_torch}\n", encoding="utf-8")
    return path


def _refused(answer: tuple[int, str, str], code: int, seen: str) -> None:
    found, _, err = answer
    assert (found, seen in " ".join(err.split())) == (code, True), err
    told = err[err.index("Error: ") :].splitlines()
    assert told[-1].startswith("Fix: ")
    assert "Traceback" not in err
    assert "this is a bug" not in err


def test_a_whole_base_passes(appliance: Appliance, tmp_path: Path, base_dir: Path, sharded: Path, qa_csv: Path) -> None:
    for base in (base_dir, sharded):
        code, out, err = appliance("check", _recipe(tmp_path / "shop.yaml", base, qa_csv))
        assert (code, "\nweights" in out) == (0, False), err


@pytest.mark.parametrize("variant", [*BASES, *SHARDED])
def test_check_refuses_a_damaged_base(
    appliance: Appliance, tmp_path: Path, base_dir: Path, sharded: Path, qa_csv: Path, variant: str
) -> None:
    spoil, seen = (BASES | SHARDED)[variant]
    base = shutil.copytree(base_dir if variant in BASES else sharded, tmp_path / "base")
    spoil(base)
    recipe = _recipe(tmp_path / "shop.yaml", base, qa_csv)
    _refused(appliance("check", recipe), 2 if variant == "the folder is gone" else 4, seen)
    assert appliance("status")[0] == 0


# --- a run directory

STAGE_JSON: dict[str, str | bytes] = {
    "a list": "[]",
    "a number": "7",
    "null": "null",
    "cut off": '{"fingerprint": "ab',
    "empty": "",
    "other bytes": b"\xff\xfe{",
    "nested too deeply": DEEP,
}
RECORD = {"fingerprint": "ab", "inputs": {}, "outputs": {}, "seconds": 1.0, "finished_at": "", "summary": ""}
STAGE_JSON |= {
    f"without {key}": json.dumps({name: value for name, value in RECORD.items() if name != key}) for key in RECORD
}
STAGE_JSON |= {
    f"{key} as {value!r}": json.dumps(RECORD | {key: value})
    for key, value in [
        *(("fingerprint", 5), ("inputs", []), ("outputs", ["a"]), ("outputs", {"a": 5}), ("outputs", {"a": {}})),
        *(
            ("outputs", {"a": {"size": "5", "sha256": ""}}),
            ("seconds", "1"),
            ("seconds", float("nan")),
            ("summary", []),
        ),
        ("unheard_of", 1),
    ]
}
RUN_JSON: dict[str, str | bytes] = {
    **{
        name: STAGE_JSON[name] for name in ("a list", "a number", "null", "cut off", "other bytes", "nested too deeply")
    },
    "pairs": '[["base", 1]]',
    "empty": "",
    "base as a list": '{"base": []}',
    "csv as a text": '{"base": {"identity": ""}, "csv": "train.csv"}',
    "identity as a number": '{"base": {"identity": 5}, "csv": {"typed": "", "sha256": ""}}',
    "csv.path as a number": '{"base": {"identity": ""}, "csv": {"typed": "", "sha256": "", "path": 5}}',
    "a rule of the future": '{"base": {"identity": "", "identity_rule": 9}, "csv": {"typed": "", "sha256": ""}}',
    "passport as a list": '{"base": {"identity": ""}, "csv": {"typed": "", "sha256": ""}, "passport": []}',
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, base_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    csv = folder / "train.csv"
    csv.write_text("instruction,output\n" + "".join(f"{i}?,{i}!\n" for i in range(40)), encoding="utf-8")
    return _recipe(folder / "shop.yaml", base_dir, csv)


def _run(tmp_path: Path, recipe: Path) -> Path:
    run = tmp_path / "runs" / "shop"
    for stage in ("prepare", "train", "evaluate", "publish"):
        (run / stage).mkdir(parents=True)
    text = resolve.load(str(recipe), environ={}).to_yaml()
    (run / "recipe.yaml").write_text(text, encoding="utf-8")
    return run


def _put(path: Path, content: str | bytes) -> None:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize("variant", STAGE_JSON)
def test_a_damaged_stage_json_is_named(appliance: Appliance, tmp_path: Path, recipe: Path, variant: str) -> None:
    run = _run(tmp_path, recipe)
    _put(run / "prepare" / "stage.json", STAGE_JSON[variant])
    _refused(appliance("prepare", run), 8, f"{run}/prepare/stage.json is damaged: ")
    code, out, err = appliance("status", "--json")
    assert (code, json.loads(out)[0]["state"], json.loads(out)[0]["prepare"]) == (0, "damaged", "damaged"), err
    _refused(appliance("check", run), 8, f"{run}/prepare/stage.json is damaged: ")


@pytest.mark.parametrize("variant", RUN_JSON)
def test_a_damaged_run_json_is_named(appliance: Appliance, tmp_path: Path, recipe: Path, variant: str) -> None:
    run = _run(tmp_path, recipe)
    _put(run / "run.json", RUN_JSON[variant])
    _refused(appliance("check", run), 8, f"{run}/run.json is damaged: ")
    _refused(appliance("replay", run), 8, f"{run}/run.json ")
    assert appliance("status")[0] == 0


@pytest.mark.parametrize("content", ["[]", "[1]", "5", "null", '{"stage": [], "kind": 5, "primary": []}', DEEP, "{"])
def test_status_shows_a_run_whatever_its_files_hold(
    appliance: Appliance, tmp_path: Path, recipe: Path, content: str
) -> None:
    run = _run(tmp_path, recipe)
    for name in ("ended.json", "evaluate/metrics.json", "publish/hub.json", "train/steps.json", "train/started.json"):
        _put(run / name, content)
    _put(run / "train" / "metrics.jsonl", "[1]\n5\n")
    for arguments in (("status",), ("status", "--json")):
        code, out, err = appliance(*arguments)
        assert (code, "shop" in out, "Traceback" in err) == (0, True, False), err


def test_an_incomplete_run_json_and_a_damaged_token_choice_are_named(
    appliance: Appliance, tmp_path: Path, recipe: Path
) -> None:
    run = _run(tmp_path, recipe)
    _put(run / "run.json", "{}")
    _refused(appliance("check", run), 8, "run.json is damaged: it lacks base.identity, csv.typed, csv.sha256")
    (run / "run.json").unlink()
    (run / "train" / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    for content in ("[]", "{}", '{"notes": 5, "untrained": {}}', '{"notes": [], "untrained": 5}'):
        _put(run / "train" / "tokens.json", content)
        _refused(appliance("check", run), 8, f"{run}/train/tokens.json is damaged: ")


def test_names_that_are_too_long_are_refused(appliance: Appliance, tmp_path: Path, recipe: Path) -> None:
    long = "가" * 300
    _refused(appliance("check", recipe, "--set", f"name={long}"), 2, "900 bytes in UTF-8, expected at most 255")
    _refused(appliance("check", recipe, "--set", f"data.csv={long}"), 4, "File name too long")
    _refused(appliance("check", recipe, "--set", f"model.id={tmp_path}/{long}"), 4, "File name too long")
    _refused(appliance("check", long), 4, "File name too long")


# --- what vanishes or does not fit while a command runs


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENAMETOOLONG, errno.EFBIG, errno.EIO, errno.EMFILE])
def test_what_a_file_system_refuses_is_named(
    appliance: Appliance, recipe: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refused(*_: object) -> str:
        raise OSError(number, os.strerror(number), "/models/base/config.json")

    monkeypatch.setattr(stages, "check", refused)
    answer = appliance("run", recipe)
    _refused(answer, 4, f"/models/base/config.json: {os.strerror(number)}")
    assert "then repeat the command" in answer[2]


def test_a_base_that_vanishes_after_check_is_named(
    appliance: Appliance, tmp_path: Path, base_dir: Path, qa_csv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, prepare = shutil.copytree(base_dir, tmp_path / "base"), stages.prepare

    def without_base(*arguments: Any) -> str:
        shutil.rmtree(base)
        return prepare(*arguments)

    monkeypatch.setattr(stages, "prepare", without_base)
    assert appliance("check", _recipe(tmp_path / "shop.yaml", base, qa_csv))[0] == 0
    _refused(appliance("prepare", tmp_path / "runs" / "shop"), 4, str(base))


def test_a_report_of_a_damaged_run_is_refused(appliance: Appliance, tmp_path: Path, recipe: Path) -> None:
    run = _run(tmp_path, recipe)
    _put(run / "evaluate" / "predictions.csv", "row,question,wanted,base,tuned,verdict\n")
    for name, content in (("metrics.json", DEEP), ("metrics.json", "[]"), ("../run.json", "[]")):
        _put(run / "run.json", '{"base": {"public_id": "maker/tiny"}}')
        _put(run / "evaluate" / "metrics.json", "{}")
        _put(run / "evaluate" / name, content)
        _refused(appliance("report", run), 8, f"/{name.removeprefix('../')} is damaged: ")


def test_a_recipe_of_multiplying_aliases_is_refused(appliance: Appliance, tmp_path: Path) -> None:
    rows = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
    (tmp_path / "shop.yaml").write_text(f"a0: &a0 [x, x]\n{rows}", encoding="utf-8")
    _refused(appliance("check", tmp_path / "shop.yaml"), 2, "it holds more than 100,000 values, its aliases (*name)")


def test_a_chat_template_cut_off_is_refused(appliance: Appliance, tmp_path: Path, base_dir: Path, qa_csv: Path) -> None:
    base = shutil.copytree(base_dir, tmp_path / "base")
    (base / "chat_template.jinja").write_text("{% for m in messages %}{{ m['con", encoding="utf-8")
    recipe = _recipe(tmp_path / "shop.yaml", base, qa_csv)
    _refused(appliance("check", recipe, "--set", "prompt=chat"), 2, "the base's chat template does not accept")
    assert appliance("check", recipe)[0] == 0  # with a prompt of ours it is not needed
