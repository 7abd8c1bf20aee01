"""What `appliance check` prints about a CSV or a run's checks; changes nothing."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from appliance.errors import DataError
from appliance.process import files
from appliance.process.known_hashes import Identity
from appliance.recipe.resolve import load, usual_recipe


def check_table(run_path: Path, before: Identity | None = None) -> list[dict[str, str]]:
    """What a run's check has found; empty if its table is still the one of `before`: it did not get that far."""
    path = run_path / "check" / "table.json"
    return list(files.read_json(path)) if path.is_file() and Identity.of(path) != before else []


def table_before(run_path: Path) -> Identity | None:
    """The table of an earlier check, for `check_table`. Every check writes a new file, whatever the clock says."""
    path = run_path / "check" / "table.json"
    return Identity.of(path) if path.is_file() else None


def _fetched(address: str) -> Path:
    from appliance.hub import dataset_file  # imports the HTTP client: a third of what a check of a local file costs

    return dataset_file.DatasetFile.parse(address).fetch()[0]


@dataclass(frozen=True)
class CsvCheck:
    """What `check FILE` prints: a table for people, a preview, the same for machines, and the refusal, if any."""

    rows: list[tuple[str, str]]
    preview: list[str]
    report: dict[str, Any]
    refusal: DataError | None

    def as_json(self) -> str:
        """The report. `json` leaves DEL and C1 control characters unescaped, and some terminals act on them."""
        text = json.dumps(self.report, ensure_ascii=False, indent=2)
        return re.sub("[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", text)


def check_csv(source: str, overrides: Sequence[str]) -> CsvCheck:
    """Describe a CSV without a model or torch, read as a run without a named recipe would read it.

    `source`: a path, or hf://datasets/USER/NAME@REVISION/FILE. Raises DataError: the file cannot be read, or holds no
    usable row. HubError: it cannot be fetched.
    """
    from appliance.rows import survey

    usual = os.environ.get("APPLIANCE_RECIPE") or usual_recipe()
    recipe = load(usual, overrides=[f"data.csv={source}", *overrides]).recipe
    csv = recipe.data.csv
    csv_path = _fetched(csv) if csv.startswith("hf://") else Path(csv)
    seen = survey.of_csv(csv_path, recipe.data, recipe.train.seed)
    refusal = survey.refusal(seen, recipe.data)
    rows = [("CSV", source), ("format", seen.fmt.describe_text()), ("columns", seen.fmt.describe_columns())]
    for finding in survey.findings(seen)[1:]:
        verdict = "" if finding.verdict == "ok" else f"{finding.verdict}: "
        needed = f"; needed: {finding.needed}" if finding.needed else ""
        rows.append((finding.what, f"{verdict}{finding.found}{needed}" + (f"\n→ {finding.fix}" if finding.fix else "")))
    preview = survey.previews(seen, recipe.prompt)
    report = {
        "csv": source,
        "format": seen.fmt.describe_text(),
        "columns": seen.fmt.describe_columns(),
        "usable": seen.usable,
        "rejected": seen.rejected,
        "reasons": seen.reasons,
        "bad_rows": [{"line": line, "reason": reason} for line, reason in seen.bad],
        "warnings": [asdict(remark) for remark in seen.remarks],
        "split": seen.sides,
        "refused": str(refusal) if refusal else None,
        "preview": [{"line": line, "text": text} for line, text in preview],
    }
    shown = [part for line, text in preview for part in (f"--- line {line}, as the model will see it", text, "")]
    return CsvCheck(rows, shown, report, refusal)
