"""No secret is written, whoever logs it."""

from __future__ import annotations

import io
import logging
import os
import random
import subprocess
import sys

import pytest

from appliance.process import child, known_secrets, masked_streams, redact
from tests.helpers.canary import SPELLED, parts


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("token hf_" + "a1B2" * 9, "token hf_…"),
        ("hf_hub_download of hf_transfer", "hf_hub_download of hf_transfer"),
        ("https://cdn.x/a/b?X-Amz-Signature=abc&y=1 failed", "https://cdn.x/a/b?… failed"),
        ("b'https://cdn.x/a?s=1')", "b'https://cdn.x/a?…')"),
        ("https://user:pass@proxy:80/", "https://…@proxy:80/"),
        ("-H 'authorization: Bearer abc.def'", "-H 'authorization: Bearer …'"),
        ('{"Authorization": "secret"}', '{"Authorization": "…"}'),
        ("my canary", "my …"),
        (r"b'x\nhf_" + "a1B2" * 9 + "'", r"b'x\nhf_…'"),
        (r"key\u003dsk-proj-" + "a1B2" * 9, r"key\u003dsk-…"),
        ("key%3Dsk-" + "a1B2" * 9, "key%3Dsk-…"),
        ("task-classification-of-long-texts2", "task-classification-of-long-texts2"),
        ("GET /a?b=c&X-Amz-Signature=abcdef0123 1", "GET /a?b=c&X-Amz-Signature=… 1"),
        ("next%3Fsig%3Dabcdef0123", "next%3Fsig%3D…"),
        ("(b'Authorization', b'Bearer abc.def')", "(b'Authorization', b'Bearer …')"),
        ("Set-Cookie: session=abc; Path=/", "Set-Cookie: …"),
        ("(b'cookie', b'a=b; c=d')", "(b'cookie', b'…')"),
    ],
)
def test_secrets_are_replaced_and_a_second_pass_changes_nothing(text: str, clean: str) -> None:
    assert redact.without_secrets(text, ["canary"]) == clean
    assert redact.without_secrets(clean, ["canary"]) == clean


def test_a_traceback_is_scrubbed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.addFilter(redact.Filter(["canary"]))
    try:
        raise ValueError("https://x/y?sig=1 canary")
    except ValueError as error:
        logging.getLogger("x").warning("%s", "canary", exc_info=error)
    assert "canary" not in caplog.text
    assert "sig=1" not in caplog.text
    assert "ValueError" in caplog.text


# --- every spelling of a secret that is known

TOKEN = "hf_" + "QzXwVbNmKjHgFdSaPoIuYtReWqLk7531"
AWKWARD = 'p@ss "w/or+d" 7é&<x>'


@pytest.mark.parametrize("secret", [TOKEN, AWKWARD], ids=["token", "awkward"])
@pytest.mark.parametrize("spelling", SPELLED)
def test_a_known_secret_is_masked_in_every_spelling(
    spelling: str, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_PASSWORD", secret)
    spelled = SPELLED[spelling](secret)
    clean = redact.without_tokens(f"before {spelled} after")
    assert clean.startswith("before ")
    assert clean.endswith(" after")
    assert "…" in clean
    left = clean.removeprefix("before ").removesuffix(" after")
    # Quotes and escapes of what is around it, and the base64 characters that its neighbours share, may stay.
    assert len(left.replace("…", "")) <= 20, clean
    assert secret not in left
    assert not any(parts(piece, 8) for piece in left.split("…")), clean


def test_a_webhook_is_masked_by_its_tokens_and_its_host_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a variable such as SLACK_WEBHOOK and of APPLIANCE_NOTIFY, which child processes do not get."""
    for name in ("SLACK_WEBHOOK", "APPLIANCE_NOTIFY"):
        monkeypatch.setenv(name, f"https://hooks.example.com/services/T1JJ3T3L2/{TOKEN}")
        text = f"POST /services/T1JJ3T3L2/{TOKEN[:20]} to hooks.example.com, https://hooks.example.org"
        assert redact.without_tokens(text) == "POST /services/…/… to hooks.example.com, https://hooks.example.org"
        assert name not in known_secrets.without(os.environ)
        monkeypatch.delenv(name)


def test_texts_without_a_secret_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_PASSWORD", TOKEN)
    for text in (
        "",
        "hf_",
        "배송은 이틀 걸려요",
        "https://x/a?b=c",
        "Bearer of news",
        "QzXwVbNmK",
        TOKEN[:9] + " " + TOKEN[9:12],
    ):
        assert redact.without_tokens(text) == text


def test_a_part_of_a_long_secret_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one that was cut, and of one that is split over two lines or two records."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for at in range(10, len(TOKEN) - 10):
        assert redact.without_tokens(f"{TOKEN[:at]}\n{TOKEN[at:]}") == "…\n…"
        assert redact.without_tokens(f"cut: {TOKEN[:at]}") == "cut: …"


@pytest.mark.parametrize(
    ("name", "value", "secrets"),
    [
        (
            "HTTPS_PROXY",
            "http://me:p%40ss-w0rd-1@proxy:3128",
            {"p%40ss-w0rd-1", "p@ss-w0rd-1", "me:p%40ss-w0rd-1", "me:p@ss-w0rd-1"},
        ),
        ("ALL_PROXY", "socks5://me:hunter2@proxy:3128", {"me:hunter2"}),
        ("HF_ENDPOINT", "https://t0ken-as-user@hub.example", {"t0ken-as-user"}),
        ("OPENAI_API_KEY", "sk-abc-123-def", {"sk-abc-123-def"}),
        ("HUGGING_FACE_HUB_TOKEN", "hf_onlyLetters", {"hf_onlyLetters"}),
        ("GITHUB_WEBHOOK_URL", "https://hooks.example/T0/B1/x", {"https://hooks.example/T0/B1/x"}),
        ("GCP_CREDENTIALS", "-----BEGIN-----\nMIIab12cd34\n", {"MIIab12cd34"}),
        ("MAX_TOKENS", "100000000", set()),
        ("HF_TOKEN_FILE", "/run/secrets/token-1", set()),
        ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1", set()),
        ("TOKENIZERS_PARALLELISM", "false-0123", set()),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isupper() else "",  # pytest puts ids into a variable
)
def test_which_variables_hold_secrets(
    name: str, value: str, secrets: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(known_secrets.known())
    monkeypatch.setenv(name, value)
    assert set(known_secrets.known()) - before == secrets


def test_a_child_that_needs_no_secret_is_given_none(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "HF_TOKEN": "hf_x",
        "HF_TOKEN_FILE": "/run/secrets/token",
        "OPENAI_API_KEY": "sk-abc-123-def",
        "HTTPS_PROXY": "http://me:secret@proxy:3128",
        "HF_ENDPOINT": "https://hub.example",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "MAX_TOKENS": "512",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert given.keys() & child.child_environment().keys() == given.keys() - {
        "HF_TOKEN",
        "HF_TOKEN_FILE",
        "OPENAI_API_KEY",
        "HTTPS_PROXY",
    }
    assert "HTTPS_PROXY" in known_secrets.without(os.environ)  # a child that talks to the Hub goes through it


# --- the streams of the process


def masked_stderr(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What reaches the stream behind the masked one; in the test itself, since pytest sets sys.stderr before it."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    masked_streams.install()
    return stream


@pytest.mark.parametrize("spelling", SPELLED)
def test_a_secret_in_several_writes(spelling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = masked_stderr(monkeypatch)
    text = f"begin {SPELLED[spelling](TOKEN)} end\n"
    whole = redact.without_tokens(text)
    cuts = random.Random(0)
    for _ in range(20):
        written.seek(written.truncate(0))
        rest = text
        while rest:
            size = cuts.randint(1, len(rest))
            sys.stderr.write(rest[:size])
            sys.stderr.flush()
            rest = rest[size:]
        assert written.getvalue() == whole
    written.seek(written.truncate(0))
    for letter in text:
        sys.stderr.write(letter)
    assert written.getvalue() == whole


def test_what_is_held_back_comes_with_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    written = masked_stderr(monkeypatch)
    sys.stderr.write("what? h")
    assert written.getvalue() == "what? "
    sys.stderr.release()  # type: ignore[attr-defined]
    sys.stderr.write(TOKEN[:20])
    sys.stderr.release()  # type: ignore[attr-defined]
    assert written.getvalue() == "what? h…"


def test_a_masked_stream_is_the_stream_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    written = masked_stderr(monkeypatch)
    masked_streams.install()
    assert sys.stderr._stream is written  # type: ignore[attr-defined]
    assert not sys.stderr.isatty()
    sys.stderr.writelines(["a\n", f"{TOKEN}\n"])
    sys.stderr.write("b\n")
    assert written.getvalue() == "a\n…\nb\n"
    with pytest.raises(io.UnsupportedOperation):
        sys.stderr.fileno()


_LEAKS = """
import logging, os, sys, threading, warnings
from appliance.process import masked_streams
masked_streams.install()
token = os.environ["HF_TOKEN"]

class Dying:
    def __del__(self):
        raise RuntimeError(token)

Dying()
thread = threading.Thread(target=lambda: {}[token])
thread.start(), thread.join()
warnings.warn(token)
logging.getLogger("library").error("failed for %r", {"Authorization": f"Bearer {token}"})
print(token)
sys.stdout.write(token[:17])
raise ValueError(f"x\\n{token}") from KeyError(token)
"""


def test_no_way_of_the_interpreter_shows_a_secret() -> None:
    """Unraisable errors, errors of threads, warnings, logging's last resort, a traceback, what is held at the end."""
    done = subprocess.run(
        [sys.executable, "-c", _LEAKS],
        env={**os.environ, "HF_TOKEN": TOKEN},
        capture_output=True,
        text=True,
        check=False,
    )
    for sign in ("Exception ignored", "Exception in thread", "UserWarning", "failed for", "ValueError", "KeyError"):
        assert sign in done.stderr
    assert (done.returncode, done.stdout) == (1, "…\n…")
    assert not parts(done.stderr) & parts(TOKEN, 10)
