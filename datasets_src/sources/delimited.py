"""Lines of text -> pairs: `question|answer`, split at a separator or at a regular expression, or matched by one.

배송은 얼마나 걸리나요?|보통 이틀 걸립니다.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from datasets_src.pairs import Dropped, Pair, SourceError, usable
from datasets_src.sources.texts import text_lines

BLANK_LINE = "blank line"
NO_SEPARATOR = "no separator in the line"
NO_MATCH = "the pattern does not match the line"
IN_MARKER = "the line is split inside or after a marker"
FURTHER_SEPARATORS = "lines_with_further_separators"
_PIPE = r"a literal pipe is written \| in a regular expression; --separator '|' takes it as it is"
_GROUPS = {"question", "answer", "input"}
_MARKER = re.compile(r"<\|[^|<>\s]+\|>")
_OTHER_CUTS = "another separator: --separator TEXT or --pattern REGEX"


def pairs(
    path: Path, *, separator: str = "|", pattern: str | None = None, counts: Counter[str] | None = None
) -> Iterator[Pair | Dropped]:
    """One item per line. Streams; whitespace around question and answer is stripped.

    A line is split at the first `separator` (\\t means a tab), or, with `pattern`, at the first match of that regular
    expression. A pattern with the named groups `question` and `answer` (and `input`, if wanted) has to match the whole
    line instead. `counts` receives how many lines contain a further separator, which stays in the answer.
    Raises SourceError: no such file, other content, a line that is not text or is a marker such as those of `qa_text`,
    an unusable separator or pattern; and at the end, if more than half of the lines are not pairs.
    """
    counts = Counter() if counts is None else counts
    parse = _parser(separator, pattern, counts)
    lines = unfit = 0
    example, marked = "", False
    for number, line in text_lines(path, "text with one question and answer per line"):
        where = f"line {number}"
        if not line.strip():
            yield Dropped(where, BLANK_LINE)
            continue
        if _MARKER.fullmatch(line.strip()):
            raise _marked(path, f"{path}, {where}: the marker {line.strip()} instead of a question and its answer")
        lines += 1
        pair = parse(line)
        if isinstance(pair, Pair):
            yield usable(where, pair)
            continue
        example = example or f"{where}: {_shown(line)}"
        unfit, marked = unfit + 1, marked or _MARKER.search(line) is not None
        yield Dropped(where, pair)
    if 2 * unfit > lines:
        by = f"--separator {separator!r}" if pattern is None else f"--pattern {pattern!r}"
        of_all = f"{unfit} of {lines} line{'s' * (lines != 1)}"
        said = f"{path}: {by} finds no question and answer in {of_all}, the first being {example}"
        if marked:
            raise _marked(path, said)
        raise SourceError(said, hint=f"name {_OTHER_CUTS}; or leave only lines that are pairs in the file")


def _marked(path: Path, message: str) -> SourceError:
    return SourceError(
        message,
        hint=f"text with markers is read by `appliance dataset qa-text {path} OUT.csv`; otherwise name {_OTHER_CUTS}",
    )


def _shown(line: str) -> str:
    return repr(line if len(line) <= 60 else line[:59] + "…")


def _parser(separator: str, pattern: str | None, counts: Counter[str]) -> Callable[[str], Pair | str]:
    """What turns a line into a pair, or says why it is not one."""
    if pattern is None:
        separator = separator.replace("\\t", "\t")
        if not separator or "\n" in separator or "\r" in separator:
            raise SourceError(f"--separator {separator!r}: expected one or more characters within a line")
        return _splitter(re.compile(re.escape(separator)), counts)
    try:
        compiled = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        position = f" at character {error.pos + 1}" if isinstance(error, re.error) and error.pos is not None else ""
        raise SourceError(
            f"--pattern {pattern!r}: not a regular expression{position}: {getattr(error, 'msg', error)}",
            hint=_PIPE,
        ) from error
    if compiled.groupindex:
        _require_groups(pattern, set(compiled.groupindex))
        return _matcher(compiled)
    if compiled.search("") is not None:
        raise SourceError(
            f"--pattern {pattern!r}: matches the empty string, so it separates nothing",
            hint=_PIPE,
        )
    if re.search(r"(?<!\\)\|", pattern) and compiled.fullmatch(" "):
        raise SourceError(
            f"--pattern {pattern!r}: a bare | means `or`, so this splits at the first space",
            hint=_PIPE,
        )
    return _splitter(compiled, counts)


def _splitter(compiled: re.Pattern[str], counts: Counter[str]) -> Callable[[str], Pair | str]:
    counts[FURTHER_SEPARATORS] = 0

    def split(line: str) -> Pair | str:
        found = compiled.search(line)
        if found is None:
            return NO_SEPARATOR
        if "<|" in line and _cuts_marker(line, found):
            return IN_MARKER
        counts[FURTHER_SEPARATORS] += compiled.search(line, found.end()) is not None
        return Pair(line[: found.start()].strip(), line[found.end() :].strip())

    return split


def _cuts_marker(line: str, found: re.Match[str]) -> bool:
    """Whether the question would begin with a marker, or this separator is only a part of one."""
    if _MARKER.match(line.lstrip()):
        return True
    inside = [marker.span() for marker in _MARKER.finditer(line)]
    return any(start <= found.start() and found.end() <= end and found.span() != (start, end) for start, end in inside)


def _matcher(compiled: re.Pattern[str]) -> Callable[[str], Pair | str]:
    def match(line: str) -> Pair | str:
        found = compiled.fullmatch(line)
        if found is None:
            return NO_MATCH
        texts = {name: (text or "").strip() for name, text in found.groupdict().items()}
        return Pair(texts["question"], texts["answer"], texts.get("input", ""))

    return match


def _require_groups(pattern: str, names: set[str]) -> None:
    if not {"question", "answer"} <= names <= _GROUPS:
        raise SourceError(
            f"--pattern {pattern!r}: has the named groups {', '.join(sorted(names))}; "
            "expected question and answer, input if wanted, or none at all",
            hint=r"for example --pattern 'Q: (?P<question>.+?) A: (?P<answer>.+)'",
        )
