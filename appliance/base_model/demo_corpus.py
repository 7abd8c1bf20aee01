"""The invented Korean questions and answers that the demo's base model is pretrained on.

Owns word lists, sentence patterns and Korean particles. Must not know models, tokenizers, the prompt format or the
demo's CSV: a model learns here what an answer looks like and that it repeats the name in the question. Names are mostly
random syllables and values are drawn at random, so there is no fact to remember, only the pattern.

>>> pairs(3, seed=0) == pairs(3, seed=0)
True
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

# The 2,350 syllables of KS X 1001, in which nearly all Korean text is written: lead bytes B0-C8, trail bytes A1-FE.
SYLLABLES = bytes(b for lead in range(0xB0, 0xC9) for trail in range(0xA1, 0xFF) for b in (lead, trail)).decode(
    "euc_kr"
)


@dataclass(frozen=True)
class Pair:
    """One invented question with its answer, in the three columns of a CSV row."""

    instruction: str
    input: str
    output: str


def pairs(count: int, seed: int) -> list[Pair]:
    """`count` invented pairs: the same for the same `seed` on every machine."""
    rng = random.Random(seed)
    return [_pair(rng) for _ in range(count)]


def _pair(rng: random.Random) -> Pair:
    pattern = rng.choice(_PATTERNS)
    blanks = {"n": _name(rng, pattern.kind), "v": Word(pattern.value(rng)), "u": Word(rng.choice(_UNITS))}
    if rng.random() < 0.35:
        attribute = Word(rng.choice(pattern.attributes).format(**blanks))
        question = f"{blanks['n']} {rng.choice(_ASKING).format(a=attribute)}"
    else:
        question = rng.choice(pattern.questions).format(**blanks)
    if rng.random() < 0.3:
        question = rng.choice(_LEADS).format(o=_name(rng, "thing"), p=_name(rng, "place")) + " " + question
    answer = pattern.answer.format(**blanks)
    if rng.random() < 0.12:
        return Pair(rng.choice(_ERRANDS), question, answer)
    return Pair(question, "", answer)


class Word(str):
    """Text whose format spec is a particle: f"{Word('꿀'):은}" is "꿀은", f"{Word('모자'):은}" is "모자는"."""

    __slots__ = ()

    def __format__(self, particle: str) -> str:
        if particle in ("", "도", "만", "에는"):
            return self + particle
        # Hangul syllables are coded as 28 finals in a row: remainder 0 is an open syllable, 8 the final ㄹ.
        final = (ord(self[-1]) - 0xAC00) % 28
        if particle == "으로":
            return self + ("로" if final in (0, 8) else "으로")
        closed, opened = {"은": ("은", "는"), "이": ("이", "가"), "을": ("을", "를")}[particle]
        return self + (closed if final else opened)


def _name(rng: random.Random, kind: str) -> Word:
    """A name for a thing, place or service: mostly invented, so that it can only be copied from the question."""
    real = rng.choice(_NAMES[kind])
    draw = rng.random()
    if draw < 0.15:
        return Word(real)
    if draw < 0.3:
        return Word(f"{rng.choice(_ADJECTIVES)} {real}")
    # Every syllable occurs, the usual ones more often.
    syllables = SYLLABLES if rng.random() < 0.4 else _COMMON
    invented = "".join(rng.choices(syllables, k=rng.choice((1, 2, 2, 3, 3, 4, 5))))
    if draw < 0.45:
        return Word(f"{invented} {real}")
    if draw < 0.6:
        return Word(f"{rng.choice(_ADJECTIVES)} {invented}")
    return Word(invented)


def _clock(rng: random.Random) -> str:
    half_day = rng.choice(("새벽", "오전", "낮", "오후", "저녁", "밤"))
    return f"{half_day} {rng.randrange(1, 13)}시" + rng.choice(("", "", " 반"))


def _period(rng: random.Random) -> str:
    counted = (f"{rng.randrange(2, 60)}일", f"{rng.randrange(2, 12)}주", f"{rng.randrange(2, 20)}개월")
    return rng.choice((*counted, "하루", "이틀", "나흘", "닷새", "보름"))


def _days(rng: random.Random) -> str:
    first, second = rng.sample(_DAYS, 2)
    return rng.choice((f"매주 {first}", f"{first}과 {second}", f"매달 {rng.choice('첫셋넷')}째 주 {first}"))


def _phone(rng: random.Random) -> str:
    return f"{rng.choice(('031', '042', '051', '062', '070'))}-{rng.randrange(200, 1000)}-{rng.randrange(10000):04}"


def _spot(rng: random.Random) -> str:
    return rng.choice(("", "", f"{rng.randrange(1, 10)}층 ", f"{rng.randrange(1, 30)}번 ")) + rng.choice(_SPOTS)


# What an answer states, under the names that the table of patterns uses.
_VALUES: dict[str, Callable[[random.Random], str]] = {
    "won": lambda rng: f"{rng.randrange(3, 400) * rng.choice((50, 100, 100, 1000)):,}",
    "hours": lambda rng: f"{_clock(rng)}부터 {_clock(rng)}까지",
    "clock": _clock,
    "period": _period,
    "days": _days,
    "phone": _phone,
    "spot": _spot,
    "town": lambda rng: rng.choice(_TOWNS),
    "material": lambda rng: rng.choice(_MATERIALS),
    "count": lambda rng: str(rng.randrange(2, 500)),
    "percent": lambda rng: str(rng.randrange(2, 90)),
    "minutes": lambda rng: str(rng.randrange(2, 90)),
    "teacher": lambda rng: rng.choice(_SURNAMES) + "".join(rng.choices(_GIVEN, k=2)),
    "password": lambda rng: "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=5)) + f"{rng.randrange(100):02}",
}


@dataclass(frozen=True)
class _Pattern:
    kind: str  # of name
    value: Callable[[random.Random], str]
    answer: str
    attributes: tuple[str, ...]  # what is asked about a name; _ASKING makes the question
    questions: tuple[str, ...]


def _pattern(block: str) -> _Pattern:
    """One block of the table of patterns: "kind | value | answer", attributes, questions."""
    head, attributes, questions = block.split("\n", 2)
    kind, value, answer = head.split(" | ")
    return _Pattern(kind, _VALUES[value], answer, tuple(attributes.split(", ")), _listed(questions, "/"))


def _listed(text: str, separator: str = ",") -> tuple[str, ...]:
    return tuple(" ".join(entry.split()) for entry in text.split(separator))


# Things, places and services that the demo's CSV does not ask about.
_THINGS = _listed("""
    가위, 거울, 국수, 귤, 깃발, 꿀, 나침반, 냄비, 녹차, 달력, 당근, 대추, 돋보기, 마늘, 만두, 매실, 머리띠, 모자,
    목도리, 무릎 담요, 물감, 미역, 방석, 배추, 버섯, 벽시계, 보리차, 부채, 붓, 비누, 빗자루, 사다리, 사탕, 새우,
    색종이, 소금, 손수건, 손전등, 수박, 숟가락, 시금치, 식초, 안경, 앞치마, 양초, 양파, 연필, 열쇠고리, 오이,
    옥수수, 옷걸이, 요구르트, 우표, 육포, 의자, 이불, 자물쇠, 장갑, 장난감, 전구, 접시, 젓가락, 조개, 주전자, 쟁반,
    지우개, 지팡이, 찹쌀떡, 책갈피, 천막, 초콜릿, 치약, 칫솔, 컵, 콩나물, 탁자, 토마토, 팔찌, 팽이, 포도, 필통,
    호두
""")
_PLACES = _listed("""
    강당, 공연장, 공원, 극장, 기념관, 농구장, 도서관, 동물원, 매표소, 미술관, 박물관, 보건소, 분식집, 사무실,
    사진관, 세탁소, 수목원, 수영장, 식물원, 안내소, 야영장, 약국, 여행사, 연습실, 열람실, 온실, 우체국, 음악실,
    이발소, 자료실, 전망대, 전시실, 정류장, 찻집, 천문대, 체육관, 축구장, 학원
""")
_SERVICES = _listed("""
    강습, 견학, 관람, 교육, 녹음, 대여, 면접, 물품 보관, 번역, 봉사 활동, 사진 촬영, 상담, 설치, 세차, 수리, 수선,
    숙박, 시식, 야간 개장, 연주, 염색, 예방 접종, 이사, 인쇄, 입장, 자전거 대여, 조립, 증명서 발급, 청소, 체험,
    출장, 캠프, 코팅, 통역, 투어, 특강, 해설, 환전, 회의실 대여
""")
_NAMES = {"thing": _THINGS, "place": _PLACES, "service": _SERVICES}
_ADJECTIVES = _listed("""
    가벼운, 구운, 귀여운, 납작한, 노란, 달콤한, 동그란, 두꺼운, 말린, 매운, 맑은, 무거운, 볶은, 부드러운, 빨간,
    삶은, 새로운, 시원한, 얇은, 어린이, 오래된, 유기농, 작은, 접이식, 주황색, 커다란, 튼튼한, 특대, 파란, 푸른,
    하얀, 휴대용
""")
_UNITS = _listed("""
    한 개, 한 권, 한 그릇, 한 다발, 한 마리, 한 묶음, 한 벌, 한 세트, 한 자루, 한 장, 한 접시, 한 켤레, 한 통,
    두 개, 세 장, 다섯 병
""")
_TOWNS: tuple[str, ...] = _listed("""
    강릉, 거제, 고흥, 공주, 광양, 구례, 군산, 나주, 남해, 논산, 단양, 담양, 당진, 무안, 문경, 보성, 봉화, 부안,
    상주, 서산, 속초, 순천, 신안, 안동, 양양, 여수, 영덕, 영월, 완도, 울릉, 의성, 이천, 인제, 임실, 장흥, 정선,
    진도, 철원, 충주, 통영, 평창, 포천, 하동, 함양, 해남, 홍천, 횡성
""")
_SPOTS = _listed("""
    강 건너편, 본관 계단 밑, 골목 끝, 광장 가운데, 극장 맞은편, 기둥 뒤, 난로 옆, 나무 아래, 다락방, 문 바깥쪽,
    복도 끝, 본관 로비, 분수대 옆, 사물함 위, 신관 옥상, 안내판 옆, 연못가, 왼쪽 구석, 왼쪽 서랍, 유리문 안쪽,
    장독대 옆, 정문 앞, 정원 안쪽, 중앙 통로, 창가, 창고 안, 책상 위, 파란 상자 안, 현관 옆, 후문 밖, 오른쪽 선반,
    승강기 앞, 뒷마당
""")
_MATERIALS: tuple[str, ...] = _listed("""
    가죽, 나무, 대나무, 돌, 모시, 비단, 쇠, 양털, 유리, 은, 종이, 청동, 흙, 옥수수 전분, 삼베, 한지, 자개, 진흙
""")
_DAYS = _listed("월요일, 화요일, 수요일, 목요일, 금요일, 토요일, 일요일")
_SURNAMES = "강고권김남류문박배서송신안양오유윤이임장전정조차최한허홍황"
_GIVEN = "가건나다도라미민보서선소수아연영우원유윤은인재정주준지진하현혜호"
_WORDS = (*_THINGS, *_PLACES, *_SERVICES, *_ADJECTIVES, *_TOWNS, *_SPOTS, *_MATERIALS)
_COMMON = sorted({syllable for word in _WORDS for syllable in word} - {" "})
# What a question may start with. {o} and {p} are other names, which the answer must not repeat.
_LEADS = _listed(
    """
    저기요, / 혹시 / 실례지만 / 그런데 / 하나만 여쭐게요. / 다시 여쭙니다. / {o:을} 샀는데, /
    {o:이} 좋아서 그러는데, / {p}에서 왔는데, / {p}에 가는 길인데, / 비가 오는데, / 아이와 함께인데, /
    처음이라 그런데, / 친구가 부탁했는데, / 내일 / 이번 주 / 오늘 / {o:은} 알겠는데, / 바빠서 그러는데, /
    어제도 물어봤는데,
    """,
    "/",
)
# Instructions that go with a question in the input column.
_ERRANDS = _listed(
    """
    방문객의 물음에 답해 주세요. / 다음 문의에 안내원처럼 답해 주세요. / 아래 질문에 짧게 답변해 주세요. /
    다음 질문에 답해 주세요. / 이용자가 남긴 질문에 답변해 주세요.
    """,
    "/",
)
_ASKING = _listed(
    """
    {a:이} 어떻게 되나요? / {a:을} 알려 주세요. / {a} 좀 알려 주세요. / {a:이} 궁금해요. / {a:을} 알고 싶어요. /
    {a:을} 알 수 있을까요? / {a:은} 뭐예요? / {a}? / {a:이} 정해져 있나요? / {a:은} 누구에게 묻나요? /
    {a:을} 모르겠어요. / {a:이} 궁금합니다.
    """,
    "/",
)

# kind of name | value | answer, then attributes, then questions. {n} is the asked name, {v} the value, {u} a unit; what
# follows the colon is a particle.
_PATTERNS = tuple(
    _pattern(block)
    for block in """
thing | won | {n:은} {v}원입니다.
가격, 값, 판매가
{n:은} 얼마예요? / {n:은} 얼마인가요? / {n:이} 얼마죠? / {n:을} 사려면 얼마가 들어요? /
{n:이} 얼마인지 알고 싶어요. / {n} 얼마에 파나요? / {n:은} 비싼가요? / 요새 {n:은} 얼마나 해요?

thing | won | {n} {u:은} {v}원입니다.
{u} 가격, {u} 값
{n} {u}에 얼마예요? / {n} {u:은} 얼마인가요? / {n:을} {u} 사면 얼마죠? / {n:은} {u}에 얼마나 하나요? /
{n} {u:을} 사려고 하는데 얼마예요?

service | won | {n} 요금은 {v}원입니다.
요금, 비용, 참가비
{n:은} 돈을 내야 하나요? / {n:을} 하려면 얼마를 내요? / {n:은} 공짜인가요? / {n:은} 무료로 하나요? /
{n}에 얼마가 들어요? / {n} 요금을 받나요?

thing | spot | {n:은} {v}에 있습니다.
위치, 자리, 있는 곳
{n:은} 어디에 있나요? / {n:이} 어디예요? / {n} 있는 데가 어디죠? / {n:을} 찾고 있어요. / {n:이} 안 보여요. /
{n:은} 어디로 가면 있나요? / {n:은} 어느 쪽이에요? / {n:을} 가지러 어디로 가요? / {n:은} 몇 번에 있어요?

place | spot | {n:은} {v}에 있습니다.
위치, 자리, 층수
{n:은} 어디에 있나요? / {n:은} 몇 층이에요? / {n}에 가려면 어디로 가야 하나요? / {n:이} 이 근처에 있나요? /
{n:을} 찾는데 안 보이네요. / 여기 {n:이} 있어요?

place | hours | {n:은} {v} 엽니다.
이용 시간, 여는 시간, 닫는 시간, 운영 시간
{n:은} 몇 시에 열어요? / {n:은} 몇 시까지 하나요? / {n:은} 언제 닫나요? / {n:은} 몇 시부터 몇 시까지예요? /
{n:은} 지금 열었나요? / {n:은} 밤에도 하나요? / {n:은} 일찍 여나요?

place | days | {n:은} {v}에 쉽니다.
휴관일, 쉬는 요일, 닫는 날
{n:은} 언제 쉬나요? / {n:은} 무슨 요일에 닫아요? / {n:은} 며칠이나 쉬어요? / {n:은} 쉬는 요일이 있나요? /
{n:은} 언제 가면 닫혀 있나요?

service | hours | 네, {n:은} {v} 하실 수 있습니다.
가능 시간
{n} 되나요? / {n:을} 할 수 있나요? / {n:이} 가능한가요? / {n:을} 하고 싶어요. / {n:은} 언제 할 수 있어요? /
{n:도} 해 주시나요? / {n:을} 해도 되나요? / {n:을} 부탁해요.

thing | period | 네, {n:은} {v}까지 받습니다.
사용 기간
{n:으로} 낼 수 있나요? / {n:으로} 바꿔도 되나요? / {n:도} 받나요? / {n:을} 써도 괜찮나요? /
{n:으로} 계산하고 싶어요. / {n:만} 있는데 되나요? / {n:을} 가져가도 되나요?

service | period | {n:은} {v} 전까지 신청해 주세요.
신청 기한, 예약 방법
{n:은} 며칠 전에 신청해야 하나요? / {n} 신청은 언제까지예요? / {n:을} 예약하고 싶어요. / {n} 예약이 필요한가요? /
{n:은} 미리 말해야 하나요? / {n:을} 하려면 어떻게 신청해요?

place | phone | {n} 전화번호는 {v}입니다.
전화번호, 번호, 연락처
{n:은} 몇 번으로 전화해야 하나요? / {n}에 전화하고 싶어요. / {n}에 물어볼 것이 있어요. / {n} 번호가 뭐죠? /
{n}에는 어떻게 연락해요?

thing | days | {n:은} {v}에 들어옵니다.
들어오는 요일, 입고일
{n:은} 언제 들어오나요? / {n:은} 무슨 요일에 살 수 있나요? / 새 {n:은} 언제 와요? / {n:은} 날마다 들어오나요? /
{n:은} 다음에 언제 들어와요?

thing | town | {n:은} {v}에서 옵니다.
원산지, 고향, 산지
{n:은} 어디에서 오나요? / {n:은} 어느 지역 것이에요? / {n:은} 어디에서 났어요? / 이 {n:은} 어디 것이죠? /
{n:은} 우리나라 것인가요?

thing | material | {n:은} {v:으로} 만들었습니다.
재료, 소재
{n:은} 무엇으로 만들었나요? / {n:을} 만든 재료를 알려 주세요. / {n:은} 무슨 재료예요? / {n:에는} 무엇이 들어갔나요?

thing | period | {n:은} {v} 동안 보관하실 수 있습니다.
보관 기간, 사용 기한, 유효 기간
{n:은} 얼마나 보관할 수 있나요? / {n:은} 언제까지 쓸 수 있어요? / {n:을} 얼마나 두어도 되나요? /
{n:은} 며칠 가나요? / {n:은} 어떻게 보관해요? / {n:은} 오래 두어도 되나요?

thing | count | {n:은} {v}개 남아 있습니다.
재고, 수량, 남은 개수
{n:이} 남아 있나요? / {n:은} 몇 개 있어요? / {n:은} 얼마나 남았나요? / {n:도} 있나요? / {n:은} 다 팔렸나요?

thing | percent | {n:은} {v}% 할인해 드립니다.
할인율, 할인
{n:은} 할인되나요? / {n:은} 얼마나 깎아 주나요? / {n:을} 싸게 사고 싶어요. / {n:은} 몇 퍼센트 할인해요? /
{n:도} 할인하나요?

service | clock | {n:은} {v}까지 맡겨 주시면 됩니다.
접수 시간, 마감 시간, 접수 마감
{n} 접수는 몇 시까지 하나요? / {n} 마감이 몇 시예요? / {n:은} 언제까지 맡기면 되나요? / {n:을} 맡기고 싶어요. /
오늘 {n:을} 맡길 수 있나요?

place | minutes | {n}까지 걸어서 {v}분 걸립니다.
가는 길, 거리
{n}까지 얼마나 걸려요? / {n}까지 걸어갈 수 있나요? / {n:은} 여기서 먼가요? / {n}까지 몇 분 걸리나요? /
{n}에 어떻게 가나요? / {n:은} 가까운가요?

place | password | {n} 비밀번호는 "{v}"입니다.
비밀번호, 암호
{n}에 어떻게 들어가요? / {n} 비밀번호를 잊었어요. / {n} 문을 열려면 무엇을 눌러요? / {n:은} 아무나 들어가나요?

service | teacher | {n:은} {v} 선생님이 맡습니다.
담당, 선생님 성함
{n:은} 누가 맡나요? / {n} 담당이 누구예요? / {n:은} 누구에게 물어보나요? / {n:은} 누가 가르쳐요? /
{n:을} 맡은 분을 찾아요.
""".strip().split("\n\n")
)
