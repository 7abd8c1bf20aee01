"""Uses a base's tokenizer and chat template once, in a process that may be lost: see tokenizer_trial.py.

`python -m appliance.base_model.tokenizer_trial_child`, started by that module. It says what it is about to do before it
does it, so that its last words tell what it died of. Imports no torch, and transformers only for a base without
tokenizer.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from appliance.errors import DataError, EnvironmentUnavailable, RecipeError
from appliance.process import child, forked
from appliance.process.child import Tell
from appliance.prompt import format as prompt_format
from appliance.prompt import tokenizer
from appliance.prompt.format import NotTokenized, Prompt
from appliance.prompt.round_trip import TEXTS
from appliance.prompt.special_tokens import default_template
from appliance.weights import model_files

OURS = "korean_qa"  # any format of ours: their templates are not somebody else's
CELLS = ("instruction", "input", "output")


class _NoRowPasses(Exception):
    """The tokenizer gives up on every row."""


def serve(line: str, tell: Tell) -> None:
    """The child's work. A template that our formats can do without is refused by whoever needs it."""
    job = json.loads(line)
    folder = Path(job["folder"])
    if not (folder / tokenizer.FILE).is_file():
        from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: F401  what it takes is not the base's
    forked.limit_memory(job["memory_bytes"])
    forked.limit_time(job["cpu_seconds"])
    try:
        _try(folder, job["rows"], tell)
    except EnvironmentUnavailable as error:  # a damaged file, or no EOS: whatever the prompt format
        tell({"end": "refused", "message": str(error), "hint": error.hint})
        return
    except RecipeError:
        pass
    except MemoryError:
        tell({"end": "memory"})
        return
    except BaseException as error:  # noqa: BLE001  a panic of tokenizers is no Exception
        kind = "" if isinstance(error, _NoRowPasses) else f"{type(error).__name__}: "
        tell({"end": "failed", "error": f"{kind}{error}"[:2000]})
        return
    tell({"end": "passed"})


def _try(folder: Path, rows: Sequence[dict[str, Any]], tell: Tell) -> None:
    """`rows`: the three cells of each, and its line. Raises whatever the base makes happen."""
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


def _encode(prompt: Prompt, rows: Sequence[dict[str, Any]], file: str, doing: str, tell: Tell) -> None:
    """A row that the tokenizer gives up on, or that holds a special token, is for prepare to judge; not if all are."""
    failures: list[NotTokenized] = []
    for row in rows:
        tell({"file": file, "doing": f"{doing} line {row['line']} of the CSV"})
        try:
            prompt.answer_text(prompt.encode(*(row[cell] for cell in CELLS)).input_ids)
        except NotTokenized as failure:
            failures.append(failure)
        except DataError:
            continue
    if rows and len(failures) == len(rows):
        raise _NoRowPasses(str(failures[0]))


if __name__ == "__main__":
    child.leave_out("torch", *child.UNUSED)
    child.main(serve)
