"""The one sentence on top of the page: whether the run was released, and why; and what the proof's card may say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from appliance.findings import qualified
from appliance.report import gate_words
from appliance.rundir import earlier_compared
from appliance.rundir.directory import MADE_FROM
from appliance.wording import counted

Style = Literal["good", "doubtful", "bad", ""]


@dataclass(frozen=True)
class Headline:
    """`text`: a short name of the state. `why`: a sentence, without its full stop; empty if there is no more to say."""

    text: str
    why: str
    style: Style


def of(shown: Mapping[str, Any]) -> Headline:
    """The state of the run. `shown`: facts.of(run_dir)."""
    hub, proof, ended = shown["hub"], shown["proof"], shown["ended"]
    failed = gate_words.failed((hub or {}).get("gates", ()), (hub or {}).get("overridden", ()))
    if failed:
        return Headline("Not released", f"{counted(len(failed), 'gate')} refused it: " + "; ".join(failed), "bad")
    if hub and str(hub["message"]).startswith("refused"):
        return Headline("Not released", str(hub["message"]), "bad")
    if proof and not proof["passed"]:
        refused = gate_words.failed(proof["gates"])
        why = "; ".join(refused) or str(proof.get("error", ""))
        return Headline("Not released", f"the proof refused the merged model: {why}", "bad")
    if hub and hub.get("uploaded"):
        return _released(shown)
    if shown["stages"].get("publish"):  # whatever a later command met, such as an export
        why = str(hub["message"]) if hub else ""
        return Headline("Ready, not published", why, "doubtful" if _doubts(shown) else "good")
    if ended:
        how, stage = _ENDED.get(ended.get("kind", ""), "ended"), f" in {ended['stage']}" if ended.get("stage") else ""
        why = f"the run {how}{stage}: {ended.get('message', '')}".rstrip(": ")
        return Headline("Not released", why, "doubtful" if ended.get("kind") == "stopped" else "bad")
    missing = [stage for stage in MADE_FROM if not shown["stages"].get(stage)]
    return Headline("Not finished", f"still to do: {', '.join(missing)}", "")


_ENDED = {"stopped": "was stopped", "refused": "was refused", "failed": "failed"}


def _released(shown: Mapping[str, Any]) -> Headline:
    places = {(one["repo_id"], one["visibility"]) for one in shown["hub"].get("repositories", {}).values()}
    where = " and ".join(f"{repo} ({visibility})" for repo, visibility in sorted(places))
    despite = shown["hub"].get("overridden")
    why = f"to {where}" + (", despite its verdict, as its author decided (--even-if-worse)" if despite else "")
    return Headline("Released", why, "bad" if despite else "doubtful" if _doubts(shown) else "good")


def _doubts(shown: Mapping[str, Any]) -> bool:
    return bool(shown["cautions"]) or (shown["metrics"] or {}).get("verdict") != "better"


def of_verdict(shown: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """A sentence about the verdict: against which base, by how much, with its interval; empty before evaluation.

    'On 41 test rows, better than the base with the same prompt: F1 40.7% → 100.0%, a difference of +44.6 to +65.8
    points (95 % interval).'
    """
    metrics = shown["metrics"]
    if not metrics:
        return ""
    before, after = (metrics[who][metrics["primary"]] for who in ("base", "tuned"))
    low, high = (f"{edge * 100:+.1f}" for edge in metrics["interval"])
    found = shown["verdict"] if shown["verdict"] != metrics["verdict"] else f"the verdict is “{metrics['verdict']}”"
    why = f" ({metrics['reason']})" if metrics.get("reason") else ""
    metric = names[metrics["primary"]]
    beside = (one.replace(" -> ", " → ") for one in earlier_compared.sentences(metrics, metric))
    return (
        f"On {counted(metrics['rows'], 'test row')}, {found}{why}: {metric} {before:.1%} → {after:.1%}, "
        f"a difference of {low} to {high} points (95 % interval)."
    ) + "".join(f" {one[0].upper()}{one[1:]}." for one in beside)


def of_proof(shown: Mapping[str, Any], headline: Headline) -> Headline | None:
    """The proof's card: green only if nothing else refused the release. None before the merge."""
    proof = shown["proof"]
    if not proof:
        return None
    if not proof["passed"]:
        return Headline("refused", "the merged model is not the trained one, or that cannot be shown", "bad")
    cautions = len(proof.get("cautions", ()))
    if headline.style == "bad":
        return Headline(
            qualified("proven", cautions), "the merged model is the trained one, but it was not released", ""
        )
    return Headline(
        qualified("proven", cautions), "the merged model is the trained one", "doubtful" if cautions else "good"
    )
