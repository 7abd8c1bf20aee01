"""`appliance dataset upload`: the rows of a prepared run as a dataset on the Hub."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

from appliance.hub import permissions, upload
from appliance.hub import token as hub_token
from appliance.hub.upload_child import Pushed
from appliance.pipeline import reads
from appliance.pipeline.publish import expected_files, files_of_release, private, refuse_failed, secrets, write_record
from appliance.process import files as process_files
from appliance.release import dataset, gates
from appliance.rundir import run_json
from appliance.rundir.directory import RunDir


def upload_rows(
    *,
    name: str,
    repo_id: str,
    visibility: Literal["private", "public"],
    run_path: Path,
    folder: Path,
    again: str,
    into_existing: bool = False,
) -> tuple[Pushed, dataset.Rows]:
    """The rows of a prepared run, as `run` releases them, to a dataset repository. `folder`: release/ and hub.json.

    `repo_id` without USER/ goes to the token's user; `again`: the command that continues after a failed upload.
    Raises RunDirError: the prepared rows were edited. HubError: the Hub refuses, which is checked before anything is
    written, or cannot be reached. GateRefused: the rows hold something that must not be published; there is no release
    folder then.
    """
    reads.refuse_changed(RunDir(run_path), reads.ROWS)
    token = hub_token.token()
    if "/" not in repo_id:
        repo_id = f"{permissions.owner(token)}/{repo_id}"
    permissions.refuse(permissions.findings({repo_id: "dataset"}, visibility, into_existing, None, token))
    base = run_json.read(run_path, "base.dir", "base.public_id")["base"]
    with process_files.atomic_dir(folder / "release") as release:
        rows = dataset.build(release, run_path, name=name, repo=repo_id)
        hidden = private(run_path, Path(base["dir"]) if base["dir"] else None, (name, base["public_id"], repo_id))
        found = gates.of_cleanliness(release, run_path, secrets=secrets(), private=hidden, shown=True)
        refuse_failed(found, set(), folder, "correct the CSV or the log named here; then the same command continues")
        files = files_of_release(release)
    write_record(folder, found, "not uploaded yet", files=files)
    pushed = upload.publish(
        folder / "release",
        repo_id,
        repo_type="dataset",
        visibility=visibility,
        token=token,
        into_existing=into_existing,
        message=f"{name}: dataset",
        expected=expected_files(files),
        allowed=partial(gates.may_be_released, "dataset"),
        again=again,
    )
    more: dict[str, Any] = {"uploaded": True, "visibility": pushed.visibility}
    write_record(folder, found, "uploaded", files=files, **more, repositories={"dataset": asdict(pushed)})
    return pushed, rows
