"""One place lists the files of a model folder, and what it says of one question fits what it says of the others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from appliance import bounds
from appliance.release import gates, leak_scan
from appliance.weights import model_files
from tests.helpers.literals import literals

LISTED = re.compile(r"(merges|vocab)\.(txt|json)|\badded_tokens\.|\.model$|^\*?\.jinja$|LICEN[SC]E|NOTICE|USE_POLICY")

A_FORMAT = [
    ("appliance/release/leak_scan.py", ".model"),  # which is binary
    ("appliance/weights/gguf_ids.py", "tokenizer.ggml.model"),  # a key within a GGUF file
]
# The bounds by name hold for every reader of files, from a floor below: they cannot ask for the names.
LISTS = {"appliance/weights/model_files.py", "appliance/bounds.py"}


def test_no_other_module_lists_them() -> None:
    """A name alone may be read; patterns and vocabularies stand in a list."""
    found = {
        f"{path}:{line}: {text!r}"
        for path, line, text in literals()
        if LISTED.search(text) and (path, text) not in A_FORMAT and path not in LISTS
    }
    assert found == set()


def test_the_bounds_are_of_the_same_files() -> None:
    own = {*model_files.TOKENIZER_FILES, *model_files.JUDGED_FILES, "generation_config.json"}
    assert bounds.LARGEST.keys() == own - {model_files.CARD}  # of which the front matter alone is read


@pytest.mark.parametrize(
    ("name", "downloaded", "loaded", "released"),
    [
        ("config.json", True, True, {"model", "adapter"}),
        ("generation_config.json", True, True, {"model"}),
        ("model-00001-of-00002.safetensors", True, True, {"model"}),
        ("model.safetensors.index.json", True, True, {"model"}),
        ("adapter_model.safetensors", True, True, {"adapter"}),
        ("prompt.json", True, True, {"adapter"}),
        ("merges.txt", True, True, {"model", "adapter"}),
        ("spiece.model", True, True, {"model", "adapter"}),
        ("chat_template.jinja", True, True, {"model", "adapter"}),
        ("README.md", True, False, {"model", "adapter", "dataset"}),
        ("LICENSE.txt", True, False, {"model", "adapter"}),
        ("NOTICE", True, False, {"model", "adapter"}),
        ("USE_POLICY.md", True, False, {"model", "adapter"}),
        ("consolidated.safetensors", False, False, set()),
        ("original/params.json", False, False, set()),
        ("pytorch_model.bin", False, False, set()),
        ("modeling_x.py", False, False, set()),
        ("run.json", True, True, set()),
        ("requirements.txt", True, True, set()),
        (".gitattributes", False, False, set()),
        ("train.csv", False, False, {"dataset"}),
        ("train_ds.csv", False, False, {"dataset"}),
        ("sub/config.json", True, False, set()),
    ],
)
def test_what_each_file_is(name: str, downloaded: bool, loaded: bool, released: set[str]) -> None:
    parts = {part for part in ("model", "adapter", "dataset") if gates.may_be_released(part, name)}
    assert (model_files.is_downloaded(name), model_files.is_loaded(name), parts) == (downloaded, loaded, released)


def test_what_is_copied_may_be_released_and_was_downloaded() -> None:
    for name in (*model_files.TOKENIZER_FILES, "LICENSE", "LICENCE.md", "NOTICE.txt", "USE_POLICY.md"):
        assert model_files.is_downloaded(name)
        assert model_files.may_be_released("model", name)
        assert model_files.may_be_released("adapter", name)


@pytest.mark.parametrize("name", [*model_files.VOCABULARY_FILES, "LICENSE", "NOTICE.txt", "USE_POLICY.md"])
def test_the_bases_own_words_are_no_trace(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("somebody", encoding="utf-8")
    private = leak_scan.Private(names=("somebody",))
    assert leak_scan.scan(tmp_path, (), private) == []
    (tmp_path / "chat_template.jinja").write_text("somebody", encoding="utf-8")
    assert [hit.path for hit in leak_scan.scan(tmp_path, (), private)] == ["chat_template.jinja"]
