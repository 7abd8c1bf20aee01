"""One run as the pipeline sees it: its recipe, its CSV, its base model, its machine; what each stage depends on.

Everything here is looked up when it is first needed, so that a finished run is skipped without torch, without the base
model on disk and without the network.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.machine import device as machine_device
from appliance.machine import packages
from appliance.pipeline import earlier
from appliance.pipeline.base_source import BaseSource
from appliance.pipeline.csv_source import CsvSource
from appliance.pipeline.earlier import Earlier
from appliance.process import console
from appliance.process import files as process_files
from appliance.recipe import stage_fields
from appliance.recipe.resolve import Resolved
from appliance.rundir import directory as rundir_directory
from appliance.rundir import exported, results, run_json, token_choice
from appliance.rundir.directory import STAGES, RunDir
from appliance.rundir.token_choice import TokenChoice

if TYPE_CHECKING:
    from appliance.base_model.base import Base
    from appliance.engines.engine import Engine
    from appliance.machine.device import Device
    from appliance.prompt.format import Prompt
    from appliance.rows.kept_sides import KeptSides
    from appliance.tasks.task import Task

DEMO_NOTE = (
    "The demo's test rows ask for facts that training saw, in words that it did not see: they do not test new facts."
)


@dataclass(frozen=True)
class Job:
    """A recipe, its run directory, and what is looked up once and kept."""

    resolved: Resolved
    run_dir: RunDir
    cache_dir: Path
    until: str = "publish"  # the last stage that this call is to run
    takes_new_base: bool = False  # whether the base may differ from the one this run began with
    even_if_worse: bool = False  # whether a model that the verdict calls worse may be released
    into_existing: bool = False  # whether to publish to a repository that holds something else
    again: tuple[str, ...] = ()  # the stages that this call redoes, done or not
    is_rehearsal: bool = False

    @cached_property
    def _run_json(self) -> dict[str, Any]:
        """Empty for a run that has not got that far. Raises RunDirError: it is damaged."""
        if not process_files.is_there(self.run_dir.path / run_json.FILE):
            return {}
        return run_json.read(self.run_dir.path, "base.identity", "csv.typed", "csv.sha256")

    @cached_property
    def task(self) -> Task:
        """As `prepare` left its rows, if it has: see `rows_changed`."""
        from appliance.tasks import find

        recipe = self.resolved.recipe
        weighs = recipe.train.class_weights == "balanced"
        return find.named(recipe.task).bound(self.run_dir.stage_dir("prepare"), weighs=weighs)

    def rows_changed(self) -> None:
        """`prepare` has made others: what follows from them is looked up again."""
        vars(self).pop("task", None)

    @cached_property
    def device(self) -> Device:
        return machine_device.device()

    @cached_property
    def engine_choice(self) -> tuple[str, str]:
        from appliance.engines import choose

        return choose.choose(self.resolved.recipe.engine, self.device, str(self.found_base.config.get("model_type")))

    @cached_property
    def engine(self) -> Engine:
        from appliance.engines import choose

        engine = choose.load_engine(self.engine_choice[0], self.device, self.cache_dir, self.task)
        console.quiet_libraries()
        return engine

    @property
    def engine_in_use(self) -> Engine | None:
        """None if no stage of this call has needed one yet."""
        found: Engine | None = vars(self).get("engine")  # a frozen dataclass keeps its cached properties there
        return found

    @cached_property
    def base_source(self) -> BaseSource:
        recorded = {} if self.takes_new_base else self._run_json.get("base", {})
        model, run_path = self.resolved.recipe.model, self.run_dir.path
        return BaseSource(model, recorded, self.earlier, run_path, self.cache_dir, self.task)

    @cached_property
    def base(self) -> Base:
        """The base model on this disk; raises as `BaseSource.fetched`."""
        return self.base_source.fetched

    @property
    def found_base(self) -> Base:
        """What is needed to judge the base model; raises as `BaseSource.found`."""
        return self.base_source.found

    @property
    def rehearsal_wanted(self) -> str:
        """The recipe's `rehearse`; a call for the stage by name always rehearses."""
        return "always" if self.until == "rehearse" else self.resolved.recipe.rehearse

    def in_small(self, folder: Path, settings: Mapping[str, Mapping[str, Any]]) -> Job:
        """This job with other settings (section -> field -> value) and its run directory in `folder`.

        Rows, base, machine and engine are the same; run.json is a copy. Its release is uploaded nowhere, and is built
        whatever the verdict.
        """
        recipe = self.resolved.recipe
        changed = {name: getattr(recipe, name).model_copy(update=dict(values)) for name, values in settings.items()}
        resolved = replace(self.resolved, recipe=recipe.model_copy(update=changed))
        job = replace(
            self, resolved=resolved, run_dir=RunDir(folder), until="publish", even_if_worse=True, is_rehearsal=True
        )
        # looked up here so that it happens once
        kept = ("device", "base", "base_source", "engine_choice", "engine", "csv", "tokens", "earlier")
        vars(job).update({name: getattr(self, name) for name in kept})
        job.run_dir.create()
        process_files.write_text(folder / "recipe.yaml", resolved.to_yaml())
        run_json.write(folder, run_json.read(self.run_dir.path))
        return job

    @property
    def trained_dir(self) -> Path:
        """What training produces: the adapter, or with `method: full` the whole model."""
        name = "adapter" if self.resolved.recipe.tuning.method == "lora" else "model"
        return self.run_dir.stage_dir("train") / name

    @cached_property
    def prompt(self) -> Prompt:
        """The prompt format with the base's tokenizer as transformers loads it, which may rebuild it from other files.

        Without the `train` extra, tokenizer.json is read as it is: enough to count and to split.
        """
        from appliance.prompt import format as prompt_format

        name = self.resolved.recipe.prompt
        if not packages.can_train():
            return prompt_format.from_folder(name, self.base.dir)
        tokens = self.tokens
        if self.engine_choice[0] == "unsloth":
            self.engine  # noqa: B018  first: it has to be imported before transformers
        else:  # the other engine's imports, peft and bitsandbytes, are of no use to `prepare`
            console.quiet_libraries()
        from appliance.engines import engine as engines_engine
        from appliance.prompt import tokenizer as prompt_tokenizer

        with engines_engine.load_failures(self.base.dir, self.resolved.recipe.model, self.device):
            tokenizer = prompt_tokenizer.load(self.base.dir)
        tokens.apply_to(tokenizer)
        return prompt_format.from_transformers(name, tokenizer)

    @cached_property
    def tokens(self) -> TokenChoice:
        """Which EOS ends an answer, and which rows are trained. Raises EnvironmentUnavailable: see never_trained.py."""
        from appliance.base_model import never_trained

        base = self.base  # fetched: its weights are here now
        never_trained.announce(self._chosen_tokens, base, self.resolved.recipe.tuning)
        return self._chosen_tokens

    @property
    def tokens_to_check(self) -> TokenChoice | None:
        """For the stage check, which downloads nothing: None while the base is still on the Hub."""
        return None if self.found_base.coming else self._chosen_tokens

    @cached_property
    def _chosen_tokens(self) -> TokenChoice:
        """What a training that has begun recorded; before it, what the base's weights show."""
        train_dir, starts = self.run_dir.stage_dir("train"), self.takes_new_base or "train" in self.again
        if not starts and (self.run_dir.record("train") or any(train_dir.glob("checkpoints/checkpoint-*"))):
            return token_choice.read(train_dir)
        if self.earlier:  # its adapter has their rows
            return token_choice.read(self.taken_to / results.EARLIER if self.taken_to else self.earlier.train_dir)
        if not packages.can_train():
            return TokenChoice(why_not="not looked at: no torch")
        from appliance.base_model import never_trained

        return never_trained.of_base(self.found_base, self.resolved.recipe.prompt, self.task)

    @cached_property
    def earlier(self) -> Earlier | None:
        """The run that this one continues, as it was when its rows were taken. Raises RunDirError, RecipeError."""
        typed = self.resolved.recipe.start_from
        if typed is None:
            return None
        found = earlier.recorded(self._run_json, typed) if self.taken_to else None
        return found or earlier.look(typed, self.resolved.recipe, self._run_json, self.run_dir.path)

    @property
    def taken_to(self) -> Path | None:
        """Where `prepare` has put what it took from the earlier run; None if it has yet to."""
        is_done = self.run_dir.record("prepare") and not self.takes_new_base
        return self.run_dir.stage_dir("prepare") if is_done else None

    @cached_property
    def kept_sides(self) -> KeptSides | None:
        """The sides that questions have because of the earlier run; None if there is none."""
        if self.earlier is None:
            return None
        return earlier.kept_sides(self.earlier, taken_to=self.taken_to)

    @cached_property
    def csv(self) -> CsvSource:
        return CsvSource(
            self.resolved.recipe.data.csv,
            self._run_json.get("csv", {}),
            self.cache_dir,
            is_prepared=bool(self.run_dir.record("prepare")),
            is_read_again=self.takes_new_base,
        )

    def inputs(self, stage: str) -> dict[str, Any]:
        """What the stage's result depends on: recipe fields, file hashes, and the stages before it."""
        recipe = self.resolved.recipe
        values = stage_fields.of_stage(recipe, stage)
        if stage == "prepare":
            del values["data.csv"]  # its content counts, not its name
            values |= {"CSV (sha256)": self.csv.sha256, "base model": self.base_source.identity}
            return values | (self.earlier.inputs if self.earlier else {})
        if stage == "evaluate":
            named = {f"evaluate.{key}": getattr(recipe.evaluate, key) for key in ("extra_prompts", "other_answers")}
            files = {f"{key} (sha256)": path for key, path in named.items() if isinstance(path, str)}
            values |= {key: self._sha256_before(stage, key, Path(path)) for key, path in files.items()}
        if stage == "publish" and recipe.publish.gguf:
            values[exported.HASHES] = exported.to_release(self.run_dir, recipe.name, recipe.publish.gguf)
        # no stage depends on a rehearsal: training depends on the rows, rehearsed or not
        before = "prepare" if stage == "train" else STAGES[STAGES.index(stage) - 1]
        if stage == "rehearse":
            values["rehearse"] = self.rehearsal_wanted
        return values | {f"result of {before}": rundir_directory.fingerprint(self.inputs(before))}

    def _sha256_before(self, stage: str, key: str, path: Path) -> str | None:
        """Hash of a file that only this stage reads; if it is gone, of the one that was read."""
        if path.is_file():
            return process_files.sha256_of(path)
        record = self.run_dir.record(stage)
        return record.inputs.get(key) if record else None

    def write_run_json(self) -> None:
        """What this run is made from, where, and with which versions."""
        recipe, base = self.resolved.recipe, self.found_base
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        run_json.write(
            self.run_dir.path,
            {
                "name": recipe.name,
                "created": self._run_json.get("created", now),
                "continued": now,
                "versions": packages.versions(),
                "device": f"{self.device.name} ({self.device.kind})" if packages.can_train() else None,
                "engine": self.engine_choice[0] if packages.can_train() else None,
                "seed": recipe.train.seed,
                "base": {
                    "id": recipe.model.id,
                    "asked_revision": recipe.model.revision,
                    "dir": str(base.dir) if Path(recipe.model.id).is_dir() else self.base_source.remembered.get("dir"),
                    "public_id": base.public_id,
                    "revision": base.revision,
                    "license": base.license,
                    "identity": self.base_source.identity,
                    "identity_rule": self.base_source.identity_rule,
                },
                "csv": self.csv.to_json(),
                **({earlier.SECTION: self.earlier.as_json()} if self.earlier else {}),
                "test_note": DEMO_NOTE if recipe.data.csv == "demo" else "",
                # of the last release; replay says whether it still matches
                **{key: self._run_json[key] for key in ("passport",) if key in self._run_json},
            },
        )
