"""One `appliance` command on whichever node of a cluster has room for it, waited for; and what the nodes must see."""

from __future__ import annotations

import socket
from pathlib import Path

from appliance.errors import ApplianceError, EnvironmentUnavailable, Interrupted
from appliance.process import console, files, known_secrets, signals
from appliance.recipe.fields import Recipe
from appliance.sweeps import cluster as sweeps_cluster
from appliance.sweeps import run_child, seen_by_nodes, seen_on_node
from appliance.sweeps.cluster import Cluster
from appliance.sweeps.fleet import Share
from appliance.sweeps.run_child import RunJob, RunOutcome
from appliance.wording import counted

_RETRIES = 3  # by Ray, of a command whose worker was killed or whose machine was lost
_SIGNALLED = 128  # exit codes from here on: a signal's number is added to it


def resources(share: Share) -> dict[str, float]:
    """What Ray keeps free for one run."""
    return {"GPU": share.gpus} if share.gpus else {"CPU": share.cores}


def wait_for(cluster: Cluster, job: RunJob, share: Share, *, what: str) -> None:
    """Runs it to its end. Raises the error that ended it, with its exit code; Interrupted, when it has been saved.

    `what`: what it does, for the message.
    """
    ray, need = cluster.ray, resources(share)
    options = {"num_cpus": need.get("CPU", 0), "num_gpus": need.get("GPU", 0), "max_retries": _RETRIES, "name": "run"}
    ref = ray.remote(_here).options(**options).remote(job)
    try:
        while not ray.wait([ref], timeout=0.5)[0]:
            signals.check()
            cluster.refuse_ended()
        outcome: RunOutcome = ray.get(ref)
    except Interrupted:
        ray.cancel(ref, force=False)
        sweeps_cluster.wait_for_all(ray, [ref])
        raise
    except ray.exceptions.RayError as failure:
        told = str(failure).strip().partition("\n")[0]
        raise EnvironmentUnavailable(f"{what}: {told}", hint="the same command continues") from failure
    if outcome.exit_code:
        hint = f"what it printed is in {job.output}; the same command continues"
        raise error(outcome.exit_code, f"{what}: {outcome.message or f'exit code {outcome.exit_code}'}", hint)


def _here(job: RunJob) -> RunOutcome:
    """In a worker."""
    return run_child.run(job, socket.gethostname())


def error(exit_code: int, message: str, hint: str) -> BaseException:
    """The error that ends a command with this exit code, as the child's was."""
    if exit_code >= _SIGNALLED:
        return Interrupted(exit_code - _SIGNALLED, message, hint=hint)
    kinds = {kind.exit_code: kind for kind in ApplianceError.__subclasses__()}
    if exit_code in kinds:
        return kinds[exit_code](message, hint=hint)
    bug = RuntimeError(message)
    bug.add_note(hint)
    return bug


def refuse_blind(cluster: Cluster, recipe: Recipe, runs_dir: Path) -> None:
    """Says what the machines of the cluster do not see. Raises EnvironmentUnavailable: trials there cannot be right."""
    base = Path(recipe.model.id)
    base_id = str(base.absolute()) if base.is_dir() else recipe.model.id
    csv = Path(recipe.data.csv)
    needs = seen_by_nodes.Needs(
        runs_dir,
        Path.cwd(),
        csvs={str(csv.absolute()): files.sha256_of(csv)} if csv.is_file() else {},
        base=base_id,
        base_identity=seen_on_node.identity_of(base_id),
        variables=[known_secrets.NOTIFY_VARIABLE] if recipe.notify else [],
        hub_token=recipe.publish.repo_id is not None,
    )
    console.say(f"asking {counted(len(cluster.nodes), 'machine')} what they see", style="dim")
    found = seen_by_nodes.ask(cluster.ray, cluster.nodes, needs)
    if any(one.verdict != "ok" for one in found):
        console.findings_table([one.cells() for one in found])
    seen_by_nodes.refuse(found)
