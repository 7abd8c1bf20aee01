"""A token whose embedding was never trained: found in the rows, with its line, before anything is trained."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from appliance.errors import DataError
from appliance.pipeline import run as pipeline_run
from appliance.prompt import format as prompt_format
from appliance.recipe import resolve
from appliance.rundir.directory import RunDir
from appliance.training import untrained_tokens
from tests.conftest import write_qa


def vocabulary(zero: Iterable[int], size: int = 20) -> torch.Tensor:
    weights = torch.randn(size, 8, generator=torch.Generator().manual_seed(0))
    weights[list(zero)] = 0.0
    return weights


def test_zero_rows_of_tied_weights_are_untrained() -> None:
    weights = vocabulary([3, 7])
    assert untrained_tokens.untrained(weights, weights) == {3, 7}
    assert untrained_tokens.untrained(vocabulary([]), vocabulary([])) == set()


def test_an_untied_head_must_be_untrained_as_well() -> None:
    """Zero, or one value that several tokens share; a row of its own was trained."""
    head = vocabulary([3])
    head[[7, 8]] = 0.25
    assert untrained_tokens.untrained(vocabulary([3, 7, 8, 9]), head) == {3, 7, 8}


def test_a_head_smaller_than_the_embeddings_is_compared_as_far_as_it_goes() -> None:
    assert untrained_tokens.untrained(vocabulary([3, 19]), vocabulary([3], size=10)) == {3}


def train(base_dir: Path, folder: Path, method: str) -> Path:
    """Trains on a copy of the base that never trained "~", which CSV lines 32 to 37 hold; the run directory."""
    base = folder / "base"
    shutil.copytree(base_dir, base)
    weights = load_file(base / "model.safetensors")
    never = prompt_format.from_folder("alpaca", base).backend.token_to_id("~")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name][never] = 0.0
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    csv = write_qa(folder / "train.csv", [(f"사과 {i}?", "네!") for i in range(30)] + [("물결 ~?", "네!")] * 6)
    recipe = folder / "shop.yaml"
    recipe.write_text(
        f"""name: shop
engine: transformers
model: {{id: {base}, load_in_4bit: false}}
data: {{csv: {csv}, split: notebook}}
tuning: {{method: {method}}}
train: {{max_steps: 1, optimizer: adamw_torch}}
""",
        encoding="utf-8",
    )
    pipeline_run.run(resolve.load(str(recipe), environ={}), RunDir(folder / "run"), folder / "cache", until="train")
    return folder / "run"


@pytest.mark.slow
def test_a_run_names_line_and_token(base_dir: Path, tmp_path: Path) -> None:
    words = r"train\.csv: rows 3\d, .*: the base was never trained on the token '~' \(id \d+\): its embedding is zero"
    with pytest.raises(DataError, match=words) as caught:
        train(base_dir, tmp_path, "lora")
    assert caught.value.exit_code == 3
    assert "instruct version" in caught.value.hint


@pytest.mark.slow
def test_full_fine_tuning_trains_the_embedding_as_well(base_dir: Path, tmp_path: Path) -> None:
    assert (train(base_dir, tmp_path, "full") / "train" / "stage.json").is_file()
