"""The curves in the page: what of metrics.jsonl is drawn, with which marks, and how large a long run's page is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import RunDirError
from appliance.report import curves, page

FIT = {"steps": 6, "best_step": 4, "best_val_loss": 0.5, "stopped_early": True}


def lines(steps: int = 6, **more: Any) -> list[dict[str, Any]]:
    """A training that is evaluated before it and after every second step; the lowest val loss is at step 4."""
    found: list[dict[str, Any]] = [{"step": 0, "val_loss": 2.0}]
    for step in range(1, steps + 1):
        figures = {"loss": 2 - step / 10, "learning_rate": 1e-4, "grad_norm": 1.0, "tokens": 90, "padded_tokens": 100}
        found.append({"step": step, "tokens_per_second": 50.0 * step, "peak_memory_bytes": None} | figures | more)
        if step % 2 == 0:
            found.append({"step": step, "val_loss": 0.5 + abs(step - 4) / 10})
    return found


def run_of(run_dir: Path, metrics: list[dict[str, Any]], fit: dict[str, Any] | None = FIT, tail: str = "") -> Path:
    (run_dir / "train").mkdir(parents=True)
    (run_dir / "recipe.yaml").write_text("name: x\n", encoding="utf-8")
    text = "".join(json.dumps(line) + "\n" for line in metrics) + tail
    (run_dir / "train" / "metrics.jsonl").write_text(text, encoding="utf-8")
    if fit:
        (run_dir / "train" / "fit.json").write_text(json.dumps(fit), encoding="utf-8")
    return run_dir


def html_of(run_dir: Path) -> str:
    return page.write_html(run_dir).read_text(encoding="utf-8")


def data_of(html: str) -> dict[str, Any]:
    (found,) = re.findall(r'<script type="application/json" class="curves-data">(.*?)</script>', html)
    return dict(json.loads(found))


def of_run(metrics: list[dict[str, Any]], fit: dict[str, Any] | None = FIT) -> curves.Curves:
    found = curves.of_run(metrics, fit)
    assert found is not None
    return found


def test_each_figure_that_was_measured_has_a_chart() -> None:
    titles = [one.chart.title for one in of_run(lines()).drawn]
    assert titles == ["Loss", "Learning rate", "Gradient norm", "Speed", "Padding"]
    memory = of_run(lines(peak_memory_bytes=3 << 30)).drawn[-1]
    assert (memory.chart.title, memory.chart.unit, memory.last) == ("Peak memory", "GiB", ("3",))
    assert curves.of_run([], None) is None
    assert curves.of_run([{"step": 0, "out_of_memory": "…"}], None) is None


def test_the_shares_of_padding() -> None:
    (padding,) = [one for one in of_run(lines()).drawn if one.chart.title == "Padding"]
    assert padding.last == ("10",)


def test_all_charts_share_the_steps_below_them() -> None:
    drawn = of_run(lines()).drawn
    assert len({one.views[0].x_ticks for one in drawn}) == 1
    assert drawn[0].views[0].x_ticks[0].text == "step 0"


def test_the_kept_step_and_the_stop_are_marked() -> None:
    best, stop = of_run(lines()).drawn[0].chart.marks
    assert (best.kind, best.step, best.text) == ("best", 4, "kept: step 4, val loss 0.5")
    assert (stop.kind, stop.step, stop.text) == ("stop", 6, "stopped early after step 6")
    (only,) = of_run(lines(), FIT | {"stopped_early": False}).drawn[0].chart.marks
    assert only.kind == "best"


def test_a_training_that_goes_on_marks_the_best_so_far() -> None:
    (best,) = of_run(lines(), None).drawn[0].chart.marks
    assert best.text == "best so far: step 4, val loss 0.5"
    assert of_run(lines()[1:2], None).drawn[0].chart.marks == ()


def test_the_table_of_evaluations() -> None:
    assert of_run(lines()).evaluations == (
        ("0", "–", "2", ""),
        ("2", "1.85", "0.7", ""),
        ("4", "1.65", "0.5", "lowest"),
        ("6", "1.45", "0.7", ""),
    )
    many = of_run([{"step": step, "val_loss": abs(step - 501) + 1.0} for step in range(1000)], None).evaluations
    assert len(many) <= curves.EVALUATIONS + 1
    assert many[-1][0] == "999"
    assert [row[0] for row in many if row[-1]] == ["501"]


def test_a_step_that_was_done_twice_counts_once() -> None:
    twice = [*lines(), {"step": 6, "loss": 9.0}]
    assert of_run(twice).drawn[0].last[0] == "9"


@pytest.mark.parametrize("value", ["1.5", True, [1.0], {}])
def test_a_value_that_is_no_number_is_named(value: Any) -> None:
    with pytest.raises(ValueError, match=r"metrics\.jsonl, step 1: loss is .*, expected a number"):
        curves.of_run([{"step": 1, "loss": value}], None)


def test_a_page_with_such_a_value_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match=r"metrics\.jsonl"):
        html_of(run_of(tmp_path, [{"step": 1, "loss": "<script>"}]))


def test_the_page_of_a_training_whose_last_line_was_cut_off(tmp_path: Path) -> None:
    html = html_of(run_of(tmp_path, lines(), None, tail='{"step": 7, "lo'))
    assert data_of(html)["charts"]["loss"][0]["steps"] == [1, 2, 3, 4, 5, 6]
    assert "best so far: step 4" in html


def test_the_page_draws_the_curves_and_tells_the_script_where_they_are(tmp_path: Path) -> None:
    html = html_of(run_of(tmp_path, lines()))
    assert html.count('<svg class="plot" role="img"') == 6  # the loss on two scales
    assert "Loss by step, log scale" in html
    assert data_of(html)["charts"]["loss"][1] == {"steps": [0, 2, 4, 6], "shown": ["2", "0.7", "0.5", "0.7"]}
    assert (data_of(html)["low"], data_of(html)["high"]) == (0, 6)
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert "data:image" not in html


def test_infinite_values_are_counted_below_the_curves(tmp_path: Path) -> None:
    metrics = [*lines(), {"step": 7, "val_loss": float("nan")}, {"step": 8, "val_loss": float("inf")}]
    html = html_of(run_of(tmp_path, metrics, None))
    assert "Not shown: 2 values are infinite, too large or no number." in html
    assert "best so far: step 4" in html


def test_a_long_training_is_thinned_and_says_so(tmp_path: Path) -> None:
    metrics = lines(20_000)
    metrics[5000]["loss"] = 50.0
    html = html_of(run_of(tmp_path, metrics))
    assert "A curve of 20,000 values shows 299 equal stretches: the mean of each and" in html
    loss = data_of(html)["charts"]["loss"][0]
    assert (len(loss["steps"]), loss["means"]) == (299, True)
    (spike,) = [text for text in loss["shown"] if text.endswith(" to 50)")]
    assert re.fullmatch(r"-\S+ \(-\S+ to 50\)", spike)
    assert 'class="line s1 pale"' in html
    assert len(html) < 250_000
