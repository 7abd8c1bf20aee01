"""The process that sends a message to addresses of Apprise, or only checks them; started by notify/deliver.py.

Apprise ends no request for sure, keeps what it loads, and its log lines may quote an address: all of that stays here.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from typing import Any

import apprise

from appliance.notify.deliver import REFUSED, UNKNOWN, UNREACHABLE
from appliance.process import child, known_secrets
from appliance.process.child import Tell

_STATUS = re.compile(r"\berror=(\d{3})\b")  # how Apprise's plugins log a status of HTTP that is not a success


def serve(line: str, tell: Tell) -> None:
    """Does the job in `line` and tells for each address, by its number, what its trouble is; empty if there is none."""
    job = json.loads(line)
    known_secrets.learn(*job["addresses"])
    logging.getLogger("apprise").addHandler(logging.NullHandler())  # else Python prints its warnings
    asset = apprise.AppriseAsset(app_id="finetune-appliance", storage_mode="memory")
    sending = []
    for number, address in enumerate(job["addresses"]):
        service = apprise.Apprise.instantiate(address, asset=asset)
        if service is None:
            tell({"address": number, "trouble": UNKNOWN})
        elif job["message"] is None:
            tell({"address": number, "trouble": ""})
        else:
            arguments = (number, service, job["message"], tell)
            sending.append(threading.Thread(target=_send, args=arguments, daemon=True))
    for thread in sending:
        thread.start()
    for thread in sending:
        thread.join()


def _send(number: int, service: Any, message: dict[str, str], tell: Tell) -> None:
    heard = _Heard()
    service.logger = logging.Logger("apprise", logging.WARNING)  # one of its own: Apprise sends from other threads
    service.logger.addHandler(heard)
    one = apprise.Apprise()
    one.add(service)
    sent = one.notify(
        title=message["title"], body=message["body"], notify_type=message["kind"], body_format=apprise.NotifyFormat.TEXT
    )
    tell({"address": number, "trouble": "" if sent else heard.trouble})


class _Heard(logging.Handler):
    """What kind of trouble a service logs; the words themselves, which may quote the address, are not kept."""

    trouble = REFUSED

    def emit(self, record: logging.LogRecord) -> None:
        if status := _STATUS.search(record.getMessage()):
            self.trouble = status[1]
        elif "connection error" in record.getMessage().lower():
            self.trouble = UNREACHABLE


if __name__ == "__main__":
    child.main(serve)
