"""What describes a cluster of several machines: compose.ray.yaml and docs/kuberay.yaml."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "compose.ray.yaml"
KUBERAY = ROOT / "docs" / "kuberay.yaml"


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    documents = list(yaml.safe_load_all(KUBERAY.read_text(encoding="utf-8")))
    return dict(next(document["spec"] for document in documents if document["kind"] == "RayCluster"))


def groups(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def known_options() -> set[str]:
    """Those of `ray start`."""
    from ray.scripts.scripts import start

    return {option for parameter in start.params for option in parameter.opts}


def test_the_nodes_are_started_with_options_that_ray_has(cluster: dict[str, Any]) -> None:
    services = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]
    commands = [service["command"][0].replace("$$", "$") for service in services.values()]
    named = {word.split("=")[0] for command in commands for word in shlex.split(re.sub(r"\$\{.*?\}", "", command))}
    in_compose = {word for word in named if word.startswith("--")}
    in_kuberay = {f"--{name}" for group in groups(cluster) for name in group["rayStartParams"]}
    assert {"--head", "--block", "--disable-usage-stats"} <= in_compose
    assert "--disable-usage-stats" in in_kuberay
    assert in_compose | in_kuberay <= known_options()


def test_kuberay_is_told_the_version_that_is_pinned(cluster: dict[str, Any]) -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"ray=={cluster['rayVersion']}" in pins


def test_a_cluster_has_no_dashboard_and_asks_for_a_token(cluster: dict[str, Any]) -> None:
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["include-dashboard"] == "false"
    services = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]
    assert "--include-dashboard=false" in services["ray-head"]["command"][0]
    assert {service["environment"]["RAY_AUTH_MODE"] for service in services.values()} == {"token"}


def test_the_pods_are_locked_down_and_name_no_secret_value(cluster: dict[str, Any]) -> None:
    for group in groups(cluster):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["env"] == [{"name": "HF_TOKEN_FILE", "value": "/run/secrets/hf/token"}]
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert {mounted["data"], mounted["runs"], mounted["cache"]} == {"/data", "/runs", "/cache"}
        assert set(mounted) == {volume["name"] for volume in pod["volumes"]}
        for probe in ("livenessProbe", "readinessProbe"):  # KubeRay's own ask the dashboard
            assert "ray health-check" in container[probe]["exec"]["command"][-1]
