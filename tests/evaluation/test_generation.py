"""Batched generation: what a batch does to a row's ids, where answers end."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from appliance.engines import decoding
from appliance.engines.rows_at_once import RowsAtOnce
from appliance.engines.transformers import TransformersEngine
from appliance.evaluation import generate
from appliance.machine import device
from appliance.prompt import batch as prompt_batch
from appliance.prompt import format as prompt_format
from appliance.recipe.fields import ModelSection
from appliance.tasks import causal
from tests.conftest import out_of_memory_over

pytestmark = pytest.mark.slow
QUESTIONS = ["가?", "배송은 얼마나 걸리나요?", "a" * 90, "주차장은 어디에 있나요? 두 대까지 되나요?", "값"]


@pytest.fixture(scope="module")
def loaded(base_dir: Path) -> tuple[Any, prompt_format.Prompt]:
    engine = TransformersEngine(device.device(), causal.TASK)
    model, tokenizer = engine.load_for_inference(base_dir, ModelSection(id="x", load_in_4bit=False), None)
    return model, prompt_format.from_transformers("alpaca", tokenizer)


def ids_of(prompt: prompt_format.Prompt) -> list[list[int]]:
    return [prompt.prompt_ids(prompt_format.user_message(question)) for question in QUESTIONS]


def test_a_batch_gives_each_row_the_logits_it_has_alone(loaded: tuple[Any, prompt_format.Prompt]) -> None:
    """Left padding with its mask must not move a row. Teacher-forced: free-running ids may part at a near-tie."""
    model, prompt = loaded
    rows = ids_of(prompt)
    input_ids, mask = prompt_batch.padded(rows, prompt.pad_token_id, left=True)
    position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.inference_mode():
        together = model(input_ids=input_ids, attention_mask=mask, position_ids=position_ids).logits
        for i, row in enumerate(rows):
            alone = model(input_ids=torch.tensor([row])).logits[0]
            torch.testing.assert_close(together[i, -len(row) :], alone, atol=1e-4, rtol=1e-4)


def test_answers_stand_in_the_order_of_the_questions(loaded: tuple[Any, prompt_format.Prompt]) -> None:
    model, prompt = loaded
    rows = ids_of(prompt)
    together = generate.answer(model, prompt, rows, max_new_tokens=6, at_once=RowsAtOnce(2), task=causal.TASK)
    alone = [generate.answer(model, prompt, [row], max_new_tokens=6, task=causal.TASK)[0] for row in rows]
    assert [a.ids for a in together] == [a.ids for a in alone]
    assert all(len(a.ids) <= 6 for a in together)


def test_an_answer_ends_at_eos_and_says_so(loaded: tuple[Any, prompt_format.Prompt]) -> None:
    model, prompt = loaded
    row = ids_of(prompt)[0]
    bias = torch.zeros(model.config.vocab_size)
    bias[prompt.eos_token_id] = 100.0
    handle = model.get_output_embeddings().register_forward_hook(lambda _m, _a, logits: logits + bias)
    try:
        (stopped,) = generate.answer(model, prompt, [row], max_new_tokens=6, task=causal.TASK)
    finally:
        handle.remove()
    assert stopped == generate.Answer((prompt.eos_token_id,), "", True)
    bias[prompt.eos_token_id] = -100.0
    handle = model.get_output_embeddings().register_forward_hook(lambda _m, _a, logits: logits + bias)
    try:
        (endless,) = generate.answer(model, prompt, [row], max_new_tokens=6, task=causal.TASK)
    finally:
        handle.remove()
    assert not endless.stopped
    assert len(endless.ids) == 6


def test_a_stop_text_ends_an_answer(loaded: tuple[Any, prompt_format.Prompt]) -> None:
    model, prompt = loaded
    row = ids_of(prompt)[1]
    (whole,) = generate.answer(model, prompt, [row], max_new_tokens=8, task=causal.TASK)
    stop = next(c for c in whole.text[1:] if c.strip())
    (cut,) = generate.answer(model, prompt, [row], max_new_tokens=8, stop=[stop], task=causal.TASK)
    assert cut.text == whole.text[: whole.text.index(stop)].strip()
    assert cut.stopped


def test_the_bases_own_end_tokens_count_as_stopping(loaded: tuple[Any, prompt_format.Prompt]) -> None:
    model, prompt = loaded
    row = ids_of(prompt)[2]
    (free,) = generate.answer(model, prompt, [row], max_new_tokens=6, task=causal.TASK)
    before = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [prompt.eos_token_id, free.ids[2]]
    try:
        (ended,) = generate.answer(model, prompt, [row], max_new_tokens=6, task=causal.TASK)
    finally:
        model.generation_config.eos_token_id = before
    assert ended.ids == free.ids[: free.ids.index(free.ids[2]) + 1]
    assert ended.stopped


@pytest.mark.parametrize(
    ("ids", "loops"),
    [
        ([1, 2] * 32, True),
        ([9, 9, *range(16), *list(range(16)) * 3], True),
        ([1, 2] * 31, False),  # too short to be sure
        (list(range(32)) * 3, False),
        (list(range(32)) * 4, True),
        (list(range(33)) * 8, False),
        ([1] * 63 + [2], False),
        (list(range(200)), False),
    ],
)
def test_a_loop_is_four_rounds_or_more(ids: list[int], loops: bool) -> None:
    assert generate.only_repeats(ids) is loops


def test_a_row_that_only_repeats_itself_is_ended(loaded: tuple[Any, prompt_format.Prompt]) -> None:
    """And has not stopped; a row beside it that goes on is not cut, and one that has stopped stays as it was."""
    model, prompt = loaded
    rows, vocabulary = ids_of(prompt)[:3], model.config.vocab_size
    calls = [0]

    def logits_of(_model: Any, _args: Any, logits: torch.Tensor) -> torch.Tensor:
        """By length, longest first, as the batch is: a loop of three tokens, all tokens in turn, EOS after five."""
        chosen, at = torch.full_like(logits, -100.0), calls[0]
        order = sorted(range(3), key=lambda i: -len(rows[i]))
        for place, kind in enumerate(order):
            token = {0: 10 + at % 3, 1: 10 + at % (vocabulary - 10), 2: prompt.eos_token_id if at == 5 else 11 + at}[
                kind
            ]
            chosen[place, :, token] = 100.0
        calls[0] += 1
        return chosen

    handle = model.get_output_embeddings().register_forward_hook(logits_of)
    try:
        loop, others, stopped = generate.answer(model, prompt, rows, max_new_tokens=100, task=causal.TASK)
    finally:
        handle.remove()
    assert (len(loop.ids), loop.stopped) == (generate.LOOP_TOKENS, False)
    assert set(loop.ids) == {10, 11, 12}
    assert (len(others.ids), others.stopped) == (100, False)
    assert (len(stopped.ids), stopped.stopped) == (6, True)


def test_a_drawn_answer_depends_on_its_prompt_and_the_seed_not_on_its_batch(
    loaded: tuple[Any, prompt_format.Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, prompt = loaded
    rows = ids_of(prompt)

    def drawn(some: list[list[int]], seed: int, at_once: RowsAtOnce | None = None) -> list[tuple[int, ...]]:
        sampling = decoding.Sampling(temperature=1.0, seed=seed)
        answers = generate.answer(
            model, prompt, some, max_new_tokens=8, at_once=at_once, sampling=sampling, task=causal.TASK
        )
        return [answer.ids for answer in answers]

    together = drawn(rows, 7)
    with monkeypatch.context() as patch:  # in the middle of an answer: chances that were drawn are drawn again
        seen = out_of_memory_over(patch, model, rows=2, at_call=3)
        assert drawn(rows, 7) == together
        assert seen[:4] == [5, 5, 5, 2]
    torch.manual_seed(99)  # the global stream plays no part
    assert drawn(rows, 7, at_once=RowsAtOnce(2)) == together
    assert [drawn([row], 7)[0] for row in rows] == together
    assert drawn(rows, 8) != together
    twice = drawn([rows[0], rows[1], rows[0]], 7)
    assert twice[:2] == together[:2]
    assert twice[2] != twice[0]


def test_without_temperature_or_room_for_chance_the_likeliest_token_is_taken(
    loaded: tuple[Any, prompt_format.Prompt],
) -> None:
    model, prompt = loaded
    rows = ids_of(prompt)
    greedy = generate.answer(model, prompt, rows, max_new_tokens=6, task=causal.TASK)
    for sampling in (decoding.Sampling(temperature=0.0), decoding.Sampling(temperature=5.0, top_p=1e-6)):
        assert generate.answer(model, prompt, rows, max_new_tokens=6, sampling=sampling, task=causal.TASK) == greedy


@pytest.mark.parametrize(
    ("temperature", "top_p", "wanted"),
    [
        (1.0, 1.0, [0.5, 0.3, 0.15, 0.05]),
        (1.0, 0.6, [0.625, 0.375, 0, 0]),  # the token that crosses 0.6 is in
        (0.5, 1.0, [0.6849, 0.2466, 0.0616, 0.0068]),  # squares, scaled
    ],
)
def test_tokens_are_drawn_as_often_as_they_are_likely(temperature: float, top_p: float, wanted: list[float]) -> None:
    count, order = 20_000, [2, 0, 3, 1]
    scores = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()[order].expand(count, -1)
    sampling = decoding.Sampling(temperature, top_p)
    streams = generate._streams([[i] for i in range(count)], sampling)
    drawn = generate._Draw(sampling, streams)(torch.zeros(count, 1), scores).argmax(-1)
    shares = torch.bincount(drawn, minlength=4) / count
    torch.testing.assert_close(shares, torch.tensor(wanted)[order], atol=0.012, rtol=0)  # 3 standard errors


def test_repetition_is_held_down_where_that_is_asked_for(loaded: tuple[Any, prompt_format.Prompt]) -> None:
    model, prompt = loaded
    row = ids_of(prompt)[4]
    bias = torch.zeros(model.config.vocab_size)
    bias[50] = 30.0  # a model that says one thing for ever
    handle = model.get_output_embeddings().register_forward_hook(lambda _m, _a, logits: logits + bias)
    try:
        (stuck,) = generate.answer(model, prompt, [row], max_new_tokens=6, task=causal.TASK)
        free = [
            generate.answer(model, prompt, [row], max_new_tokens=6, sampling=sampling, task=causal.TASK)[0].ids
            for sampling in (
                decoding.Sampling(temperature=0.0, no_repeat_ngram_size=2),
                decoding.Sampling(temperature=0.0, repetition_penalty=50.0),
            )
        ]
    finally:
        handle.remove()
    assert stuck.ids == (50,) * 6
    pairs = list(pairwise(free[0]))
    assert len(set(pairs)) == len(pairs) == 5
    assert free[1].count(50) < 6


def test_a_row_is_finished_at_a_stop_text_if_that_is_wanted(loaded: tuple[Any, prompt_format.Prompt]) -> None:
    """The same texts, in fewer tokens; the other rows of the batch go on."""
    model, prompt = loaded
    rows = ids_of(prompt)
    whole = generate.answer(model, prompt, rows, max_new_tokens=24, task=causal.TASK)
    stop = whole[0].text[1:3]
    cut, halted = (
        generate.answer(model, prompt, rows, max_new_tokens=24, stop=[stop], halts=halts, task=causal.TASK)
        for halts in (False, True)
    )
    assert [(one.text, one.stopped) for one in halted] == [(one.text, one.stopped) for one in cut]
    assert halted[0].stopped
    assert len([token for token in halted[0].ids if token != prompt.pad_token_id]) < len(cut[0].ids) == 24
