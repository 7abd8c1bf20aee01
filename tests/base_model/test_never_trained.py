"""Control tokens that a base never trained: found by their rows, replaced or trained as the prompt format allows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

from appliance.base_model import never_trained
from appliance.base_model.base import Base
from appliance.errors import EnvironmentUnavailable
from appliance.prompt import format as prompt_format
from appliance.recipe.fields import TuningSection
from appliance.rundir import token_choice
from appliance.rundir.token_choice import TokenChoice
from appliance.tasks import causal, classify, extract
from appliance.weights import embedding_rows
from tests.helpers.tokenizer_kinds import byte_level, with_bos

UNUSED = [f"<unused{i}>" for i in range(8)]
SPECIAL = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>", "<end_of_text>", *UNUSED]
IDS = {token: i for i, token in enumerate(SPECIAL)}
ROWS, WIDTH = 640, 48  # more rows than the tokenizer has tokens: padding, as real vocabularies have it
CHAT = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m['role'] }}\n{{ m['content'] }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>assistant\n{% endif %}"
)
NOTHING = TokenChoice(is_compared=True)  # to be done
INSTRUCT = ("<start_of_turn>", "<end_of_turn>")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    words = PreTrainedTokenizerFast(
        tokenizer_object=with_bos(byte_level(SPECIAL), "<bos>"),
        bos_token="<bos>",
        eos_token="<end_of_turn>",
        pad_token="<pad>",
    )
    words.chat_template = CHAT
    words.save_pretrained(folder)
    return folder


def matrix(untrained: tuple[str, ...] = INSTRUCT, *, noise: float = 0.1, common: float = 0.0, seed: int = 0) -> Any:
    """Rows of random directions, plus `common` times one direction; the untrained ones and the unused nearly equal."""
    made = torch.Generator().manual_seed(seed)
    rows = torch.randn(ROWS, WIDTH, generator=made)
    rows += common * WIDTH**0.5 * torch.nn.functional.normalize(torch.randn(WIDTH, generator=made), dim=0)
    alike = [IDS[token] for token in (*untrained, *UNUSED)] + list(range(ROWS - 64, ROWS))
    rows[alike] = torch.randn(WIDTH, generator=made) + noise * torch.randn(len(alike), WIDTH, generator=made)
    return rows


def base(
    folder: Path,
    tokenizer: Path,
    tensors: Mapping[str, torch.Tensor],
    *,
    eos: int | list[int] = IDS["<eos>"],
    generation_eos: int | list[int] | None = None,
    shards: bool = False,
) -> Base:
    folder.mkdir()
    for path in tokenizer.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = {"model_type": "llama", "eos_token_id": eos, "tie_word_embeddings": "lm_head.weight" not in tensors}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if generation_eos is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation_eos}), encoding="utf-8")
    stored = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
    if shards:
        names = {name: f"model-{i}.safetensors" for i, name in enumerate(stored)}
        for name, file in names.items():
            save_file({name: stored[name]}, folder / file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}), encoding="utf-8")
    else:
        save_file(stored, folder / "model.safetensors")
    return Base(folder, "someone/base", None, None)


def chosen(base: Base, prompt: str = "alpaca") -> TokenChoice:
    return never_trained.choose(base, prompt_format.from_folder(prompt, base.dir))


def rows_of(*tokens: str) -> dict[str, int]:
    return {token: IDS[token] for token in tokens}


def tied(rows: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"model.embed_tokens.weight": rows}


@pytest.mark.parametrize("shards", [False, True])
def test_the_trained_end_that_the_config_names_is_taken(shards: bool, tokenizer: Path, tmp_path: Path) -> None:
    """As with Gemma: the instruct model's tokenizer beside the base."""
    tensors = {"model.norm.weight": torch.ones(WIDTH), **tied(matrix())}
    found = chosen(base(tmp_path / "base", tokenizer, tensors, shards=shards))
    assert (found.eos_token, found.untrained) == ("<eos>", {})
    assert found.notes[0].startswith(f"EOS '<end_of_turn>' (id {IDS['<end_of_turn>']}) was never trained: cosine 0.9")
    assert found.notes[1] == "answers end with '<eos>', which config.json names and which was trained"


def test_the_tokens_of_a_chat_template_cannot_be_replaced(tokenizer: Path, tmp_path: Path) -> None:
    found = chosen(base(tmp_path / "base", tokenizer, tied(matrix())), "chat")
    assert found.eos_token is None
    assert found.untrained == rows_of("<start_of_turn>", "<end_of_turn>")
    assert any(note.startswith("the template token '<start_of_turn>'") for note in found.notes)


@pytest.mark.parametrize(
    ("eos", "generation_eos", "expected"),
    [
        ("<end_of_turn>", None, None),  # the config names the tokenizer's own
        ("<end_of_turn>", ["<end_of_turn>", "<eos>"], "<eos>"),
        ("<end_of_text>", None, None),  # never trained either
        (["<end_of_text>", "<eos>"], None, "<eos>"),
        ("<pad>", None, None),  # padding would no longer differ from the end
    ],
)
def test_which_end_is_taken(
    eos: Any, generation_eos: Any, expected: str | None, tokenizer: Path, tmp_path: Path
) -> None:
    def ids(tokens: Any) -> Any:
        return [IDS[token] for token in tokens] if isinstance(tokens, list) else IDS.get(tokens)

    tensors = tied(matrix((*INSTRUCT, "<end_of_text>")))
    found = chosen(base(tmp_path / "base", tokenizer, tensors, eos=ids(eos), generation_eos=ids(generation_eos)))
    assert found.eos_token == expected
    assert found.untrained == ({} if expected else rows_of("<end_of_turn>"))


def test_a_trained_eos_is_left_alone_whatever_the_config_names(tokenizer: Path, tmp_path: Path) -> None:
    assert chosen(base(tmp_path / "base", tokenizer, tied(matrix(())))) == NOTHING
    assert chosen(base(tmp_path / "random", tokenizer, tied(torch.randn(ROWS, WIDTH)))) == NOTHING


def test_an_untied_head_decides_about_the_end_and_the_embeddings_about_the_template(
    tokenizer: Path, tmp_path: Path
) -> None:
    name = "model.embed_tokens.weight"
    head = base(tmp_path / "head", tokenizer, {name: matrix(()), "lm_head.weight": matrix()}, eos=IDS["<end_of_turn>"])
    assert chosen(head).untrained == rows_of("<end_of_turn>")
    assert chosen(head, "chat").untrained == rows_of("<end_of_turn>")
    read = base(tmp_path / "read", tokenizer, {name: matrix(), "lm_head.weight": matrix(())}, eos=IDS["<end_of_turn>"])
    assert chosen(read).untrained == {}  # alpaca only writes it
    assert chosen(read, "chat").untrained == rows_of("<start_of_turn>", "<end_of_turn>")


def test_a_row_of_zeros_was_never_trained(tokenizer: Path, tmp_path: Path) -> None:
    rows = torch.randn(ROWS, WIDTH)
    rows[[IDS[token] for token in (*INSTRUCT, *UNUSED)]] = 0.0
    assert chosen(base(tmp_path / "base", tokenizer, tied(rows))).eos_token == "<eos>"


def test_rows_that_all_share_a_direction_are_not_taken_for_untrained(tokenizer: Path, tmp_path: Path) -> None:
    """Then the unused are among thousands at a cosine above 0.9, and only a closer row counts."""
    rows = matrix((), common=6.0)
    unused = [IDS[token] for token in UNUSED] + list(range(ROWS - 64, ROWS))
    rows[unused] = rows[20:500].mean(0) + 0.02 * torch.randn(len(unused), WIDTH)
    apart = torch.nn.functional.cosine_similarity(rows[IDS["<end_of_turn>"]], rows[unused[0]], dim=0)
    assert apart > embedding_rows.PARALLEL
    assert chosen(base(tmp_path / "base", tokenizer, tied(rows))) == NOTHING


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_only_the_rows_that_are_asked_for_are_read(dtype: torch.dtype, tokenizer: Path, tmp_path: Path) -> None:
    """In the order asked for, whatever lies between them, and with the numbers that torch reads: no bit differs."""
    rows = matrix()
    rows[7, :5] = torch.tensor([float("inf"), -0.0, 1e-40, 6e-8, 65504.0])
    made = base(tmp_path / "base", tokenizer, {})
    save_file({"first": torch.ones(3), **tied(rows.to(dtype))}, made.dir / "model.safetensors")
    found = embedding_rows.matrices_of(made.dir, {"tie_word_embeddings": True})
    assert found is not None
    assert found.head is None
    expected = rows[[7, 8, 3]].to(dtype).float()
    assert np.array_equal(found.embeddings.rows([7, 8, 3]).view("u4"), expected.numpy().view("u4"))
    assert found.embeddings.rows([]).shape == (0, WIDTH)


def test_numbers_of_8_bits_are_not_looked_at(tokenizer: Path, tmp_path: Path) -> None:
    made = base(tmp_path / "base", tokenizer, {})
    save_file(tied(matrix().to(torch.float8_e4m3fn)), made.dir / "model.safetensors")
    assert embedding_rows.matrices_of(made.dir, {}) is None


@pytest.mark.parametrize(
    ("tuning", "bias", "verdict", "words"),
    [
        ({}, False, "warning", "trained beside the adapter: the rows of '<start_of_turn>', '<end_of_turn>'"),
        ({"method": "full"}, False, "warning", "full fine-tuning trains the rows of"),
        ({"method": "full"}, True, "warning", "full fine-tuning trains the rows of"),
        ({}, True, "fails", "choose the instruct version of this base"),
    ],
)
def test_what_the_check_says(
    tuning: dict[str, Any], bias: bool, verdict: str, words: str, tokenizer: Path, tmp_path: Path
) -> None:
    name = "model.embed_tokens.weight"
    tensors = {name: matrix(), "lm_head.weight": matrix()} | ({"lm_head.bias": torch.zeros(ROWS)} if bias else {})
    made, section = base(tmp_path / "base", tokenizer, tensors), TuningSection(**tuning)
    choice = chosen(made, "chat")
    finding = never_trained.finding(choice, made, section)
    assert (finding.verdict, words in finding.fix) == (verdict, True)
    if verdict == "fails":
        with pytest.raises(EnvironmentUnavailable, match="head with a bias") as caught:
            never_trained.announce(choice, made, section)
        assert "tuning.method=full" in caught.value.hint
    else:
        never_trained.announce(choice, made, section)


def test_what_the_check_says_before_the_weights_are_here_and_if_all_is_well(tokenizer: Path, tmp_path: Path) -> None:
    made = base(tmp_path / "base", tokenizer, tied(matrix(())))
    assert never_trained.finding(None, made, TuningSection()).verdict == "ok"
    assert never_trained.finding(chosen(made), made, TuningSection()).verdict == "ok"
    unknown = base(tmp_path / "unknown", tokenizer, {"transformer.words.weight": matrix()})
    assert (
        "not looked at: the base's embeddings" in never_trained.finding(chosen(unknown), unknown, TuningSection()).found
    )


def test_why_no_rows_were_looked_at(tokenizer: Path, tmp_path: Path) -> None:
    made = base(tmp_path / "base", tokenizer, tied(matrix()))

    def said(choice: TokenChoice) -> str:
        choice.write(tmp_path / "run" / "train")
        return never_trained.finding(token_choice.read(tmp_path / "run" / "train"), made, TuningSection()).found

    (tmp_path / "run" / "train").mkdir(parents=True)
    for task in (classify.TASK, extract.TASK):
        silent = never_trained.of_base(made, "source", task)
        assert silent.rows == []
        assert said(silent) == "nothing is written, so no token has to end an answer"
    assert said(TokenChoice()) == "not looked at: training was begun by an earlier version"
    assert never_trained.of_base(made, "alpaca", causal.TASK).is_compared
    (made.dir / "tokenizer.json").unlink()
    assert said(never_trained.of_base(made, "alpaca", causal.TASK)) == "not looked at: the base has no tokenizer.json"


def test_the_choice_is_kept_beside_the_training_and_earlier_runs_have_none(tokenizer: Path, tmp_path: Path) -> None:
    choice = TokenChoice("<eos>", {"<end_of_turn>": 4, "<start_of_turn>": 3}, ("why",), is_compared=True)
    choice.write(tmp_path)
    assert token_choice.read(tmp_path) == choice
    assert choice.rows == [3, 4]
    assert token_choice.read(tmp_path / "earlier") == TokenChoice()
    words = PreTrainedTokenizerFast.from_pretrained(tokenizer)
    choice.apply_to(words)
    assert (words.eos_token, words.eos_token_id) == ("<eos>", IDS["<eos>"])
    TokenChoice().apply_to(words)
    assert words.eos_token == "<eos>"
