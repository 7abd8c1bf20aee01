"""A classifier's rows, losses, classes and refusals, on a tiny BERT with random weights."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from transformers import AutoTokenizer

from appliance.base_model import tunable
from appliance.engines import loaded as engines_loaded
from appliance.engines.transformers import TransformersEngine
from appliance.errors import DataError, EnvironmentUnavailable, RecipeError
from appliance.evaluation import class_verdict, predict_classes
from appliance.machine.device import Device
from appliance.pipeline import classes
from appliance.pipeline import run as pipeline_run
from appliance.process import files
from appliance.prompt import format as prompt_format
from appliance.prompt import stop_check, tokenizer
from appliance.prompt.format import Prompt
from appliance.recipe import resolve
from appliance.recipe.fields import ModelSection, TuningSection
from appliance.release import reload_classes
from appliance.rows import csv_file
from appliance.rows.csv_file import Row
from appliance.rundir.directory import RunDir
from appliance.tasks import causal, classify
from appliance.tasks.classify import Classify
from tests.helpers.classifiers import tiny_bert

ROWS = [("사과 좋아요", "", "기쁨"), ("감 늦어요", "별로", "슬픔"), ("배", "", "중립"), ("밤 최고 good", "", "기쁨")]
LABELS = ("기쁨", "슬픔", "중립")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bases") / "bert")


@pytest.fixture(scope="module")
def prompt(base: Path) -> Prompt:
    return prompt_format.from_transformers("source", tokenizer.load(base))


@pytest.fixture(scope="module")
def task(prompt: Prompt, tmp_path_factory: pytest.TempPathFactory) -> Classify:
    return prepared(tmp_path_factory.mktemp("prepare"), prompt, ROWS)


def prepared(folder: Path, prompt: Prompt, rows: list[tuple[str, str, str]], **how: Any) -> Classify:
    """The task for these rows, all of them on the side train but the last one."""
    for side, some in (("train", rows[:-1]), ("val", []), ("test", rows[-1:])):
        with csv_file.row_writer(folder / f"{side}.csv") as write:
            for line, (instruction, text, label) in enumerate(some, 2):
                write(Row(line, instruction, text, label))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classes, "ROWS_PER_CLASS", 1)
        classes.write(folder, prompt)
    return classify.TASK.bound(folder, **how)


def batch_of(task: Classify, prompt: Prompt, rows: list[tuple[str, str, str]] = ROWS) -> dict[str, torch.Tensor]:
    return task.collate([task.features(prompt.encode(*row)) for row in rows], pad_token_id=prompt.pad_token_id)


def test_a_text_is_closed_as_its_tokenizer_closes_it_and_its_label_is_the_index_of_its_class(
    base: Path, prompt: Prompt, task: Classify
) -> None:
    words = AutoTokenizer.from_pretrained(base)
    assert task.classes == LABELS
    features = task.features(prompt.encode("감 늦어요", "별로", "슬픔"))
    assert features == {"input_ids": words("감 늦어요\n별로")["input_ids"], "labels": [1]}
    assert prompt_format.from_folder("source", base).fingerprint == prompt.fingerprint


def test_a_word_that_wordpiece_cannot_spell_is_a_word_and_other_control_tokens_are_refused(prompt: Prompt) -> None:
    assert prompt.backend.token_to_id("[UNK]") in prompt.encode("사과 😀", "", "기쁨").input_ids
    with pytest.raises(DataError, match=r"the special token '\[SEP\]'"):
        prompt.encode("사과 [SEP] 배", "", "기쁨")


def test_padding_is_not_seen_and_the_loss_is_the_models_own(base: Path, prompt: Prompt, task: Classify) -> None:
    batch = batch_of(task, prompt)
    model = task.load(base).eval()
    with torch.no_grad():
        logits, wanted = task.predicted(model, batch)
        theirs = model(**{**batch, "labels": batch["labels"][:, 0]}).loss
        alone = torch.cat([task.predicted(model, batch_of(task, prompt, [row]))[0] for row in ROWS])
    assert wanted.tolist() == [0, 1, 2, 0]
    assert task.trained(batch["labels"]) == 4
    assert torch.nn.functional.cross_entropy(logits, wanted).item() == pytest.approx(theirs.item(), rel=1e-6)
    assert torch.allclose(alone, logits, atol=1e-5)
    rows = [prompt.encode(*row) for row in ROWS]
    questions = [row.input_ids[: row.prompt_tokens] for row in rows]
    for question, expected in zip(questions, logits, strict=True):
        assert torch.allclose(task.answer_logits(model, question, [0], [0])[0], expected, atol=1e-5)
    answers, likely = predict_classes.predict(model, questions, task, pad_token_id=prompt.pad_token_id)
    assert [one.ids[0] for one in answers] == logits.argmax(1).tolist()
    assert [one.text for one in answers] == [LABELS[index] for index in logits.argmax(1).tolist()]
    assert likely == pytest.approx(logits.softmax(1).amax(1).tolist(), abs=1e-5)


def test_a_head_that_a_base_lacks_is_the_same_wherever_it_is_made_and_nothing_else_may_be_missing(
    base: Path, task: Classify, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    one, info = task.load(base, output_loading_info=True)
    torch.manual_seed(2)
    assert torch.equal(one.classifier.weight, task.load(base).classifier.weight)
    assert one.config.id2label == dict(enumerate(LABELS))
    engines_loaded.judge(base, task.found_in(base, info))
    one.save_pretrained(tmp_path / "trained")
    missing = {**info, "missing_keys": ["bert.encoder.layer.0.output.dense.weight"]}
    with pytest.raises(EnvironmentUnavailable, match=r"the weights lack bert\.encoder\.layer\.0"):
        engines_loaded.judge(base, task.found_in(base, missing))
    with pytest.raises(EnvironmentUnavailable, match=r"the weights lack .*classifier\.weight"):
        engines_loaded.judge(tmp_path / "trained", task.found_in(tmp_path / "trained", info))
    assert classify.TASK.of_model(tmp_path / "trained").classes == LABELS


def test_a_head_beside_an_adapter_is_trained_in_float32_whatever_the_base_is_held_in(
    base: Path, prompt: Prompt, task: Classify
) -> None:
    engine = TransformersEngine(Device("cpu", "a CPU", 8 << 30, "float32"), task)
    model = ModelSection(id="x", dtype="bfloat16", load_in_4bit=False)
    tuned, _ = engine.load_for_training(base, model, TuningSection(), 64, 0)
    trained = {name: weight.dtype for name, weight in tuned.named_parameters() if weight.requires_grad}
    assert set(trained.values()) == {torch.float32}
    whole = {name.split(".modules_to_save.")[0] for name in trained if ".modules_to_save." in name}
    assert whole == {"base_model.model.classifier", "base_model.model.bert.pooler"}
    assert tuned.get_base_model().bert.embeddings.word_embeddings.weight.dtype == torch.bfloat16
    logits, wanted = task.predicted(tuned, batch_of(task, prompt))  # without autocast, as an evaluation on a CPU
    torch.nn.functional.cross_entropy(logits.float(), wanted).backward()  # type: ignore[no-untyped-call]
    assert all(weight.grad is not None for weight in tuned.parameters() if weight.requires_grad)


def test_the_gates_before_training_are_about_the_class(prompt: Prompt, task: Classify) -> None:
    rows = [task.features(prompt.encode(*row)) for row in ROWS]

    def failed(spoil: str = "") -> set[str]:
        def collate(some: list[Any]) -> dict[str, torch.Tensor]:
            batch = task.collate(some, pad_token_id=prompt.pad_token_id)
            if spoil == "class":
                batch["labels"][1] = 3
            elif spoil == "padding":
                batch["attention_mask"][:] = 1
            return batch

        found, broken = stop_check.stops(rows, collate, prompt, continues=False, classes=3)
        assert bool(broken) == bool(spoil)
        return {gate.name for gate in found if not gate.passed}

    assert failed() == set()
    assert failed("class") == {"one_class_is_trained"}
    assert failed("padding") == {"padding_is_not_seen"}


def test_balanced_weights_are_scikit_learns(prompt: Prompt, tmp_path: Path) -> None:
    wanted = compute_class_weight("balanced", classes=np.arange(3), y=np.repeat([0, 1, 2], [30, 10, 2]))
    assert classify.balanced([30, 10, 2]) == pytest.approx(wanted.tolist())
    assert classify.balanced([30, 0, 10]) == pytest.approx((2 / 3, 0.0, 2.0))
    weighted = prepared(tmp_path, prompt, [*ROWS[:3], ROWS[0], ROWS[3]], weighs=True)
    assert weighted.weights == pytest.approx((2 / 3, 4 / 3, 4 / 3))


def test_spaces_and_the_form_of_hangul_make_no_other_class(prompt: Prompt, tmp_path: Path) -> None:
    apart = unicodedata.normalize("NFD", "슬픔")
    rows = [("사과", "", "기쁨"), ("배", "", "기쁨  "), ("감", "", apart), ("밤", "", "슬픔")]
    task = prepared(tmp_path, prompt, rows)
    assert task.classes == ("기쁨", "슬픔")
    assert [task.features(prompt.encode(*row))["labels"] for row in rows] == [[0], [0], [1], [1]]


def test_labels_that_the_tokenizer_cannot_tell_apart_are_named(prompt: Prompt, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="makes the same tokens of the labels '😀' and '😡'"):
        prepared(tmp_path, prompt, [("사과", "", "😀"), ("배", "", "😡"), ("감", "", "😀")])


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["기쁨"] * 12, "one class only, '기쁨', in all 12 rows"),
        (
            [f"답 {i}" for i in range(12)],
            r"12 different labels in 12 rows, such as '답 0'.*; expected at most 4: 3 rows of each on average",
        ),
        (["기쁨", "슬픔"], "2 different labels in 2 rows, .*; expected 3 rows of each or more"),
    ],
)
def test_what_is_no_column_of_classes_is_refused_by_check(
    labels: list[str], said: str, base: Path, tmp_path: Path
) -> None:
    rows = "".join(f"글 {i},{label}\n" for i, label in enumerate(labels))
    (tmp_path / "train.csv").write_text(f"text,label\n{rows}", encoding="utf-8")
    settings = [f"model.id={base}", f"data.csv={tmp_path / 'train.csv'}"]
    resolved = resolve.load("bert-classify", overrides=settings, environ={})
    with pytest.raises(DataError, match=said) as raised:
        pipeline_run.run(resolved, RunDir(tmp_path / "run"), tmp_path / "cache", until="check")
    assert "data.columns.output=NAME" in raised.value.hint
    assert "the column label" in str(raised.value) or "'label'" in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["prompt=alpaca"], ["prompt: alpaca is not a format for an encoder", "--set prompt=source"]),
        (
            ["tuning.method=lora", "model.load_in_4bit=true"],
            ["model.load_in_4bit: encoders are trained in", "--set model.load_in_4bit=false"],
        ),
        (["tuning.method=lora", "start_from=a"], ["start_from: an earlier run's head is for its own classes"]),
        (["engine=unsloth"], ["Unsloth has no code for classifiers", "--set engine=transformers"]),
        (["publish.gguf=[q8_0]"], ["GGUF files are made of models that continue text", "publish.gguf=[]"]),
        (["data.on_too_long=cut"], ["data.on_too_long: ", "--set data.on_too_long=drop"]),
        (["evaluate.extra_prompts=[a]"], ["evaluate.extra_prompts: nothing is written"]),
        (["task=seq2seq", "train.class_weights=balanced"], ["train.class_weights: there are no classes"]),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_read(
    settings: list[str], named: list[str], tmp_path: Path
) -> None:
    resolved = resolve.load("bert-classify", overrides=settings, environ={})
    with pytest.raises(RecipeError) as raised:
        pipeline_run.run(resolved, RunDir(tmp_path / "run"), tmp_path / "cache", until="check")
    said = f"{raised.value}; {raised.value.hint}"
    assert all(one in said for one in named), said


def test_a_base_of_another_kind_is_refused_with_the_task_that_it_fits(base: Path) -> None:
    bert = files.read_json(base / "config.json")
    llama = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    tunable.refuse_config(bert, "org/bert", {}, classify.TASK)
    for config, task, other in ((bert, causal.TASK, "classify"), (llama, classify.TASK, "causal")):
        with pytest.raises(EnvironmentUnavailable, match=f"is not {task.kind}: ") as raised:
            tunable.refuse_config(config, "org/base", {}, task)
        assert f"or set task={other} for this one" in raised.value.hint


def test_a_base_whose_tokenizer_needs_a_package_of_its_own_is_refused_with_bases_that_do_not(
    base: Path, tmp_path: Path
) -> None:
    """As KoBERT: spiece.model and a class that only another package has."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(base / name)
    (tmp_path / "spiece.model").write_bytes(b"not read")
    files.write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "KoBERTTokenizer"})
    with pytest.raises(EnvironmentUnavailable, match="its tokenizer does not load") as raised:
        tokenizer.load(tmp_path)
    assert "KoBERTTokenizer is no class of transformers" in raised.value.hint
    assert "beomi/kcbert-base" in raised.value.hint


def test_the_verdict_is_about_the_better_of_both_baselines() -> None:
    wanted = ["a", "b", "c", "a"] * 10
    groups = [str(i) for i in range(40)]
    baselines = {"linear": ["a", "b", "a", "a"] * 10, "majority": ["a"] * 40}
    found = class_verdict.compare(
        wanted, wanted, baselines, classes=["a", "b", "c", "d"], groups=groups, losses={"tuned": 0.1, "majority": 1.0}
    )
    assert (found.base_asked, found.base["accuracy"], found.tuned["accuracy"]) == ("linear", 0.75, 1.0)
    assert (found.verdict, found.wins, found.losses) == ("better", 10, 0)
    assert "better than logistic regression on letter groups (TF-IDF)" in found.summary()
    assert found.classes["untested"] == ["d"]
    assert [caution.name for caution in found.cautions] == ["untested_classes"]
    same = class_verdict.compare(
        wanted, ["a"] * 40, baselines, classes=["a", "b", "c"], groups=groups, losses={"tuned": 2.0}
    )
    assert same.verdict == "worse"
    assert [caution.name for caution in same.cautions] == ["one_class"]


def test_one_test_row_and_one_untested_class_are_told_in_their_number() -> None:
    def said(wanted: list[str], classes: list[str]) -> list[str]:
        found = class_verdict.compare(
            wanted, wanted, {"majority": wanted}, classes=classes, groups=wanted, losses={"tuned": 0.1}
        )
        return [caution.sentence for caution in found.cautions]

    assert said(["a"], ["a", "b", "c"]) == [
        "no test row has 'b', 'c' (2 classes of 3): how they are told apart is unknown"
    ]
    assert said(["a", "b"], ["a", "b", "c"]) == [
        "no test row has 'c' (1 class of 3): how it is told from the others is unknown"
    ]


def test_the_loss_of_frequencies_is_their_entropy() -> None:
    train = ["a"] * 999 + ["b"] * 999
    assert class_verdict.loss_of_frequencies(train, ["a", "b"], ["a", "b"]) == pytest.approx(np.log(2))
    assert class_verdict.loss_of_frequencies(train, ["c"], ["a", "b", "c"]) == pytest.approx(np.log(2001))


def test_another_label_by_pipeline_is_refused_unless_both_are_as_likely() -> None:
    def given(first: str, score: float, second: str) -> list[dict[str, Any]]:
        return [{"label": first, "score": score}, {"label": second, "score": 0.4}]

    found = reload_classes.judge(["2", "3"], ["a", "a"], [given("a", 0.6, "b"), given("b", 0.42, "a")])
    assert found.passed
    found = reload_classes.judge(["2", "3"], ["a", "a"], [given("b", 0.6, "a"), given("c", 0.42, "b")])
    assert not found.passed
    assert found.measured == 2
    assert "row 2: evaluated 'a', now 'b'" in found.meaning
