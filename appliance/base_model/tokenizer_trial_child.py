"""Uses a base's tokenizer and chat template once, in a process that may be lost: see tokenizer_trial.py.

`python -m appliance.base_model.tokenizer_trial_child`, started by that module. It says what it is about to do before it
does it, so that its last words tell what it died of. Imports neither torch nor transformers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from appliance.errors import DataError, EnvironmentUnavailable, RecipeError
from appliance.process import child, forked
from appliance.process.child import Tell
from appliance.prompt import format as prompt_format
from appliance.prompt import tokenizer
from appliance.prompt.format import NotTokenized, Prompt
from appliance.prompt.round_trip import TEXTS
from appliance.prompt.special_tokens import default_template

OURS = "korean_qa"  # any format of ours: their templates are not somebody else's
CELLS = ("instruction", "input", "output")


class _NoRowPasses(Exception):
    """The tokenizer gives up on every row."""


def serve(line: str, tell: Tell) -> None:
    """The child's work. A template that our formats can do without is refused by whoever needs it."""
    job = json.loads(line)
    forked.limit_memory(job["memory_bytes"])
    forked.limit_time(job["cpu_seconds"])
    try:
        _try(Path(job["folder"]), job["rows"], tell)
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
    tell({"file": tokenizer.FILE, "doing": "reading it"})
    backend = tokenizer.backend(folder)
    tell({"file": tokenizer.CONFIG, "doing": "reading it"})
    has_template = default_template(tokenizer.settings(folder).get("chat_template")) is not None
    template_file = tokenizer.TEMPLATE if (folder / tokenizer.TEMPLATE).is_file() else tokenizer.CONFIG
    tell({"file": tokenizer.FILE, "doing": "looking for its special tokens"})
    ours = prompt_format.from_folder(OURS, folder, backend=backend)
    tell({"file": tokenizer.FILE, "doing": "tokenizing short texts"})
    for text in TEXTS:
        backend.decode(backend.encode(text).ids, skip_special_tokens=False)
    _encode(ours, rows, tokenizer.FILE, "tokenizing", tell)
    if has_template:
        tell({"file": template_file, "doing": "rendering the chat template"})
        chat = prompt_format.from_folder("chat", folder, backend=backend)
        _encode(chat, rows, template_file, "rendering the chat template with", tell)


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
    child.main(serve)
