"""The ids of a GGUF file's vocabulary by llama.cpp's rules. What is expected here, llama.cpp itself gave (0.3.36)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import pre_tokenizers

from appliance.weights import gguf_header, llama_cpp_model
from appliance.weights.gguf_ids import opened

NORMAL, UNKNOWN, CONTROL, USER, BYTE = (
    gguf.TokenType[name] for name in ("NORMAL", "UNKNOWN", "CONTROL", "USER_DEFINED", "BYTE")
)
MERGES = ["1 2", "12 3", "4 5", "123 4", "a b", "Ġ ab", "i t", "' s", "' S", "Ċ Ċ"]


def bpe_file(path: Path, pre: str = "gpt-2", **said: Any) -> Path:
    """256 bytes and MERGES; the tokens <s>, </s> and <tool> are spelled out in texts."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES)]
    types = [NORMAL] * len(tokens) + [CONTROL, CONTROL, USER]
    tokens += ["<s>", "</s>", "<tool>"]
    writer = _writer(path, "gpt2", tokens, types, **said)
    writer.add_tokenizer_pre(pre)
    writer.add_token_merges(MERGES)
    return _written(writer)


def spm_file(path: Path, *, has_prefix: bool = True, **said: Any) -> Path:
    scored = {"▁": -3.0, "a": -4.0, "b": -4.0, "c": -4.0, "ab": -1.0, "bc": -0.5, "▁a": -0.7, "▁ab": -2.0, "가": -5.0}
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *scored]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(scored)]
    writer = _writer(path, "llama", tokens, types, **said)
    writer.add_token_scores([0.0] * 259 + list(scored.values()))
    writer.add_add_space_prefix(has_prefix)
    return _written(writer)


def _writer(path: Path, model: str, tokens: list[str], types: list[Any], **said: Any) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(said.get("name", "shop"))
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_bos_token_id(tokens.index("<s>"))
    writer.add_eos_token_id(tokens.index("</s>"))
    for name in ("add_bos", "add_eos"):
        if name in said:
            writer.add_bool(f"tokenizer.ggml.{name}_token", said[name])
    return writer


def _written(writer: gguf.GGUFWriter) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(str(writer.path))


def words(path: Path, text: str) -> list[str]:
    tokens = gguf_header.read(path).metadata["tokenizer.ggml.tokens"]
    return [tokens[i] for i in opened(path).ids_of(text)]


@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [
        ("gpt-2", "12345 ab", "123 45 Ġab"),
        ("gpt-2", "it's IT'S", "it 's Ġ I T ' S"),
        ("gpt-2", "a\n\nb", "a Ċ Ċ b"),
        ("gpt-2", "<s>ab<tool>ab", "<s> ab <tool> ab"),
        ("gpt-2", "가 ab  ab", "ê ° Ģ Ġab Ġ Ġab"),
        ("gpt-2", "ab </s>", "ab Ġ </s>"),
        ("llama-bpe", "12345 ab", "123 45 Ġab"),
        ("llama-bpe", "it's IT'S", "it 's Ġ I T 'S"),
        ("llama-bpe", "a\n\nb", "a ĊĊ b"),
        ("qwen2", "12345 ab", "1 2 3 4 5 Ġab"),
        ("qwen2", "it's IT'S", "it 's Ġ I T 'S"),
        ("qwen2", "a\n\nb", "a ĊĊ b"),
        ("smollm", "12345 ab", "1 2 3 4 5 Ġab"),
        ("smollm", "it's IT'S", "it 's Ġ I T ' S"),
    ],
)
def test_bytes_with_merges(pre: str, text: str, expected: str, tmp_path: Path) -> None:
    assert words(bpe_file(tmp_path / "a.gguf", pre), text) == expected.split(" ")


@pytest.mark.parametrize(
    ("text", "expected", "without_prefix"),
    [
        ("abc", "▁a bc", "a bc"),
        ("ab abc", "▁ab ▁a bc", "ab ▁a bc"),
        ("<s>ab</s>abc", "<s> ▁ab </s> ▁a bc", "<s> ab </s> a bc"),
        ("가나 a", "▁ 가 <0xEB> <0x82> <0x98> ▁a", "가 <0xEB> <0x82> <0x98> ▁a"),
        (" ab", "▁ ▁ab", "▁ab"),
        ("", "", ""),
    ],
)
def test_pieces_with_scores(text: str, expected: str, without_prefix: str, tmp_path: Path) -> None:
    assert words(spm_file(tmp_path / "a.gguf"), text) == expected.split()
    assert words(spm_file(tmp_path / "b.gguf", has_prefix=False), text) == without_prefix.split()


def test_bos_comes_from_the_file_or_from_the_chat_template(tmp_path: Path) -> None:
    for name, said, adds in (
        ("a", {}, True),
        ("b", {"add_bos": False}, False),
    ):
        file = opened(spm_file(tmp_path / f"{name}.gguf", **said))
        assert file.adds_bos is adds
        assert file.bos is not None
        ids = file.ids_of("ab")
        with_bos = [file.bos, *ids]
        assert file.others([("ab", with_bos)]) == []  # its template brings BOS if the file does not
        assert file.others([("ab", ids)]) == (["ab"] if adds else [])
        assert file.others([("ab", [*with_bos, ids[0]])]) == ["ab"]
    ends = opened(spm_file(tmp_path / "c.gguf", add_bos=False, add_eos=True))
    assert ends.others([("ab", ends.ids_of("ab"))]) == ["ab"]  # EOS behind every prompt
    assert not opened(bpe_file(tmp_path / "d.gguf")).adds_bos
    assert opened(bpe_file(tmp_path / "e.gguf", "llama-bpe")).adds_bos


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"pre": "tekken"}, "its kind of tokenizer, gpt2 tekken, is not known"),
        ({"name": "My Phi-3 mini"}, "rules of its own for models named like 'My Phi-3 mini'"),
    ],
)
def test_what_is_not_known_is_not_guessed(said: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=why):
        opened(bpe_file(tmp_path / "a.gguf", **said))


def test_a_file_without_a_vocabulary_says_so(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    with pytest.raises(ValueError, match="no vocabulary"):
        opened(_written(writer))


class _Lib:
    """The calls of llama.cpp that `Vocabulary` makes."""

    def __init__(self, *, adds: bool) -> None:
        self.adds = adds

    def llama_vocab_get_add_bos(self, _: Any) -> bool:
        return self.adds

    def llama_vocab_bos(self, _: Any) -> int:
        return 1


@pytest.mark.parametrize("adds", [True, False])
def test_llama_cpp_is_asked_for_bos_in_the_same_way(adds: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    words = object.__new__(llama_cpp_model.Vocabulary)
    words._lib, words._vocabulary = _Lib(adds=adds), None
    monkeypatch.setattr(words, "ids_of", lambda _, *, add_special: [1, 7] if adds and add_special else [7])
    assert words.others([("ab", [1, 7])]) == []
    assert words.others([("ab", [1, 8]), ("cd", [7])]) == (["ab", "cd"] if adds else ["ab"])
