"""`python -m tests.helpers.loopback_hub --port 0 --state DIR`: prints its port as the first line, serves until killed.

With --until-eof it also ends when its standard input does, so that it never outlives the tests.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from dataclasses import MISSING, fields
from pathlib import Path

from tests.helpers.loopback_hub.hub import Options
from tests.helpers.loopback_hub.server import HubServer


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.helpers.loopback_hub")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--until-eof", action="store_true")
    for option in fields(Options):
        assert option.default is not MISSING
        parser.add_argument(f"--{option.name.replace('_', '-')}", type=type(option.default), default=option.default)
    asked = vars(parser.parse_args())
    state, port, until_eof = asked.pop("state"), asked.pop("port"), asked.pop("until_eof")
    state.mkdir(parents=True, exist_ok=True)
    if asked["xet_dir"]:
        import hf_xet  # type: ignore[import-untyped]  # noqa: F401  before the first call, whose client has a deadline

    server = HubServer(state, port, Options(**asked))
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    if until_eof:
        threading.Thread(target=_end_with_input, daemon=True).start()
    server.serve_forever()


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
