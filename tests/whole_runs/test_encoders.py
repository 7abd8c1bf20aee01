"""Encoders of every shape that Korean texts are classified with, from a CSV to a proven merge of LoRA and head."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from appliance.process import files
from appliance.weights import proof
from tests.conftest import read_csv
from tests.helpers import plain_process, warm
from tests.helpers.classifiers import KINDS, tiny_encoder
from tests.whole_runs.test_classify import begin, finish, write_labelled

pytestmark = pytest.mark.slow

OTHERS = [kind for kind in KINDS if kind not in ("bert", "klue-roberta")]  # these two run to the release elsewhere
# What is trained as a whole, as transformers calls it.
HEADS = {
    "roberta": ["classifier"],
    "xlm-roberta": ["classifier"],
    "electra": ["classifier"],
    "distilbert": ["classifier", "pre_classifier"],
    "distilbert-of-bert": ["classifier", "pre_classifier"],
    "deberta-v2": ["classifier", "pooler"],
    "albert": ["albert.pooler", "classifier"],
    "modernbert": ["classifier", "head"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Kind -> a run until the merge, with two steps of training."""
    root, found = tmp_path_factory.mktemp("encoders"), {}
    settings = {"tuning.method": "lora", "train.max_steps": "2", "train.eval_every": "2", "rehearse": "never"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof, "subprocess", warm)  # forks: seven times two processes would import the libraries
        for kind in OTHERS:
            tiny_encoder(root / kind / "base", kind)
            write_labelled(root / kind / "train.csv")
            found[kind] = finish(root / kind, begin(root / kind, **settings), until="merge")
    return found


@pytest.fixture(scope="module")
def answers(runs: dict[str, Path]) -> dict[str, list[str]]:
    """What plain transformers says with each merged model, in one process."""
    asked = {
        str(run / "merge" / "model"): [row["question"] for row in read_csv(run / "evaluate" / "predictions.csv")]
        for run in runs.values()
    }
    code = (
        "import json, sys\n"
        "from transformers import pipeline\n"
        "asked = json.load(sys.stdin)\n"
        "given = {m: pipeline('text-classification', model=m)(texts) for m, texts in asked.items()}\n"
        "print(json.dumps({m: [one['label'] for one in found] for m, found in given.items()}))\n"
    )
    found = plain_process.printed(code, asked)
    return {kind: found[str(run / "merge" / "model")] for kind, run in runs.items()}


@pytest.mark.parametrize("kind", OTHERS)
def test_it_is_trained_evaluated_merged_proven_and_loaded_by_plain_transformers(
    kind: str, runs: dict[str, Path], answers: dict[str, list[str]]
) -> None:
    run = runs[kind]
    proven = files.read_json(run / "merge" / "proof.json")
    assert proven["passed"], json.dumps(proven["gates"], ensure_ascii=False)
    saved = files.read_json(run / "train" / "adapter" / "adapter_config.json")["modules_to_save"]
    assert sorted(set(saved) - {"score"}) == HEADS[kind]
    rows = read_csv(run / "evaluate" / "predictions.csv")
    # after two steps two classes may be as likely as each other, and the merged model computes in 16 bits
    equal = [row["tuned"] == label for row, label in zip(rows, answers[kind], strict=True)]
    assert sum(equal) >= len(equal) - 2
