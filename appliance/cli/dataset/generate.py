"""`appliance dataset paraphrase` and `self-instruct`: hand the generator the model that answers. No logic.

Both write OUT.csv at the end or not at all. Until then the replies are in OUT.csv.journal.jsonl; afterwards the
rejected ones are in OUT.csv.rejected.csv.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.cli.dataset.answering import Asking, errors, require
from appliance.cli.dataset.model_options import Options, with_options
from appliance.errors import DataError, RecipeError
from appliance.wording import counted

if TYPE_CHECKING:
    from datasets_src.generators.journal import Ask
    from datasets_src.pairs import Dropped, Pair

OutArgument = Annotated[
    Path,
    typer.Argument(metavar="OUT.csv", help="The CSV to write; OUT.csv.rejected.csv and …origin.json go next to it."),
]
FractionOption = Annotated[
    float, typer.Option(metavar="SHARE", min=0.0, max=0.9, help="Share of the rows, as in the recipe.")
]


def register(app: typer.Typer) -> None:
    """Adds both commands to `appliance dataset`."""
    app.command()(with_options(paraphrase))
    app.command("self-instruct")(with_options(self_instruct))


def paraphrase(
    in_path: Annotated[Path, typer.Argument(metavar="IN.csv", help="A CSV of questions and answers.")],
    out_path: OutArgument,
    count: Annotated[int, typer.Option("--count", metavar="ROWS", min=1, help="Paraphrases of each question.")] = 10,
    question: Annotated[str | None, typer.Option("--question", metavar="COLUMN", help="The question's column.")] = None,
    answer: Annotated[str | None, typer.Option("--answer", metavar="COLUMN", help="The answer's column.")] = None,
    input_: Annotated[
        str | None, typer.Option("--input", metavar="COLUMN", help="The context's column, if any.")
    ] = None,
    test_fraction: FractionOption = 0.1,
    val_fraction: FractionOption = 0.1,
    *,
    chosen: Options,
) -> None:
    """Have a model paraphrase the questions. Train on the result with --set data.split=column.

    The rows are split first, as a run would split them: only train rows are paraphrased, val and test stay as they are.

    appliance dataset paraphrase data/faq.csv data/train.csv --count 10 --dry-run

    appliance dataset paraphrase data/faq.csv data/train.csv --base-url http://localhost:11434/v1 --model qwen3:8b
    """
    from datasets_src.generators import paraphrase as generators_paraphrase

    if test_fraction + val_fraction >= 1:
        raise RecipeError("--test-fraction and --val-fraction leave no rows to train on: together they reach 1")
    asking, seed = chosen.asking, chosen.seed
    rows, unusable = _rows(in_path, {"instruction": question, "output": answer, "input": input_})
    sides = _splitter(test_fraction, val_fraction, seed)
    if chosen.dry_run:
        with errors():
            questions = generators_paraphrase.train_questions(generators_paraphrase.placed(rows, sides)).values()
        prompts = [generators_paraphrase.prompt(one.text, count) for one in questions]
        _show_plan(prompts[0], len(prompts), 2 * len(prompts), asking.paid_for(out_path, prompts), chosen.as_json)
        return
    tally = generators_paraphrase.Tally()
    fractions = {"test_fraction": test_fraction, "val_fraction": val_fraction}
    options: dict[str, object] = {"count": count, "seed": seed, **fractions}
    read = len(rows) + len(unusable)
    output = _Output("paraphrase", in_path, out_path, options, read, read, chosen)

    def items(ask: Ask) -> Iterator[Pair | Dropped]:
        yield from unusable
        yield from generators_paraphrase.pairs(rows, ask, count=count, sides=sides, tally=tally)

    _generate(output, asking, items, tally)


def self_instruct(
    seeds_path: Annotated[
        Path, typer.Argument(metavar="SEEDS", help="A text file with one seed sentence per line, or JSONL seed tasks.")
    ],
    out_path: OutArgument,
    count: Annotated[int, typer.Option("--count", metavar="ROWS", min=1, help="Rows to make.")] = 500,
    *,
    chosen: Options,
) -> None:
    """Have a model invent rows from seeds. It writes similar instructions and answers them (Self-Instruct).

    An instruction whose ROUGE-L with an earlier one reaches 0.7 is rejected. Seed tasks are JSON objects, one per line:
    {"instruction": "…", "instances": [{"input": "…", "output": "…"}]}.

    appliance dataset self-instruct seeds.txt data/raw_data.csv --count 500 --dry-run

    appliance dataset self-instruct seeds.txt data/raw_data.csv --base-url http://localhost:11434/v1 --model qwen3:8b
    """
    require("rouge_score", "which finds instructions that repeat others")
    from appliance.process import console
    from datasets_src.generators import self_instruct as generators_self_instruct

    asking, seed = chosen.asking, chosen.seed
    with errors():
        seeds = generators_self_instruct.read_seeds(seeds_path)
    if chosen.dry_run:
        first = generators_self_instruct.first_prompt(seeds, seed)
        _show_plan(
            first,
            generators_self_instruct.fewest_requests(count),
            None,
            asking.paid_for(out_path, [first]),
            chosen.as_json,
        )
        return
    tally = generators_self_instruct.Tally()
    options: dict[str, object] = {"count": count, "seed": seed}
    output = _Output("self-instruct", seeds_path, out_path, options, len(seeds), 0, chosen)

    def items(ask: Ask) -> Iterator[Pair | Dropped]:
        def on_round(rows: int) -> None:
            console.say(f"{rows}/{counted(count, 'row')}")

        return generators_self_instruct.pairs(seeds, ask, count=count, seed=seed, tally=tally, on_round=on_round)

    _generate(output, asking, items, tally)


@dataclass(frozen=True)
class _Output:
    source: str
    in_path: Path
    out_path: Path
    options: dict[str, object]
    read: int  # rows or seeds in the input
    passed_on: int  # how many of these are among the items; a model made all the others
    chosen: Options


def _generate(
    output: _Output,
    asking: Asking,
    make: Callable[[Ask], Iterator[Pair | Dropped]],
    tally: Any,
) -> None:
    """Make OUT.csv from what `make` yields, with a journal, progress and a list of what was rejected."""
    from appliance.cli.dataset import sources
    from appliance.process import console
    from datasets_src import pairs as datasets_src_pairs
    from datasets_src.generators import journal
    from datasets_src.generators.replies import Rejected, rejected_path, write_rejected
    from datasets_src.pairs import SourceError

    journal_path, listed_path = journal.path_beside(output.out_path), rejected_path(output.out_path)
    items: list[Pair | Dropped] = []
    steps: list[console.Steps] = []
    with errors():
        datasets_src_pairs.require_free(output.out_path, [output.in_path], output.chosen.force)
        backend, asked_with, name = asking.backend()
        with journal.opened(journal_path, backend, asked_with, on_reply=lambda: steps[-1].advance()) as paid:

            def ask(prompts: list[str]) -> list[str]:
                with console.Steps("replies", len(prompts)) as shown:
                    steps.append(shown)
                    return paid.ask(prompts)

            kept = f"; {counted(paid.known, 'reply is', 'replies are')} already in {journal_path}" if paid.known else ""
            console.say(f"asking {name}{kept}")
            try:
                for item in make(ask):
                    items.append(item)  # all of them before any file is started: a kill leaves only the journal
            except SourceError:
                if rejected := [item for item in items if isinstance(item, Rejected)]:
                    write_rejected(listed_path, rejected)
                    console.say(f"what was rejected, and why: {listed_path}")
                raise
        write_rejected(listed_path, [item for item in items if isinstance(item, Rejected)])
        extra = {**asdict(tally), "requests": paid.asked, "replies_from_the_journal": paid.reused}
        options = {**output.options, **asked_with}
        origin = datasets_src_pairs.write(
            output.out_path,
            output.source,
            [output.in_path],
            options,
            items,
            extra=extra,
            force=output.chosen.force,
            read=output.read,
            made=len(items) - output.passed_on,
        )
    if not output.chosen.keep_journal:
        journal_path.unlink(missing_ok=True)
    sources.show(origin, output.out_path, as_json=output.chosen.as_json)
    if not output.chosen.as_json:
        console.result(f"rejected     {listed_path}")
        if output.chosen.keep_journal:
            console.result(f"journal      {journal_path}")
    if missing := getattr(tally, "short", 0):
        few = f"{missing} of {counted(tally.questions, 'question')}"
        console.say(f"{few} got fewer paraphrases than asked for", style="warning")


def _rows(path: Path, columns: dict[str, str | None]) -> tuple[list[Pair], list[Dropped]]:
    """The rows of a CSV with the group and side it gives them, and the lines that cannot be rows."""
    from appliance.process import console
    from appliance.rows import csv_file
    from datasets_src import pairs as datasets_src_pairs
    from datasets_src.pairs import Dropped, Pair

    with errors(), datasets_src_pairs.opened(path):  # before `sniff`, whose hints are about a recipe
        pass
    named = {role: name for role, name in columns.items() if name}
    fmt = csv_file.sniff(path, named, None)
    header = {cell.strip("\ufeff \t").casefold() for cell in fmt.header}
    if header & {"group", "side"}:
        fmt = csv_file.sniff(path, named, "group" if "group" in header else None, with_side="side" in header)
    console.say(f"{path}: {fmt.describe()}")
    pairs, unusable = [], []
    for row in csv_file.read(path, fmt):
        if isinstance(row, csv_file.Rejected):
            unusable.append(Dropped(f"line {row.line}", row.reason))
        else:
            side = csv_file.SIDE_WORDS[row.side] if row.side is not None else None
            pairs.append(Pair(row.instruction, row.output, row.input, row.group, side))
    return pairs, unusable


def _splitter(test_fraction: float, val_fraction: float, seed: int) -> Callable[[Sequence[Pair]], list[str]]:
    """The split that a run with these values makes of the same rows."""

    def sides(pairs: Sequence[Pair]) -> list[str]:
        from appliance.rows import split
        from appliance.rows.csv_file import Row

        keys = [split.question_key(Row(0, pair.instruction, pair.input, pair.output, pair.group)) for pair in pairs]
        try:
            return list(split.question_split(keys, test_fraction=test_fraction, val_fraction=val_fraction, seed=seed))
        except DataError as error:  # its hint names a field of a recipe, and there is none here
            raise DataError(str(error), hint="add rows with other questions") from error

    return sides


def _show_plan(first: str, fewest: int, most: int | None, paid: int | None, as_json: bool) -> None:
    """Print a dry run's plan. `paid`: how many of the requests known beforehand the journal can answer."""
    from appliance.process import console

    if as_json:
        plan = {"requests_at_least": fewest, "requests_at_most": most, "in_the_journal": paid, "first_prompt": first}
        console.result(json.dumps(plan, ensure_ascii=False, indent=2))
        return
    bound = f", at most {most}" if most is not None else ", more as replies are rejected"
    console.result(f"requests     {fewest}{bound}" + (f"; {paid} already answered" if paid else ""))
    console.result(f"first prompt\n\n{first}")
