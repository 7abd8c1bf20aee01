"""`appliance dataset feedback`: answers judged in a chat, as rows and as preference pairs. No logic here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.cli.dataset.sources import ForceOption, JsonOption, OutArgument

if TYPE_CHECKING:
    from datasets_src.sources.feedback import Judged


def register(dataset_app: typer.Typer) -> None:
    """Adds the command to `appliance dataset`."""
    dataset_app.command("feedback")(feedback)


def feedback(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run whose answers were judged in a chat.")],
    out_path: OutArgument,
    pairs_path: Annotated[
        Path | None,
        typer.Option("--pairs", metavar="OUT.jsonl", help="Also write preference pairs: prompt, chosen, rejected."),
    ] = None,
    with_test_rows: Annotated[
        bool,
        typer.Option("--with-test-rows", help="Keep questions of the run's test rows; no score on them counts then."),
    ] = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Answers judged in a chat. A liked or a corrected answer becomes a row; of several, the last one.

    In `appliance chat`, /good, /bad and /right TEXT write the run's feedback.csv. The preference pairs are in the
    conversational format of trl's DPOTrainer; a pair needs a right and a worse answer to the same question.

    appliance dataset feedback runs/demo data/more.csv

    appliance dataset feedback runs/demo data/more.csv --pairs data/pairs.jsonl
    """
    from appliance.cli.dataset import sources
    from appliance.process import console
    from appliance.prompt.templates import user_message
    from appliance.rundir import feedback as rundir_feedback
    from appliance.rundir import find as rundir_find
    from datasets_src.pairs import SourceError, require_free
    from datasets_src.sources import feedback as sources_feedback

    rundir_find.require_run(run_dir)
    judged, path = _judged(run_dir), run_dir / rundir_feedback.FILE
    options, extra = {"with_test_rows": with_test_rows}, dict[str, Any]()
    found = []
    with sources.source_errors():
        if pairs_path is not None:
            require_free(pairs_path, [path], force)
            if pairs_path.resolve() == out_path.resolve():
                raise SourceError(f"--pairs {pairs_path} is the CSV itself; expected another name for the pairs")
            found = sources_feedback.preferences(judged, user_message, with_test_rows=with_test_rows)
            extra["preference_pairs"] = len(found)
        rows = sources_feedback.rows(judged, with_test_rows=with_test_rows)
        sources.write("feedback", path, out_path, options, rows, extra, force=force, as_json=as_json)
        if pairs_path is not None:
            sources_feedback.write_lines(pairs_path, found)
            if not as_json:
                console.result(f"pairs        {pairs_path}")


def _judged(run_path: Path) -> list[Judged]:
    """What the chat recorded. Earlier turns are in the question, as in every row (prompt/turns.py)."""
    from appliance.prompt import turns
    from appliance.rows.csv_file import Row, iter_canonical
    from appliance.rows.split import question_key
    from appliance.rundir import feedback as rundir_feedback
    from datasets_src.sources.feedback import Judged

    test_csv = run_path / "prepare" / "test.csv"
    of_test = {question_key(row) for row in iter_canonical(test_csv)} if test_csv.is_file() else set()
    found = []
    for number, one in enumerate(rundir_feedback.read(run_path), 1):
        question = turns.question_with(one.question, system="", earlier=one.earlier)
        held_out = question_key(Row(number, question, one.input, one.right)) in of_test
        found.append(Judged(f"record {number}", question, one.input, one.answer, one.verdict, one.right, held_out))
    return found
