"""The facts in an answer, and whether another answer holds exactly those. Pure functions; reads no meaning.

A fact is something whose change makes an answer wrong however alike the words are:

- a number with its sign and unit: "1,000" = "1000" = "１０００", "3만 5천원" = "35,000원", "50 %" = "50퍼센트",
  "2026-05-01" = "2026년 5월 1일" = "May 1, 2026", "오후 3시" = "3 pm" = "15:00". A unit that is not in `UNITS`, or
  missing, agrees with every other;
- a link: a URL, a domain or an e-mail address;
- a name in Latin letters. In an answer that is mostly in another script, every Latin word is one ("Python", "A동").
  Otherwise, words with a capital inside ("iPhone", "NASA") or attached to digits ("KT-500"), and capitalised words
  that do not begin a sentence; in German, where every noun has a capital, only the first two.

Numbers and links count as often as they occur. Names count once, and may stand anywhere and in any case in the other
answer. Not read: number words ("two", "두"), names in other scripts, fenced code, and the numbers of a list. The rules
leave a fact out rather than call a right answer wrong.

>>> right("교환은 7일 안에 됩니다.", "7일 이내에 교환됩니다")
True
>>> right("가구는 29층입니다.", "가구는 19층입니다.")
False
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from appliance.errors import DataError

NamesBy = Literal["script", "capitals", "inner capitals"]  # how the names of a text are told from its other words
Unit = tuple[str, ...]  # () agrees with every unit, ("시",) with ("시", "am")
Number = tuple[Fraction | str, Unit]  # a text where digits are no quantity: a telephone number, a version

# Spelling, in lower case -> unit.
UNITS: dict[str, str] = {
    **dict.fromkeys(("원", "won", "krw", "₩"), "원"),
    **dict.fromkeys(("달러", "불", "dollar", "dollars", "usd", "us$", "$"), "$"),
    **dict.fromkeys(("유로", "euro", "euros", "eur", "€"), "€"),
    **dict.fromkeys(("엔", "yen", "jpy", "¥"), "¥"),
    **dict.fromkeys(("파운드", "gbp", "£"), "£"),
    **dict.fromkeys(("%", "퍼센트", "프로", "percent"), "%"),
    **dict.fromkeys(("%p", "%포인트", "퍼센트포인트"), "%p"),
    **dict.fromkeys(("년", "year", "years"), "년"),
    **dict.fromkeys(("개월", "달", "month", "months"), "개월"),
    **dict.fromkeys(("주", "주일", "주간", "week", "weeks"), "주"),
    **dict.fromkeys(("일", "day", "days"), "일"),
    **dict.fromkeys(("시간", "hour", "hours", "hr", "hrs"), "시간"),
    **dict.fromkeys(("분", "minute", "minutes", "min", "mins"), "분"),
    **dict.fromkeys(("초", "second", "seconds", "sec", "secs"), "초"),
    **dict.fromkeys(("킬로그램", "kg"), "kg"),
    **dict.fromkeys(("그램", "gram", "grams", "g"), "g"),
    **dict.fromkeys(("밀리그램", "mg"), "mg"),
    **dict.fromkeys(("톤", "ton", "tons"), "t"),
    **dict.fromkeys(("킬로미터", "km"), "km"),
    **dict.fromkeys(("미터", "meter", "meters", "metre", "metres", "m"), "m"),
    **dict.fromkeys(("센티미터", "센티", "cm"), "cm"),
    **dict.fromkeys(("밀리미터", "mm"), "mm"),
    **dict.fromkeys(("제곱미터", "m2"), "m2"),
    **dict.fromkeys(("리터", "liter", "liters", "litre", "litres", "l"), "l"),
    **dict.fromkeys(("밀리리터", "ml"), "ml"),
    **dict.fromkeys(("°c", "도"), "도"),
    **dict.fromkeys(("명", "인"), "명"),
    **dict.fromkeys(("살", "세"), "세"),
    **dict.fromkeys(("쪽", "페이지"), "쪽"),
    **dict.fromkeys(("위", "등"), "위"),
    **dict.fromkeys(("개", "pcs"), "개"),
    **{one: one for one in ("월", "층", "번", "호", "장", "권", "대", "병", "잔", "마리", "벌", "회", "배", "점")},
    **{one: one for one in ("평", "인분", "박", "동", "차", "kb", "mb", "gb", "tb", "w", "kw", "kwh", "hz", "ghz")},
}  # fmt: skip
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_POWERS = {"십": 1, "백": 2, "천": 3, "만": 4, "억": 8, "조": 12}
_POWERS_OF_WORDS = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_TAKEN = "\x00"  # in place of what has been read

_LETTER = "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff"  # Latin, unicode.org/Public/UNIDATA/Blocks.txt
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_DECIMAL = rf"{_DIGITS}(?:\.\d+)*"
_MARKS = f"[{''.join(_POWERS)}]"
_TIMES_TEN = rf"{_DECIMAL}{_MARKS}+(?:\ ?{_DECIMAL}{_MARKS}+)*(?:{_DIGITS}|\ (?:\d{{3,4}}|\d,\d{{3}})(?!\d))?"


def _units(pattern: str) -> str:
    """An alternative of the units whose spelling is all of `pattern`, the longest first."""
    found = [unit for unit in UNITS if re.fullmatch(pattern, unit)]
    return "|".join(map(re.escape, sorted(found, key=len, reverse=True)))


_HANGUL_UNIT = _units(r"%?[가-힣]+")
_PARTICLES = "은|는|이|가|을|를|에|까지|부터|이내|간|동안|로|으로|의|도|만|입|이|안|내|후|전|마다|씩|짜리"
_UNIT = (
    rf"\ ?(?:%p|%포인트|%)|\ ?°\ ?[cC]|(?:{_HANGUL_UNIT})|\ (?:{_HANGUL_UNIT})(?=(?:{_PARTICLES})|[^가-힣]|$)"
    rf"|\ ?(?:{_units('[a-z]{2,}[0-9]?')}|[gml])(?![{_LETTER}\d])"
)
_NUMBER = re.compile(
    rf"(?:(?P<sign>(?<![^\s(\[:=~])[-−])?(?P<money>[$₩€¥£]|\b(?:US\$|USD|KRW|EUR|JPY|GBP)\ ?))?"
    rf"(?P<minus>(?<![^\s(\[:=~])[-−])?"
    rf"(?P<value>{_TIMES_TEN}|{_DECIMAL})(?:st|nd|rd|th)?(?![\d])"
    rf"(?:\ (?P<power>{'|'.join(_POWERS_OF_WORDS)})\b)?(?P<unit>{_UNIT})?",
    re.IGNORECASE,
)
_LINK = re.compile(
    r"(?<![\w.+-])[\w.+-]++@[A-Z0-9-]++(?:\.[A-Z0-9-]++)++"
    r"|(?:https?://|www\.)[A-Z0-9\-._~:/?#\[\]@!$&'()*+,;=%]+"
    r"|(?<![A-Z0-9.-])(?:[A-Z0-9-]++\.)++(?:com|net|org|kr|io|dev|jp|cn|gov|edu)\b(?:/[A-Z0-9\-._~:/?#\[\]@!$&'()*+,;=%]*)?",
    re.IGNORECASE | re.ASCII,
)
_DATE = re.compile(r"(?<![\d.])(?P<y>\d{4})(?P<sep>[-./])\ ?(?P<m>\d{1,2})(?P=sep)\ ?(?P<d>\d{1,2})(?!\d)\.?")
_PHONE = re.compile(r"(?<![\d.])0\d{1,2}(?:\)\ ?|[-. ])?\d{3,4}[-. ]?\d{4}(?!\d)")
_MONTH = (
    r"(?P<name>Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sep(?:t(?:ember)?)?"
    r"|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?)\.?"
)
_MONTH_DAY = re.compile(rf"\b{_MONTH}\ (?P<d>\d{{1,2}})(?:st|nd|rd|th)?(?![\d:])")
_DAY_MONTH = re.compile(rf"(?<![\d.])(?P<d>\d{{1,2}})(?:st|nd|rd|th)?\ (?:of\ )?{_MONTH}(?![{_LETTER}])")
_HALF = r"a\.?m\.?|p\.?m\.?"
_CLOCK = re.compile(
    rf"(?:(?P<before>오전|오후)\ ?)?(?<![\d.:])(?P<h>\d{{1,2}})"
    rf"(?:(?::(?P<m>[0-5]\d)(?::[0-5]\d)?(?![\d:])(?:\ ?(?P<half>{_HALF})(?![{_LETTER}]))?)"
    rf"|\ ?(?P<half_alone>{_HALF})(?![{_LETTER}])|시(?!간|리즈)(?P<half_past>\ 반(?![가-힣]))?)",
    re.IGNORECASE,
)
_LISTED = re.compile(r"^[ \t]*(?:\d{1,2}[.)]|[-*•])[ \t]+", re.MULTILINE)
_NOT_READ = re.compile(r"```.*?(?:```|\Z)|[™®©\u2460-\u24ff\u2776-\u2793]", re.DOTALL)
_WORD = re.compile(rf"[{_LETTER}]+(?:[-_.&/'’][{_LETTER}]+)*(?:\+\+|#)?")
_INNER = re.compile(r"[-_.&/'’]")
_ATTACHED = re.compile(f"[-_]?{_TAKEN}")
_I = re.compile(r"I(?:['’]\w+)?")
_SENTENCE_END = tuple(".!?:;…\n")
_OPENING = " \t\"'“‘(«*_-–—•>#" + _TAKEN
# Enough to tell German from its neighbours; not one of them is an English word.
_GERMAN = frozenset(("der", "und", "ist", "nicht", "ein", "eine", "mit", "von", "dem", "im", "zu", "für", "wird"))


@dataclass(frozen=True)
class Facts:
    """What one text holds. `names`: each as its parts in lower case; `words`: every Latin word and part of one."""

    numbers: tuple[Number, ...]
    links: tuple[str, ...]  # sorted
    names: frozenset[tuple[str, ...]]
    words: frozenset[str]

    def __bool__(self) -> bool:
        return bool(self.numbers or self.links or self.names)

    def missing_in(self, other: Facts) -> bool:
        """Whether a name of this text is not in the other: neither its parts nor the whole without its hyphens."""
        return any("".join(parts) not in other.words and not other.words.issuperset(parts) for parts in self.names)


def right(wanted: str, got: str) -> bool | None:
    """Whether `got` holds exactly the facts of `wanted`: none missing, none wrong, none extra. None: it holds none."""
    names_by = _names_by(unicodedata.normalize("NFKC", wanted))
    theirs, ours = read(wanted, names_by), read(got, names_by)
    if not theirs:
        return None
    return (
        theirs.links == ours.links
        and _same_numbers(theirs.numbers, ours.numbers)
        and not theirs.missing_in(ours)
        and not ours.missing_in(theirs)
    )


def refuse_without(answers: Iterable[str]) -> None:
    """Raises DataError: no answer holds a fact, so that none could be judged by its facts."""
    count = 0
    for answer in answers:
        if read(answer, _names_by(unicodedata.normalize("NFKC", answer))):
            return
        count += 1
    no_answer = "the only wanted answer of the test rows does not hold" if count == 1 else ""
    no_answer = no_answer or f"none of the {count} wanted answers of the test rows holds"
    raise DataError(
        f"evaluate.primary is facts_right, but {no_answer} a number, a link or a Latin name",
        hint="choose another metric: --set evaluate.primary=f1, exact_match, rouge_l or chrf",
    )


def read(text: str, names_by: NamesBy) -> Facts:
    """The facts of a text; `names_by` as the wanted answer's language has it, for both answers."""
    text = _LISTED.sub("\n", unicodedata.normalize("NFKC", _NOT_READ.sub(" ", text)))
    words = {part for match in _WORD.finditer(text) for part in _parts_and_whole(match[0])}
    links, text = _links(text)
    numbers, text = _numbers(text)
    return Facts(tuple(numbers), tuple(sorted(links)), frozenset(_names(text, names_by)), frozenset(words))


def _names_by(text: str) -> NamesBy:
    """By script unless at least half of the words with letters have Latin letters only."""
    words = [letters for word in text.split() if (letters := "".join(filter(str.isalpha, word)))]
    latin = [word for word in words if re.fullmatch(f"[{_LETTER}]+", word)]
    if not words or 2 * len(latin) < len(words):
        return "script"
    return "capitals" if _GERMAN.isdisjoint(latin) else "inner capitals"


def _links(text: str) -> tuple[list[str], str]:
    """The links of a text without scheme, "www." and closing slash, the host in lower case; the text without them."""
    found: list[str] = []

    def take(match: re.Match[str]) -> str:
        link = match[0].rstrip(".,;:!?)'\"]*")
        host, slash, path = re.sub(r"^(?:https?://)?(?:www\.)?", "", link, flags=re.IGNORECASE).partition("/")
        found.append((host.casefold() + slash + path).rstrip("/"))
        return _TAKEN * len(link) + match[0][len(link) :]

    return found, _LINK.sub(take, text)


def _numbers(text: str) -> tuple[list[Number], str]:
    """Every number of a text, and the text with _TAKEN in their place. Dates and times become numbers with units."""
    found: list[Number] = []
    for pattern, numbers_of in _READERS:
        rest, end = [], 0
        for match in pattern.finditer(text):
            if numbers := numbers_of(match):
                found += numbers
                rest += [text[end : match.start()], _TAKEN * len(match[0])]
                end = match.end()
        text = "".join([*rest, text[end:]])
    return found, text


def _of_date(match: re.Match[str]) -> list[Number]:
    year, month, day = (int(match[name]) for name in ("y", "m", "d"))
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return []
    return [(Fraction(year), ("년",)), (Fraction(month), ("월",)), (Fraction(day), ("일",))]


def _of_phone(match: re.Match[str]) -> list[Number]:
    return [("".join(re.findall(r"\d", match[0])), ())]


def _of_month_and_day(match: re.Match[str]) -> list[Number]:
    month = _MONTHS.index(match["name"][:3]) + 1
    return [(Fraction(month), ("월",)), (Fraction(int(match["d"])), ("일",))] if 1 <= int(match["d"]) <= 31 else []


def _of_clock(match: re.Match[str]) -> list[Number]:
    """The hour from 1 to 12, with its half of the day if that is known, and the minutes unless they are 0."""
    hour, minutes = int(match["h"]), int(match["m"] or (30 if match["half_past"] else 0))
    if hour > 24:
        return []
    half = {"오전": "am", "오후": "pm"}.get(match["before"] or "")
    half = half or (match["half"] or match["half_alone"] or "").lower().replace(".", "") or None
    if hour == 0 or 12 < hour < 24:
        half, hour = half or ("pm" if hour else "am"), hour - 12 if hour else 12
    found: list[Number] = [(Fraction(hour), ("시", half) if half else ("시",))]
    return found + [(Fraction(minutes), ("분",))] * bool(minutes)


def _of_number(match: re.Match[str]) -> list[Number]:
    value = _value(match["value"])
    if isinstance(value, Fraction):
        value *= 10 ** _POWERS_OF_WORDS.get((match["power"] or "").lower(), 0)
        value = -value if match["sign"] or match["minus"] else value
    spelling = (match["unit"] or match["money"] or "").strip().lower().replace("° ", "°")
    unit = UNITS.get(spelling)
    return [(value, (unit,) if unit else ())]


_READERS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], list[Number]]], ...] = (
    (_DATE, _of_date),
    (_PHONE, _of_phone),
    (_MONTH_DAY, _of_month_and_day),
    (_DAY_MONTH, _of_month_and_day),
    (_CLOCK, _of_clock),
    (_NUMBER, _of_number),
)


def _value(text: str) -> Fraction | str:
    """A quantity, exactly; the text itself if it is a version ("2.1.3"), or digits that begin with 0 or never end."""
    plain = text.replace(",", "")
    if re.search(_MARKS, plain):
        return _with_powers(plain)
    is_code = plain.count(".") > 1 or len(plain) > 40 or (len(plain) > 8 and plain[0] == "0" and plain.isdigit())
    return plain if is_code else Fraction(plain)


def _with_powers(text: str) -> Fraction | str:
    """Digits with Korean powers of ten, by position: "3만5천", "1억 2000만", "1천500만"."""
    total = section = Fraction(0)
    for number, marks in re.findall(rf"(\d+(?:\.\d+)?)({_MARKS}*)", text):
        if len(number) > 40:
            return text
        value = Fraction(number)
        for mark in marks:
            if _POWERS[mark] < 4:
                value *= 10 ** _POWERS[mark]
            else:
                total += (section + value) * 10 ** _POWERS[mark]
                section = value = Fraction(0)
        section += value
    return total + section


def _same_numbers(wanted: Sequence[Number], got: Sequence[Number]) -> bool:
    """Whether each number of one has its own partner in the other: the same value and a unit that agrees.

    Units form a tree, the most specific one at the leaves. To pair equal ones first, then those, each with the most
    specific one left, leaves no pair out that another order would find.
    """
    if Counter(value for value, _ in wanted) != Counter(value for value, _ in got):
        return False
    equal = Counter(wanted) & Counter(got)
    left = list((Counter(got) - equal).elements())
    for value, unit in sorted((Counter(wanted) - equal).elements(), key=lambda number: -len(number[1])):
        fitting = [one for one in left if one[0] == value and _agree(unit, one[1])]
        if not fitting:
            return False
        left.remove(max(fitting, key=lambda number: len(number[1])))
    return True


def _agree(one: Unit, other: Unit) -> bool:
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


def _names(text: str, names_by: NamesBy) -> Iterator[tuple[str, ...]]:
    """Names among the Latin words of a text in which numbers are _TAKEN."""
    end = 0  # of the word before
    for match in _WORD.finditer(text):
        word, between = match[0], text[end : match.start()].rstrip(_OPENING)
        begins_sentence = between.endswith(_SENTENCE_END) if between or end else True
        end = match.end()
        if (
            names_by == "script"
            or any(map(str.isupper, word[1:]))
            or text[match.start() - 1 : match.start()] == _TAKEN
            or _ATTACHED.match(text, end)
            or (names_by == "capitals" and word[0].isupper() and not begins_sentence and not _I.fullmatch(word))
        ):
            yield tuple(part for part in _INNER.split(word.casefold()) if part)


def _parts_and_whole(word: str) -> list[str]:
    parts = [part for part in _INNER.split(word.casefold()) if part]
    return [*parts, "".join(parts)]
