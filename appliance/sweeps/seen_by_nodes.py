"""Before any work: what every node sees of the files, programs and secrets that the runs need there.

Each node is asked by a task of its own, and answers with what it found; what it has to match is decided here. Of a
secret it says whether it has one by that name, never the value. Beside the runs directory nothing is written anywhere:
a token file in it, which the nodes read, and one of each node, which is read here; all are gone afterwards.

>>> needs = Needs(Path("runs").resolve(), Path.cwd(), csvs={"/data/a.csv": "9f…"}, base="/models/small")
>>> findings = ask(cluster.ray, cluster.nodes, needs)
>>> refuse(findings)
"""

from __future__ import annotations

import fcntl
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import appliance
from appliance.base_model.find import DEMO_ID
from appliance.errors import EnvironmentUnavailable
from appliance.findings import Finding
from appliance.machine import packages
from appliance.process import files
from appliance.sweeps.cluster import Node
from appliance.sweeps.seen_on_node import TOKEN
from appliance.wording import counted

_SECONDS = 900.0  # for all nodes together: each reads the base's weights once, which may be tens of GB on a file server
_NAMED = 3  # nodes or packages, in one line of the table


@dataclass(frozen=True)
class Needs:
    """What the runs need on a node. It becomes an argument of Ray's: nothing in it is secret.

    Attributes:
        runs_dir: where the run directories are, absolute.
        folder: where the runs are started: paths in a recipe may be relative to it.
        csvs: absolute path -> sha256. Empty with a storage, which brings them.
        base: `model.id` of the recipe; a folder's path must be absolute.
        base_identity: of a folder, the sha256 over its files (seen_on_node.identity_of).
        variables: names of environment variables that the runs need.
        hub_token: whether they need a Hub token, wherever the node keeps it.
        storage: URL of the storage; empty if the nodes share the runs directory.
    """

    runs_dir: Path
    folder: Path
    csvs: Mapping[str, str] = field(default_factory=dict)
    base: str = DEMO_ID
    base_identity: str = ""
    variables: Sequence[str] = ()
    hub_token: bool = False
    storage: str = ""


def ask(ray: Any, nodes: Iterable[Node], needs: Needs) -> list[Finding]:
    """One finding for each thing that the nodes need, and one more for each way in which some of them lack it."""
    asked = [node for node in nodes if node.alive]
    with _token_file(needs) as token:
        answers = _answers(ray, asked, {**_as_json(needs), "token": token})
        names = _names(asked)
        for node in asked:
            if not needs.storage and answers[node.id].get("runs_dir") == "":
                answers[node.id]["runs_dir"] = _read_back(needs.runs_dir / f"{token}.{node.id}", node.id)
    faults: dict[tuple[str, str], list[str]] = defaultdict(list)
    for node in asked:
        for what, fault in _faults(needs, answers[node.id]):
            faults[what, fault].append(names[node.id])
    return _findings(needs, faults, len(asked))


def _names(nodes: Sequence[Node]) -> dict[str, str]:
    """Node id -> what people call the node; with a part of its id where that is not enough to tell two apart."""
    names = {node.id: f"{node.host} ({node.address})" if node.host != node.address else node.host for node in nodes}
    often = Counter(names.values())
    return {node_id: name if often[name] == 1 else f"{name}, node {node_id[:8]}" for node_id, name in names.items()}


def refuse(findings: Sequence[Finding]) -> None:
    """Raises EnvironmentUnavailable: some nodes lack what runs there would need."""
    wrong = [finding for finding in findings if finding.verdict == "fails"]
    if wrong:
        raise EnvironmentUnavailable(
            "the nodes cannot do this work:\n  " + "\n  ".join(f"{one.what}: {one.found}" for one in wrong),
            hint="; ".join(dict.fromkeys(one.fix for one in wrong)),
        )


def _answers(ray: Any, nodes: Sequence[Node], asked: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Node id -> its answer, or {"failed": why there is none}."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    version = appliance.__version__

    def probe(asked: dict[str, Any], node_id: str) -> dict[str, Any]:  # by value: a node may have none of our modules
        try:
            import appliance
        except ImportError:
            return {"failed": "appliance is not installed there"}
        if appliance.__version__ != version:
            return {"failed": f"appliance {appliance.__version__} is installed there, {version} here"}
        from appliance.sweeps import seen_on_node

        return seen_on_node.look(asked, node_id)

    remote = ray.remote(num_cpus=0, max_retries=0)(probe)
    tasks = {
        remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(
            asked, node.id
        ): node.id
        for node in nodes
    }
    ray.wait(list(tasks), num_returns=len(tasks), timeout=_SECONDS)
    answers = {}
    for task, node_id in tasks.items():
        try:
            answers[node_id] = dict(ray.get(task, timeout=0))
        except ray.exceptions.GetTimeoutError:
            answers[node_id] = {"failed": f"no answer within {_SECONDS:.0f} s"}
        except ray.exceptions.RayError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            answers[node_id] = {"failed": f"no answer: {lines[-1] if lines else type(error).__name__:.200}"}
    return answers


def _as_json(needs: Needs) -> dict[str, Any]:
    return {
        "runs_dir": str(needs.runs_dir),
        "folder": str(needs.folder),
        "csvs": list(needs.csvs),
        "base": needs.base,
        "variables": list(needs.variables),
        "storage": needs.storage,
    }


def _faults(needs: Needs, answer: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(what, how the node lacks it)."""
    if "failed" in answer:
        yield "appliance", answer["failed"]
        return
    here, there = packages.versions(), answer["versions"]
    if other := [name for name in sorted({*here, *there}) if here.get(name) != there.get(name)]:
        named = [f"{name} {there.get(name, 'absent')} (here {here.get(name, 'absent')})" for name in other]
        more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
        yield "packages", ", ".join(named[:_NAMED]) + more
    if not answer["folder"]:
        yield "working directory", f"{needs.folder}: no such folder"
    if answer["runs_dir"]:
        yield "runs directory", answer["runs_dir"]
    if answer.get("locks") is False:
        yield "locks", "a lock held here does not hold there"
    if answer.get("storage"):
        yield "storage", answer["storage"]
    for path, sha256 in needs.csvs.items():
        if answer["csvs"][path] != sha256:
            is_other = len(answer["csvs"][path]) == len(sha256)
            yield "CSV", f"{path}: {'another file than here' if is_other else answer['csvs'][path]}"
    if needs.base_identity and answer["base"] != needs.base_identity:
        yield "base model", answer["base"] if " " in answer["base"] else f"{needs.base}: other files than here"
    elif answer["base"] == "hub":
        yield "base download", f"{needs.base} is not in the cache; the first run there downloads it"
    for name in needs.variables:
        if not answer["variables"][name]:
            yield "variables", f"{name} is not set"
    if needs.hub_token and not answer["hub_token"]:
        yield "Hub token", "there is none, or one that cannot be used"


_NEEDED = {
    "appliance": ("the version that runs here", "install the same version of the package there"),
    "packages": ("the versions here", "install from the same constraints.txt, or use the same image, on every node"),
    "working directory": ("a folder of that name", "start the command in a folder that all nodes have"),
    "runs directory": (
        "the same folder, writable",
        "put --runs-dir on a file system that all nodes mount at the same path, or give a --storage URL",
    ),
    "locks": (
        "one node at a run",
        "mount the file system with locks (NFS: version 4, without nolock): without them nothing notices that a node "
        "which was given up for lost still writes to a run",
    ),
    "storage": ("read and write", "set up the storage's client and credentials on every node"),
    "CSV": ("the same file", "put the CSVs on a path that all nodes mount, or give a --storage URL, which brings them"),
    "base model": ("the same files", "put the model's folder on a path that all nodes mount, or name it on the Hub"),
    "base download": ("the base", "nothing to do; HF_HOME on a shared path would download it once"),
    "variables": ("set by name", "export them on each node before `ray start`: no value is passed on"),
    "Hub token": ("a token", "export HF_TOKEN on each node before `ray start`, or run `hf auth login` there"),
}
_WARNINGS = ("locks", "base download")


def _findings(needs: Needs, faults: Mapping[tuple[str, str], list[str]], nodes: int) -> list[Finding]:
    """The faults, those of several nodes in one line, and what no node lacks, if the runs need it."""
    is_needed = dict.fromkeys(("appliance", "packages", "working directory", "runs directory"), True)
    is_needed |= {"storage": bool(needs.storage)}
    is_needed |= {"CSV": bool(needs.csvs), "base model": bool(needs.base_identity)}
    is_needed |= {"variables": bool(needs.variables), "Hub token": needs.hub_token}
    unseen = any(what == "appliance" for what, _ in faults)  # a node that was not looked at
    found = []
    for what, (needed, fix) in _NEEDED.items():
        verdict: Literal["warning", "fails"] = "warning" if what in _WARNINGS else "fails"
        lacking = {fault: names for (about, fault), names in faults.items() if about == what}
        for fault, names in lacking.items():
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            found.append(Finding(what, f"on {'; '.join(names[:_NAMED])}{more}: {fault}", needed, verdict, fix))
        if is_needed.get(what) and not lacking and not unseen:
            found.append(Finding(what, f"as needed on {counted(nodes, 'node')}", needed, "ok"))
    return found


@contextmanager
def _token_file(needs: Needs) -> Iterator[str]:
    """A file in the shared runs directory, locked while the block runs; its name is its content."""
    token = f"{TOKEN}{uuid.uuid4().hex}"
    if needs.storage:
        yield token
        return
    needs.runs_dir.mkdir(parents=True, exist_ok=True)
    path = needs.runs_dir / token
    try:
        with files.open_own(path, "x") as handle:
            handle.write(token)
            handle.flush()
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield token
    finally:
        for left in (path, *needs.runs_dir.glob(f"{token}.*")):
            left.unlink(missing_ok=True)


def _read_back(path: Path, node_id: str) -> str:
    """What is wrong with the file that a node says it wrote; empty if nothing."""
    try:
        return "" if path.read_text(encoding="ascii") == node_id else f"{path.parent}: what it writes arrives otherwise"
    except OSError as error:
        return f"{path.parent}: what it writes cannot be read here: {error.strerror}"
