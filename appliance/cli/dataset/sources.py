"""`appliance dataset SOURCE IN OUT.csv`: parse, hand a source's pairs to the writer, report. No logic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from appliance.cli.help import HelpGroup
from appliance.errors import DataError

if TYPE_CHECKING:
    from datasets_src.pairs import Dropped, Origin, Pair

dataset_app = typer.Typer(
    cls=HelpGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="""Make a CSV to train on from other data. A note next to it says where its rows came from.

    appliance dataset korquad KorQuAD_v1.0_dev.json data/train.csv

    appliance check data/train.csv""",
)

InArgument = Annotated[Path, typer.Argument(metavar="IN", help="The file to read.")]
OutArgument = Annotated[
    Path, typer.Argument(metavar="OUT.csv", help="The CSV to write; OUT.csv.origin.json goes next to it.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace OUT.csv if it exists.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the origin note as JSON.")]
_SPOKEN_EVERY = 200_000  # items


@dataset_app.command()
def korquad(
    in_path: InArgument,
    out_path: OutArgument,
    with_paragraph: Annotated[
        bool, typer.Option("--with-paragraph", help="Put the paragraph into `input`; its questions share a `group`.")
    ] = False,
    extractive: Annotated[
        bool,
        typer.Option(
            "--extractive",
            help="For task: extract: the paragraph in `input`, the place of the answer in `answer_start`, an empty "
            "answer if there is none.",
        ),
    ] = False,
    answer: Annotated[
        Literal["first", "common"],
        typer.Option("--answer", metavar="first|common", help="Of several answers, the first or the most common."),
    ] = "first",
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """KorQuAD 1.0 or SQuAD 1.1 / 2.0 JSON. Gives question and answer, the paragraph only if asked for.

    appliance dataset korquad KorQuAD_v1.0_dev.json data/train.csv

    appliance dataset korquad train-v2.0.json data/train.csv --with-paragraph

    appliance dataset korquad KorQuAD_v1.0_train.json data/train.csv --extractive
    """
    from datasets_src.sources import korquad as sources_korquad

    counts: Counter[str] = Counter()
    options: dict[str, object] = {"with_paragraph": with_paragraph, "answer": answer}
    if extractive:
        if answer != "first":
            raise typer.BadParameter("with --extractive every different answer is a row", param_hint="--answer")
        pairs, options = sources_korquad.spans(in_path, counts=counts), {"extractive": True}
    else:
        pairs = sources_korquad.pairs(in_path, with_paragraph=with_paragraph, answer=answer, counts=counts)
    how = {"force": force, "as_json": as_json, "placed": extractive}
    write("korquad", in_path, out_path, options, pairs, counts, **how)


@dataset_app.command("qa-text")
def qa_text(
    in_path: InArgument,
    out_path: OutArgument,
    question_marker: Annotated[
        str, typer.Option("--question-marker", metavar="TEXT", help="Starts a question.")
    ] = "<|question|>",
    answer_marker: Annotated[
        str, typer.Option("--answer-marker", metavar="TEXT", help="Starts an answer.")
    ] = "<|answer|>",
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Text with question and answer markers. A question or an answer may span several lines.

    appliance dataset qa-text dataset.txt data/train.csv

    appliance dataset qa-text faq.txt data/train.csv --question-marker "Q:" --answer-marker "A:"
    """
    from datasets_src.sources import qa_text as sources_qa_text

    pairs = sources_qa_text.pairs(in_path, question_marker=question_marker, answer_marker=answer_marker)
    options = {"question_marker": question_marker, "answer_marker": answer_marker}
    write("qa-text", in_path, out_path, options, pairs, {}, force=force, as_json=as_json)


@dataset_app.command()
def delimited(
    in_path: InArgument,
    out_path: OutArgument,
    separator: Annotated[
        str, typer.Option("--separator", metavar="TEXT", help=r"Separates question and answer; \t is a tab.")
    ] = "|",
    pattern: Annotated[
        str | None,
        typer.Option(
            "--pattern",
            metavar="REGEX",
            help="Instead of a separator: a regular expression to split at, or one for the whole line with the groups "
            "question and answer.",
        ),
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    r"""Lines of `question|answer`. Each line is split at its first separator.

    appliance dataset delimited qa.txt data/train.csv --separator "|"

    appliance dataset delimited qa.txt data/train.csv --pattern "\s+\|\s+"

    appliance dataset delimited qa.txt data/train.csv --pattern "Q: (?P<question>.+?) A: (?P<answer>.+)"
    """
    from datasets_src.sources import delimited as sources_delimited

    counts: Counter[str] = Counter()
    pairs = sources_delimited.pairs(in_path, separator=separator, pattern=pattern, counts=counts)
    options = {"separator": separator} if pattern is None else {"pattern": pattern}
    write("delimited", in_path, out_path, options, pairs, counts, force=force, as_json=as_json)


@dataset_app.command()
def records(
    in_path: InArgument,
    out_path: OutArgument,
    question: Annotated[str | None, typer.Option("--question", metavar="FIELD", help="The question's field.")] = None,
    answer: Annotated[str | None, typer.Option("--answer", metavar="FIELD", help="The answer's field.")] = None,
    input_: Annotated[str | None, typer.Option("--input", metavar="FIELD", help="The context's field, if any.")] = None,
    group: Annotated[
        str | None, typer.Option("--group", metavar="FIELD", help="Rows with the same value here share a `group`.")
    ] = None,
    turns: Annotated[
        Literal["all", "last"],
        typer.Option(
            "--turns",
            metavar="all|last",
            help="Of a chat: everything before the last answer, or only the last question.",
        ),
    ] = "all",
    sheet: Annotated[
        str | None, typer.Option("--sheet", metavar="NAME", help="A workbook's sheet. Default: the first.")
    ] = None,
    header_row: Annotated[
        int | None,
        typer.Option("--header-row", min=1, metavar="ROW", help="A workbook's header. Default: the first filled row."),
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """JSON, JSONL, Parquet or XLSX records. Each is a question and its answer, an Alpaca task or a chat.

    Usual field names are known (question/answer, instruction/input/output, prompt/completion, 질문/답변, messages).

    appliance dataset records qa.jsonl data/train.csv

    appliance dataset records faq.xlsx data/train.csv --question Title --answer Text --sheet FAQ
    """
    from datasets_src.sources import records as sources_records

    options = {"question": question, "answer": answer, "input": input_, "group": group, "turns": turns, "sheet": sheet}
    if header_row is not None:
        options["header_row"] = str(header_row)
    extra: dict[str, Any] = {}
    fields = sources_records.Fields(question, answer, input_, group)
    pairs = sources_records.pairs(in_path, fields=fields, turns=turns, sheet=sheet, header_row=header_row, extra=extra)
    write("records", in_path, out_path, options, pairs, extra, force=force, as_json=as_json)


def write(
    source: str,
    in_path: Path,
    out_path: Path,
    options: Mapping[str, object],
    pairs: Iterable[Pair | Dropped],
    extra: Mapping[str, object],
    *,
    force: bool,
    as_json: bool,
    placed: bool = False,
) -> None:
    """Write a source's pairs to OUT.csv with its origin note; print what became of them."""
    from datasets_src import pairs as datasets_src_pairs

    with source_errors():
        origin = datasets_src_pairs.write(
            out_path, source, [in_path], options, _spoken(pairs), extra=extra, force=force, placed=placed
        )
    show(origin, out_path, as_json=as_json)


@contextmanager
def source_errors() -> Iterator[None]:
    """Raise a source's own error as DataError, exit code 3."""
    from datasets_src.pairs import SourceError

    try:
        yield
    except SourceError as error:
        raise DataError(str(error), hint=error.hint) from error


def show(origin: Origin, out_path: Path, *, as_json: bool) -> None:
    """Print what became of everything that was read, and where the files are."""
    from appliance.process import console
    from datasets_src.pairs import origin_path

    if as_json:
        console.result(origin.as_json())
        return
    console.result(f"read         {origin.read}")
    if origin.made:
        console.result(f"made         {origin.made}")
    console.result(f"written      {origin.written}")
    console.result(f"dropped      {sum(origin.dropped.values())}")
    for reason, count in origin.dropped.items():
        places = ", ".join(origin.examples[reason]) + (", …" if count > len(origin.examples[reason]) else "")
        console.result(f"  {count} × {reason}: {places}")
    for name, value in origin.extra.items():
        if value:
            console.result(f"{name.replace('_', ' ')}: {_shown(value)}")
    with out_path.open(encoding="utf-8") as stream:
        columns = stream.readline().rstrip().split(",")
        if "side" in columns:
            console.result("side         --set data.split=column trains and tests on the sides that the rows name")
        elif "group" in columns:
            console.result("group        --set data.group_by=group keeps the rows of a group on one side of the split")
    console.result(f"CSV          {out_path}")
    console.result(f"origin note  {origin_path(out_path)}")


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} from {name!r}" for key, name in value.items())
    return ", ".join(map(repr, value)) if isinstance(value, list) else str(value)


def _spoken(pairs: Iterable[Pair | Dropped]) -> Iterator[Pair | Dropped]:
    from appliance.process import console

    for number, pair in enumerate(pairs, 1):
        if number % _SPOKEN_EVERY == 0:
            console.say(f"{number:,} read")
        yield pair
