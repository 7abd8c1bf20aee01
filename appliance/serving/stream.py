"""Stream an answer as text while it is generated."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

_HALF = "\ufffd"  # what the bytes of an incomplete character decode to


class Stream:
    """Turns the ids of an answer so far into text. Text that has been shown is never taken back.

    transformers' TextStreamer does not handle stop texts, and with Hangul it waits for the end of the word.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        ends: Collection[int],
        stop: Sequence[str],
        write: Callable[[str], None] | None,
    ) -> None:
        self.stopped = False
        self.tokens = 0
        self._decode, self._ends, self._stop, self._write = decode, ends, stop, write
        self._text = self._shown = ""

    def feed(self, ids: list[int]) -> bool:
        """Take all ids of the answer so far; return whether it has ended, in EOS or in a stop text."""
        self.tokens = len(ids)
        ended = bool(ids) and ids[-1] in self._ends
        text = self._decode(ids[:-1] if ended else ids).lstrip()
        cuts = [position for position in (text.find(stop) for stop in self._stop) if position >= 0]
        self.stopped = ended or bool(cuts)
        self._text = text[: min(cuts)] if cuts else text
        if not self.stopped:
            self._show(self._settled(text))
        return self.stopped

    def finish(self) -> str:
        """Show the rest and return the whole answer, stripped; one that was cut off loses its incomplete character."""
        text = (self._text if self.stopped else self._text.rstrip(_HALF)).rstrip()
        self._show(text)
        return text

    def _settled(self, text: str) -> str:
        """The part of an unfinished answer that later tokens cannot change."""
        text = text.rstrip(_HALF)
        begun = (stop[:length] for stop in self._stop for length in range(1, len(stop)))
        held = max((len(part) for part in begun if text.endswith(part)), default=0)
        return text[: len(text) - held].rstrip()

    def _show(self, text: str) -> None:
        # Tokenizers with byte fallback decode a whole run of bytes to replacement characters while it is incomplete, so
        # the text may briefly get shorter.
        if self._write and len(text) > len(self._shown) and text.startswith(self._shown):
            self._write(text[len(self._shown) :])
            self._shown = text
