"""No secret is written, whoever logs it."""

from __future__ import annotations

import logging

import pytest

from appliance.process import redact


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
