"""Where the token comes from, and one that is none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from huggingface_hub import constants

from appliance.errors import EnvironmentUnavailable
from appliance.hub import token as hub_token
from appliance.process import child, known_secrets


@pytest.mark.parametrize(
    ("environ", "token"),
    [
        (
            {"HF_TOKEN": " hf_direct\n", "HF_TOKEN_FILE": "FOLDER/token", "HUGGING_FACE_HUB_TOKEN": "hf_old"},
            "hf_direct",
        ),
        ({"HF_TOKEN": "", "HF_TOKEN_FILE": "FOLDER/token", "HUGGING_FACE_HUB_TOKEN": "hf_old"}, "hf_from_file"),
        ({"HF_TOKEN_FILE": os.devnull, "HUGGING_FACE_HUB_TOKEN": "hf_old"}, "hf_old"),
        ({"HF_TOKEN_FILE": os.devnull}, None),  # what compose mounts if no file is named
        ({}, None),
    ],
)
def test_where_the_token_comes_from(
    environ: dict[str, str], token: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run, doctor and the search for leaks agree, and no child process inherits it."""
    (tmp_path / "token").write_text(" hf_from_file\n", encoding="utf-8")
    for name, value in environ.items():
        monkeypatch.setenv(name, value.replace("FOLDER", str(tmp_path)))
    assert hub_token.token() == token
    assert hub_token.token_finding(os.environ)[1] == (token or "")
    values = {value.strip() for value in environ.values() if value.strip().startswith("hf_")}
    assert {*values, *filter(None, [token])} <= set(hub_token.every_token())
    assert not set(known_secrets.HUB_TOKEN_VARIABLES) & child.child_environment().keys()
    assert set(environ) <= set(known_secrets.HUB_TOKEN_VARIABLES)


def test_the_token_of_a_login_is_the_last_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("hf_saved", encoding="utf-8")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    assert (hub_token.token(), hub_token.token_finding(os.environ)[1]) == ("hf_saved", "hf_saved")
    monkeypatch.setenv("HF_TOKEN", "hf_direct")
    assert hub_token.token() == "hf_direct"
    assert {"hf_direct", "hf_saved"} <= set(hub_token.every_token())


def test_a_token_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN_FILE", str(tmp_path / "hf_secret"))
    with pytest.raises(EnvironmentUnavailable, match="HF_TOKEN_FILE cannot be read: No such file") as caught:
        hub_token.token()
    assert "hf_secret" not in str(caught.value) + caught.value.hint  # people put the token itself there


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("# my token\nhf_secret", "has 2 lines"),
        ("hf_secret\r\nhf_secret", "has 2 lines"),
        ("\u201chf_secret\u201d", "is in curly quotes"),
        ("\u2018hf_secret\u2019", "is in curly quotes"),
        ('"hf_secret"', "is in quotes"),
        ("hf_secret # mine", "contains a space"),
        ("hf_secret\u200b", "contains characters that are not visible ASCII"),
        ("hf_secret\x1b[0m", "contains characters that are not visible ASCII"),
    ],
)
@pytest.mark.parametrize("where", ["HF_TOKEN", "HF_TOKEN_FILE", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"])
def test_a_token_that_is_not_one_line_of_visible_ascii_is_refused_without_its_text(
    text: str, fault: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text(text, encoding="utf-8", newline="")
    monkeypatch.setenv(where, str(tmp_path / "token") if where in ("HF_TOKEN_FILE", "HF_TOKEN_PATH") else text)
    with pytest.raises(EnvironmentUnavailable) as caught:
        hub_token.token()
    said = str(caught.value) + caught.value.hint
    assert fault in said
    assert "secret" not in said
    assert any("hf_secret" in token for token in hub_token.every_token())  # so that it is masked all the same
