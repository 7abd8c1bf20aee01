"""`appliance fleet` on an embedded cluster: whole runs, then how runs are handed out, by stand-ins."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from appliance.errors import EnvironmentUnavailable, Interrupted, RunDirError
from appliance.process import files, signals
from appliance.recipe import resolve
from appliance.report import compare
from appliance.rundir.directory import RunDir
from appliance.sweeps import attempts, done, fleet, fleet_command, fleet_shown, plan, run_child
from appliance.sweeps import cluster as sweeps_cluster
from appliance.sweeps.cluster import Cluster, Node
from appliance.sweeps.fleet import Fleet, Share
from appliance.sweeps.fleet_shown import Progress
from appliance.sweeps.run_child import RunJob
from tests.conftest import write_qa
from tests.helpers import in_process, warm
from tests.sweeps import forked

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
ON_CPU, ON_GPU = Share(0, 1, 1), Share(1, 0, 1)
RECIPE = """name: any
engine: transformers
model: {{id: {base}, load_in_4bit: false}}
data: {{csv: any.csv, test_fraction: 0.2}}
tuning: {{r: 2, alpha: 4}}
train: {{max_steps: 2, micro_batch_size: 4, gradient_accumulation_steps: 1, optimizer: adamw_torch, eval_every: 1}}
evaluate: {{max_new_tokens: 4}}
publish: {{min_stop_rate: 0, require_improvement: false}}
"""
KEPT = ("train/adapter/adapter_model.safetensors", "merge/model/model.safetensors")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two cores, and two cards that only Ray believes in."""
    before = dict(os.environ)
    os.environ.update(PYTHONPATH=str(ROOT), HF_TOKEN_PATH=os.devnull)
    try:
        with forked.server(tmp_path_factory.mktemp("s")), sweeps_cluster.connected(cpus=2, gpus=2) as found:
            yield found
    finally:
        os.environ.clear()
        os.environ.update(before)


# --- whole runs


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, base_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("fleet")
    (folder / "data").mkdir()
    for name in ("북점", "south"):
        rows = [(f"{name} {i % 5}, {i}?", f"{name[:1]}{i % 5}!") for i in range(40)]
        write_qa(folder / "data" / f"{name}.csv", rows)
    write_qa(folder / "data" / "wrong.csv", [("1", "2")], header=("a", "b"))
    (folder / "my.yaml").write_text(RECIPE.format(base=base_dir), encoding="utf-8")
    return folder


@contextmanager
def fleet_in(folder: Path, cluster: Cluster | None) -> Iterator[pytest.MonkeyPatch]:
    """The command in `folder`, on this cluster, its runs as forks. `cluster` None: it must not need one."""

    @contextmanager
    def connected() -> Iterator[Cluster]:
        assert cluster
        yield cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sweeps_cluster, "connected", connected)
        patch.setattr(Cluster, "has_gpus", False)
        patch.setattr(run_child, "MODULE", forked.MODULE)
        patch.setenv("APPLIANCE_TRAIN__SEED", "7")
        yield patch


def command(folder: Path, cluster: Cluster | None, *set_: str) -> fleet_command.Done:
    with fleet_in(folder, cluster):
        return fleet_command.run(
            ["data/*.csv"], "my.yaml", set_, Path("runs"), Path("cache"), flags=["--even-if-worse"], runs_per_gpu=1,
            cores=None,
        )  # fmt: skip


@pytest.fixture(scope="module")
def finished(shop: Path, cluster: Cluster) -> fleet_command.Done:
    return command(shop, cluster)


def planned(shop: Path, *set_: str) -> dict[str, plan.Planned]:
    with fleet_in(shop, None):
        csvs = plan.files(["data/*.csv"])
        return {one.name: one for one in plan.runs(csvs, "my.yaml", set_, os.environ)}


def test_a_wrong_csv_stops_no_other(finished: fleet_command.Done, shop: Path) -> None:
    rows = {row.csv: row for row in finished.rows}
    assert list(rows) == ["data/south.csv", "data/wrong.csv", "data/북점.csv"]
    assert [row.exit_code for row in finished.rows] == [0, 3, 0]
    assert fleet_shown.worst(finished.rows) == 3
    assert "no column 'instruction'" in rows["data/wrong.csv"].cells()[2]
    assert rows["data/북점.csv"].cells()[3] == "runs/북점"
    assert rows["data/북점.csv"].verdict
    assert not finished.has_gpus
    assert all(row.minutes > 0 for row in finished.rows)
    log = (shop / "runs" / fleet_command.LOG).read_text(encoding="utf-8")
    assert "3 CSVs with my.yaml; 2 at once on this machine, each on 1 core" in log


def test_a_run_of_a_fleet_has_the_bytes_of_a_run_alone(finished: fleet_command.Done, shop: Path) -> None:
    assert finished.rows
    line = "appliance run my.yaml --set data.csv=data/south.csv --set name=south --runs-dir alone --even-if-worse"
    done = warm.typed(line, cwd=shop, env={**os.environ, "APPLIANCE_TRAIN__SEED": "7", "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    for name in KEPT:
        here, alone = (shop / folder / "south" / name for folder in ("runs", "alone"))
        assert files.sha256_of(here) == files.sha256_of(alone), name


def test_the_page_shows_every_run_without_comparing_them(finished: fleet_command.Done, shop: Path) -> None:
    assert finished.page == Path("runs") / compare.FILE
    html = (shop / "runs" / compare.FILE).read_text(encoding="utf-8")
    assert "2 runs, each tested on rows of its own." in html
    assert 'href="south/report.html"' in html
    assert "Differences are from the first" not in html


def test_what_is_finished_is_known_without_a_cluster(finished: fleet_command.Done, shop: Path) -> None:
    assert finished.rows
    hidden = shop / "data" / "wrong.csv"
    hidden.rename(shop / "wrong.csv")
    again = command(shop, None)
    (shop / "wrong.csv").rename(hidden)
    assert [row.exit_code for row in again.rows] == [0, 0]
    assert [len(attempts.read(shop / "runs" / name)) for name in ("south", "북점")] == [1, 1]


def test_only_what_would_do_nothing_counts_as_finished(
    finished: fleet_command.Done, shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert finished.rows
    path = shop / "runs" / "south"
    monkeypatch.chdir(shop)

    def is_done(*set_: str) -> bool:
        return done.is_done(planned(shop, *set_)["south"].recipe, path)

    assert is_done()
    assert not done.is_done(planned(shop)["wrong"].recipe, shop / "runs" / "wrong")
    for other in (
        "train.learning_rate=1",
        "data.test_fraction=0.3",
        "evaluate.max_new_tokens=5",
        "publish.merged=false",
    ):
        assert not is_done(other), other
    assert not is_done("publish.gguf=[f16]")
    csv = shop / "data" / "south.csv"
    rows = csv.read_bytes()
    csv.write_bytes(rows + b"x,y\n")
    assert not is_done()
    csv.write_bytes(rows)
    for name in ("merge/model/model.safetensors", "train/stage.json", "publish/stage.json"):
        (path / name).rename(shop / "aside")
        assert not is_done(), name
        (shop / "aside").rename(path / name)
    assert is_done()
    record = path / "evaluate" / "stage.json"
    text = record.read_text(encoding="utf-8")
    record.write_text("{", encoding="utf-8")
    assert not is_done()
    record.write_text(text, encoding="utf-8")


def test_a_second_fleet_on_the_same_runs_is_refused(
    cluster: Cluster, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_command, "_DYING", 0.0)
    held = RunDir(tmp_path / "south")
    held.create()
    told = "another command is at work on 1 run of these, such as .*south"
    with fleet_in(shop, cluster), held.lock(), pytest.raises(RunDirError, match=told):
        fleet_command.run(["data/*.csv"], "my.yaml", (), tmp_path, Path("cache"), flags=(), runs_per_gpu=1, cores=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == [fleet_command.LOG, "south"]


def test_the_recipe_of_a_csv_is_that_of_a_run_alone(
    cluster: Cluster, shop: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without a GPU `chatbot-cpu`; nothing is run: the machine is asked for more cores than it has."""
    with (
        fleet_in(tmp_path, cluster),
        pytest.raises(EnvironmentUnavailable, match="9 free cores for a run; the most is 2"),
    ):
        fleet_command.run(
            [str(shop / "data" / "south.csv")], None, (), tmp_path / "runs", tmp_path, flags=(), runs_per_gpu=1, cores=9
        )
    assert "1 CSV with chatbot-cpu; 0 at once" in capfd.readouterr().err
    assert resolve.shipped_for_csv(on_gpu=True) == "default"


def test_the_command_ends_with_a_table_or_an_exit_code(
    finished: fleet_command.Done, shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finished.rows
    usual = ("--recipe", "my.yaml", "--cache-dir", "cache")
    with fleet_in(shop, None) as patch, in_process.command_line(patch, capsys, "fleet") as call:
        code, out, err = call("data/south.csv", "data/북점.csv", *usual)
        assert (code, "all 2 runs with my.yaml are done already" in err) == (0, True)
        assert out.splitlines()[0].split() == ["CSV", "verdict", "base", "→", "tuned", "where", "minutes"]
        assert out.splitlines()[2].startswith("data/북점.csv")
        code, out, _ = call("data/south.csv", *usual, "--json")
        (row,) = json.loads(out)
        assert (code, row["run"], row["exit_code"], row["where"]) == (0, "south", 0, "runs/south")
        for arguments, expected, told in (
            (("data/none*.csv",), 3, "no file matches"),
            (("data/*.csv", "--set", "name=x"), 2, "each run is named after its CSV"),
            (("data/*.csv", "--set", "publish.repo_id=me/shop"), 2, "not '북'"),
        ):
            code, out, err = call(*arguments, *usual)
            assert (code, out, told in err) == (expected, "", True), err
    with pytest.MonkeyPatch.context() as patch, in_process.command_line(patch, capsys, "fleet") as call:
        patch.chdir(shop)
        patch.setitem(sys.modules, "ray", None)
        code, _, err = call("data/wrong.csv", *usual)
        assert (code, sweeps_cluster.INSTALL in err) == (4, True)


@contextmanager
def pressed(ready: Callable[[], bool], sent: signal.Signals = signal.SIGINT) -> Iterator[None]:
    """Ctrl-C once this is so, and the same press once more, as a container engine passes it on; SIGTERM goes to all
    that this process has started before, as a service manager sends it."""

    def press() -> None:
        while not ready():
            time.sleep(0.05)
        for process in psutil.Process().children(recursive=True) if sent == signal.SIGTERM else ():
            process.send_signal(sent)
        time.sleep(0.7 * (sent == signal.SIGTERM))  # as long as a worker may take to hear of it from this process
        os.kill(os.getpid(), sent)
        time.sleep(0.1)
        os.kill(os.getpid(), sent)

    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    signals.install()
    threading.Thread(target=press, daemon=True).start()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signals.forget()


def test_a_stopped_fleet_shows_where_every_run_stands(
    cluster: Cluster, base_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my.yaml").write_text(RECIPE.format(base=base_dir), encoding="utf-8")
    (tmp_path / "data").mkdir()
    for name in ("a", "b", "c"):
        write_qa(tmp_path / "data" / f"{name}.csv", [(f"{name} {i % 5}, {i}?", f"{name}{i % 5}!") for i in range(40)])
    trained = [tmp_path / "runs" / name / "train" / "metrics.jsonl" for name in ("a", "b")]
    settings = ("--set", "train.max_steps=100000", "--set", "train.eval_every=50000", "--cache-dir", "cache")

    with fleet_in(tmp_path, cluster) as patch, in_process.command_line(patch, capsys, "fleet") as call:
        with pressed(lambda: all(path.is_file() and '"step": 1,' in path.read_text("utf-8") for path in trained)):
            code, out, err = call("data/*.csv", "--recipe", "my.yaml", *settings, "--json")
        assert (code, "stopped by SIGINT" in err) == (130, True), err
        a, b, c = json.loads(out)
        assert [row["exit_code"] for row in (a, b, c)] == [None, None, None]
        for row in (a, b):
            assert row["state"].startswith("stopped: train ")
            assert row["state"].endswith("/100000")
            assert row["minutes"] > 0
        assert (c["state"], c["minutes"]) == ("not begun", 0)
        found = fleet_shown.Row(**a).cells()
        assert found[:2] == ("data/a.csv", a["state"])


# --- how runs are handed out


def jobs(folder: Path, *commands: Sequence[str], share: Share = ON_CPU) -> list[RunJob]:
    return [
        RunJob(
            f"run{i}",
            tuple(words),
            folder / f"run{i}",
            ROOT,
            gpus=share.gpus,
            threads=1,
            module="tests.sweeps.stand_in",
        )
        for i, words in enumerate(commands)
    ]


def handed_out(
    cluster: Cluster, asked: Sequence[RunJob], share: Share = ON_CPU, *, waits: bool = False
) -> dict[str, int]:
    outcomes = Fleet(cluster, asked, share, Progress(len(asked), 0), waits=waits).run()
    return {name: outcome.exit_code for name, outcome in outcomes.items()}


def test_each_run_sees_one_gpu(cluster: Cluster, tmp_path: Path) -> None:
    seen = [tmp_path / f"{i}.json" for i in range(4)]
    asked = jobs(tmp_path, *(("environ", str(path), "sleep", "1") for path in seen), share=ON_GPU)
    assert handed_out(cluster, asked, ON_GPU) == dict.fromkeys((f"run{i}" for i in range(4)), 0)
    gpus = [json.loads(path.read_text(encoding="utf-8"))["CUDA_VISIBLE_DEVICES"] for path in seen]
    assert set(gpus) == {"0", "1"}
    assert attempts.gpu_minutes(attempts.read(tmp_path / "run0")) > 0


def test_the_first_run_fetches_the_base_alone(cluster: Cluster, tmp_path: Path) -> None:
    check = tmp_path / "run0" / "check" / "stage.json"
    another = tmp_path / "run1" / run_child.OUTPUT
    first = ("sleep", "1", "write", str(check), "await", str(another), "end", "0")  # they start before it ends
    others = [("end", "0")] * 2
    assert handed_out(cluster, jobs(tmp_path, first, *others), waits=True) == {"run0": 0, "run1": 0, "run2": 0}
    begun = [(tmp_path / name / run_child.OUTPUT).stat().st_ctime for name in ("run1", "run2")]
    assert min(begun) > check.stat().st_mtime


def test_a_failure_on_the_only_machine_stops_no_other(cluster: Cluster, tmp_path: Path) -> None:
    commands = [("refuse", "no space", "4")] * 3 + [("refuse", "a bug", "1"), ("end", "0")]
    ended = handed_out(cluster, jobs(tmp_path, *commands))
    assert ended == {"run0": 4, "run1": 4, "run2": 4, "run3": 1, "run4": 0}
    assert len(attempts.read(tmp_path / "run0")) == 1


def test_a_fleet_ends_if_rays_own_processes_have(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(_: Cluster) -> None:
        raise EnvironmentUnavailable("raylet was killed", hint="")

    monkeypatch.setattr(Cluster, "refuse_ended", ended)
    with pytest.raises(EnvironmentUnavailable, match="raylet was killed"):
        handed_out(cluster, jobs(tmp_path, ("end", "0")))


def test_what_no_machine_may_run_any_more_is_taken_back(cluster: Cluster, tmp_path: Path) -> None:
    """A run that only a lost machine was allowed to have would wait for ever."""
    held = Fleet(cluster, jobs(tmp_path, ("end", "0")), ON_CPU, Progress(1, 0), waits=False)
    (job, _) = held._waiting.popleft()
    held._fly(job, frozenset({"0" * 56}))
    assert {name: outcome.exit_code for name, outcome in held.run().items()} == {"run0": 0}


def _crashes(job: RunJob) -> None:  # noqa: ARG001
    os._exit(1)


def _fails(job: RunJob) -> None:
    raise ValueError(job.name)


def test_a_worker_that_always_dies_is_the_machines_fault_and_an_exception_a_bug(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "_RETRIES", 0)
    seen = []
    for attempt in (_crashes, _fails):
        held = Fleet(cluster, jobs(tmp_path, ()), ON_CPU, Progress(1, 0), waits=False)
        held._task = cluster.ray.remote(attempt)
        outcome = held.run()["run0"]
        seen.append((outcome.exit_code, outcome.message))
    assert seen == [(4, "its worker was killed 1 time"), (1, "this is a bug: ValueError: run0")]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_has_every_run_save_what_it_has(
    sent: signal.Signals, cluster: Cluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C; and SIGTERM to every process, as a service manager sends it: each run gets it from its worker as well."""
    saved = [tmp_path / f"{i}.txt" for i in range(2)]
    asked = jobs(tmp_path, *(("save", str(path)) for path in saved), ("end", "0"))
    begun = [path.with_suffix(".begun") for path in saved]
    with pressed(lambda: all(path.exists() for path in begun), sent), pytest.raises(Interrupted) as caught:
        handed_out(cluster, asked)
    assert (caught.value.exit_code, caught.value.hint) == (128 + sent, "the same command continues")
    assert [path.read_text(encoding="utf-8") for path in saved] == ["saved", "saved"]
    assert [attempts.read(tmp_path / f"run{i}")[0].exit_code for i in range(2)] == [143, 143]
    assert not (tmp_path / "run2").exists()
    assert f"stopped by {sent.name}: 2 runs will save what they have" in capfd.readouterr().err


def test_the_exit_code_is_that_of_the_worst() -> None:
    row = fleet_shown.Row("a.csv", "a", "done", 0, "", "better", 0, "f1", 0.1, 0.2, "runs/a", 2.0, has_gpu=True)
    assert row.cells() == ("a.csv", "better", "f1 10.0% → 20.0%", "runs/a", "2.0")
    codes = [replace(row, exit_code=code) for code in (0, 3, 8, 4)]
    assert fleet_shown.worst(codes) == 8
    assert fleet_shown.worst([*codes, replace(row, exit_code=1)]) == 1
    assert fleet_shown.worst([row]) == 0
    assert fleet_shown.columns(has_gpus=True)[-1] == "GPU-min"


def test_a_machine_without_room_counts_for_nothing() -> None:
    assert sweeps_cluster.slots([Node("a", "", "", cpus=1, gpus=0, alive=True)], gpus=1, cpus=0) == {}
