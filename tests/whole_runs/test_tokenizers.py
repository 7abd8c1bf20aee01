"""Before the first step: whether everyone who will load what is trained gives its prompts the ids of training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from appliance.errors import EnvironmentUnavailable
from appliance.pipeline import run as pipeline_run
from appliance.process import files
from appliance.recipe import resolve
from appliance.rundir.directory import RunDir
from tests.conftest import write_qa
from tests.helpers.tokenizer_kinds import KINDS, folder_of, llama2_folder

VOCABULARY = 900


def base_of(folder: Path, weights: Path, words: Callable[[Path], Path], **config: object) -> Path:
    """The weights of one base, with a row for each of VOCABULARY words, and the tokenizer files of another."""
    base = words(folder / "base")
    tensors = load_file(weights / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name].repeat(VOCABULARY // len(tensors[name]) + 1, 1)[:VOCABULARY].contiguous()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    own = {"vocab_size": VOCABULARY}
    files.write_json(base / "config.json", files.read_json(weights / "config.json") | own | config)
    return base


def prepared(folder: Path, base: Path) -> RunDir:
    """A run up to the end of `prepare`."""
    write_qa(folder / "train.csv", [(f"가격은 {i}?", "만 원") for i in range(40)])
    recipe = folder / "shop.yaml"
    recipe.write_text(
        f"name: shop\nengine: transformers\nmodel: {{id: {base}, load_in_4bit: false}}\n"
        f"data: {{csv: {folder / 'train.csv'}}}\n",
        encoding="utf-8",
    )
    run_dir = RunDir(folder / "runs" / "shop")
    pipeline_run.run(resolve.load(str(recipe), environ={}), run_dir, folder / "cache", until="prepare")
    return run_dir


def test_a_stock_llama_2_tokenizer_is_prepared(tmp_path: Path, base_dir: Path) -> None:
    run_dir = prepared(tmp_path, base_of(tmp_path, base_dir, llama2_folder))
    assert run_dir.record("prepare")
    assert not [path for path in run_dir.stage_dir("prepare").iterdir() if path.is_dir()]


def test_a_tokenizer_that_no_saving_preserves_ends_the_run_before_training(tmp_path: Path, base_dir: Path) -> None:
    """Its architecture brings a class that rebuilds it by the rules of Qwen 2."""

    def words(path: Path) -> Path:
        return folder_of(path, KINDS["bos added"](), "qwen2", tokenizer_class="PreTrainedTokenizerFast")

    base = base_of(tmp_path, base_dir, words, model_type="qwen2", architectures=["Qwen2ForCausalLM"])
    with pytest.raises(EnvironmentUnavailable, match=r"changes when it is saved and loaded again: the \w+ '") as caught:
        prepared(tmp_path, base)
    assert caught.value.exit_code == 4
    run_dir = RunDir(tmp_path / "runs" / "shop")
    assert run_dir.record("prepare") is None
    assert not run_dir.stage_dir("train").exists()
