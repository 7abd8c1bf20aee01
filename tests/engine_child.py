"""A run of the pipeline by one engine, in a process of its own, and what was seen on the way.

Unsloth rewrites the libraries that it finds, so nothing else may share its process.

>>> python -m tests.engine_child REQUEST.json     # the fields of Request
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# what turns a recipe for LoRA into one for full fine-tuning
FULL = ("tuning.method=full", "tuning.r=16", "tuning.alpha=32", "tuning.dropout=0.05", "model.dtype=float32")


@dataclass(frozen=True)
class Request:
    """What to do. The run directories are RUN and, trained by another engine before, THEN: it is only evaluated."""

    engine: str
    recipe: str
    run: str
    cache: str
    report: str
    pretend_cuda: bool = False
    until: str = "publish"
    batches_seen: int = 4
    unsloth_merge: str = ""  # folder for Unsloth's own merge of the trained model
    then: str = ""
    full: str = ""  # run directory of a full fine-tuning of the same recipe, until evaluated


@dataclass
class Report:
    """What was seen."""

    before_unsloth: list[str] = field(default_factory=list)  # of the libraries that Unsloth rewrites, already imported
    importers: list[str] = field(default_factory=list)  # modules of ours that imported it
    environment: dict[str, str | None] = field(default_factory=dict)
    batches: list[dict[str, Any]] = field(default_factory=list)  # input ids, labels, mask as the model got them
    step_seconds: list[float] = field(default_factory=list)  # when each step's loss was known; 0 is the loaded model
    peak_bytes: int = 0


class _Watch:
    """Stands first on sys.meta_path and notes what is imported when Unsloth is."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def find_spec(self, name: str, *args: object) -> None:  # noqa: ARG002
        if name == "unsloth":
            rewritten = ("transformers", "trl", "peft", "accelerate")
            self._report.before_unsloth = [other for other in rewritten if other in sys.modules]
            frame = sys._getframe()
            while frame := frame.f_back:  # type: ignore[assignment]
                module = frame.f_globals.get("__name__", "")
                if module.startswith("appliance."):
                    self._report.importers.append(module)
                    break


def main(request: Request) -> None:
    report = Report()
    sys.meta_path.insert(0, _Watch(report))  # type: ignore[arg-type]
    cuda: Any = nullcontext()
    if request.pretend_cuda:
        from tests.unsloth_on_cpu import pretend_cuda

        cuda = pretend_cuda()
    with cuda:
        _run(request, report)
    Path(request.report).write_text(json.dumps(asdict(report)), encoding="utf-8")


def _run(request: Request, report: Report) -> None:
    import torch

    from appliance import engines, pipeline, resolve
    from appliance.rundir import RunDir

    trained: list[Any] = []
    load_engine = engines.load_engine

    def watched(*args: Any) -> Any:
        engine = load_engine(*args)
        load = engine.load_for_training

        def load_for_training(*args: Any) -> Any:
            trained[:] = load(*args)
            _watch_batches(report, request.batches_seen)
            _watch_steps(report)
            return tuple(trained)

        engine.load_for_training = load_for_training  # type: ignore[method-assign]
        return engine

    engines.load_engine = watched
    engines.choose = lambda *args: (request.engine, "the test says so")  # noqa: ARG005
    resolved = resolve.load(request.recipe, environ={})
    pipeline.run(resolved, RunDir(Path(request.run)), Path(request.cache), until=request.until)
    names = ("UNSLOTH_DISABLE_STATISTICS", "UNSLOTH_COMPILE_LOCATION", "TRITON_CACHE_DIR")
    report.environment = {name: os.environ.get(name) for name in names}
    if torch.cuda.is_available():
        report.peak_bytes = torch.cuda.max_memory_reserved()
    if request.unsloth_merge:
        model, tokenizer = trained
        with redirect_stdout(sys.stderr):
            model.save_pretrained_merged(request.unsloth_merge, tokenizer, save_method="merged_16bit")
    trained.clear()
    if request.then:
        pipeline.run(resolved, RunDir(Path(request.then)), Path(request.cache), until="evaluate")
    if request.full:
        resolved = resolve.load(request.recipe, overrides=FULL, environ={})
        pipeline.run(resolved, RunDir(Path(request.full)), Path(request.cache), until="evaluate")


def _watch_batches(report: Report, count: int) -> None:
    """Notes what reaches the model: trl's trainer, rewritten or not, is behind us by then."""
    from appliance import trainer

    compute_loss = trainer.OrderedTrainer.compute_loss

    def noted(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if model.training and len(report.batches) < count:
            report.batches.append({name: value.tolist() for name, value in inputs.items() if hasattr(value, "tolist")})
        return compute_loss(self, model, inputs, *args, **kwargs)

    trainer.OrderedTrainer.compute_loss = noted


def _watch_steps(report: Report) -> None:
    """Notes the time whenever a step's loss is logged: the device has computed it by then."""
    from appliance import trainer

    log, began = trainer.OrderedTrainer.log, time.perf_counter()

    def noted(self: Any, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            report.step_seconds.append(time.perf_counter() - began)
        log(self, logs, *args, **kwargs)

    trainer.OrderedTrainer.log = noted


if __name__ == "__main__":
    main(Request(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
