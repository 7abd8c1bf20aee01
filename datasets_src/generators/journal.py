"""What a generator has already paid for: every reply, on disk before the next request is sent.

Sits between a generator, which calls `list[str] -> list[str]`, and what answers it (an endpoint, a local model). Knows
neither. A reply is looked up by model, parameters, prompt and how often that prompt was asked before, so that a
generator that was killed goes through the same steps again, and only new requests are sent.

    with opened(Path("out.csv.journal.jsonl"), backend, {"model": "m", "temperature": 0.7}) as journal:
        replies = journal.ask(["first prompt", "second prompt"])
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from io import FileIO
from pathlib import Path

from datasets_src.pairs import SourceError

Ask = Callable[[list[str]], list[str]]  # all that a generator knows about a model


class Unusable(str):
    """A reply that must not be used, with the reason: the model did not finish it, or refused to give it."""

    reason: str

    def __new__(cls, text: str, reason: str) -> Unusable:
        made = super().__new__(cls, text)
        made.reason = reason
        return made


@dataclass(frozen=True)
class Request:
    """One prompt to answer. `attempt`: how often this very prompt was asked before in this run."""

    prompt: str
    attempt: int


# Answers requests in any order, from any thread: calls back with a request's index and its reply.
Backend = Callable[[Sequence[Request], Callable[[int, str], None]], None]


def path_beside(out_path: Path) -> Path:
    """The journal that belongs to the CSV `out_path`."""
    return out_path.with_name(out_path.name + ".journal.jsonl")


class Journal:
    """An open journal. `known`: replies found in it; `asked`: requests answered since; `reused`: taken from it."""

    def __init__(
        self,
        path: Path,
        file: FileIO,
        replies: dict[str, str],
        backend: Backend,
        asked_with: str,
        on_reply: Callable[[], None],
    ) -> None:
        self.path = path
        self.known, self.asked, self.reused = len(replies), 0, 0
        self._file, self._replies, self._backend = file, replies, backend
        self._asked_with, self._on_reply = asked_with, on_reply
        self._attempts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def ask(self, prompts: list[str]) -> list[str]:
        """The replies in the order of `prompts`; what the journal has is not asked for again.

        Raises whatever the backend raises. The replies that arrived before that are in the journal.
        """
        requests = []
        for prompt in prompts:
            requests.append(Request(prompt, self._attempts[prompt]))
            self._attempts[prompt] += 1
        keys = [_key(self._asked_with, request) for request in requests]
        missing = [i for i, key in enumerate(keys) if key not in self._replies]
        for _ in range(len(keys) - len(missing)):
            self.reused += 1
            self._on_reply()
        if missing:
            sent = [requests[i] for i in missing]
            self._backend(sent, lambda i, reply: self._keep(keys[missing[i]], sent[i], reply))
        return [self._replies[key] for key in keys]

    def remove(self) -> None:
        """Deletes the journal, once the CSV is complete."""
        self.path.unlink(missing_ok=True)

    def _keep(self, key: str, request: Request, reply: str) -> None:
        reason = reply.reason if isinstance(reply, Unusable) else None
        text = reply.encode("utf-8", "replace").decode()  # JSON can carry half a surrogate pair, which no file can
        entry = {"key": key, "prompt": request.prompt, "reply": text, "unusable": reason}
        with self._lock:
            self._append(json.dumps(entry, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            self._replies[key] = text if reason is None else Unusable(text, reason)
            self.asked += 1
            self._on_reply()

    def _append(self, line: bytes) -> None:
        """A whole line or nothing: half a line, on a full disk, would spoil the next one from another thread."""
        end = self._file.seek(0, os.SEEK_END)
        try:
            while line:
                line = line[self._file.write(line) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            error.filename = str(self.path)  # a full disk names no file
            self._file.truncate(end)
            raise


@contextmanager
def opened(
    path: Path, backend: Backend, asked_with: Mapping[str, object], *, on_reply: Callable[[], None] = lambda: None
) -> Iterator[Journal]:
    """The journal at `path`, created if missing, locked against other processes while the block runs.

    `asked_with`: the model and the parameters that its replies depend on. `on_reply` is called once for each reply,
    kept or new, never by two threads at once. Raises SourceError: another process has it open, or it is damaged.
    """
    file = _locked(path)
    try:
        replies, end = _read(path)
        file.truncate(end)  # what a kill left half-written
        yield Journal(path, file, replies, backend, _canonical(asked_with), on_reply)
    finally:
        if os.fstat(file.fileno()).st_size == 0:  # no reply at all: the endpoint refused, or nothing was asked
            path.unlink(missing_ok=True)
        file.close()  # and the lock with it


def paid_for(path: Path, asked_with: Mapping[str, object], prompts: Sequence[str]) -> int:
    """How many of `prompts`, each asked for once, the journal at `path` can answer. Changes nothing.

    Raises SourceError: it is damaged.
    """
    if not path.is_file():
        return 0
    replies, _ = _read(path)
    return sum(_key(_canonical(asked_with), Request(prompt, 0)) in replies for prompt in prompts)


def _locked(path: Path) -> FileIO:
    while True:
        file = path.open("ab", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            if not isinstance(error, BlockingIOError):
                raise
            raise SourceError(
                f"{path} is open in another process, which writes the same file", hint="wait until it has finished"
            ) from error
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()  # its owner finished and removed it between our opening and locking


def _read(path: Path) -> tuple[dict[str, str], int]:
    """The replies by key, and where the last whole line ends."""
    replies: dict[str, str] = {}
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                entry = json.loads(line)
                key, reply, reason = entry["key"], entry["reply"], entry["unusable"]
            except (ValueError, TypeError, KeyError) as error:
                raise SourceError(
                    f"{path}, line {number}: expected one reply as a JSON object, found {line[:40]!r}",
                    hint="delete that line to ask for its reply again, or the file to ask for everything again",
                ) from error
            replies[key] = reply if reason is None else Unusable(reply, reason)
            end += len(line)
    return replies, end


def _canonical(values: Mapping[str, object]) -> str:
    return json.dumps(dict(values), ensure_ascii=False, sort_keys=True)


def _key(asked_with: str, request: Request) -> str:
    text = json.dumps([asked_with, request.prompt, request.attempt])
    return blake2b(text.encode(), digest_size=16).hexdigest()
