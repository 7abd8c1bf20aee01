"""A merged model's config.json and generation_config.json: what may differ from the base's, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.engines import decoding
from appliance.engines.decoding import GREEDY, Sampling
from appliance.errors import GateRefused
from appliance.tasks import causal
from appliance.weights import proof, proof_child, proof_configs
from appliance.weights.merge import merge_adapter
from tests.helpers.models import tiny_adapter, tiny_base
from tests.weights.test_attacks import Case, made
from tests.weights.test_merge import edit_json
from tests.weights.test_proof import reference, rows

CONFIG = "config.json"
DECODING = "generation_config.json"
CHANGED: dict[str, tuple[str, dict[str, Any], str]] = {
    # name: file, what is changed, what the gate has to say (empty: nothing)
    "positions": (CONFIG, {"max_position_embeddings": 16}, "max_position_embeddings: base 512, merged 16"),
    "epsilon": (CONFIG, {"rms_norm_eps": 1e-5}, "rms_norm_eps: base 1e-06, merged 1e-05"),
    "rope, as transformers 5 writes it": (
        CONFIG,
        {"rope_parameters": {"rope_theta": 10001.0, "rope_type": "default"}},
        "rope_parameters: base",
    ),
    "rope, added as transformers 4 reads it": (CONFIG, {"rope_theta": 10001.0}, '"rope_theta": 10001.0'),
    "rope scaling added": (CONFIG, {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, '"factor": 2.0'),
    "rope left out": (CONFIG, {"rope_parameters": None, "rope_theta": 5e5}, "500000.0"),
    "head untied": (CONFIG, {"tie_word_embeddings": True}, "tie_word_embeddings: base false, merged true"),
    "type": (CONFIG, {"dtype": "float16"}, 'dtype: base "bfloat16", merged "float16"'),
    "type, for transformers 4": (CONFIG, {"torch_dtype": "float32"}, 'torch_dtype: base "bfloat16", merged "float32"'),
    "end": (CONFIG, {"eos_token_id": 7}, "eos_token_id: base 2, merged 7"),
    "architecture": (CONFIG, {"architectures": ["MistralForCausalLM"]}, "architectures"),
    "a field of nobody": (CONFIG, {"sliding_window": 4}, "sliding_window: base absent, merged 4"),
    "a secret": (CONFIG, {"token": "hf_" + "c4n4ry" * 6}, 'token: base absent, merged "hf_…"'),
    "version": (CONFIG, {"transformers_version": "4.0.0"}, ""),
    "type for both": (CONFIG, {"torch_dtype": "bfloat16"}, ""),
    "rope in both words": (CONFIG, {"rope_theta": 10000.0}, ""),
    "never ends": (DECODING, {"suppress_tokens": [2]}, "suppress_tokens: evaluation absent, merged [2]"),
    "ends late": (DECODING, {"min_new_tokens": 500}, "min_new_tokens"),
    "penalty": (DECODING, {"repetition_penalty": 1.3}, "repetition_penalty"),
    "samples": (DECODING, {"do_sample": True, "temperature": 0.6}, "do_sample: evaluation false, merged true"),
    "ends elsewhere": (DECODING, {"eos_token_id": [7]}, "eos_token_id: evaluation 2, merged [7]"),
    "cuts answers": (DECODING, {"max_new_tokens": 8}, "max_new_tokens"),
    "version of decoding": (DECODING, {"transformers_version": "4.0.0"}, ""),
}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return made(tmp_path_factory.mktemp("case"), {}, {})


@pytest.mark.parametrize("change", CHANGED)
def test_a_changed_config_is_refused_by_its_field(change: str, case: Case, tmp_path: Path) -> None:
    file, fields, words = CHANGED[change]
    shutil.copytree(case.merged, tmp_path / "merged")
    edit_json(tmp_path / "merged" / file, **fields)
    refused = case.judged(tmp_path / "merged")
    assert refused.keys() == ({"config_is_the_base" if file == CONFIG else "decodes_as_evaluated"} if words else set())
    assert all(words in meaning for meaning in refused.values()), refused


def test_a_missing_field_or_file_is_refused(case: Case, tmp_path: Path) -> None:
    shutil.copytree(case.merged, tmp_path / "merged")
    config = json.loads((tmp_path / "merged" / CONFIG).read_text())
    del config["num_key_value_heads"]
    (tmp_path / "merged" / CONFIG).write_text(json.dumps(config))
    (tmp_path / "merged" / DECODING).unlink()
    refused = case.judged(tmp_path / "merged")
    assert "num_key_value_heads: base 2, merged absent" in refused["config_is_the_base"]
    assert "generation_config.json is missing" in refused["decodes_as_evaluated"]


def test_rope_of_two_kinds_of_layers_in_either_form(tmp_path: Path) -> None:
    """Gemma 3's, which transformers 4 writes as rope_theta and rope_local_base_freq."""
    case = made(tmp_path, {"family": "gemma3"}, {})
    config = json.loads((case.merged / CONFIG).read_text())
    kinds = config.pop("rope_parameters")
    theta = {kind: kinds[kind]["rope_theta"] for kind in ("full_attention", "sliding_attention")}
    older = {"rope_theta": theta["full_attention"], "rope_local_base_freq": theta["sliding_attention"]}
    (case.merged / CONFIG).write_text(json.dumps(config | older))
    assert case.judged(case.merged) == {}
    edit_json(case.merged / CONFIG, rope_local_base_freq=theta["sliding_attention"] * 1.0001)
    assert case.judged(case.merged).keys() == {"config_is_the_base"}


def test_a_base_that_decodes_in_its_own_way_is_released_as_evaluated(tmp_path: Path) -> None:
    base_dir = tiny_base(tmp_path / "base")
    own = {"suppress_tokens": [2], "min_new_tokens": 50, "repetition_penalty": 1.2, "do_sample": True}
    edit_json(base_dir / DECODING, **own, temperature=0.6, top_k=20, forced_eos_token_id=9, max_length=4096)
    adapter_dir = tiny_adapter(tmp_path / "adapter", base_dir)
    for name, used in (("greedy", GREEDY), ("sampled", Sampling(0.5, 0.9, repetition_penalty=1.1))):
        settings = decoding.as_settings(used)
        merge_adapter(base_dir, adapter_dir, tmp_path / name, dtype="bfloat16", decoding=settings, task=causal.TASK)
        written = json.loads((tmp_path / name / DECODING).read_text())
        kept = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_length": 4096, "use_cache": True}
        assert {key: value for key, value in written.items() if key != "transformers_version"} == kept | settings
        greedily = proof.request(
            base_dir, adapter_dir, dtype="bfloat16", device="cpu", rows=rows(count=2), task=causal.TASK.name
        )
        wanted = replace(greedily, decoding=settings)
        assert proof_configs.changed_decoding(wanted, tmp_path / name) == []
        assert bool(proof_configs.changed_decoding(greedily, tmp_path / name)) == (name == "sampled")


def test_a_config_with_which_nothing_computes_is_named(tmp_path: Path) -> None:
    """GPT-2 looks its positions up in a table: the model neither loads nor answers."""
    base_dir = tiny_base(tmp_path / "base", family="gpt2")
    adapter_dir = tiny_adapter(tmp_path / "adapter", base_dir, fan_in_fan_out=True)
    merge_adapter(base_dir, adapter_dir, tmp_path / "merged", dtype="bfloat16", task=causal.TASK)
    reference(base_dir, adapter_dir, tmp_path / "work", tmp_path / "merged")
    edit_json(tmp_path / "merged" / CONFIG, n_head=5)
    with pytest.raises(GateRefused, match=r"n_head: base 4, merged 5.*does not load"):
        proof_child.examine(tmp_path / "work", tmp_path / "merged")
