"""Runs the pipeline with one engine in a process of its own, and records what it saw on the way.

Unsloth rewrites the libraries that it finds, so no other engine may share its process; and it takes some twenty
seconds to import, so all its runs share one.

>>> python -m tests.helpers.engine_child REQUEST.json           # the fields of Request
>>> python -m tests.helpers.engine_child --serve unsloth CACHE PIPE PIPE  # an Unsloth that pretends to have CUDA, for
many; the pipes are those of warm.server
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# what turns a recipe for LoRA into one for full fine-tuning
FULL = ("tuning.method=full", "tuning.r=16", "tuning.alpha=32", "tuning.dropout=0.05", "model.dtype=float32")


@dataclass(frozen=True)
class Request:
    """What to do. Run directories: RUN, and THEN, which another engine trained and which is only evaluated."""

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
    full: str = ""  # run directory for full fine-tuning of the same recipe, up to evaluate
    overrides: tuple[str, ...] = ()  # of the recipe, for RUN alone
    stop_after: int = 0  # a SIGTERM comes in this step of RUN, and the same call continues
    no_memory: str = ""  # run directory of a training that runs out of memory in its second step
    lacking: str = ""  # folder of a base without one of its tensors, which is only loaded
    dropout: tuple[str, ...] = ()  # run directories of trainings with dropout: Unsloth's checkpointing on, and off


@dataclass
class Report:
    """What was seen. Batches, passes and bases are those of RUN's own first training, which follows its rehearsal."""

    before_unsloth: list[str] = field(default_factory=list)  # libraries that Unsloth rewrites, if already imported
    importers: list[str] = field(default_factory=list)  # our modules that imported it
    frozen: int = 0  # objects that no search for garbage looks through
    refused: str = ""  # what loading the base in LACKING raised
    environment: dict[str, str | None] = field(default_factory=dict)
    batches: list[dict[str, Any]] = field(default_factory=list)  # input ids, labels, mask as the model received them
    bases: list[str] = field(default_factory=list)  # base classes of our trainer, the nearest first
    passes: list[dict[str, Any]] = field(default_factory=list)  # every forward of training and evaluation: see _noted
    overrides: dict[str, int] = field(default_factory=dict)  # how often each method of our trainer was called
    stopped: list[str] = field(default_factory=list)  # what was raised after the signal
    step_seconds: list[float] = field(default_factory=list)  # when each step's loss was known; 0 is the loaded model
    peak_bytes: int = 0


class _Imports:
    """Placed first on sys.meta_path; notes what is already imported when Unsloth is."""

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
    sys.meta_path.insert(0, _Imports(report))  # type: ignore[arg-type]
    cuda: Any = nullcontext()
    if request.pretend_cuda:
        from appliance.weights import proof
        from tests.helpers import warm
        from tests.helpers.unsloth_on_cpu import pretend_cuda

        proof.subprocess = warm.Spare()  # type: ignore[attr-defined]
        cuda = pretend_cuda()
    with cuda:
        _run(request, report)
    Path(request.report).write_text(json.dumps(asdict(report)), encoding="utf-8")


def serve(engine: str, cache: Path, spare: tuple[int, int]) -> None:
    """Load the engine once, then do in forks of this process what each line of standard input asks for.

    A line is a JSON list: a file with the fields of a Request, and the files for its stdout and its stderr. The answer
    is a line with the exit code. `spare`: the pipes of the process that the proof's are forks of.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    report = Report()
    sys.meta_path.insert(0, _Imports(report))  # type: ignore[arg-type]
    from appliance.weights import proof
    from tests.helpers import warm
    from tests.helpers.unsloth_on_cpu import pretend_cuda

    proof.subprocess = warm.Spare(spare)  # type: ignore[attr-defined]
    with pretend_cuda():
        from appliance.engines import choose
        from appliance.machine import device
        from appliance.tasks import causal

        choose.load_engine(engine, device.device(), cache, causal.TASK)
        report.frozen = gc.get_freeze_count()  # by the product, before what follows
        gc.disable()
        for name in warm.LIBRARIES:  # what a run imports later on: once, instead of in each fork
            importlib.import_module(name)
        gc.enable()
        gc.collect()
        gc.freeze()  # Unsloth collects garbage some hundred times a run
        sys.stdout.flush()  # else each fork writes the banner once more, on a stdout of its own
        for line in sys.stdin:
            answers.write(f"{_forked(report, *json.loads(line))}\n")
            answers.flush()


def _forked(report: Report, request_path: str, out_path: str, err_path: str) -> int:
    """The exit code of a fork of this process that does what the request says."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for number, path in ((1, out_path), (2, err_path)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            request = Request(**json.loads(Path(request_path).read_text(encoding="utf-8")))
            _run(request, report)
            Path(request.report).write_text(json.dumps(asdict(report)), encoding="utf-8")
            code = 0
        except BaseException:  # noqa: BLE001  as the interpreter would
            traceback.print_exc()
        finally:  # never return into the code that forked this process
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _run(request: Request, report: Report) -> None:
    import torch

    from appliance.engines import choose
    from appliance.errors import EnvironmentUnavailable, Interrupted
    from appliance.machine import device
    from appliance.pipeline import run as pipeline_run
    from appliance.process import signals
    from appliance.recipe import resolve
    from appliance.rundir.directory import RunDir
    from appliance.tasks import causal

    trained: list[Any] = []
    load_engine = choose.load_engine
    checkpointing: list[Any] = ["unsloth"]  # as on a card; in a list, because later runs may turn it off

    def watched(*args: Any) -> Any:
        engine = load_engine(*args)
        load = engine.load_for_training

        def load_for_training(*args: Any) -> Any:
            if request.engine == "unsloth" and request.pretend_cuda:
                engine._checkpoints = checkpointing[0]  # type: ignore[attr-defined]
            trained[:] = load(*args)
            return tuple(trained)

        engine.load_for_training = load_for_training  # type: ignore[method-assign]
        _watch(report, request)
        return engine

    choose.load_engine = watched
    choose.choose = lambda *args: (request.engine, "the test says so")  # noqa: ARG005

    def run(path: str, *overrides: str, until: str) -> None:
        resolved = resolve.load(request.recipe, overrides=overrides, environ={})
        pipeline_run.run(resolved, RunDir(Path(path)), Path(request.cache), until=until)

    try:
        run(request.run, *request.overrides, until=request.until)
    except Interrupted as error:
        report.stopped.append(str(error))
        signals.forget()  # what continues is another process
        run(request.run, *request.overrides, until=request.until)
    names = ("UNSLOTH_DISABLE_STATISTICS", "UNSLOTH_COMPILE_LOCATION", "TRITON_CACHE_DIR")
    report.environment = {name: os.environ.get(name) for name in names}
    report.frozen = report.frozen or gc.get_freeze_count()
    if torch.cuda.is_available():
        report.peak_bytes = torch.cuda.max_memory_reserved()
    if request.unsloth_merge:
        model, tokenizer = trained
        with redirect_stdout(sys.stderr):
            model.save_pretrained_merged(request.unsloth_merge, tokenizer, save_method="merged_16bit")
    trained.clear()
    if request.then:
        run(request.then, until="evaluate")
    if request.no_memory:
        with _no_memory_in_step(2):
            run(request.no_memory, "train.micro_batch_size=2", "train.gradient_accumulation_steps=1", until="train")
    for path, wanted in zip(request.dropout, ("unsloth", False), strict=False):
        checkpointing[0] = wanted
        run(path, "tuning.dropout=0.3", "train.max_steps=1", until="train")
    checkpointing[0] = "unsloth"
    if request.full:
        run(request.full, *FULL, until="evaluate")
    if request.lacking:
        engine = load_engine(request.engine, device.device(), Path(request.cache), causal.TASK)
        settings = resolve.load(request.recipe, environ={}).recipe.model
        try:
            with redirect_stdout(sys.stderr):
                engine.load_for_inference(Path(request.lacking), settings, None)
        except EnvironmentUnavailable as error:
            report.refused = str(error)


def _watch(report: Report, request: Request) -> None:
    """Note what reaches the model in RUN's own training, and every call of our own methods.

    trl's trainer, rewritten or not, is behind us by then: this is where the appliance meets what it really runs on.
    """
    from appliance.training import trainer
    from appliance.training.trainer import Ordered, OrderedTrainer

    if report.bases:
        return
    report.bases = [kind.__name__ for kind in OrderedTrainer.__mro__[1:]]
    for name, method in list(vars(Ordered).items()):
        if callable(method) and not name.startswith("__"):
            setattr(OrderedTrainer, name, _counted(report, name, method))
    compute_loss, log, began = OrderedTrainer.compute_loss, OrderedTrainer.log, time.perf_counter()
    checkpointed = _unsloth_checkpoints() if request.engine == "unsloth" else []

    def noted_loss(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        is_ours = str(self.args.output_dir) == str(Path(request.run) / "train" / "checkpoints")
        if is_ours and model.training and len(report.batches) < request.batches_seen:
            report.batches.append({name: value.tolist() for name, value in inputs.items() if hasattr(value, "tolist")})
        checkpointed.clear()
        result = compute_loss(self, model, inputs, *args, **kwargs)
        if is_ours:
            report.passes.append(_noted(self, model, result) | {"checkpointed": len(checkpointed)})
        return result

    def noted_log(self: Any, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        is_ours = str(self.args.output_dir) == str(Path(request.run) / "train" / "checkpoints")
        if is_ours and "loss" in logs:
            report.step_seconds.append(time.perf_counter() - began)  # the device has computed it by then
        log(self, logs, *args, **kwargs)
        if is_ours and "loss" in logs and self.state.global_step == request.stop_after and not report.stopped:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer.OrderedTrainer.compute_loss = noted_loss
    trainer.OrderedTrainer.log = noted_log


def _counted(report: Report, name: str, method: Any) -> Any:
    @functools.wraps(method)
    def counted(*args: Any, **kwargs: Any) -> Any:
        report.overrides[name] = report.overrides.get(name, 0) + 1
        return method(*args, **kwargs)

    return counted


def _noted(trainer: Any, model: Any, result: Any) -> dict[str, Any]:
    """One forward pass: its step, whether it trained, whether logits were made."""
    import torch

    logits = getattr(result[1], "logits", None) if isinstance(result, tuple) else None
    return {
        "step": trainer.state.global_step,
        "training": bool(model.training),
        "modules_in_training": sum(module.training for module in model.modules()),
        "has_logits": isinstance(logits, torch.Tensor) and logits.numel() > 0,  # Unsloth puts a non-tensor there
    }


def _unsloth_checkpoints() -> list[int]:
    """Grows by one for each block whose activations Unsloth's own gradient checkpointing offloads."""
    from unsloth_zoo.gradient_checkpointing import UnslothCheckpointFunction

    forward, seen = UnslothCheckpointFunction.forward, list[int]()

    def noted(*args: Any) -> Any:
        seen.append(1)
        return forward(*args)

    UnslothCheckpointFunction.forward = staticmethod(noted)
    return seen


@contextmanager
def _no_memory_in_step(step: int) -> Iterator[None]:
    """Make this step's first try run out of memory in its backward pass, as on a card that is too small."""
    import torch

    from appliance.training.trainer import OrderedTrainer

    training_step = OrderedTrainer.training_step
    raised: list[int] = []

    def no_memory(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = training_step(self, *args, **kwargs)
        if self.state.global_step == step - 1 and not raised:
            raised.append(step)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return loss

    OrderedTrainer.training_step = no_memory  # type: ignore[method-assign]
    try:
        yield
    finally:
        OrderedTrainer.training_step = training_step  # type: ignore[method-assign]


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(sys.argv[2], Path(sys.argv[3]), (int(sys.argv[4]), int(sys.argv[5])))
        sys.exit()
    main(Request(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
