"""A GGUF file in llama.cpp: ids of a text, logits in a place, greedy answers. Imports llama_cpp when called.

Uses llama.cpp's own C interface (llama.h), which llama-cpp-python wraps one to one: the library's own class keeps the
logits of all positions at once, 1 MB a position at a vocabulary of 262,144.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.errors import GateRefused

if TYPE_CHECKING:
    import numpy as np


_SHOWN = 60  # characters of the end of a text that is named


class Vocabulary:
    """The tokenizer of a loaded file."""

    def __init__(self, model: Any) -> None:
        import llama_cpp

        self._lib, self._vocabulary = llama_cpp, llama_cpp.llama_model_get_vocab(model)
        self.size = int(llama_cpp.llama_vocab_n_tokens(self._vocabulary))

    def ids_of(self, text: str, *, add_special: bool) -> list[int]:
        """As a server would: special tokens that are spelled out in the text are parsed."""
        encoded = text.encode()
        capacity = len(encoded) + 8
        ids = (self._lib.llama_token * capacity)()
        count = self._lib.llama_tokenize(self._vocabulary, encoded, len(encoded), ids, capacity, add_special, True)
        if count < 0:
            raise GateRefused(f"llama.cpp cannot tokenize {text[:40]!r}")
        return list(ids[:count])

    def others(self, texts: Sequence[tuple[str, Sequence[int]]]) -> list[str]:
        """The ends of those texts that become other ids. `texts`: without BOS, with the ids that were trained.

        If the file does not ask for BOS, a chat template that begins with it brings it.
        """
        adds, bos = self._lib.llama_vocab_get_add_bos(self._vocabulary), self._lib.llama_vocab_bos(self._vocabulary)
        found = []
        for text, ids in texts:
            begins = [bos] if not adds and list(ids)[:1] == [bos] else []
            if [*begins, *self.ids_of(text, add_special=True)] != list(ids):
                found.append(text[-_SHOWN:])
        return found


class LlamaCppModel(Vocabulary):
    """One loaded file and its cache, for sequences of at most `room` tokens."""

    def __init__(self, model: Any, context: Any, room: int) -> None:
        super().__init__(model)
        self._model, self._context, self._room = model, context, room
        self._batch = self._lib.llama_batch_init(room, 0, 1)

    def forget(self) -> None:
        """An empty cache: the next tokens begin a sequence."""
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)

    def read(self, ids: Sequence[int], start: int, wanted: Sequence[int]) -> Iterator[np.ndarray]:
        """Feeds `ids`, which begin at position `start`; logits (V,) float32 at each index in `wanted`, ascending."""
        import numpy as np

        batch, chosen = self._batch, set(wanted)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, start + i, 1
            batch.seq_id[i][0], batch.logits[i] = 0, i in chosen
        if code := self._lib.llama_decode(self._context, batch):
            raise GateRefused(f"llama.cpp cannot compute {len(ids)} tokens (llama_decode: {code})")
        for i in sorted(chosen):
            logits = self._lib.llama_get_logits_ith(self._context, i)
            yield np.array(np.ctypeslib.as_array(logits, (self.size,)))

    def answer(self, prompt: Sequence[int], limit: int, ends: Callable[[list[int]], bool]) -> list[int]:
        """The likeliest tokens after the prompt, until `ends` of them is true, `limit` of them, or a full cache."""
        self.forget()
        (logits,) = self.read(prompt, 0, [len(prompt) - 1])
        given: list[int] = []
        while True:
            given.append(int(logits.argmax()))
            if ends(given) or len(given) >= limit or len(prompt) + len(given) >= self._room:
                return given
            (logits,) = self.read(given[-1:], len(prompt) + len(given) - 1, [0])

    def close(self) -> None:
        """Frees it."""
        self._lib.llama_batch_free(self._batch)
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)


@contextmanager
def vocabulary(path: Path) -> Iterator[Vocabulary]:
    """The tokenizer of a file that may have no tensors. Raises GateRefused: llama.cpp does not load it."""
    import llama_cpp

    with _silence():
        model = _load(path, vocab_only=True)
        try:
            yield Vocabulary(model)
        finally:
            llama_cpp.llama_model_free(model)


@contextmanager
def loaded(path: Path, room: int, threads: int) -> Iterator[LlamaCppModel]:
    """The file, loaded on the CPU: the same on every machine. `room`: tokens of the longest sequence.

    Raises GateRefused: llama.cpp does not load it.
    """
    import llama_cpp

    with _silence():
        model = _load(path, vocab_only=False)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = room
        params.n_threads = params.n_threads_batch = threads
        context = llama_cpp.llama_init_from_model(model, params)
        if not context:
            llama_cpp.llama_model_free(model)
            raise GateRefused(f"llama.cpp has no room for {room} tokens of {path.name}")
        opened = LlamaCppModel(model, context, room)
        try:
            yield opened
        finally:
            opened.close()


def _load(path: Path, *, vocab_only: bool) -> Any:
    import llama_cpp

    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers, params.vocab_only = 0, vocab_only
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise GateRefused(f"llama.cpp does not load {path.name}")
    return model


@contextmanager
def _silence() -> Iterator[None]:
    """No log of llama.cpp; its callback lives as long as the block."""
    import llama_cpp

    quiet = llama_cpp.llama_log_callback(_ignore)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    yield


def _ignore(level: int, text: bytes, data: object) -> None:
    """llama.cpp's log is long, and names the file's whole path."""
