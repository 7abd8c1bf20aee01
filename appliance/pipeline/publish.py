"""Builds release/: exactly what goes to the Hub, and takes it there. Nothing leaves that a gate speaks against.

The gates run in two halves: first what the stages recorded, then, on the release as it would leave, its files, its
reload in a fresh process, and its cleanliness. Only a release that all of them let pass gets the name `release`.
The rows alone, of a run that is no further than `prepare`, can go as well.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from appliance.errors import GateRefused
from appliance.findings import Gate
from appliance.hub import permissions, upload
from appliance.hub import token as hub_token
from appliance.hub.upload_child import Pushed
from appliance.process import files as process_files
from appliance.process import redact
from appliance.recipe.fields import EvaluateSection, PublishSection
from appliance.release import card, dataset, gates, leak_scan, passport, reload
from appliance.release.base import Base
from appliance.weights import model_files

EVEN_IF_WORSE = "not_worse"  # the one gate that `publish --even-if-worse` overrides


def run(
    *,
    name: str,
    publish: PublishSection,
    evaluate: EvaluateSection,
    base: Base,
    prompt_name: str,
    run_path: Path,
    stage_dir: Path,
    even_if_worse: bool = False,
    into_existing: bool = False,
) -> str:
    """Writes release/model, release/adapter, release/dataset and hub.json, the passport into run.json; uploads.

    `even_if_worse` lets a model pass that the verdict speaks against; the card says so. It overrides no other gate.
    `into_existing` lets an upload go to a repository that holds something else. Returns the summary.
    Raises GateRefused: a gate does not hold; hub.json names it, and there is no release folder then. HubError: the
    upload did not come through; the release folder is kept.
    """
    repositories = publish.repositories(has_adapter=(run_path / "train" / "adapter").is_dir())
    if publish.repo_id and "/" not in publish.repo_id:  # the cards need the whole name
        owner = permissions.owner(hub_token.token())
        repositories = {part: (f"{owner}/{name}", kind) for part, (name, kind) in repositories.items()}
    overridable = {EVEN_IF_WORSE} if even_if_worse else set()
    found = gates.recorded(
        run_path, min_stop_rate=publish.min_stop_rate, require_improvement=publish.require_improvement
    )
    refuse_failed(found, overridable, stage_dir)
    overridden = sorted(gate.name for gate in found if not gate.passed)
    facts = card.gather(
        name=name,
        base=base,
        prompt_name=prompt_name,
        run_path=run_path,
        examples=publish.examples,
        overridden=bool(overridden),
        repos={part: repo_id for part, (repo_id, _) in repositories.items()},
        stop=evaluate.stop,
        max_new_tokens=evaluate.max_new_tokens,
    )
    with process_files.atomic_dir(stage_dir / "release") as release:
        _build(release, facts, publish, run_path)
        found += gates.of_files(
            release, run_path, public_id=base.public_id, revision=base.revision, dataset=publish.dataset
        )
        refuse_failed(found, overridable, stage_dir)  # before a process loads what is there
        try:
            found += reload.run(release, run_path, base_dir=base.dir, prompt_name=prompt_name, stage_dir=stage_dir)
        except GateRefused as error:
            write_record(stage_dir, found, f"refused: {error}")
            raise
        found += gates.of_cleanliness(
            release,
            run_path,
            secrets=secrets(),
            private=private(run_path, base.dir, _published(facts, publish.repo_id)),
            shown=publish.examples,
        )
        refuse_failed(found, overridable, stage_dir)
        files = files_of_release(release)
    passport.write(run_path, base, found)
    message = "nothing was uploaded: publish.repo_id is not set"
    if repositories:
        message = "not uploaded yet"
    write_record(stage_dir, found, message, files=files, overridden=overridden)
    if not repositories:
        return message
    pushed: dict[str, Pushed] = {}
    for part, (repo_id, repo_type) in repositories.items():
        pushed[part] = upload.publish(
            stage_dir / "release" / part,
            repo_id,
            repo_type=repo_type,
            visibility=publish.visibility,
            token=hub_token.token(),
            into_existing=into_existing,
            message=f"{name}: {part}",
            expected=expected_files(files, f"{part}/"),
            allowed=partial(gates.may_be_released, part),
            again=f"`appliance publish {shlex.quote(str(run_path))}` continues",
        )
        more: dict[str, Any] = {"uploaded": len(pushed) == len(repositories), "visibility": pushed[part].visibility}
        more |= {"repositories": {part: asdict(one) for part, one in pushed.items()}}
        write_record(stage_dir, found, "uploaded", files=files, overridden=overridden, **more)
    return "; ".join(
        f"{one.visibility}{'' if one.was_new else ', as it was before'}: {one.commit_url}" for one in pushed.values()
    )


def files_of_release(release: Path) -> dict[str, dict[str, Any]]:
    """Of every file its size in bytes and its sha256, by its path in the release."""
    return {
        str(path.relative_to(release)): {"size": path.stat().st_size, "sha256": process_files.sha256_of(path)}
        for path in sorted(release.rglob("*"))
        if path.is_file()
    }


def expected_files(files: Mapping[str, Mapping[str, Any]], inside: str = "") -> dict[str, tuple[int, str]]:
    """The files below `inside`, a part's folder, named as in its repository: size in bytes, sha256."""
    return {n.removeprefix(inside): (f["size"], f["sha256"]) for n, f in files.items() if n.startswith(inside)}


def secrets() -> tuple[str, ...]:
    """Every secret that this process could have written somewhere."""
    return leak_scan.secrets_of(os.environ, *hub_token.every_token())


def private(run_path: Path, base_dir: Path | None, published: Sequence[str]) -> leak_scan.Private:
    """What would tell of this machine. A name that is `published` on purpose, as in a repository's, is no trace."""
    folders = [run_path] if base_dir is None else [run_path, base_dir]
    paths = {form for folder in folders for form in (folder.absolute(), folder.resolve())}
    return leak_scan.Private(redact.names_here(), tuple(sorted(map(str, paths))), "\n".join(published))


def _published(facts: card.Facts, repo_id: str | None) -> list[str]:
    config = facts.base.config
    cells = [cell for row in facts.examples for cell in row.values() if cell]
    public = [facts.name, facts.base.public_id, repo_id or "", str(config.get("model_type", ""))]
    return [*public, *(config.get("architectures") or []), *cells, *map(leak_scan.as_cell, cells)]


def refuse_failed(
    found: Sequence[Gate],
    overridable: set[str],
    folder: Path,
    hint: str = "what was trained and the merged model are kept; see report.html for the answers behind the figures",
) -> None:
    """Raises GateRefused where a gate does not hold that may not be overridden; hub.json then has them all."""
    failed = [gate for gate in found if not gate.passed and gate.name not in overridable]
    if not failed:
        return
    write_record(folder, found, "refused: nothing may be released")
    if [gate.name for gate in failed] == [EVEN_IF_WORSE]:
        hint += "; `appliance publish --even-if-worse` releases it all the same, and the card says so"
    raise GateRefused("the release is refused: " + "; ".join(gate.sentence() for gate in failed), hint=hint)


def write_record(stage_dir: Path, found: Sequence[Gate], message: str, **more: Any) -> None:
    record = {"uploaded": False, "message": message, "visibility": None, "gates": [gate.as_json() for gate in found]}
    process_files.write_json(stage_dir / "hub.json", record | more)


def _build(release: Path, facts: card.Facts, publish: PublishSection, run_path: Path) -> None:
    if publish.merged:
        _link_tree(run_path / "merge" / "model", release / "model")
        _copy_license(facts.base, release / "model")
        process_files.write_text(release / "model" / "README.md", card.model_card(facts))
    if publish.adapter and (run_path / "train" / "adapter").is_dir():
        _link_tree(run_path / "train" / "adapter", release / "adapter")
        _copy_license(facts.base, release / "adapter")
        process_files.write_text(release / "adapter" / "README.md", card.adapter_card(facts))
    if publish.dataset:
        dataset.build(release / "dataset", run_path, name=facts.name, repo=facts.repo("dataset"))


def _link_tree(source: Path, target: Path) -> None:
    """The files of `source` under `target`: no second copy on disk."""
    target.mkdir(parents=True)
    for path in sorted(source.rglob("*")):
        copy = target / path.relative_to(source)
        if path.is_dir():
            copy.mkdir()
        else:
            process_files.link_or_copy(path, copy)


def _copy_license(base: Base, folder: Path) -> None:
    """The base's licence travels with what was made from it."""
    for path in base.dir.iterdir():
        if path.is_file() and model_files.is_licence(path.name):
            shutil.copy2(path, folder)
