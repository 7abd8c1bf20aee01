"""The trackers that metrics can be passed on to (`train.report_to`): what each needs, and where it puts what it gets.

Without a variable of the user's own that says otherwise, all of them write to this machine only. Imports none of them.
"""

from __future__ import annotations

import importlib.util
import json
import netrc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from appliance.findings import Finding
from appliance.recipe.train_fields import TrainSection

FOLDER = "tracking"  # in the folder of the stage; kept for a training that continues
PROJECT = "finetune-appliance"
# trackio and mlflow ask for older versions of packages that constraints.txt pins: pillow below 13, pyarrow below 26.
_INSTALL = {
    "tensorboard": "pip install -c constraints.txt tensorboard",
    "trackio": "pip install trackio",
    "wandb": "pip install -c constraints.txt wandb",
    "mlflow": "pip install mlflow",
}
_NAMES_NOBODY = dict.fromkeys(("user", "source.git.commit", "source.git.branch", "source.git.repoURL"), "")
_NAMES_NOBODY |= {"source.name": PROJECT}
# What a tracker would take or do by itself beyond the metrics. The terminal's lines may quote rows, a command line may
# hold secrets, weights leave only through the gates of `publish`; user and host are nobody's business, and nothing is
# sent to whoever made the tracker.
_NEVER = {
    "WANDB_CONSOLE": "off",
    "WANDB_HOST": PROJECT,
    "WANDB_DISABLE_CODE": "true",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_LOG_MODEL": "false",
    "WANDB_WATCH": "false",
    "WANDB_X_DISABLE_META": "true",
    "WANDB_X_DISABLE_MACHINE_INFO": "true",
    "WANDB_X_SAVE_REQUIREMENTS": "false",
    "WANDB_ERROR_REPORTING": "false",
    "HF_MLFLOW_LOG_ARTIFACTS": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_RUN_CONTEXT": json.dumps({f"mlflow.{name}": value for name, value in _NAMES_NOBODY.items()}),
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def named(train: TrainSection) -> list[str]:
    """The trackers that the recipe names, each once; usually none."""
    names = [train.report_to] if isinstance(train.report_to, str) else train.report_to
    return [name for name in dict.fromkeys(names) if name != "none"]


def findings(train: TrainSection, environ: Mapping[str, str] = os.environ) -> list[Finding]:
    """For `check`: what is missing to report, and where the metrics will go. Shows no value of a variable."""
    return [_finding(name, environ) for name in named(train)]


def _finding(name: str, environ: Mapping[str, str]) -> Finding:
    what = f"report_to {name}"
    if importlib.util.find_spec(name) is None:
        return Finding(what, f"{name} is not installed", f"train.report_to names {name}", "fails", _INSTALL[name])
    if name == "wandb" and not _wandb_may_start(environ):  # it would ask for a key in the middle of the run
        fix = "export WANDB_API_KEY, or run `wandb login` once, or WANDB_MODE=offline for a copy on this machine"
        return Finding(what, "no key", "a key of Weights & Biases", "fails", fix)
    return Finding(what, _destination(name, environ), "", "ok")


def _destination(name: str, environ: Mapping[str, str]) -> str:
    here = f"on this machine, in train/{FOLDER}"
    if name == "wandb":
        return here if _is_offline(environ) else "to Weights & Biases, or what WANDB_BASE_URL names"
    variables = {"trackio": ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"), "mlflow": ("MLFLOW_TRACKING_URI",)}
    if elsewhere := [variable for variable in variables.get(name, ()) if environ.get(variable)]:
        return f"where {elsewhere[0]} says"
    return "on this machine, in trackio's own folder" if name == "trackio" else here


def _is_offline(environ: Mapping[str, str]) -> bool:
    return environ.get("WANDB_MODE", "").lower() in ("offline", "disabled", "dryrun")


def _wandb_may_start(environ: Mapping[str, str]) -> bool:
    """Whether it finds a key where it looks for one, or needs none."""
    if _is_offline(environ) or environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    with suppress(OSError, netrc.NetrcParseError):
        return host in netrc.netrc(environ.get("NETRC") or str(Path.home() / ".netrc")).hosts
    return False


@contextmanager
def environment(folder: Path, run_id: str) -> Iterator[None]:
    """The variables by which the trackers write to `folder` unless the user says otherwise, and take metrics only."""
    usual = {
        "TENSORBOARD_LOGGING_DIR": str(folder / "tensorboard"),
        "WANDB_DIR": str(folder),
        "WANDB_PROJECT": PROJECT,
        "WANDB_RUN_ID": run_id,
        "WANDB_RESUME": "allow",
        "WANDB_SILENT": "true",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder.absolute() / 'mlflow.db'}",
        "MLFLOW_EXPERIMENT_NAME": PROJECT,
        "MLFLOW_LOGGING_LEVEL": "WARNING",
    }
    before = dict(os.environ)
    os.environ.update({**usual, **{name: value for name, value in before.items() if value}, **_NEVER})
    try:
        yield
    finally:
        for name in (*usual, *_NEVER):
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]
