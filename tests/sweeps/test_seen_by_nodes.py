"""What the nodes are asked before any work, and what is refused: on a cluster of two, and with answers of any kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import EnvironmentUnavailable
from appliance.findings import Finding
from appliance.process import files
from appliance.sweeps import cluster, seen_by_nodes, seen_on_node
from appliance.sweeps.cluster import Node
from appliance.sweeps.seen_by_nodes import Needs
from tests.sweeps.local_nodes import LocalNodes, may_mount

CANARY = "canary-8f41c2d97b"
NODES = [Node(f"{i}" * 12, f"10.0.0.{i}", f"gpu-{i}", 2.0, 1.0, alive=True) for i in (1, 2)]


def fails(findings: list[Finding]) -> dict[str, str]:
    return {one.what: one.found for one in findings if one.verdict == "fails"}


@pytest.fixture
def needs(tmp_path: Path, base_dir: Path) -> Needs:
    csv_path = tmp_path / "가게.csv"
    csv_path.write_text("instruction,output\n", encoding="utf-8")
    return Needs(
        tmp_path / "runs",
        tmp_path,
        {str(csv_path): files.sha256_of(csv_path)},
        base=str(base_dir),
        base_identity=seen_on_node.identity_of(str(base_dir)),
        variables=("SHOP_KEY",),
        hub_token=True,
    )


def test_each_node_of_a_cluster_says_what_it_lacks(needs: Needs, monkeypatch: pytest.MonkeyPatch) -> None:
    """One has the variable and the token, the other has neither, and another file system in place of the runs."""
    needs.runs_dir.mkdir()
    with LocalNodes() as nodes:
        with monkeypatch.context() as patch:  # the driver's own environment is not what counts
            patch.setenv("SHOP_KEY", CANARY)
            patch.setenv("HF_TOKEN", f"hf_{CANARY}")
        whole = nodes.add(variables={"SHOP_KEY": CANARY, "HF_TOKEN": f"hf_{CANARY}"})
        nodes.add(small=needs.runs_dir if may_mount() else None)
        monkeypatch.setenv("RAY_ADDRESS", nodes.address)
        with cluster.connected() as connected:
            workers = [node for node in connected.nodes if node.cpus]
            found = seen_by_nodes.ask(connected.ray, workers, needs)
            alone = seen_by_nodes.ask(connected.ray, [one for one in workers if one.id == whole.node_id], needs)
        session = [path for path in nodes.session_dir.rglob("*") if path.is_file() and not path.is_symlink()]
        assert len(session) > 10
        assert not [path for path in session if CANARY.encode() in path.read_bytes()]
    (lacking,) = {node.id for node in workers} - {whole.node_id}
    assert fails(alone) == {}
    assert [one.what for one in alone if one.verdict == "ok"] == [
        *(
            "appliance",
            "packages",
            "working directory",
            "runs directory",
            "CSV",
            "base model",
            "variables",
            "Hub token",
        ),
    ]
    wanted = {"variables": "SHOP_KEY is not set", "Hub token": "there is none"}
    wanted |= {"runs directory": f"{needs.runs_dir}: another folder than here"} if may_mount() else {}
    assert fails(found).keys() == wanted.keys()
    for what, words in wanted.items():
        assert words in fails(found)[what]
        assert f"node {lacking[:8]}" in fails(found)[what]
        assert whole.node_id[:8] not in fails(found)[what]
    assert list(needs.runs_dir.iterdir()) == []
    assert CANARY not in json.dumps([asdict(one) for one in [*found, *alone]])


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """What a test lets each node answer, over what it would answer truly on this machine."""
    changed: dict[str, dict[str, Any]] = {node.id: {} for node in NODES}

    def answer(ray: Any, nodes: list[Node], asked: dict[str, Any]) -> dict[str, dict[str, Any]]:
        assert ray is None
        assert json.loads(json.dumps(asked)) == asked
        return {node.id: seen_on_node.look(asked, node.id) | changed[node.id] for node in nodes}

    monkeypatch.setattr(seen_by_nodes, "_answers", answer)
    monkeypatch.setenv("SHOP_KEY", CANARY)
    monkeypatch.setenv("HF_TOKEN", f"hf_{CANARY}")
    return changed


def test_nodes_that_see_everything_are_fine(needs: Needs, answers: dict[str, dict[str, Any]]) -> None:
    assert answers
    found = seen_by_nodes.ask(None, NODES, needs)
    assert {one.verdict for one in found} == {"ok"}
    assert found[0].found == "as needed on 2 nodes"
    seen_by_nodes.refuse(found)
    gone = replace(NODES[1], alive=False)
    assert seen_by_nodes.ask(None, [NODES[0], gone], needs)[0].found == "as needed on 1 node"


@pytest.mark.parametrize(
    ("lack", "what", "words"),
    [
        ({"failed": "appliance is not installed there"}, "appliance", "appliance is not installed there"),
        ({"failed": "no answer within 900 s"}, "appliance", "no answer within 900 s"),
        ({"versions": {"python": "3.11.7"}}, "packages", r"accelerate absent \(here \d.*\), .* and \d+ more"),
        ({"runs_dir": "/runs: no such folder"}, "runs directory", "/runs: no such folder"),
        ({"folder": False}, "working directory", "no such folder"),
        ({"base": "0" * 64}, "base model", "other files than here"),
        ({"base": "/models/x: no such folder"}, "base model", "/models/x: no such folder"),
        ({"variables": {"SHOP_KEY": False}}, "variables", "SHOP_KEY is not set"),
        ({"hub_token": False}, "Hub token", "there is none, or one that cannot be used"),
        ({"storage": "storage s3://x: PermissionError"}, "storage", "PermissionError"),
    ],
)
def test_what_one_node_lacks_is_refused_with_its_name(
    lack: dict[str, Any], what: str, words: str, needs: Needs, answers: dict[str, dict[str, Any]]
) -> None:
    answers[NODES[1].id] |= lack
    found = seen_by_nodes.ask(None, NODES, needs)
    assert fails(found).keys() == {what}
    with pytest.raises(EnvironmentUnavailable, match=rf"on gpu-2 \(10\.0\.0\.2\): .*{words}") as caught:
        seen_by_nodes.refuse(found)
    assert "gpu-1" not in str(caught.value)
    assert caught.value.hint == next(one.fix for one in found if one.verdict == "fails")


@pytest.mark.parametrize(("seen", "words"), [("f" * 64, "another file than here"), ("no such file", "no such file")])
def test_a_csv_that_a_node_sees_otherwise_is_named(
    seen: str, words: str, needs: Needs, answers: dict[str, dict[str, Any]]
) -> None:
    for node in NODES:
        answers[node.id] |= {"csvs": dict.fromkeys(needs.csvs, seen)}
    assert words in fails(seen_by_nodes.ask(None, NODES, needs))["CSV"]
    assert "gpu-1 (10.0.0.1); gpu-2 (10.0.0.2)" in fails(seen_by_nodes.ask(None, NODES, needs))["CSV"]


def test_many_nodes_with_one_fault_take_one_line(needs: Needs, answers: dict[str, dict[str, Any]]) -> None:
    nodes = [Node(f"{i:012}", f"10.0.0.{i}", f"gpu-{i}", 2.0, 1.0, alive=True) for i in range(64)]
    answers.update({node.id: {"hub_token": False} for node in nodes})
    (found,) = [one for one in seen_by_nodes.ask(None, nodes, needs) if one.verdict == "fails"]
    assert "and 61 more: there is none" in found.found


@pytest.mark.parametrize(
    ("lack", "what"), [({"locks": False}, "locks"), ({"base": "hub"}, "base download")], ids=["locks", "download"]
)
def test_what_work_can_do_without_is_only_said(
    lack: dict[str, Any], what: str, needs: Needs, answers: dict[str, dict[str, Any]]
) -> None:
    answers[NODES[1].id] |= lack
    found = seen_by_nodes.ask(None, NODES, replace(needs, base="someone/base", base_identity=""))
    assert what in [one.what for one in found if one.verdict == "warning"]
    seen_by_nodes.refuse(found)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.unlink(), "what it writes cannot be read here"),
        (lambda path: path.write_text("other", encoding="ascii"), "what it writes arrives otherwise"),
    ],
)
def test_what_a_node_writes_has_to_arrive_here(
    spoil: Callable[[Path], object],
    words: str,
    needs: Needs,
    answers: dict[str, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read_back = seen_by_nodes._read_back

    def spoilt(path: Path, node_id: str) -> str:
        if node_id == NODES[1].id:
            spoil(path)
        return read_back(path, node_id)

    assert answers
    monkeypatch.setattr(seen_by_nodes, "_read_back", spoilt)
    assert words in fails(seen_by_nodes.ask(None, NODES, needs))["runs directory"]
    assert list(needs.runs_dir.iterdir()) == []


def test_with_a_storage_each_node_needs_a_folder_of_its_own_and_the_url(
    needs: Needs, answers: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    assert answers
    (tmp_path / "file").touch()
    stored = replace(needs, csvs={}, storage=f"file://{tmp_path}/storage")
    assert fails(seen_by_nodes.ask(None, NODES, stored)) == {}
    assert "storage" in [one.what for one in seen_by_nodes.ask(None, NODES, stored)]
    assert not (tmp_path / "runs").exists() or list((tmp_path / "runs").iterdir()) == []
    odd = replace(stored, storage=f"file://{tmp_path}/file/below", runs_dir=tmp_path / "file" / "runs")
    found = fails(seen_by_nodes.ask(None, NODES, odd))
    assert found.keys() == {"runs directory", "storage"}
    assert "Not a directory" in found["runs directory"]


def test_a_base_of_the_hub_is_looked_for_in_the_cache(
    needs: Needs, answers: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    assert answers
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    on_hub = replace(needs, base="someone/base", base_identity="")
    assert "base download" in [one.what for one in seen_by_nodes.ask(None, NODES, on_hub)]
    snapshot = tmp_path / "hub" / "models--someone--base" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}", encoding="utf-8")
    assert "base download" not in [one.what for one in seen_by_nodes.ask(None, NODES, on_hub)]
    assert [one.verdict for one in seen_by_nodes.ask(None, NODES, replace(on_hub, base="demo"))].count("warning") == 0


def test_what_is_not_there_or_of_another_kind_is_named(needs: Needs, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "Not a directory" in seen_on_node._shares(tmp_path / "file", ".token", "1")["runs_dir"]
    assert "no such folder" in seen_on_node._shares(tmp_path / "none", ".token", "1")["runs_dir"]
    assert "another folder than here" in seen_on_node._shares(tmp_path, ".token", "1")["runs_dir"]
    (tmp_path / ".token").write_text("other", encoding="ascii")
    assert "another folder than here" in seen_on_node._shares(tmp_path, ".token", "1")["runs_dir"]
    assert seen_on_node._sha256_or_error(tmp_path / "none") == "no such file"
    assert "directory" in seen_on_node._sha256_or_error(tmp_path)
    assert needs.base_identity == seen_on_node._base_seen({"base": needs.base})
    assert seen_on_node._base_seen({"base": str(tmp_path / "none")}) == f"{tmp_path}/none: no such folder"
