"""Reloads the release in a fresh process with plain transformers, as its users will: all token ids must be the same.

Two parts. `run` writes down how training and evaluation encoded the test prompts, starts the process and judges what it
found. The process (`python -m appliance.release.reload REQUEST.json`) knows the release folder and transformers, but
not prompt/format.py: it renders the released chat template, tokenizes, and reads the configurations. It loads no
weights: the proof has loaded these very files (the gate `proven_is_released` compares the hashes).

>>> python -m appliance.release.reload REQUEST.json     # writes REQUEST.json.result
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from appliance.errors import DataError, EnvironmentUnavailable, GateRefused
from appliance.findings import Gate
from appliance.machine import write_errors
from appliance.process import child, imports
from appliance.process.files import read_json, write_json
from appliance.weights import child_out_of_memory
from appliance.weights.model_config import SHORTEST
from appliance.weights.proof import run_module
from appliance.wording import counted

if TYPE_CHECKING:
    from appliance.prompt.format import Prompt

ROWS = 100  # test rows whose prompt and texts are compared
_NAMED = 3  # in a message


@dataclass(frozen=True)
class Conversation:
    """`ids`: who made them ("training" | "evaluation") -> the ids of the prompt; None if the format refuses it.

    Some formats do not support system text or earlier turns: the released template has to refuse them too.
    """

    name: str
    messages: list[dict[str, str]]
    ids: Mapping[str, list[int] | None]


@dataclass(frozen=True)
class Request:
    """What the process has to reproduce. `special`: ids that training used; None if the tokenizer has none.

    `eos` is the trained one, `tokenizer_eos` the tokenizer's own (a different one under some chat templates).
    """

    folders: tuple[str, ...]
    conversations: tuple[Conversation, ...]
    texts: tuple[tuple[str, list[int]], ...]
    special: dict[str, int | None]


@dataclass
class Seen:
    """What differs, in words, grouped by gate."""

    prompts: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    special: list[str] = field(default_factory=list)
    generation: list[str] = field(default_factory=list)


def reload_gates(release_dir: Path, run_path: Path, *, base_dir: Path, prompt_name: str, stage_dir: Path) -> list[Gate]:
    """The gates of the release in `release_dir`; the process's output goes to roundtrip.log in `stage_dir`.

    Raises GateRefused: the release does not load. EnvironmentUnavailable: the process was killed, or out of memory.
    """
    from appliance.prompt import format as prompt_format
    from appliance.prompt import tokenizer as prompt_tokenizer
    from appliance.rundir import token_choice

    tokenizer = prompt_tokenizer.load(base_dir)
    token_choice.read(run_path / "train").apply_to(tokenizer)
    training = prompt_format.from_transformers(prompt_name, tokenizer)
    folders = [path for name in ("model", "adapter") if (path := release_dir / name).is_dir()]
    wanted = request(folders, run_path, training, tokenizer)
    return judge(wanted, examine(wanted, stage_dir))


def request(folders: Sequence[Path], run_path: Path, training: Prompt, tokenizer: Any) -> Request:
    """How training (`training`, with the base's `tokenizer`) and evaluation (as recorded) encoded the test rows."""
    from appliance.prompt import format as prompt_format
    from appliance.prompt import spans
    from appliance.rows import csv_file
    from appliance.rundir import results

    rows = {row.line: row for row in csv_file.read_canonical(run_path / "prepare" / "test.csv")}
    evaluated = [rows[int(line["row"])] for line in results.read_predictions(run_path)[:ROWS]]
    asked = read_json(run_path / "evaluate" / "proof_rows.json")[:ROWS]
    conversations = []
    for row, recorded in zip(evaluated, asked, strict=True):
        encoded = training.encode(row.instruction, row.input, row.output, row.answer_start)
        ids: dict[str, list[int] | None] = {
            "training": encoded.input_ids[: encoded.prompt_tokens],
            "evaluation": recorded["input_ids"][: recorded["prompt_tokens"]],
        }
        if training.marks_spans:  # evaluation read it in windows
            ids = {"training": encoded.input_ids[: -spans.PLACES]}
        conversations.append(
            Conversation(f"test row {row.line}", prompt_format.user_message(row.instruction, row.input), ids)
        )
    first = evaluated[0]
    for name, messages in shapes(first.instruction, first.output).items():
        conversations.append(Conversation(name, messages, {"training": _prompt_ids(training, messages)}))
    texts = [text for row in evaluated for text in (row.instruction, row.output)][: 2 * ROWS]
    return Request(
        folders=tuple(map(str, folders)),
        conversations=tuple(conversations),
        texts=tuple((text, list(tokenizer(text)["input_ids"])) for text in texts),
        special={
            "bos": training.backend.token_to_id(training.bos_token) if training.bos_token else None,
            "eos": training.eos_token_id,
            "tokenizer_eos": training.backend.token_to_id(training.tokenizer_eos),
            "pad": training.pad_token_id,
            "tokenizer_pad": training.pad_token_id if training.pad_token else None,
        },
    )


def _prompt_ids(training: Prompt, messages: list[dict[str, str]]) -> list[int] | None:
    try:
        return training.prompt_ids(messages)
    except DataError:
        return None


def shapes(question: str, answer: str) -> dict[str, list[dict[str, str]]]:
    """Conversations of every shape that a server may receive, about one row."""
    from appliance.prompt.format import user_message

    system = {"role": "system", "content": "짧게 답하세요. Be brief. 👍🏽"}
    earlier = [*user_message(question, "서울 → 부산\n두 번째 줄"), {"role": "assistant", "content": answer}]
    return {
        "without input": user_message(question),
        "with input": user_message(question, "머그컵 ☕️, size\tL"),
        "system text": [system, *user_message(question)],
        "system text and input": [system, *user_message(question, "context")],
        "earlier turns": [*earlier, *user_message(question)],
        "system text, earlier turns and input": [system, *earlier, *earlier, *user_message(question, "끝")],
        "a question that begins and ends with white space": user_message(f" \n{question}\n "),
        "Hangul apart and emoji": user_message("\u1112\u1161\u11ab\u1100\u1173\u11af 👩‍👩‍👧 é"),
    }


def examine(wanted: Request, stage_dir: Path) -> dict[str, Seen]:
    """`main` in a separate process: folder -> what differs there."""
    path = stage_dir / "roundtrip.json"
    try:
        write_json(path, asdict(wanted))
        code, tail = run_module("appliance.release.reload", [str(path)], stage_dir / "roundtrip.log")
        if code == 0:
            return {folder: Seen(**seen) for folder, seen in read_json(_result_path(path)).items()}
    finally:
        path.unlink(missing_ok=True)
        _result_path(path).unlink(missing_ok=True)
    log, process = stage_dir / "roundtrip.log", "the process that reloads the release"
    child_out_of_memory.refuse(code, process, tail, log)
    if code < 0:
        raise EnvironmentUnavailable(f"{process} was killed by signal {-code}:\n{tail}", hint=f"see {log}")
    if code == EnvironmentUnavailable.exit_code:
        last_line = tail.splitlines()[-1]
        raise EnvironmentUnavailable(f"{process}: {last_line}", hint=f"nothing was uploaded; see {log}")
    hint = f"nothing was uploaded; see {log}"
    raise GateRefused(f"the release does not load with plain transformers:\n{tail}", hint=hint)


def judge(wanted: Request, seen: Mapping[str, Seen]) -> list[Gate]:
    """The gates. Pure."""
    meanings = {
        "prompts": (
            "one_prompt_everywhere",
            f"of {counted(len(wanted.conversations), 'conversation')}: those for which the released chat template "
            "gives other ids than training or evaluation",
        ),
        "texts": (
            "same_tokens",
            f"of {counted(len(wanted.texts), 'text')}: those to which the released tokenizer gives other "
            "ids than the base's",
        ),
        "special": ("same_special_ids", "BOS, EOS or pad that differ in tokenizer, config or generation config"),
        "generation": ("generation_config_sane", "what is wrong with generation_config.json"),
    }
    gates = []
    for key, (name, meaning) in meanings.items():
        found = [f"{Path(folder).name}: {what}" for folder, one in seen.items() for what in asdict(one)[key]]
        listed = f": {'; '.join(found[:_NAMED])}" if found else ""
        complete = bool(wanted.folders) and set(seen) == set(wanted.folders)
        gates.append(Gate(name, complete and not found, len(found) if complete else "not asked", 0, meaning + listed))
    return gates


def main(request_path: Path) -> None:
    """The child process: everything that differs in each folder of the request."""
    child.die_with_parent()
    try:
        with write_errors.explaining(request_path.parent, writes_only=True), child_out_of_memory.ends_the_process():
            wanted = read_json(request_path)
            seen = {folder: asdict(_look(Path(folder), wanted)) for folder in wanted["folders"]}
            write_json(_result_path(request_path), seen)
    except EnvironmentUnavailable as error:
        sys.stderr.write(f"{error}; {error.hint}\n")
        sys.exit(error.exit_code)


def _look(folder: Path, wanted: Mapping[str, Any]) -> Seen:
    with imports.uncollected("transformers"):
        from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    seen = Seen()
    for conversation in wanted["conversations"]:
        rendered = _rendered(tokenizer, conversation["messages"])
        for who, ids in conversation["ids"].items():
            if rendered != ids:
                seen.prompts.append(f"{conversation['name']} ({who}): {_difference(ids, rendered)}")
    for text, ids in wanted["texts"]:
        if (given := tokenizer(text)["input_ids"]) != ids:
            seen.texts.append(_difference(ids, given))
    special = wanted["special"]
    for name, given, expected in (
        ("bos", tokenizer.bos_token_id, (special["bos"],)),
        ("eos", tokenizer.eos_token_id, (special["eos"], special["tokenizer_eos"])),
        ("pad", tokenizer.pad_token_id, (special["tokenizer_pad"],)),
    ):
        if given not in expected:
            seen.special.append(f"tokenizer: {name} is {given}, in training {expected[0]}")
    if tokenizer.pad_token_id in (special["eos"], tokenizer.eos_token_id):
        seen.special.append(f"tokenizer: pad is eos ({tokenizer.pad_token_id})")
    if (folder / "config.json").is_file():
        _look_at_configs(folder, special, seen)
    return seen


def _rendered(tokenizer: Any, messages: list[dict[str, str]]) -> list[int] | None:
    """The ids that a server makes of a conversation; None if the template refuses it."""
    try:
        made = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=True)
    except TemplateError:
        return None
    return list(made["input_ids"])


def _look_at_configs(folder: Path, special: Mapping[str, int | None], seen: Seen) -> None:
    from transformers import AutoConfig, GenerationConfig

    config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    if (folder / "generation_config.json").is_file():
        generation = GenerationConfig.from_pretrained(str(folder), local_files_only=True)
    else:
        generation = GenerationConfig.from_model_config(config)  # as transformers does without the file
    for file, settings in (("config.json", config), ("generation_config.json", generation)):
        ends = getattr(settings, "eos_token_id", None)
        ends = ends if isinstance(ends, list) else [ends]
        if special["eos"] not in ends:
            seen.special.append(f"{file}: eos {ends} without the trained {special['eos']}")
        for name in ("pad", "bos"):
            given = getattr(settings, f"{name}_token_id", None)
            if special[name] is not None and given != special[name]:
                seen.special.append(f"{file}: {name} is {given}, in training {special[name]}")
    try:
        generation.validate(strict=True)
    except ValueError as error:
        seen.generation.append(str(error).splitlines()[0])
    for name in ("max_length", "max_new_tokens"):
        length = getattr(generation, name, None)
        if length is not None and length < SHORTEST:
            seen.generation.append(f"{name} {length} cuts answers short; expected none, or at least {SHORTEST}")


def _difference(wanted: Sequence[int] | None, given: Sequence[int] | None) -> str:
    if wanted is None or given is None:
        done = {True: "refused", False: "accepted"}
        return f"{done[wanted is None]} in training, {done[given is None]} here"
    at = next((i for i, (w, g) in enumerate(zip(wanted, given, strict=False)) if w != g), min(len(wanted), len(given)))
    return f"at id {at} expected {list(wanted[at : at + 3])}, found {list(given[at : at + 3])}"


def _result_path(request_path: Path) -> Path:
    return request_path.with_name(request_path.name + ".result")


if __name__ == "__main__":
    # Tokenizers and configurations are read without torch, by the same code: 1.7 s of CPU time instead of 5.5 until the
    # first is loaded, and 75 MiB instead of 410. transformers would advise installing it, in a log that people read.
    child.leave_out("torch", *child.UNUSED)
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"
    main(Path(sys.argv[1]))
