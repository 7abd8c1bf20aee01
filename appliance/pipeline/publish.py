"""Builds release/, exactly what goes to the Hub, and uploads it. Nothing is uploaded unless every gate passes.

The gates run in two halves: first what the stages recorded; then, on the finished release, its files, its reload in a
fresh process, and its cleanliness. Only a release that passes all of them gets the name `release`. Rows alone, from a
run that has got no further than `prepare`, are published by publish_rows.py.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

from appliance.errors import GateRefused
from appliance.findings import Gate
from appliance.hub import permissions, upload
from appliance.hub import token as hub_token
from appliance.hub.upload_child import Pushed
from appliance.process import files as process_files
from appliance.process import redact
from appliance.recipe.fields import EvaluateSection, PublishSection
from appliance.release import (
    card,
    card_facts,
    dataset,
    gates,
    gguf_files,
    leak_scan,
    passport,
    reload,
    reload_classes,
    reload_spans,
    tokenizer_files,
)
from appliance.release.base import Base
from appliance.release.card_facts import Facts
from appliance.tasks.task import Task
from appliance.weights import model_files

EVEN_IF_WORSE = frozenset({"not_worse", "forgot_nothing"})  # the gates that `publish --even-if-worse` overrides


@dataclass(frozen=True)
class _Order:
    """What is to be released, from which run, and what may be overridden."""

    name: str
    publish: PublishSection
    evaluate: EvaluateSection
    base: Base
    prompt_name: str
    run_path: Path
    stage_dir: Path
    overridable: frozenset[str]  # names of gates
    into_existing: bool
    task: Task

    @cached_property
    def repositories(self) -> dict[str, tuple[str, Literal["model", "dataset"]]]:
        """Part of the release -> whole name and type of its repository on the Hub."""
        found = self.publish.repositories(has_adapter=(self.run_path / "train" / "adapter").is_dir())
        if self.publish.repo_id and "/" not in self.publish.repo_id:  # the cards need the whole name
            owner = permissions.owner(hub_token.token())
            return {part: (f"{owner}/{name}", kind) for part, (name, kind) in found.items()}
        return found


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
    task: Task,
) -> str:
    """Writes release/model, release/adapter, release/dataset and hub.json, the passport into run.json; uploads.

    Args:
        name: of the run.
        publish, evaluate: sections of the recipe.
        base: the base model, complete on this disk.
        prompt_name: the recipe's `prompt`.
        run_path: the run directory, every stage before this one done.
        stage_dir: what is written.
        even_if_worse: release a model that the verdict speaks against; the card says so. Overrides no other gate.
        into_existing: upload to a repository that holds something else.
        task: the kind of model.

    Returns the summary. Raises GateRefused: a gate does not pass; hub.json names it, and there is no release folder.
    HubError: the upload failed; the release folder is kept.
    """
    overridable = EVEN_IF_WORSE if even_if_worse else frozenset[str]()
    order = _Order(name, publish, evaluate, base, prompt_name, run_path, stage_dir, overridable, into_existing, task)
    repositories = order.repositories  # asks the Hub, if at all, before anything is written
    found = gates.recorded(
        run_path, min_stop_rate=publish.min_stop_rate, require_improvement=publish.require_improvement
    )
    refuse_failed(found, overridable, stage_dir)
    overridden = sorted(gate.name for gate in found if not gate.passed)
    files = _release(order, found, overridden)
    passport.write(run_path, base, found)
    message = "not uploaded yet" if repositories else "nothing was uploaded: publish.repo_id is not set"
    write_record(stage_dir, found, message, files=files, overridden=overridden)
    return _upload(order, found, overridden, files) if repositories else message


def _release(order: _Order, found: list[Gate], overridden: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Builds release/ and asks the gates about it as it would leave, adding them to `found`; its files. See `run`."""
    publish, base, run_path, stage_dir = order.publish, order.base, order.run_path, order.stage_dir
    facts = card_facts.gather(
        name=order.name,
        base=base,
        prompt_name=order.prompt_name,
        run_path=run_path,
        examples=publish.shows_examples,
        overridden=bool(overridden),
        repos={part: repo_id for part, (repo_id, _) in order.repositories.items()},
        stop=order.evaluate.stop,
        max_new_tokens=order.evaluate.max_new_tokens,
        gguf=publish.gguf,
        task=order.task,
    )
    with process_files.atomic_dir(stage_dir / "release") as release:
        _build(release, facts, publish, run_path)
        found += gates.of_files(
            release,
            run_path,
            public_id=base.public_id,
            revision=base.revision,
            dataset=publish.dataset,
            gguf=publish.gguf,
        )
        refuse_failed(found, order.overridable, stage_dir)  # before a process loads what is there
        try:
            found += reload.reload_gates(
                release, run_path, base_dir=base.dir, prompt_name=order.prompt_name, stage_dir=stage_dir
            )
            if order.task.answers_with == "class" and publish.merged:
                found.append(reload_classes.gate(release / "model", run_path, stage_dir))
            if order.task.answers_with == "span" and publish.merged:
                found.append(reload_spans.gate(release / "model", run_path, stage_dir))
        except GateRefused as error:
            write_record(stage_dir, found, f"refused: {error}")
            raise
        found.append(tokenizer_files.gate(release, run_path, base.dir, secrets()))
        found += gates.of_cleanliness(
            release,
            run_path,
            secrets=secrets(),
            private=private(run_path, base.dir, _published(facts, publish.repo_id)),
            shown=publish.shows_examples,
        )
        refuse_failed(found, order.overridable, stage_dir)
        return files_of_release(release)


def _upload(
    order: _Order, found: Sequence[Gate], overridden: Sequence[str], files: Mapping[str, Mapping[str, Any]]
) -> str:
    """Takes each part to its repository; hub.json is written after each. Returns the summary. Raises HubError."""
    pushed: dict[str, Pushed] = {}
    for part, (repo_id, repo_type) in order.repositories.items():
        pushed[part] = upload.publish(
            order.stage_dir / "release" / part,
            repo_id,
            repo_type=repo_type,
            visibility=order.publish.visibility,
            token=hub_token.token(),
            into_existing=order.into_existing,
            message=f"{order.name}: {part}",
            expected=expected_files(files, f"{part}/"),
            allowed=partial(gates.may_be_released, part),
            again=f"`appliance publish {shlex.quote(str(order.run_path))}` continues",
        )
        more: dict[str, Any] = {"uploaded": len(pushed) == len(order.repositories)}
        more |= {"visibility": pushed[part].visibility}
        more |= {"repositories": {part: asdict(one) for part, one in pushed.items()}}
        write_record(order.stage_dir, found, "uploaded", files=files, overridden=overridden, **more)
    return "; ".join(
        f"{one.visibility}{'' if one.was_new else ', already up to date'}: {one.commit_url}" for one in pushed.values()
    )


def files_of_release(release: Path) -> dict[str, dict[str, Any]]:
    """Path in the release -> size in bytes and sha256 of every file."""
    return {
        str(path.relative_to(release)): {"size": path.stat().st_size, "sha256": process_files.sha256_of(path)}
        for path in sorted(release.rglob("*"))
        if path.is_file()
    }


def expected_files(files: Mapping[str, Mapping[str, Any]], inside: str = "") -> dict[str, tuple[int, str]]:
    """Path in the repository -> size in bytes, sha256 of the files below `inside`, a part's folder."""
    return {n.removeprefix(inside): (f["size"], f["sha256"]) for n, f in files.items() if n.startswith(inside)}


def secrets() -> tuple[str, ...]:
    """Every secret that this process could have written somewhere."""
    return hub_token.every_secret()


def private(run_path: Path, base_dir: Path | None, published: Sequence[str]) -> leak_scan.Private:
    """What would reveal this machine. A name in `published`, such as the repository's, is there on purpose."""
    folders = [run_path] if base_dir is None else [run_path, base_dir]
    paths = {form for folder in folders for form in (folder.absolute(), folder.resolve())}
    return leak_scan.Private(redact.names_here(), tuple(sorted(map(str, paths))), "\n".join(published))


def _published(facts: Facts, repo_id: str | None) -> list[str]:
    config = facts.base.config
    cells = [cell for row in facts.examples for cell in row.values() if cell]
    cells += [cell for caution in facts.cautions for row in caution.rows for cell in (row.wanted, row.got) if cell]
    public = [facts.name, facts.base.public_id, repo_id or "", str(config.get("model_type", ""))]
    public += facts.task.classes
    return [*public, *(config.get("architectures") or []), *cells, *map(leak_scan.as_cell, cells)]


def refuse_failed(
    found: Sequence[Gate],
    overridable: AbstractSet[str],
    folder: Path,
    hint: str = "the trained weights and the merged model are kept; see report.html for the answers behind the figures",
) -> None:
    """Raises GateRefused if a gate failed that may not be overridden; hub.json then lists them all."""
    failed = [gate for gate in found if not gate.passed and gate.name not in overridable]
    if not failed:
        return
    write_record(folder, found, "refused: nothing may be released")
    if {gate.name for gate in failed} <= EVEN_IF_WORSE:
        hint += "; `appliance publish --even-if-worse` releases it anyway, and the card says so"
    raise GateRefused("the release is refused: " + "; ".join(gate.sentence() for gate in failed), hint=hint)


def write_record(stage_dir: Path, found: Sequence[Gate], message: str, **more: Any) -> None:
    record = {"uploaded": False, "message": message, "visibility": None, "gates": [gate.as_json() for gate in found]}
    process_files.write_json(stage_dir / "hub.json", record | more)


def _build(release: Path, facts: Facts, publish: PublishSection, run_path: Path) -> None:
    if publish.merged:
        _link_tree(run_path / "merge" / "model", release / "model")
        gguf_files.link(run_path, facts.name, publish.gguf, release / "model")
        _copy_license(facts.base, release / "model")
        process_files.write_text(release / "model" / "README.md", card.model_card(facts))
    if publish.adapter and (run_path / "train" / "adapter").is_dir():
        _link_tree(run_path / "train" / "adapter", release / "adapter")
        _name_base(release / "adapter" / "adapter_config.json", facts.base)
        _copy_license(facts.base, release / "adapter")
        process_files.write_text(release / "adapter" / "README.md", card.adapter_card(facts))
    if publish.dataset:
        dataset.build(release / "dataset", run_path, name=facts.name, repo=facts.repo("dataset"))


def _name_base(path: Path, base: Base) -> None:
    """The adapter of a local base names what that base is on the Hub, which may be said after training."""
    config = process_files.read_json(path)
    if (config.get("base_model_name_or_path"), config.get("revision")) == base.trained_as:
        path.unlink()  # a link to the trained adapter's own
        process_files.write_json(path, config | {"base_model_name_or_path": base.public_id, "revision": base.revision})


def _link_tree(source: Path, target: Path) -> None:
    """Links the files of `source` into `target`: no second copy on disk."""
    target.mkdir(parents=True)
    for path in sorted(source.rglob("*")):
        copy = target / path.relative_to(source)
        if path.is_dir():
            copy.mkdir()
        else:
            process_files.link_or_copy(path, copy)


def _copy_license(base: Base, folder: Path) -> None:
    """The base's licence goes with what was made from it."""
    for path in base.dir.iterdir():
        if path.is_file() and model_files.is_licence(path.name):
            shutil.copy2(path, folder)
