"""What a run's page shows, read from its directory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from appliance.process import files
from appliance.prompt import spans
from appliance.recipe import differing, resolve
from appliance.report import answers, curves, headline, histogram, samples, speed, uses
from appliance.rows import leaks
from appliance.rundir import base_asked, chosen, earlier_compared, outcome, results, run_json
from appliance.rundir.directory import STAGES, RunDir
from appliance.tasks.extract import SPANS
from appliance.tasks.task import Task
from appliance.weights import moved

SHOWN_ROWS = 200  # of a list of rows beside the answers
METRIC_NAMES = {
    "exact_match": "exact match",
    "facts_right": "facts right",
    "f1": "F1",
    "rouge_l": "ROUGE-L",
    "chrf": "chrF",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
}


def of(run_dir: Path) -> Mapping[str, Any]:
    """Everything the page shows; None for what a stage has not written yet. Raises RunDirError: a file is damaged."""

    def read(name: str) -> Any:
        stage, _, file = name.rpartition("/")
        return results.read(run_dir, stage, file) if files.is_there(run_dir / name) else None

    stages = {stage: read(f"{stage}/stage.json") for stage in STAGES}
    answered = files.is_there(run_dir / "evaluate" / results.PREDICTIONS)
    predictions = results.read_predictions(run_dir) if answered else []
    measured = run_dir / "train" / "metrics.jsonl"
    lines = results.read_metrics(measured) if files.is_there(measured) else []
    asked = run_dir / "train" / results.SAMPLES
    fit = read("train/fit.json")
    metrics = read(f"evaluate/{results.COMPARISON}")
    recipe = resolve.written(run_dir / "recipe.yaml")
    measures = read("evaluate/measures.json")
    shown = {
        "name": run_dir.name,
        "recipe": resolve.read_text(run_dir / "recipe.yaml"),
        "recipe_values": recipe,
        "recipe_fields": len(recipe),
        "differing": differing.among(recipe),
        "run": run_json.read(run_dir) if files.is_there(run_dir / run_json.FILE) else None,
        "names": METRIC_NAMES,
        "stages": stages,
        "prepare": read("prepare/summary.json"),
        "rejected": list(_rejected(run_dir / "prepare" / results.ROW_LEDGER)),
        "pairs": (read("prepare/near_duplicates.json") or {}).get("pairs", []),
        "shown_pairs": SHOWN_ROWS,
        "warnings": leaks.warnings(run_dir / "prepare"),
        "fit": fit,
        "moved": moved.recorded(run_dir / "train"),
        "cautions": results.read_cautions(run_dir),
        "metrics": metrics,
        "bases": base_asked.columns(metrics) if metrics else [],
        "left_out": base_asked.left_out(metrics) if metrics else [],
        "earlier": list(earlier_compared.sides(metrics or {})),
        "verdict": base_asked.verdict(metrics) if metrics else "",
        "predictions": predictions,
        "test_answers": answers.of_test(predictions, metrics, METRIC_NAMES),
        "extra_answers": answers.of_extra(results.read_extra_answers(run_dir)),
        "answers": (measures or {}).get("stops", {}).get("rows_that_fit"),
        "chosen": chosen.of_run(run_dir),
        "ended": outcome.last(RunDir(run_dir)),
        "exports": (read(f"export/{results.EXPORT}") or {}).get("files", {}),
        "merged_bytes": _bytes_of((stages["merge"] or {}).get("outputs", {})),
        "proof": read("merge/proof.json"),
        "hub": read("publish/hub.json"),
        "measured": lines,
        "speed": speed.of(lines),
        "curves": curves.of_run(lines, fit),
        "samples": samples.of(results.read_samples(asked)) if files.is_there(asked) else [],
    }
    shown |= {"lengths": _lengths(run_dir, shown["prepare"], uses.task_of(recipe))}
    shown |= {"score_rows": _score_rows(metrics, predictions)}
    head = headline.of(shown)
    return shown | {
        "shown_headline": head,
        "proof_card": headline.of_proof(shown, head),
        "verdict_sentence": headline.of_verdict(shown, METRIC_NAMES),
        "uses": uses.of(run_dir, shown),
    }


def _lengths(run_dir: Path, prepared: Mapping[str, Any] | None, task: Task) -> histogram.Histogram | None:
    """Of what a model reads: windows of its rows, if it reads them in windows, and not of its class, if a row has one.

    None for runs of versions that kept no ids.
    """
    if not prepared:
        return None
    from appliance.training import kept_ids

    by_class, folder = task.answers_with == "class", run_dir / "prepare"
    found = {side: kept_ids.lengths(folder / f"{side}.csv", of_prompts=by_class) for side in ("train", "val", "test")}
    sides, limit, of = {side: lengths or () for side, lengths in found.items()}, prepared["max_seq_length"], "row"
    if prepared.get("windows"):
        of, stride = "window", files.read_json(folder / SPANS)["stride"]
        for side, whole in sides.items():
            heads = kept_ids.lengths(folder / f"{side}.csv", of_prompts=True) or ()
            both = zip(whole, heads, strict=True)
            sides[side] = [one for row, head in both for one in spans.lengths_of(row, head, limit, stride)]
    return histogram.of_lengths(sides, limit, of)


def _score_rows(
    metrics: Mapping[str, Any] | None, predictions: Sequence[Mapping[str, str]]
) -> histogram.Histogram | None:
    """F1 of each row, or the primary metric if it has degrees as well."""
    if not metrics or not predictions or metrics.get("classes"):
        return None
    from appliance.evaluation import scores

    metric: scores.Metric = next((m for m in ("rouge_l", "chrf") if m == metrics["primary"]), "f1")
    wanted = [row["wanted"] for row in predictions]
    names = {"base": base_asked.title(metrics) if metrics.get("spans") else "base", "tuned": "tuned"}
    both = {
        name: scores.per_row(metric, wanted, [row[model] for row in predictions], metrics["f1_unit"])
        for model, name in names.items()
    }
    return histogram.of_scores(METRIC_NAMES[metric], both)


def _rejected(path: Path) -> Iterator[tuple[int, str]]:
    """The first rows that were left out: line in the CSV, and why."""
    if files.is_there(path):
        left_out = (row for row in results.read_row_ledger(path) if row["side"] == "rejected")
        for row in islice(left_out, SHOWN_ROWS):
            yield int(row["row"]), row["reason"]


def _bytes_of(outputs: Mapping[str, Any]) -> int:
    """Of the merged weights, as the stage left them."""
    return sum(output["size"] for name, output in outputs.items() if name.endswith(".safetensors"))
