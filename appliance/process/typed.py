"""Commands as the user types them: in a shell, or through Docker Compose."""

from __future__ import annotations

import os
import re

# compose.yaml's service for each of our commands; the service `appliance` takes all others.
_SERVICES = {"run": "train", "demo": "train demo"} | {name: name for name in ("doctor", "chat", "publish", "dataset")}
# with its port, and by its name for `watch`
_SERVICES["serve"] = "--service-ports --use-aliases serve"


def is_in_compose() -> bool:
    """Whether compose.yaml started this process: then the user types Compose commands."""
    return "APPLIANCE_HOST_RUNS_DIR" in os.environ


def as_typed(hint: str) -> str:
    """The hint, with the commands in backticks as this user types them."""
    if not is_in_compose():
        return hint
    return re.sub(
        r"`appliance ([a-z]+)",
        lambda found: f"`docker compose run --rm {_SERVICES.get(found[1], f'appliance {found[1]}')}",
        hint,
    )


def cpu_instead() -> str:
    """What a user puts in front of a command to run it on the CPU."""
    return "COMPOSE_FILE=compose.yaml:compose.cpu.yaml" if is_in_compose() else "CUDA_VISIBLE_DEVICES="
