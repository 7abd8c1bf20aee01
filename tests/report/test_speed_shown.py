"""The report and the plot show the median speed, as far as the run recorded it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from appliance.report import loss_plot, page, speed

LINES: list[dict[str, Any]] = [
    {"step": 0, "val_loss": 2.0},
    {"step": 1, "loss": 2.0, "tokens_per_second": None, "mfu": None},
    *({"step": i, "loss": 1.0, "tokens_per_second": 1000.0 * i, "mfu": i / 100} for i in (2, 3, 7)),
    {"step": 4, "out_of_memory": "…"},
]
OF_0_1 = [
    {"step": step, "loss": 1.0, "tokens_per_second": each} for step, each in ((1, 2.0), (2, 90.0), (3, 80.0), (4, 70.0))
]


def test_medians_leave_out_steps_without_a_speed() -> None:
    assert speed.of(LINES) == speed.Speed(3, 3000.0, 0.03)
    assert speed.of([line for line in LINES if line["step"] < 2]) is None
    assert speed.of([]) is None


def test_the_first_step_of_version_0_1_is_left_out() -> None:
    assert speed.of(OF_0_1) == speed.Speed(3, 80.0, None)


def html_of(run_dir: Path, lines: list[dict[str, Any]], **fit: Any) -> str:
    (run_dir / "train").mkdir(parents=True)
    (run_dir / "recipe.yaml").write_text("name: x\n", encoding="utf-8")
    metrics = run_dir / "train" / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    record = {"steps": 7, "best_step": 7, "best_val_loss": 1.0, "stopped_early": False, **fit}
    (run_dir / "train" / "fit.json").write_text(json.dumps(record), encoding="utf-8")
    loss_plot.plot_loss(metrics, run_dir / "train" / "loss.png", best_step=0)
    return page.write_html(run_dir).read_text(encoding="utf-8")


def test_the_report_shows_the_medians(tmp_path: Path) -> None:
    html = html_of(tmp_path, LINES, matmul_flops_per_second=7.9e14)
    shown = "Median of 3 steps: 3000 tokens/s, padding not counted; MFU 3.0% of the 790 TFLOP/s that <code>appliance"
    assert shown in html


@pytest.mark.parametrize(
    ("lines", "shown"),
    [
        (OF_0_1, "Median of 3 steps: 80 tokens/s, padding not counted.</p>"),
        (LINES[:2], None),
        ([{"step": 1, "loss": 1.0}, {"step": 2, "loss": 1.0}], None),
    ],
)
def test_a_run_without_the_figures_is_reported_without_them(
    lines: list[dict[str, Any]], shown: str | None, tmp_path: Path
) -> None:
    html = html_of(tmp_path, lines)
    assert "MFU" not in html
    assert shown in html if shown else "Median" not in html


def test_the_plot_has_a_panel_for_the_speed_if_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    seen: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: (seen.append(self), path.write_bytes(b"")))
    for lines in (LINES, LINES[:2]):
        path = tmp_path / "metrics.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        loss_plot.plot_loss(path, tmp_path / "loss.png", best_step=0)
    both, loss_only = seen
    assert [axes.get_ylabel() for axes in both.axes] == ["loss (nats per trained token)", "tokens/s"]
    assert both.axes[1].get_legend().get_texts()[0].get_text() == "median 3000 tokens/s, MFU 3.0%"
    assert [axes.get_ylabel() for axes in loss_only.axes] == ["loss (nats per trained token)"]
    assert loss_only.axes[0].get_xlabel() == both.axes[1].get_xlabel() == "step"
