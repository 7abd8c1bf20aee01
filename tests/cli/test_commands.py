"""The command line: what the commands answer, and which exit code a failure becomes."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import numpy
import pytest
from rich.console import Console
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from appliance.errors import RunDirError
from appliance.machine import disk, packages
from appliance.pipeline import stages
from appliance.process import console
from appliance.recipe import fields as recipe_fields
from appliance.recipe import resolve
from tests.cli.conftest import Appliance
from tests.conftest import write_qa


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What check and prepare read of a base: its config, its tokenizer (a token a byte), the size of its weights."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    tokens = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in tokens[:3]])
    backend.save(str(folder / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special), encoding="utf-8")
    config = {"model_type": "llama", "max_position_embeddings": 512}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file({"model.norm.weight": numpy.ones(8, numpy.float16)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def shop(tmp_path: Path, base_dir: Path, qa_csv: Path) -> Path:
    """A recipe on a tiny base that can run here."""
    path = tmp_path / "shop.yaml"
    text = f"name: shop\nmodel: {{id: {base_dir}, load_in_4bit: false}}\ndata: {{csv: {qa_csv}}}\n"
    path.write_text(text + "train: {optimizer: adamw_torch}\n", encoding="utf-8")
    return path


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the `train` extra were not installed: check and prepare then read the tokenizer without transformers."""
    monkeypatch.setattr(packages, "can_train", lambda: False)


def test_no_arguments_show_the_help(appliance: Appliance) -> None:
    code, out, err = appliance()
    assert code == 2
    assert "Fine-tune a language model on a CSV" in out + err


def test_recipe_schema_lists_every_field(appliance: Appliance) -> None:
    code, out, _ = appliance("recipe", "schema")
    assert code == 0
    assert [key for key, _ in recipe_fields.fields() if f"\n{key} " not in out] == []
    code, out, _ = appliance("recipe", "schema", "--json")
    assert json.loads(out)["properties"]["train"]


def test_recipe_list_says_what_each_is_for(appliance: Appliance) -> None:
    code, out, _ = appliance("recipe", "list")
    assert code == 0
    for name, path in resolve.shipped().items():
        line = next(line for line in out.splitlines() if line.split()[0] == name)
        assert resolve.headline(path)[:40] in line


def test_a_shown_recipe_can_be_edited_and_checked(appliance: Appliance, tmp_path: Path, base_dir: Path) -> None:
    code, shown, err = appliance("recipe", "show", "chatbot-cpu")
    assert (code, err) == (0, "")
    assert shown == resolve.shipped()["chatbot-cpu"].read_text(encoding="utf-8")
    path = tmp_path / "my.yaml"
    path.write_text(shown, encoding="utf-8")
    csv = write_qa(tmp_path / "qa.csv", [(f"{i}?", f"{i}!") for i in range(400)], ("Q", "A"))
    settings = ["--set", f"data.csv={csv}", "--set", f"model.id={base_dir}", "--set", "name=my"]
    code, out, err = appliance("check", path, *settings, "--json")
    assert code == 0, err
    assert {finding["verdict"] for finding in json.loads(out)} == {"ok"}
    assert resolve.load(str(tmp_path / "runs" / "my")).recipe.train.eval_every == 50  # the recipe's, not the default


@pytest.mark.usefixtures("light")
def test_check_then_prepare_then_inspect_then_status(appliance: Appliance, tmp_path: Path, shop: Path) -> None:
    run = tmp_path / "runs" / "shop"
    assert appliance("status")[1] == f"no runs in {tmp_path / 'runs'}\n"
    code, out, err = appliance("check", shop)
    assert code == 0, err
    assert re.search(r"^\d+ (other )?checks are ok \(--verbose shows them\)$", out, re.MULTILINE)
    assert "usable" not in out
    assert re.search(r"^model.id +\S+ +shop.yaml$", err, re.MULTILINE)
    assert not re.search(r" default *$", err, re.MULTILINE)
    assert re.search(r"^\d+ more fields as by default", err, re.MULTILINE)
    code, out, err = appliance("check", shop, "--verbose")
    assert re.search(r"^rows +40 usable, 0 rejected +ok", out, re.MULTILINE)
    assert len(re.findall(r"^[a-z_]+\.[\w.]+ .* default *$", err, re.MULTILINE)) > 40
    assert "by default" not in err
    code, out, err = appliance("prepare", run)
    assert code == 0, err
    assert re.search(rf"^row ledger +{re.escape(str(run))}/prepare/rows.csv$", out, re.MULTILINE)
    assert out.splitlines()[-1].split() == ["log", f"{run}/appliance.log"]
    assert "prepare   40 rows: 32 train, 4 val, 4 test, 0 rejected" in err

    code, out, _ = appliance("inspect", run)
    assert code == 0
    assert re.match(r"row \d+ \(train\): \d+ tokens, \d+ trained, the rest masked\nmasked   ", out)
    assert re.fullmatch(r"trained  .*!</s>", out.splitlines()[-1])  # the answer, and EOS by its name
    code, out, _ = appliance("inspect", run, "--row", 17)
    assert out.startswith("row 17 (")
    assert "배 15?" not in out
    assert "사과 15?" in out
    code, _, err = appliance("inspect", run, "--row", 999)
    assert (code, "row 999 is not in train, val or test" in err) == (3, True)

    code, out, _ = appliance("status", "--json")
    rest = {"rehearse": "", "train": "", "evaluate": "", "merge": "", "publish": ""}
    (shown,) = json.loads(out)
    stages = {"run": "shop", "check": "done", "prepare": "done", **rest}
    assert {name: shown[name] for name in stages} == stages
    code, out, _ = appliance("status")
    assert re.search(r"^shop +unfinished: prepare ", out, re.MULTILINE)


@pytest.mark.usefixtures("light")
def test_a_terminal_shows_the_stages_and_their_times(
    appliance: Appliance, tmp_path: Path, shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert appliance("check", shop)[0] == 0
    screen = io.StringIO()
    monkeypatch.setattr(console, "_stderr", Console(file=screen, force_terminal=True, width=80, height=24))
    assert appliance("prepare", tmp_path / "runs" / "shop")[0] == 0
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert re.search(r"check \d:\d\d:\d\d  prepare\r", shown)  # while it checks
    assert "40 rows: 32 train" in " ".join(shown.split())


def test_check_repeats_all_checks_on_every_call(appliance: Appliance, shop: Path) -> None:
    assert appliance("check", shop)[0] == 0
    code, _, err = appliance("check", shop, "--set", "data.columns.output=Antwort")
    assert (code, "no column 'Antwort'" in err) == (3, True)
    assert appliance("check", shop)[0] == 0


def test_a_run_directory_under_another_name_is_a_new_run(appliance: Appliance, tmp_path: Path, shop: Path) -> None:
    assert appliance("prepare", tmp_path / "runs" / "shop")[0] == 8  # nothing there yet
    assert appliance("check", shop)[0] == 0
    assert appliance("check", tmp_path / "runs" / "shop", "--set", "name=second")[0] == 0
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"shop", "second"}


# --- what a failure becomes

# (arguments, exit code, text on stderr); {name} is a path below the test's folder.
FAILURES = [
    ("run nonsense", 2, "'nonsense' is neither a shipped recipe, nor a file, nor a run directory"),
    ("run chatbot-cqu", 2, "did you mean 'chatbot-cpu'?"),
    ("nosuchcommand", 2, "No such command"),
    ("run", 3, "there is no file data/train.csv"),
    ("run {shop} --sett x=1", 2, "No such option"),
    ("run {shop} --set train.epoch=1", 2, "--set train.epoch: no such field; did you mean `train.epochs`?"),
    ("run {shop} --set train.epochs=viele", 2, "found 'viele'"),
    ("run {shop} --set train.epochs", 2, "expected KEY=VALUE"),
    ("run {broken.yaml}", 2, "not a readable YAML file"),
    ("run {shop} --redo trian", 2, "one of check, prepare, rehearse, train, evaluate, merge, publish"),
    ("publish --runs-dir {hole.csv}", 8, "no runs in"),
    ("train {run} --redo merge", 2, "one of check, prepare, rehearse, train"),
    ("run {shop} --set model.id={nowhere}", 2, "neither a folder, nor USER/NAME on the Hub"),
    ("run {shop} --set data.csv={nowhere.csv}", 3, "nowhere.csv"),
    ("run {shop} --set data.csv={models}", 3, "is a folder, not a CSV file"),
    ("run {shop} --set data.columns.output=answer", 3, "no column 'answer' for the output; the header has"),
    ("run {shop} --set data.csv={holes.csv}", 3, "no usable row; line 2: column 'output': the answer is empty"),
    ("run {shop} --set data.csv={bytes.csv}", 3, "bytes.csv, line 2: byte 0xFF"),
    ("check {nowhere.csv}", 3, "there is no file"),
    ("check {holes.csv}", 3, "no usable row; line 2: column 'output': the answer is empty"),
    ("check {bytes.csv}", 3, "bytes.csv, line 2: byte 0xFF"),
    ("check {hole.csv} --set data.columns.instruction=Q", 3, "no column 'Q' for the instruction"),
    ("check {hole.csv} --set data.colums.output=Q", 2, "did you mean `data.columns.output`?"),
    ("run {shop} --set model.id={models/empty}", 4, "has no config.json"),
    ("run {shop} --set model.id={models/quantised}", 4, "is already quantised"),
    ("check {shop} --set model.max_seq_length=100000", 4, "max_seq_length: 100000, needed <= 512"),
    ("run {shop} --set model.id=nobody/model", 5, "the base model nobody/model cannot be fetched"),
    ("run {shop} --set 'model.id=no body/model'", 2, "model.id: 'no body/model' cannot be a repository on the Hub"),
    ("run {shop} --set model.id=nobody/model", 5, "the base model nobody/model cannot be fetched"),
    ("inspect {models}", 8, "is not a run directory"),
    ("inspect {run}", 8, "no prepared rows here"),
    ("run demo {holes.csv}", 2, "Did you mean --set data.csv=/"),
    ("run demo data.csv=x.csv", 2, "Did you mean --set data.csv=x.csv?"),
    ("check {shop} demo", 2, "Did you mean demo --set data.csv=FILE?"),
    ("run demo --set name=a/b", 2, "name (--set): expected letters, digits, '_', '-' and '.', the last two not at"),
    ("ask {run}", 2, "no question given"),
    ("ask {nosuchrun} '얼마?'", 8, "nosuchrun is not a run directory"),
    ("ask {run} '얼마?'", 8, "the stage `check` is not done"),
    ("ask '얼마?'", 8, "no runs in"),
    ("chat {models}", 8, "is not a run directory"),
    ("chat --max-new-tokens 0", 2, "Invalid value"),
    ("run {shop} --runs-dir {hole.csv}", 4, "cannot write the run directory"),
]


@pytest.mark.parametrize(("arguments", "code", "seen"), FAILURES)
def test_a_failure_is_a_message_a_hint_and_a_code(
    appliance: Appliance, tmp_path: Path, shop: Path, arguments: str, code: int, seen: str
) -> None:
    (tmp_path / "broken.yaml").write_text("a: [", encoding="utf-8")
    write_qa(tmp_path / "hole.csv", [("a", "b"), ("c", " ")] + [(f"{i}?", "x") for i in range(9)])
    write_qa(tmp_path / "holes.csv", [("a", ""), ("b", "")])
    (tmp_path / "bytes.csv").write_bytes(b"instruction,output\na,\xff\n")
    (tmp_path / "models" / "empty").mkdir(parents=True)
    (tmp_path / "models" / "quantised").mkdir()
    (tmp_path / "models" / "quantised" / "config.json").write_text('{"quantization_config": {}}', encoding="utf-8")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(shop.read_text(encoding="utf-8"), encoding="utf-8")
    places = {"shop": str(shop)}
    filled = re.sub(r"\{(.+?)\}", lambda m: places.get(m[1], str(tmp_path / m[1])), arguments)
    found, out, err = appliance(*shlex.split(filled))
    assert (found, seen in err.replace("\n", " ")) == (code, True), err
    assert "Traceback" not in err
    if not err.startswith("Usage:"):
        told = err[err.index("Error: ") :].splitlines()
        assert told[-1].startswith("Fix: ")
        assert " | hint: " not in err  # said once, and not by the logging module as well
        assert out == "" or (arguments.startswith("check {shop}") and " fails " in out)  # what check found


@pytest.mark.usefixtures("light")
def test_a_row_that_cannot_be_used_is_refused_by_its_line(appliance: Appliance, tmp_path: Path, shop: Path) -> None:
    csv = write_qa(tmp_path / "hole.csv", [("a", "b"), ("c", " ")] + [(f"{i}?", "x") for i in range(9)])
    run = tmp_path / "runs" / "shop"
    code, out, _ = appliance("check", shop, "--set", f"data.csv={csv}")
    assert (code, "10 usable, 1 rejected" in out, "column 'output': the answer is empty (line 3)" in out) == (
        0,
        True,
        True,
    )
    code, _, err = appliance("prepare", run)
    assert (code, "hole.csv: 1 row cannot be used:\n  line 3: column 'output': the answer is empty" in err) == (
        3,
        True,
    )
    assert "--set data.on_bad_row=drop" in err
    assert "3,rejected," in (run / "prepare" / "rows.csv").read_text(encoding="utf-8")
    assert appliance("prepare", run, "--set", "data.on_bad_row=drop")[0] == 0


def test_the_log_knows_why_a_run_stopped(appliance: Appliance, tmp_path: Path, shop: Path) -> None:
    assert appliance("run", shop, "--set", "data.columns.output=answer")[0] == 3
    assert "no column 'answer'" in (tmp_path / "runs" / "shop" / "appliance.log").read_text(encoding="utf-8")


def test_a_bug_is_told_as_one_with_its_traceback_in_the_log(
    appliance: Appliance, tmp_path: Path, shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "check", lambda *_: 1 // 0)
    code, _, err = appliance("run", shop)
    log = tmp_path / "runs" / "shop" / "appliance.log"
    assert code == 1
    assert (
        f"this is a bug: ZeroDivisionError: integer division or modulo by zero\nFix: the traceback is in {log}" in err
    )
    assert "Traceback" not in err
    assert "Traceback" in log.read_text(encoding="utf-8")


def test_a_check_that_refuses_shows_what_it_found(
    appliance: Appliance, shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = appliance("check", shop, "--json", "--set", "evaluate.extra_prompts=nope.txt")
    assert (code, json.loads(out)) == (3, [])  # known before anything else
    monkeypatch.setattr(disk, "free_disk_bytes", lambda _: 1 << 20)
    code, out, err = appliance("check", shop, "--json")
    found = {line["what"]: line["verdict"] for line in json.loads(out)}
    assert (code, found["disk"], found["rows"]) == (4, "fails", "ok")
    code, out, err = appliance("run", shop)
    assert code == 4
    assert err.index("652.8 MiB") < err.index("other checks are ok") < err.index("Error: ")


@pytest.mark.parametrize(
    ("field", "text"), [("extra_prompts", None), ("extra_prompts", ""), ("other_answers", "a,b\n")]
)
def test_files_for_the_evaluation_are_read_before_the_training(
    field: str, text: str | None, appliance: Appliance, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "asked.txt"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(stages, "train", lambda *_: pytest.fail("it was begun"))
    for command in ("check", "run"):
        code, _, err = appliance(command, shop, "--set", f"evaluate.{field}={path}")
        assert (code, "asked.txt" in err) == (3, True), err


def test_a_full_disk_is_no_bug(appliance: Appliance, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/runs/shop/x")

    monkeypatch.setattr(stages, "check", full)
    code, _, err = appliance("run", shop)
    assert (code, "/runs/shop/x: No space left on device: " in err) == (4, True)
    assert "bytes (" in err


_SLEEPING = """
import sys, time
from pathlib import Path
from appliance.cli import app as cli_app
from appliance.machine import device as machine
from appliance.pipeline import run as pipeline_run
def run(*args, **kwargs):
    print("begun", flush=True)
    time.sleep(20)
pipeline_run.run = run
cli_app.main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_is_told_with_the_way_on(number: signal.Signals, code: int, tmp_path: Path, shop: Path) -> None:
    command = [sys.executable, "-c", _SLEEPING, "run", str(shop), "--runs-dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "begun\n"
        started.send_signal(number)
        _, err = started.communicate(timeout=10)
    assert (started.returncode, err) == (code, f"Error: stopped by {number.name}\nFix: the same command continues\n")


_SLOW_TO_END = """
import time
from appliance.cli import app as cli_app
from appliance.pipeline import run as pipeline_run
def stage(*args, **kwargs):
    try:
        print("begun", flush=True)
        time.sleep(20)
    finally:
        time.sleep(2)
pipeline_run._run_stage = stage
cli_app.main()
"""


def test_a_stage_that_takes_long_to_stop_says_that_it_does(tmp_path: Path, shop: Path) -> None:
    command = [sys.executable, "-c", _SLOW_TO_END, "run", str(shop), "--runs-dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "begun\n"
        started.send_signal(signal.SIGINT)
        _, err = started.communicate(timeout=30)
    assert started.returncode == 130
    assert err.splitlines()[-3:] == [
        "SIGINT: stopping; what is finished is kept (send it again to stop at once)",
        "Error: stopped by SIGINT",
        "Fix: the same command continues",
    ]


def test_a_signal_that_nohup_ignores_stays_ignored(appliance: Appliance) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    appliance("--version")
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.parametrize(
    "name",
    ["a b.csv", "'it\"s' $(x).csv", unicodedata.normalize("NFD", "값.csv"), "-x.csv", "two\nlines.csv", "%20{}#.csv"],
)
def test_a_csv_with_an_odd_name_is_read_as_any_other(
    appliance: Appliance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_qa(tmp_path / name, [(f"질문 {i}?", "답") for i in range(40)])
    before = (tmp_path / name).stat()
    (tmp_path / name).chmod(0o400)
    code, out, _ = appliance("check", "--json", "--", name)
    assert (code, json.loads(out)["csv"], json.loads(out)["usable"]) == (0, name, 40)
    code, out, err = appliance("check", f"./{name}")
    assert code == 0, err
    code, _, err = appliance("check", f"./{name}", "--set", f"data.columns.output={name}")
    assert code == 3
    assert "\x1b" not in err
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).stat().st_mtime_ns == before.st_mtime_ns


def test_without_a_name_the_newest_run_is_taken(tmp_path: Path) -> None:
    from appliance.rundir import find as rundir_find

    for age, name in enumerate(("new", "old")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").write_text("", encoding="utf-8")
        os.utime(tmp_path / name / "recipe.yaml", (1000 - age, 1000 - age))
    assert rundir_find.newest_run(tmp_path) == tmp_path / "new"


def test_the_newest_run_is_not_guessed_after_the_clock_was_set_back(tmp_path: Path) -> None:
    from appliance.rundir import find as rundir_find

    (tmp_path / "first").mkdir()
    recipe = tmp_path / "first" / "recipe.yaml"
    recipe.write_text("", encoding="utf-8")
    os.utime(recipe, (time.time() + 86400,) * 2)
    assert rundir_find.newest_run(tmp_path) == tmp_path / "first"  # there is no other
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "recipe.yaml").write_text("", encoding="utf-8")
    with pytest.raises(RunDirError, match=r"first/recipe\.yaml is dated 24\.0 hours in the future") as caught:
        rundir_find.newest_run(tmp_path)
    assert str(tmp_path / "first") in caught.value.hint
    os.utime(recipe, (time.time() + 60,) * 2)  # a file server's clock may be a little ahead
    assert rundir_find.newest_run(tmp_path) == tmp_path / "first"


def test_checks_of_earlier_are_told_by_their_file_not_by_the_clock(tmp_path: Path) -> None:
    from appliance.cli import check_csv
    from appliance.process import files

    table = tmp_path / "check" / "table.json"
    assert check_csv.table_before(tmp_path) is None
    assert check_csv.check_table(tmp_path) == []
    table.parent.mkdir()
    files.write_json(table, [{"what": "old"}])
    os.utime(table, (time.time() + 1e6,) * 2)
    before = check_csv.table_before(tmp_path)
    assert check_csv.check_table(tmp_path, before) == []
    files.write_json(table, [{"what": "new"}])
    os.utime(table, (1e9, 1e9))
    assert check_csv.check_table(tmp_path, before) == [{"what": "new"}]


def test_paths_are_shown_as_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    from appliance.rundir import find as rundir_find

    assert rundir_find.shown_path(Path("/runs/a/b"), Path("/runs")) == Path("/runs/a/b")
    monkeypatch.setenv("APPLIANCE_HOST_RUNS_DIR", "./runs")
    assert rundir_find.shown_path(Path("/runs/a/b"), Path("/runs")) == Path("runs/a/b")
    assert rundir_find.shown_path(Path("/elsewhere/a"), Path("/runs")) == Path("/elsewhere/a")
