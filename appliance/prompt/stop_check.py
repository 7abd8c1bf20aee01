"""Whether the collated train rows teach a model to stop: EOS once, last and trained; padding masked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.errors import GateRefused
from appliance.findings import NAMED_ROWS, Gate
from appliance.prompt import batch as prompt_batch
from appliance.prompt import format as prompt_format
from appliance.wording import counted

if TYPE_CHECKING:
    import numpy as np


ROWS_PER_BATCH = 64  # collated at a time


def stops(
    rows: Iterable[Mapping[str, Any]],
    collate: Callable[[list[Any]], Mapping[str, Any]],
    prompt: prompt_format.Prompt,
    *,
    continues: bool = True,
    classes: int = 0,
    spans: bool = False,
) -> tuple[list[Gate], list[int]]:
    """Whether the collated train rows teach a model to stop: the gates, and the indexes of rows that fail one.

    `rows` and `collate` are those that the trainer gets. One pass, ROWS_PER_BATCH rows in memory. `continues`: whether
    the labels are those of the same text, or of one that a decoder writes. `classes`: how many there are if a label is
    the index of one; `spans`: whether the labels are the places where an answer begins and ends. Then nothing is
    written, no EOS is trained, and the gates are about the label.
    """
    faults: Counter[str] = Counter()
    broken: list[int] = []
    begins_with = _bos_count(prompt, prompt.prompt_ids(prompt_format.user_message("a")))
    iterator, count, find = iter(rows), 0, _faults if continues else _faults_of_two_texts
    if classes:
        find = partial(_faults_of_classes, classes=classes)
    if spans:
        find = _faults_of_spans
    while batch := list(islice(iterator, ROWS_PER_BATCH)):
        by_fault = find({k: v.numpy() for k, v in collate(batch).items()}, prompt, begins_with)
        for name, wrong in by_fault.items():
            faults[name] += int(wrong.sum())
        at_fault = [rows_at_fault.nonzero()[0] for rows_at_fault in by_fault.values()]
        broken += sorted({count + int(i) for found in at_fault for i in found})
        count += len(batch)
    meanings = {
        "eos_is_the_last_label": "train rows whose last trained label is not EOS, or is not the row's last token",
        "eos_is_trained_once": "train rows that train EOS more than once, or never",
        "padding_is_not_trained": "train rows whose padding is seen or trained, or whose labels differ from the tokens",
        "bos_as_at_inference": f"train rows without exactly the {begins_with} BOS tokens of an inference prompt",
    }
    if classes or spans:
        meanings = (_OF_SPANS if spans else _OF_CLASSES) | {"bos_as_at_inference": meanings["bos_as_at_inference"]}
    gates = [
        Gate(name, faults[name] == 0, faults[name], 0, f"{of} ({counted(count, 'row')})")
        for name, of in meanings.items()
    ]
    pad, eos = prompt.pad_token_id, prompt.eos_token_id
    return [*gates, Gate("pad_is_not_eos", pad != eos, pad, f"not {eos}", "id of the padding; it must not be EOS")], (
        broken
    )


def refuse_rows(gates: Sequence[Gate], broken: Sequence[int], lines: Callable[[], Sequence[int]], path: Path) -> None:
    """Raises GateRefused if a gate of `stops` failed; `lines()`: the CSV line of each row."""
    failed = [gate for gate in gates if not gate.passed]
    if not failed:
        return
    where = ""
    if broken:
        numbers = lines()
        more = f" and {len(broken) - NAMED_ROWS} more" if len(broken) > NAMED_ROWS else ""
        where = "; rows " + ", ".join(str(numbers[i]) for i in broken[:NAMED_ROWS]) + more
    raise GateRefused(
        f"{path}: a model trained on this would not learn to stop: "
        + "; ".join(gate.sentence() for gate in failed)
        + where,
        hint="nothing was trained. Another base model may have a tokenizer that works; for this one, please report a "
        "bug with the rows named here",
    )


def _faults(
    batch: Mapping[str, np.ndarray[Any, Any]], prompt: prompt_format.Prompt, begins_with: int
) -> dict[str, np.ndarray[Any, Any]]:
    """Which rows (B,) of one collated batch (B, T) fail which gate."""
    import numpy as np

    ids, labels, seen = batch["input_ids"], batch["labels"], batch["attention_mask"] == 1
    eos, width = prompt.eos_token_id, ids.shape[1]
    trained = labels != prompt_batch.IGNORED
    last_trained = width - 1 - np.argmax(trained[:, ::-1], axis=1)
    last_seen = width - 1 - np.argmax(seen[:, ::-1], axis=1)
    row = np.arange(len(ids))
    ends = trained.any(1) & (labels[row, last_trained] == eos) & (last_trained == last_seen)
    bos = prompt.backend.token_to_id(prompt.bos_token) if prompt.bos_token else None
    # if BOS and EOS are the same token (GPT-2), those at the row's start are BOS and the one at its end is not
    same = bos == eos
    bos_seen = ((ids == bos) & seen).sum(1) - int(same) if bos is not None else np.zeros(len(ids))
    eos_trained = (labels[:, begins_with if same else 0 :] == eos).sum(1)
    return {
        "eos_is_the_last_label": ~ends,
        "eos_is_trained_once": eos_trained != 1,
        "padding_is_not_trained": (trained & ~seen).any(1)
        | ((ids != prompt.pad_token_id) & ~seen).any(1)
        | ((labels != ids) & trained).any(1),
        "bos_as_at_inference": bos_seen != begins_with,
    }


def _faults_of_two_texts(
    batch: Mapping[str, np.ndarray[Any, Any]], prompt: prompt_format.Prompt, begins_with: int
) -> dict[str, np.ndarray[Any, Any]]:
    """The same for a text that an encoder reads (B, T) and labels that a decoder writes (B, L)."""
    import numpy as np

    ids, labels, seen = batch["input_ids"], batch["labels"], batch["attention_mask"] == 1
    eos, row, trained = prompt.eos_token_id, np.arange(len(ids)), labels != prompt_batch.IGNORED
    last = labels.shape[1] - 1 - np.argmax(trained[:, ::-1], axis=1)
    bos = prompt.backend.token_to_id(prompt.bos_token) if prompt.bos_token else None
    bos_seen = ((ids == bos) & seen).sum(1) if bos is not None else np.zeros(len(ids))
    holes = (~trained & (np.arange(labels.shape[1]) < last[:, None])).any(1)  # before the last label
    return {
        "eos_is_the_last_label": ~(trained.any(1) & (labels[row, last] == eos)) | holes,
        "eos_is_trained_once": (labels == eos).sum(1) != 1,
        "padding_is_not_trained": (labels == prompt.pad_token_id).any(1)
        | ((ids == prompt.pad_token_id) & seen).any(1)
        | ((ids != prompt.pad_token_id) & ~seen).any(1),
        "bos_as_at_inference": bos_seen != begins_with,
    }


_OF_CLASSES = {
    "one_class_is_trained": "train rows without exactly one label, or with one that is no index of a class",
    "padding_is_not_seen": "train rows whose padding is seen, or whose text is not",
}


def _faults_of_classes(
    batch: Mapping[str, np.ndarray[Any, Any]], prompt: prompt_format.Prompt, begins_with: int, *, classes: int
) -> dict[str, np.ndarray[Any, Any]]:
    """The same for a text that an encoder reads (B, T) and the index of its class (B, 1)."""
    import numpy as np

    ids, labels, seen = batch["input_ids"], batch["labels"], batch["attention_mask"] == 1
    bos = prompt.backend.token_to_id(prompt.bos_token) if prompt.bos_token else None
    bos_seen = ((ids == bos) & seen).sum(1) if bos is not None else np.zeros(len(ids))
    is_pad = ids == prompt.pad_token_id
    return {
        "one_class_is_trained": ((labels < 0) | (labels >= classes)).any(1) | (labels.shape[1] != 1),
        "padding_is_not_seen": (is_pad == seen).any(1),
        "bos_as_at_inference": bos_seen != begins_with,
    }


_OF_SPANS = {
    "one_span_is_trained": "windows without one place where the answer begins, and one at or behind it where it ends",
    "padding_is_not_seen": _OF_CLASSES["padding_is_not_seen"],
}


def _faults_of_spans(
    batch: Mapping[str, np.ndarray[Any, Any]], prompt: prompt_format.Prompt, begins_with: int
) -> dict[str, np.ndarray[Any, Any]]:
    """The same for a window that an encoder reads (B, T), and the first and last place of its answer (B, 2).

    A window without the answer has place 0 as both. The second part of the text, where an answer has to be, begins
    behind the first separator.
    """
    import numpy as np

    ids, labels, seen = batch["input_ids"], batch["labels"], batch["attention_mask"] == 1
    bos = prompt.backend.token_to_id(prompt.bos_token) if prompt.bos_token else None
    bos_seen = ((ids == bos) & seen).sum(1) if bos is not None else np.zeros(len(ids))
    wrong = np.full(len(ids), labels.shape[1] != 2)
    if not wrong.any():
        first, last = labels[:, 0], labels[:, 1]
        behind = np.argmax(ids == prompt.eos_token_id, axis=1)
        wrong = ~(((first == 0) & (last == 0)) | ((first > behind) & (first <= last) & (last < seen.sum(1) - 1)))
    return {
        "one_span_is_trained": wrong,
        "padding_is_not_seen": ((ids == prompt.pad_token_id) == seen).any(1),
        "bos_as_at_inference": bos_seen != begins_with,
    }


def _bos_count(prompt: prompt_format.Prompt, ids: Sequence[int]) -> int:
    return ids.count(prompt.backend.token_to_id(prompt.bos_token)) if prompt.bos_token else 0
