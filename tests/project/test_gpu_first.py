"""`python -m tests.gpu.first`: a small run of its parts, so that no minute on a card is lost to a mistake."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from appliance.machine import disk, place
from appliance.prompt import format as prompt_format
from tests.conftest import read_csv
from tests.gpu import first, parts, product, shapes
from tests.gpu.first import Part, Record
from tests.gpu.worker import Bench, Setup
from tests.helpers.models import alpaca_tokenizer

ROOT = Path(__file__).parents[2]
# What a worker says and does, by the part it is asked for; the rest of one is tests/gpu/worker.py's protocol.
WORKER = """
import json, os, subprocess, sys, time
out_dir = json.loads(sys.argv[1])["out_dir"]
def tell(**message):
    print(json.dumps(message), flush=True)
for line in sys.stdin:
    part = json.loads(line)["part"]
    tell(measured={"process": os.getpid()})
    if part == "counts":
        tell(measured={"lines": len(open(out_dir + "/results.jsonl").readlines())})
    if part == "broken":
        tell(claim={"what": "ratio", "seen": 2.0, "bound": 1.15, "held": False})
    if part == "raises":
        tell(error="ValueError: no")
    if part == "dies":
        os._exit(3)
    if part == "slow":
        time.sleep(4)
    if part == "hangs":
        beside = subprocess.Popen(["sleep", "600"])
        tell(measured={"beside": beside.pid})
        open(out_dir + "/hangs", "w").close()
        time.sleep(600)
    tell(claim={"what": "step", "seen": 1, "bound": 1, "held": True})
    tell(ended=True)
"""


def a_part(name: str, at_least: float = 0, at_most: float = 60) -> Part:
    return Part(name, "", at_least, at_most, {"process": "process {}"})


def run(
    out_dir: Path, *names: str | Part, seconds: float = 60, is_tiny: bool = False
) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and records of these parts."""
    chosen = [name if isinstance(name, Part) else a_part(name) for name in names]
    setup = Setup("", is_tiny, str(out_dir), str(out_dir))
    command = (sys.executable, "-c", WORKER)
    code = first.run(chosen, setup, seconds, command=command, say=lambda _: None)
    return code, records(out_dir)


def records(out_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out_dir / "results.jsonl").read_text(encoding="utf-8").splitlines()]


def is_alive(pid: int) -> bool:
    """False for a zombie: ended, but nobody has collected its exit code."""
    state = place.read_text(Path(f"/proc/{pid}/stat")).rpartition(") ")[2]
    return bool(state) and state[0] not in "ZX"


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_part_runs_in_small(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = first.main(["--tiny", "--minutes", "28", "--out", str(tmp_path)])
    found = {record["part"]: record for record in records(tmp_path)}
    assert [record["outcome"] for record in found.values()] == ["held"] * len(first.PARTS), found
    assert code == 0
    assert list(found) == [part.name for part in first.PARTS]
    assert all(record["claims"] for record in found.values())
    assert capfd.readouterr().out.splitlines() == (tmp_path / "results.md").read_text(encoding="utf-8").splitlines()[2:]
    # what the small ones have to go through as well
    whole = found["default"]["measured"]
    assert set(whole["stage_seconds"].replace(",", "").split()) >= {"rehearse", "train", "merge", "publish"}
    assert whole["tokens_per_second"] > 0
    assert whole["mfu"] > 0
    assert found["bare"]["measured"]["largest_loss_difference"] < 1e-4
    assert found["transformers"]["measured"]["largest_loss_difference"] < 1e-4  # that it was compared with `bare`
    assert found["oom"]["measured"]["fitting_rows"] == 2
    assert found["resume"]["measured"]["repeated"] >= 1
    assert (tmp_path / "default" / "merge" / "proof.json").is_file()  # kept, though the run's folder is removed


def test_each_part_is_recorded_before_the_next_begins_and_all_share_one_process(tmp_path: Path) -> None:
    code, (one, two) = run(tmp_path, "fine", "counts")
    assert code == 0
    assert two["measured"]["lines"] == 1
    assert one["measured"]["process"] == two["measured"]["process"]
    assert one["claims"] == [{"what": "step", "seen": 1, "bound": 1, "held": True}]
    lines = (tmp_path / "results.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "| part | seen | claims that held | seconds |"
    assert re.fullmatch(r"\| fine \| process \d+ \| 1 of 1 \| \d+ \|", lines[2])


@pytest.mark.parametrize(
    ("name", "outcome", "said"),
    [
        ("broken", "failed", "**ratio: 2.0, bound 1.15**"),
        ("raises", "failed", "ValueError: no"),
        ("dies", "failed", "the process ended with exit code 3; see unsloth.log"),
    ],
)
def test_the_exit_code_is_1_where_something_did_not_hold(tmp_path: Path, name: str, outcome: str, said: str) -> None:
    code, (before, bad, after) = run(tmp_path, "fine", name, "fine")
    assert code == 1
    assert (before["outcome"], bad["outcome"], after["outcome"]) == ("held", outcome, "held")
    assert said in (tmp_path / "results.md").read_text(encoding="utf-8").splitlines()[3]


def test_a_part_over_its_time_is_killed_with_all_that_it_started_and_its_figures_are_kept(tmp_path: Path) -> None:
    code, (hung, after) = run(tmp_path, a_part("hangs", at_most=2), "fine")
    assert code == 1
    assert (hung["outcome"], hung["cut"]) == ("cut", "cut: over its limit of 2 s")
    wait_for(lambda: not is_alive(hung["measured"]["beside"]))
    assert not is_alive(hung["measured"]["process"])
    assert after["outcome"] == "held"


def test_what_no_time_is_left_for_is_not_begun(tmp_path: Path) -> None:
    code, (one, long, short) = run(tmp_path, "fine", a_part("long", at_least=100), "fine", seconds=30)
    assert [one["outcome"], long["outcome"], short["outcome"]] == ["held", "not run", "held"]
    assert re.fullmatch(r"\d+ s left", long["cut"])
    assert code == 0  # all that ran held
    assert run(tmp_path, a_part("long", at_least=100), seconds=30)[0] == 1  # nothing ran


def test_all_parts_together_keep_to_the_minutes(tmp_path: Path) -> None:
    began = time.monotonic()
    _, (hung, rest) = run(tmp_path, "hangs", "fine", seconds=first.END_SECONDS + 2)
    assert time.monotonic() - began < 30
    assert (hung["outcome"], rest["outcome"]) == ("cut", "not run")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_part_and_writes_what_there_is(tmp_path: Path, number: int) -> None:
    program = f"""
        import sys
        from tests.gpu import first, worker
        parts = [first.Part(name, "", 0, 60, {{}}) for name in ("fine", "hangs", "fine")]
        setup = worker.Setup("", False, {str(tmp_path)!r}, {str(tmp_path)!r})
        sys.exit(first.run(parts, setup, 60, command=(sys.executable, "-c", {WORKER!r})))
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_for(lambda: (tmp_path / "hangs").is_file())
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    one, hung, rest = records(tmp_path)
    assert [one["outcome"], hung["outcome"], rest["outcome"]] == ["held", "cut", "not run"]
    assert hung["cut"] == f"cut: stopped by {signal.Signals(number).name}"
    wait_for(lambda: not is_alive(hung["measured"]["beside"]))


def test_list_shows_all_parts_and_only_selects_some(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert first.main(["--list"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == ["starts", "default", "bare", "auto", "ko8b", "float16", "oom", "resume", "transformers"]
    asked: list[tuple[list[str], Setup, float]] = []

    def noted(chosen: list[Part], setup: Setup, seconds: float) -> int:
        asked.append(([part.name for part in chosen], setup, seconds))
        return 0

    monkeypatch.setattr(first, "run", noted)
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    assert first.main(["--only", "oom", "starts", "--minutes", "2"]) == 0
    names, setup, seconds = asked[0]
    assert (names, setup.out_dir, setup.is_tiny, seconds) == (["starts", "oom"], str(tmp_path / "out"), False, 120)
    assert not Path(setup.work_dir).exists()  # tens of GB are not left behind
    for wrong in (["--only", "nothing"], ["--tiny", "--tokenizer", "somewhere"]):
        with pytest.raises(SystemExit) as refused:
            first.main(wrong)
        assert refused.value.code == 2


def test_the_driver_imports_neither_torch_nor_a_library_of_models() -> None:
    program = "import sys; from tests.gpu import first; print(*{'torch', 'transformers', 'unsloth'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_results_have_a_row_for_every_part() -> None:
    text = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    rows = text.partition(f"| {' | '.join(first.COLUMNS)} |\n")[2].splitlines()[1 : 1 + len(first.PARTS)]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == [part.name for part in first.PARTS]


def test_a_line_of_a_part_shows_what_is_known() -> None:
    record = Record(next(part for part in first.PARTS if part.name == "default"), seconds=401.2)
    record.take({"measured": {"tokens_per_second": 2210.4, "mfu": 0.31}})
    record.take({"claim": {"what": "the merge is proven", "seen": True, "bound": True, "held": True}})
    assert record.as_markdown() == "| default | 2210 tokens/s; MFU 31.0% | 1 of 1 | 401 |"


def a_bench(told: list[Any]) -> Bench:
    return Bench("unsloth", False, Path(), Path(), None, told.append)


@pytest.mark.parametrize(("peak_gib", "held"), [(5.69, True), (6.6, False), (3.8, False)])
def test_memory_is_held_against_checks_estimate(peak_gib: float, held: bool) -> None:
    needed = {"GPU memory for training": "5.2 GiB (weights 2.8 GiB; 2 rows of 764 tokens)"}
    told: list[Any] = []
    product.claim_memory(a_bench(told), needed, int(peak_gib * product.GIB))
    claims = [message["claim"] for message in told if "claim" in message]
    assert [claim["held"] for claim in claims] == [held]


def test_sizes_are_read_as_machine_writes_them() -> None:
    for count in (1, 1536, 5 << 20, 7 << 30):
        assert product.bytes_of(disk.human(count)) == count
    with pytest.raises(ValueError, match="no size at the start of 'some'"):
        product.bytes_of("some")


def test_the_median_step_leaves_the_warm_up_out() -> None:
    assert product.median_seconds([0.0, 30.0, 40.0, 41.0, 42.0, 44.0, 46.0, 48.0]) == 2.0
    assert product.median_seconds([0.0, 30.0, 33.0]) == 3.0


# Known from the models' pages: 8.03, 4.02 and 0.6 billion.
@pytest.mark.parametrize(
    ("config", "count"), [("LLAMA_3_8B", 8_030_261_248), ("QWEN3_4B", 4_022_468_096), ("QWEN3_06B", 596_049_920)]
)
def test_the_shapes_have_as_many_weights_as_the_models(config: str, count: int) -> None:
    assert sum(torch.Size(shape).numel() for _, shape in shapes._tensors(getattr(shapes, config))) == count


@pytest.mark.parametrize("config", ["LLAMA_3_8B", "QWEN3_4B"])
def test_transformers_finds_every_weight_of_a_random_base(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes, "SHARD_BYTES", 4096)
    wanted = getattr(shapes, config) | shapes.TINY
    base = shapes.random_base(tmp_path / "base", wanted, alpaca_tokenizer(), device="cpu")
    assert len(list(base.glob("*.safetensors"))) > 1
    model, seen = AutoModelForCausalLM.from_pretrained(base, output_loading_info=True)
    assert not seen["missing_keys"]
    assert not seen["unexpected_keys"]
    assert model.dtype == torch.bfloat16
    assert model.config.eos_token_id == 2
    assert 0.01 < model.get_input_embeddings().weight.float().std() < 0.03
    small = wanted | {"vocab_size": 3}
    with pytest.raises(ValueError, match="ids, the config has room for 3"):
        shapes.random_base(tmp_path / "other", small, alpaca_tokenizer(), device="cpu")


def a_wide_tokenizer(count: int) -> PreTrainedTokenizerFast:
    """The tests' own with that many ids: in its model, as in Qwen3's. As added tokens they take seconds to load."""
    words = alpaca_tokenizer()
    backend = json.loads(words.backend_tokenizer.to_str())
    vocabulary = backend["model"]["vocab"]
    vocabulary |= {f"<{i}>": i for i in range(len(vocabulary), count)}
    special = {name: getattr(words, name) for name in ("bos_token", "eos_token", "pad_token", "padding_side")}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(backend)), **special)


def test_a_real_tokenizer_is_taken_where_the_vocabulary_has_room(tmp_path: Path) -> None:
    """Qwen3's has more ids than Llama 3's vocabulary."""
    words, wide = alpaca_tokenizer(), a_wide_tokenizer(130_000)
    wide.save_pretrained(tmp_path / "wide")
    bench = Bench("unsloth", False, tmp_path, tmp_path, tmp_path / "wide", lambda _: None)
    assert len(wide) == 130_000
    taken = {base: len(parts._tokenizer(bench, base)) for base in parts.BASES}
    assert taken == {"small": len(wide), "qwen3-0.6b": len(wide), "qwen3-4b": len(wide), "llama-3-8b": len(words)}
    rows = read_csv(parts._rows(bench, "llama-3-8b", count=20, longest=300))
    prompt = prompt_format.from_transformers("alpaca", words)
    assert all(195 <= len(prompt.encode(row["instruction"], "", row["output"])) <= 300 for row in rows)


@pytest.mark.parametrize("between", ["", " "])
def test_rows_are_as_long_as_asked(between: str, tmp_path: Path) -> None:
    tokenizer = alpaca_tokenizer()
    path = shapes.write_rows(tmp_path / "rows.csv", 50, shortest=30, longest=90, tokenizer=tokenizer, between=between)
    prompt = prompt_format.from_transformers("alpaca", tokenizer)
    lengths = [len(prompt.encode(row["instruction"], "", row["output"])) for row in read_csv(path)]
    assert len(lengths) == 50
    assert 27 <= min(lengths) <= 40
    assert 80 <= max(lengths) <= 90


@pytest.mark.parametrize(("is_tiny", "outcome"), [(False, "cut"), (True, "held")])
def test_tiny_parts_may_take_longer(tmp_path: Path, is_tiny: bool, outcome: str) -> None:
    """A CPU that other tests use as well takes its time; a part that is cut off there proves nothing."""
    code, (record,) = run(tmp_path, a_part("slow", at_most=3), is_tiny=is_tiny)
    assert record["outcome"] == outcome
    assert code == int(outcome == "cut")
