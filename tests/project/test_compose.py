"""Dockerfile, compose files and .env.example, read without an engine: what must never slip in, and what must agree."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from appliance.cli import serve as cli_serve
from appliance.listening import door
from appliance.recipe import resolve
from appliance.serving import server as serving_server
from appliance.web import server

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
ENV_EXAMPLE = (ROOT / ".env.example").read_text(encoding="utf-8")
SERVICES = {"train", "chat", "fleet", "publish", "check", "doctor", "dataset", "watch", "serve", "appliance"}


class Reset(str):
    """A value that Compose removes (`!reset`)."""


class Loader(yaml.SafeLoader):
    """YAML as Compose reads it."""


Loader.add_constructor("!reset", lambda loader, node: Reset(loader.construct_scalar(node)))


def compose(name: str) -> dict[str, Any]:
    return dict(yaml.load((ROOT / name).read_text(encoding="utf-8"), Loader))


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    return dict(compose("compose.yaml")["services"])


def test_the_services(services: dict[str, dict[str, Any]]) -> None:
    assert set(services) == SERVICES
    reserved = {name for name, service in services.items() if "deploy" in service}
    assert reserved == {"train", "chat", "fleet", "serve"}  # doctor starts where the GPU is missing
    for name in reserved:
        (device,) = services[name]["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    # one version of Compose silently starts without a GPU under `gpus: all`
    assert not any("gpus" in service for service in services.values())
    for service in services.values():  # arguments append to the command that the entrypoint carries
        assert service["entrypoint"][0] == "appliance"
        assert "command" not in service


def test_the_cpu_file_takes_the_gpu_away_and_nothing_else(services: dict[str, dict[str, Any]]) -> None:
    override = compose("compose.cpu.yaml")["services"]
    assert set(override) == {name for name, service in services.items() if "deploy" in service}
    assert all(list(service) == ["deploy"] and isinstance(service["deploy"], Reset) for service in override.values())


def test_every_service_is_locked_down(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["user"] == "${APP_UID:-1000}:${APP_GID:-1000}"
        assert service["init"] is True
        if name in ("watch", "serve"):
            continue
        assert service["environment"]["HF_TOKEN"] is None  # by name only
        mounts = {mount["target"]: mount for mount in service["volumes"]}
        assert mounts["/data"]["read_only"] is (name != "dataset")
        assert mounts["/data"]["bind"] == mounts["/runs"]["bind"] == {"create_host_path": False}


def test_watch_sees_the_runs_and_nothing_else(services: dict[str, dict[str, Any]]) -> None:
    """Its port is on loopback, as its flag says; it has no token and cannot write."""
    watch = services["watch"]
    assert watch["ports"] == [f"127.0.0.1:{server.PORT}:{server.PORT}"]
    assert watch["entrypoint"] == ["appliance", "watch", "--host", "0.0.0.0", "--published-on-loopback"]
    (mount,) = watch["volumes"]
    assert (mount["target"], mount["read_only"]) == ("/runs", True)
    assert watch["environment"] == {
        "APPLIANCE_HOST_RUNS_DIR": "./runs",
        "APPLIANCE_CHAT_SERVER": f"http://serve:{serving_server.PORT}",
        serving_server.KEY_VARIABLE: None,
    }
    assert watch["secrets"] == []
    assert watch["profiles"] == ["watch"]
    assert [name for name, service in services.items() if "watch" in service.get("networks", ())] == ["watch"]
    assert f"127.0.0.1:{server.PORT}{door.HEALTH}" in watch["healthcheck"]["test"][-1]


def test_serve_sees_the_runs_and_nothing_else(services: dict[str, dict[str, Any]]) -> None:
    """As watch; it has until the longest answer ends, and its key comes from the shell by name only."""
    serve = services["serve"]
    assert serve["ports"] == [f"127.0.0.1:{serving_server.PORT}:{serving_server.PORT}"]
    assert serve["entrypoint"] == ["appliance", "serve", "--host", "0.0.0.0", "--published-on-loopback"]
    (mount,) = serve["volumes"]
    assert (mount["target"], mount["read_only"]) == ("/runs", True)
    assert {name for name, value in serve["environment"].items() if value is None} == {
        serving_server.KEY_VARIABLE,
        "CUDA_VISIBLE_DEVICES",
    }
    assert [mount.partition(":")[0] for mount in serve["tmpfs"]] == ["/tmp", "/cache"]  # torch makes a folder in each
    assert serve["secrets"] == []
    assert serve["profiles"] == ["serve"]
    assert [name for name, service in services.items() if "serve" in service.get("networks", ())] == [
        "watch",
        "serve",
    ]
    assert f"127.0.0.1:{serving_server.PORT}{door.HEALTH}" in serve["healthcheck"]["test"][-1]
    minutes, seconds = map(int, re.fullmatch(r"(\d+)m(\d+)s", serve["stop_grace_period"]).groups())  # type: ignore[union-attr]
    longest = inspect.signature(cli_serve.serve).parameters["seconds"].default
    assert 60 * minutes + seconds > longest


def test_every_variable_is_explained_and_every_explained_one_is_used() -> None:
    names = ("compose.yaml", "compose.cpu.yaml", "compose.ray.yaml")
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in names)
    used = set(re.findall(r"\$\{(\w+)", text)) | {"COMPOSE_FILE"}
    explained = set(re.findall(r"^(?:# )?([A-Z_]+)=", ENV_EXAMPLE, re.MULTILINE))
    assert used == explained
    assert not re.search(r"hf_\w", ENV_EXAMPLE)


def test_what_compose_sets_is_understood(services: dict[str, dict[str, Any]]) -> None:
    """Empty means unset; a value reaches its field."""
    names = {name for name in services["train"]["environment"] if name.startswith("APPLIANCE_")}
    assert resolve.load("demo", environ=dict.fromkeys(names, "")).recipe == resolve.load("demo", environ={}).recipe
    given = {**dict.fromkeys(names, "x/y"), "APPLIANCE_NOTIFY": "json://x/y"}
    chosen = resolve.load("demo", environ=given).recipe
    assert (chosen.model.id, chosen.publish.repo_id, chosen.notify) == ("x/y", "x/y", ["json://x/y"])


def test_the_dockerfile_keeps_its_promises() -> None:
    assert "ARG BASE_IMAGE=python:3.11-slim-bookworm" in DOCKERFILE
    assert "UNSLOTH_ALLOW_CPU" not in DOCKERFILE
    assert "# syntax=" not in DOCKERFILE  # it would fetch an image
    assert not re.search(r"https?://", DOCKERFILE)
    order = [
        DOCKERFILE.index(part) for part in ("COPY pyproject.toml", "--mount=type=cache", "COPY appliance", "LABEL")
    ]
    assert order == sorted(order)  # pins first, code last
    for name in ("HF_HUB_DISABLE_TELEMETRY=1", "DO_NOT_TRACK=1", "UNSLOTH_DISABLE_STATISTICS=1", "PYTHONUNBUFFERED=1"):
        assert name in DOCKERFILE
    for name in ("HF_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "UNSLOTH_COMPILE_LOCATION"):
        assert f"{name}=/cache/" in DOCKERFILE
    assert "USER 1000:1000" in DOCKERFILE


def test_llama_cpp_is_compiled_in_a_stage_of_its_own_and_only_if_asked_for() -> None:
    before, compiled, image = re.split(r"^FROM compiler.*\n", DOCKERFILE, flags=re.MULTILINE)
    assert "install --yes --no-install-recommends gcc g++" in before  # for both stages
    for stage in (compiled, image):
        assert "\nARG LLAMA_CPP=\n" in f"\n{stage}"
        assert 'if [ -n "${LLAMA_CPP}" ]' in stage
    assert "GGML_NATIVE=OFF" in compiled  # the image may run on another processor
    assert "--mount=type=bind,from=llama-cpp,source=/wheels" in image
    assert compose("compose.yaml")["x-appliance"]["build"]["args"]["LLAMA_CPP"] == "${LLAMA_CPP:-}"
    pin = re.search(r"grep '(\^llama-cpp-python==)'", compiled)
    assert pin
    assert re.search(pin[1], (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)


def test_the_build_sees_no_data_and_no_secret() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines
    assert allowed == {"pyproject.toml", "constraints*.txt", "README.md", "LICENSE", "appliance", "datasets_src"}


def test_both_folders_are_in_the_repository() -> None:
    assert (ROOT / "data" / ".gitkeep").is_file()
    assert (ROOT / "runs" / ".gitkeep").is_file()


def test_the_older_cuda_build_pins_the_same_but_torch() -> None:
    def pins(name: str) -> dict[str, str]:
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        return dict(line.split("==") for line in lines if line and not line.startswith("#"))

    new, old = pins("constraints.txt"), pins("constraints-cu128.txt")
    assert {name for name in new | old if new.get(name) != old.get(name)} == {"torch", "triton"}


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert hadolint, "make setup installs it"
    done = subprocess.run([hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
