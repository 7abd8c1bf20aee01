"""Uses a base's tokenizer and chat template once, in a fork that may be lost: see tokenizer_trial.py.

It says what it is about to do before it does it, so that its last words tell what it died of. Imports no torch, and
transformers only for a base without tokenizer.json.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from tokenizers import Tokenizer

from appliance.errors import DataError, EnvironmentUnavailable, RecipeError
from appliance.process import child
from appliance.prompt import format as prompt_format
from appliance.prompt import tokenizer
from appliance.prompt.format import NotTokenized, Prompt
from appliance.prompt.round_trip import TEXTS
from appliance.prompt.special_tokens import default_template
from appliance.rows.csv_file import Row
from appliance.weights import model_files

OURS = "korean_qa"  # any format of ours: their templates are not somebody else's


Tell = Callable[[dict[str, str]], None]


class _NoRowPasses(Exception):
    """The tokenizer gives up on every row."""


def make_ready(folder: Path) -> None:
    """Takes secrets from the fork, and imports what is no part of the trial: transformers, without torch, for a base
    that nothing else can read.
    """
    child.take_environment()
    os.environ["RUST_BACKTRACE"] = "0"
    if not (folder / tokenizer.FILE).is_file():
        child.leave_out("torch", *child.UNUSED)
        from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: F401


def tried(folder: Path, rows: Sequence[Row], *, steps: IO[bytes]) -> str:
    """The fork's work: how it failed, or "". A template that our formats can do without is refused by whoever needs it.

    Writes what it is about to do to `steps`, as JSON, one a line. Raises EnvironmentUnavailable: a damaged file, or
    there is no EOS, whatever the prompt format; MemoryError.
    """

    def tell(step: dict[str, str]) -> None:
        os.write(steps.fileno(), json.dumps(step).encode() + b"\n")

    try:
        _try(folder, rows, tell)
    except (EnvironmentUnavailable, MemoryError):
        raise
    except RecipeError:
        pass
    except BaseException as error:  # noqa: BLE001  a panic of tokenizers is no Exception
        kind = "" if isinstance(error, _NoRowPasses) else f"{type(error).__name__}: "
        return f"failed: {kind}{error}"[:2000]
    return ""


def _try(folder: Path, rows: Sequence[Row], tell: Tell) -> None:
    """Raises whatever the base makes happen."""
    file, backend, prompt_of = _read(folder, tell)
    tell({"file": tokenizer.CONFIG, "doing": "reading it"})
    has_template = default_template(tokenizer.settings(folder).get("chat_template")) is not None
    template_file = tokenizer.TEMPLATE if (folder / tokenizer.TEMPLATE).is_file() else tokenizer.CONFIG
    tell({"file": file, "doing": "looking for its special tokens"})
    ours = prompt_of(OURS)
    tell({"file": file, "doing": "tokenizing short texts"})
    for text in TEXTS:
        backend.decode(backend.encode(text).ids, skip_special_tokens=False)
    _encode(ours, rows, file, "tokenizing", tell)
    if has_template:
        tell({"file": template_file, "doing": "rendering the chat template"})
        _encode(prompt_of("chat"), rows, template_file, "rendering the chat template with", tell)


def _read(folder: Path, tell: Tell) -> tuple[str, Tokenizer, Callable[[str], Prompt]]:
    """The file that holds the vocabulary, the tokenizer, and what binds a format to it."""
    if (folder / tokenizer.FILE).is_file():
        tell({"file": tokenizer.FILE, "doing": "reading it"})
        backend = tokenizer.backend(folder)
        return tokenizer.FILE, backend, lambda name: prompt_format.from_folder(name, folder, backend=backend)
    file = next(name for name in model_files.VOCABULARY_FILES if (folder / name).is_file())
    tell({"file": file, "doing": "reading it with transformers"})
    loaded = tokenizer.load(folder)
    return file, loaded.backend_tokenizer, lambda name: prompt_format.from_transformers(name, loaded)


def _encode(prompt: Prompt, rows: Sequence[Row], file: str, doing: str, tell: Tell) -> None:
    """A row that the tokenizer gives up on, or that holds a special token, is for prepare to judge; not if all are."""
    failures: list[NotTokenized] = []
    for row in rows:
        tell({"file": file, "doing": f"{doing} line {row.line} of the CSV"})
        try:
            prompt.answer_text(prompt.encode(row.instruction, row.input, row.output).input_ids)
        except NotTokenized as failure:
            failures.append(failure)
        except DataError:
            continue
    if rows and len(failures) == len(rows):
        raise _NoRowPasses(str(failures[0]))
