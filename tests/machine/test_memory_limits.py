"""How much memory the cgroups of a process leave it: trees of /proc and /sys, on a made-up machine of 64 GiB."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from appliance.machine import host_memory

GIB = 1 << 30
UNLIMITED = 9223372036854771712  # what v1 says of a group without a limit
SLICE, SCOPE = "sys/fs/cgroup/user.slice", "sys/fs/cgroup/user.slice/run-1.scope"
V1 = "sys/fs/cgroup/memory"


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=64 * GIB, available=48 * GIB))


def tree(root: Path, cgroup: str, files: Mapping[str, object]) -> Path:
    for name, text in {"proc/self/cgroup": cgroup, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n", encoding="ascii")
    return root


@pytest.mark.parametrize(
    ("cgroup", "files", "limit"),
    [
        ("", {}, 64),
        ("", {"sys/fs/cgroup/memory.max": 8 * GIB}, 8),
        ("0::/", {"sys/fs/cgroup/memory.max": "max"}, 64),
        ("0::/user.slice/run-1.scope", {f"{SCOPE}/memory.max": 4 * GIB}, 4),
        ("0::/user.slice/run-1.scope", {f"{SCOPE}/memory.max": "max", f"{SLICE}/memory.max": 3 * GIB}, 3),
        ("0::/user.slice/run-1.scope", {f"{SCOPE}/memory.max": 6 * GIB, f"{SLICE}/memory.max": 7 * GIB}, 6),
        ("0::/user.slice/run-2.scope", {f"{SCOPE}/memory.max": 4 * GIB}, 64),  # another's
        ("0::/user.slice/run-1.scope", {"sys/fs/cgroup/memory.max": 5 * GIB}, 5),  # only the root is mounted
        ("0::/../x", {"sys/fs/x/memory.max": GIB, "sys/fs/cgroup/memory.max": "max"}, 64),
        ("3:cpu,cpuacct:/a\n9:memory:/docker/abc", {f"{V1}/docker/abc/memory.limit_in_bytes": 2 * GIB}, 2),
        ("9:memory:/docker/abc\n0::/b", {f"{V1}/docker/memory.limit_in_bytes": 5 * GIB}, 5),
        ("9:memory:/docker/abc", {f"{V1}/memory.limit_in_bytes": 3 * GIB}, 3),  # in a container that mounts its own
        ("9:memory:/docker/abc", {f"{V1}/docker/abc/memory.limit_in_bytes": UNLIMITED}, 64),
        ("7:pids:/docker/abc", {f"{V1}/docker/abc/memory.limit_in_bytes": GIB}, 64),
        ("nonsense\n:::", {}, 64),
    ],
)
def test_the_least_limit_up_to_the_root_counts(
    cgroup: str, files: Mapping[str, object], limit: int, tmp_path: Path
) -> None:
    root = tree(tmp_path, cgroup, files)
    assert host_memory.memory_limit_bytes(root) == limit * GIB
    assert host_memory.memory_available_bytes(root) == min(limit, 48) * GIB


def test_what_a_cgroup_holds_is_taken_off_and_what_it_can_give_back_is_not(tmp_path: Path) -> None:
    root = tree(tmp_path, "0::/user.slice/run-1.scope", {
        f"{SCOPE}/memory.max": 8 * GIB,
        f"{SCOPE}/memory.current": 5 * GIB,
        f"{SCOPE}/memory.stat": f"anon 1\nactive_file 7\ninactive_file {2 * GIB}\ntotal_inactive_file 9",
    })  # fmt: skip
    assert (host_memory.memory_limit_bytes(root), host_memory.memory_available_bytes(root)) == (8 * GIB, 5 * GIB)
    tree(root, "0::/user.slice/run-1.scope", {  # what its siblings hold counts above
        f"{SLICE}/memory.max": 20 * GIB, f"{SLICE}/memory.current": 19 * GIB,
    })  # fmt: skip
    assert (host_memory.memory_limit_bytes(root), host_memory.memory_available_bytes(root)) == (8 * GIB, GIB)


def test_memory_limits_of_cgroup_v1(tmp_path: Path) -> None:
    group = f"{V1}/docker/abc"
    root = tree(tmp_path, "4:memory:/docker/abc", {
        f"{group}/memory.limit_in_bytes": 8 * GIB,
        f"{group}/memory.usage_in_bytes": 8 * GIB,
        f"{group}/memory.stat": f"inactive_file {GIB}\ntotal_inactive_file {3 * GIB}",
        f"{V1}/memory.limit_in_bytes": UNLIMITED,
        f"{V1}/memory.usage_in_bytes": 60 * GIB,
    })  # fmt: skip
    assert host_memory.memory_available_bytes(root) == 3 * GIB


def test_a_group_over_its_limit_leaves_nothing_and_never_more_than_the_limit(tmp_path: Path) -> None:
    over = {"sys/fs/cgroup/memory.max": GIB, "sys/fs/cgroup/memory.current": 2 * GIB}
    assert host_memory.memory_available_bytes(tree(tmp_path, "0::/", over)) == 0
    odd = {"sys/fs/cgroup/memory.current": 0, "sys/fs/cgroup/memory.stat": f"inactive_file {9 * GIB}"}
    assert host_memory.memory_available_bytes(tree(tmp_path, "0::/", odd)) == GIB
