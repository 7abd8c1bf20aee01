"""The scanner: what must not leave is found in every kind of file, and what is no trace is left alone."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from appliance.hub import token as hub_token
from appliance.process import console, known_secrets, redact
from appliance.process.files import write_json
from appliance.release import gates, leak_scan
from appliance.release.leak_scan import Private, scan
from appliance.rows import csv_file
from appliance.rundir import results

TOKEN = "hf_" + "aB3dE" * 7
SECRET = "s3cret-value-of-the-environment"
PRIVATE = Private(names=("hongkildong", "seoul-07"), paths=("/data/runs/shop", "/srv/base"))


def kinds(folder: Path, secrets: tuple[str, ...] = (SECRET,), private: Private = PRIVATE) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for hit in scan(folder, secrets, private):
        assert SECRET not in hit.sentence()
        assert TOKEN not in hit.sentence()
        found.setdefault(hit.path, []).append(hit.kind)
    return found


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (f'{{"a": "{SECRET}"}}', "a secret of this environment"),
        (f"key={TOKEN}&x", "a string shaped like a Hub token (hf_…)"),
        ("curl -H 'Authorization: Bearer abcdefghij'", "an Authorization header"),
        ('{"authorization": "Basic dXNlcjpwYXNz"}', "an Authorization header"),
        ("sent bearer abcdefghijklmnopqrstuvwxyz", "an Authorization header"),
        ("https://s3/x?X-Amz-Date=1&X-Amz-Signature=0123456789abcdef", "a signed URL"),
        ("https://blob/x?sv=1&sig=abc%2Fdefghij", "a signed URL"),
        ("https://cdn/x?Expires=1&Signature=abcdefghij~", "a signed URL"),
        ("in /home/hong/models/x", "a home folder"),
        ('"path": "/Users/hong"', "a home folder"),
        ("File /root/.venv/lib/x.py", "a home folder"),
        ('"path": "\\/home\\/hong\\/x"', "a home folder"),
        ("saved to /data/runs/shop/train", "a path of this machine"),
        ("/srv/base", "a path of this machine"),
        ("by hongkildong on Monday", "the name of this host or user"),
        ("host=seoul-07:8080", "the name of this host or user"),
    ],
)
def test_what_must_not_leave(text: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"# Card\n\n한국어 {text}\n", encoding="utf-8")
    (hit,) = scan(tmp_path, [SECRET], PRIVATE)
    assert (hit.path, hit.line, hit.kind) == ("README.md", 3, kind)
    assert hit.sentence() == f"README.md, line 3: {kind}"


@pytest.mark.parametrize(
    "text",
    [
        "hf_token, hf_transfer, HF_HUB_OFFLINE=1, hf://datasets/a/b",
        "the root of the tree, /rooted, ./root/x, tree/root/x",
        "a signature=none and a sig of x?assign=1",
        "Authorization is needed. Authorization: none",
        "the bearer of this",
        "hongkildongs and hongkildong-fan, seoul-071",
        "~/models and $HOME and /homework/x",
        "/data/run",
        "배송은 보통 이틀 걸립니다.",
    ],
)
def test_what_is_no_trace(text: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    assert scan(tmp_path, [SECRET], PRIVATE) == []


def test_a_vocabulary_may_hold_any_word_but_no_secret(tmp_path: Path) -> None:
    words = '{"hongkildong": 1, "/root/x": 2, "/home/ubuntu": 3, "Bearer abcdefghijklmnopqrstuvwxyz": 4}'
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "LICENSE", "NOTICE.txt"):
        (tmp_path / name).write_text(words, encoding="utf-8")
    assert kinds(tmp_path) == {}
    (tmp_path / "tokenizer.json").write_text(words + TOKEN, encoding="utf-8")
    (tmp_path / "LICENSE").write_text(words + SECRET, encoding="utf-8")
    assert set(kinds(tmp_path)) == {"tokenizer.json", "LICENSE"}
    (tmp_path / "tokenizer_config.json").write_text(words, encoding="utf-8")
    assert kinds(tmp_path)["tokenizer_config.json"] == [
        "an Authorization header", "a home folder", "the name of this host or user",
    ]  # fmt: skip


def test_metadata_of_weights_and_pickles_of_trainers(tmp_path: Path) -> None:
    tensors = {"w": torch.zeros(2)}
    (tmp_path / "sub").mkdir()
    for name, note in (("clean", "ok"), ("token", TOKEN), ("secret", SECRET), ("home", "/home/hong/x")):
        save_file(tensors, tmp_path / "sub" / f"{name}.safetensors", metadata={"note": note})
    torch.save({"hub_token": SECRET}, tmp_path / "training_args.bin")
    (tmp_path / "plot.png").write_bytes(b"\x89PNG" + TOKEN.encode())
    assert set(kinds(tmp_path)) == {
        "sub/token.safetensors", "sub/secret.safetensors", "sub/home.safetensors", "training_args.bin", "plot.png",
    }  # fmt: skip
    assert [hit.path for hit in leak_scan.holding([tmp_path / "training_args.bin"], [SECRET], tmp_path)] == [
        "training_args.bin"
    ]


def test_what_is_published_on_purpose_is_no_trace_but_a_secret_is(tmp_path: Path) -> None:
    card = "hongkildong/shop | 내 경로는 /home/hong/x | Authorization: Bearer YOUR-TOKEN-HERE"
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    public = Private(PRIVATE.names, PRIVATE.paths, public=card)
    assert kinds(tmp_path, private=public) == {}
    assert len(kinds(tmp_path)["README.md"]) == 3
    leaked = card + TOKEN
    (tmp_path / "README.md").write_text(leaked, encoding="utf-8")
    assert list(kinds(tmp_path, private=Private(public=leaked))) == ["README.md"]


def test_names_that_every_machine_has_tell_nothing() -> None:
    assert redact.telling(["root", "app", "localhost", "kim", "", "hongkildong", "Ubuntu", "a1b2c3d4e5f6"]) == (
        "a1b2c3d4e5f6",
        "hongkildong",
    )


def test_the_names_of_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 4242")

    monkeypatch.setattr("getpass.getuser", nameless)
    monkeypatch.setattr("socket.gethostname", lambda: "seoul-07.example.org")
    redact.names_here.cache_clear()
    try:
        assert redact.names_here() == ("seoul-07", "seoul-07.example.org")
    finally:
        redact.names_here.cache_clear()


def test_secrets_of_the_environment() -> None:
    environ = {
        "HF_TOKEN": TOKEN,
        "HF_TOKEN_FILE": "/run/secrets/token1",
        "AWS_SECRET_ACCESS_KEY": "abc123def456",
        "DB_PASSWORD": "short1",
        "TOKEN_TYPE": "standard",
        "TOKENIZERS_PARALLELISM": "false123",
        "PATH": "/usr/bin1:/bin",
        "SIGNING_SECRET": "line-one-1\nline-two-2\n",
    }
    assert known_secrets.of_environment(environ, "from-a-file", None) == tuple(
        sorted([TOKEN, "abc123def456", "from-a-file", "line-one-1", "line-two-2"])
    )


def test_the_token_of_a_login_is_known(tmp_path: Path) -> None:
    assert hub_token.saved_token({"HF_HOME": str(tmp_path)}) is None
    (tmp_path / "token").write_text(TOKEN + "\n")
    assert hub_token.saved_token({"HF_HOME": str(tmp_path)}) == TOKEN
    assert hub_token.saved_token({"HF_TOKEN_PATH": str(tmp_path / "token")}) == TOKEN
    (tmp_path / "huggingface").mkdir()
    (tmp_path / "token").rename(tmp_path / "huggingface" / "token")
    assert hub_token.saved_token({"XDG_CACHE_HOME": str(tmp_path)}) == TOKEN


def test_rows_in_a_card_are_found_as_typed_and_as_cells(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("| 배송은 보통 이틀 걸려요<br>서울 \\| 부산 |\n")
    assert leak_scan.holds_text(tmp_path, ["배송은 보통 이틀 걸려요\n서울 | 부산"])
    assert leak_scan.holds_text(tmp_path, ["이틀 걸려요"]) == []  # too short to be no accident
    assert leak_scan.holds_text(tmp_path, ["이틀 걸려요"], shortest=5)


def test_nothing_private_gets_into_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redact, "names_here", lambda: ("hongkildong", "seoul-07"))
    path = tmp_path / "appliance.log"
    with console.log_file(path):
        console.say("run shop in /home/hongkildong/runs/shop")
        logging.getLogger("x").info("GET %s as %s", f"https://s3/a?X-Amz-Signature={'0' * 20}", TOKEN)
        logging.getLogger("x").warning("Authorization: Bearer %s from seoul-07", "a" * 30)
        try:
            raise ValueError(f"no such file: /root/{TOKEN}")
        except ValueError:
            logging.getLogger("x").exception("failed")
    text = path.read_text(encoding="utf-8")
    assert "run shop in ~/runs/shop" in text
    assert "ValueError: no such file: ~/" in text
    assert scan(path, [], Private(names=("hongkildong", "seoul-07"))) == []


LABEL = "배송이 늦어 환불을 요청함"


@pytest.mark.parametrize(
    ("card", "shown", "clean"),
    [
        (f"classes: `{LABEL}` or `기타`", False, True),
        (f"classes: `{LABEL}`; asked: 언제쯤 받아 볼 수 있을까요?", False, False),
        (f"classes: `{LABEL}`; asked: 언제쯤 받아 볼 수 있을까요?", True, True),
    ],
)
def test_the_card_of_a_classifier_names_its_classes_but_quotes_no_text(
    card: str, shown: bool, clean: bool, tmp_path: Path
) -> None:
    """Labels of a dozen letters are no text of a row, which the card must not show: config.json names them as well."""
    release = tmp_path / "publish" / "release"
    for folder in (release, tmp_path / "prepare", tmp_path / "evaluate"):
        folder.mkdir(parents=True)
    (release / "README.md").write_text(card, encoding="utf-8")
    classes = [{"name": name, "ids": [[i]], "rows": {"train": 1}} for i, name in enumerate(("기타", LABEL))]
    write_json(tmp_path / "prepare" / "labels.json", {"classes": classes})
    row = (2, "언제쯤 받아 볼 수 있을까요?", LABEL, "기타", LABEL, "win")
    with csv_file.csv_writer(tmp_path / "evaluate" / "predictions.csv", results.PREDICTION_COLUMNS) as write:
        write(row)
    gate = gates.of_cleanliness(release, tmp_path, secrets=[], private=Private(), shown=shown)[0]
    assert (gate.name, gate.passed) == ("release_is_clean", clean)
