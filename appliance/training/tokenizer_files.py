"""The tokenizer files beside an adapter or a model: the base's own, as they are, with our chat template and padding.

What is saved has to give the same ids in transformers 4 and 5 and without either. transformers' own `save_pretrained`
does not: it writes class names that 4 does not know, and leaves out settings with which 5 rebuilds a tokenizer.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from appliance.errors import EnvironmentUnavailable
from appliance.process import files
from appliance.prompt import round_trip, tokenizer, tokenizer_config
from appliance.prompt.format import Message, Prompt, user_message
from appliance.prompt.special_tokens import token_text
from appliance.weights.model_files import VOCABULARY_FILES

_ASKED = [user_message("가격은?"), user_message(" Below ", "▁size\tL")]


def write(folder: Path, base_dir: Path, prompt: Prompt, conversations: Sequence[list[Message]] = _ASKED) -> None:
    """Writes the tokenizer of `prompt`, bound to the base in `base_dir`, into `folder`, and reads it again.

    Raises EnvironmentUnavailable: what is read gives other ids than training; shows the first, as a prompt or a text of
    `round_trip.TEXTS`.
    """
    with TemporaryDirectory(dir=folder) as scratch:
        saved, model = Path(scratch) / "adapter", Path(scratch) / "model"
        saved.mkdir()
        _copy(base_dir, prompt, saved)
        found = None
        own, types = tokenizer.read(base_dir / tokenizer.CONFIG), tokenizer.types(base_dir)
        for config in tokenizer_config.candidates(own, prompt, types=types):
            files.write_json(saved / tokenizer.CONFIG, config)
            as_a_model = _as_a_model(saved, base_dir, model)
            with tokenizer.loading(base_dir):  # also its config.json, which nothing else of transformers has read yet
                found = round_trip.difference(saved, as_a_model, prompt, conversations)
            if found is None:
                break
        if found is not None:
            raise EnvironmentUnavailable(
                f"{base_dir}: its tokenizer changes when it is saved and loaded again: {found}",
                hint="a model trained on these ids could not be used; choose another base model, or another version of "
                "this one, whose tokenizer.json and tokenizer_class agree",
            )
        for path in saved.iterdir():
            path.replace(folder / path.name)


def refuse_lossy(work_dir: Path, base_dir: Path, prompt: Prompt, conversations: Sequence[list[Message]]) -> None:
    """Raises as `write`, which it tries in `work_dir` without leaving anything there."""
    with TemporaryDirectory(dir=work_dir) as scratch:
        write(Path(scratch), base_dir, prompt, [*_ASKED, *conversations])


def _copy(base_dir: Path, prompt: Prompt, folder: Path) -> None:
    """All but tokenizer_config.json."""
    for name in VOCABULARY_FILES:
        if (base_dir / name).is_file():
            shutil.copyfile(base_dir / name, folder / name)
    if not (folder / tokenizer.FILE).is_file():
        prompt.backend.save(str(folder / tokenizer.FILE))
    files.write_text(folder / tokenizer.TEMPLATE, prompt.chat_template)
    special = tokenizer.read(base_dir / tokenizer.SPECIAL_TOKENS)
    if special:
        for name, text in (("pad_token", prompt.pad_token), ("eos_token", prompt.tokenizer_eos)):
            if token_text(special.get(name)) != text:
                special[name] = text
        files.write_json(folder / tokenizer.SPECIAL_TOKENS, special)


def _as_a_model(saved: Path, base_dir: Path, folder: Path) -> Path | None:
    """`folder` with the saved files and the base's config.json; None if it has none."""
    if not (base_dir / "config.json").is_file():
        return None
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path in saved.iterdir():
        files.link_or_copy(path, folder / path.name)
    shutil.copyfile(base_dir / "config.json", folder / "config.json")
    return folder
