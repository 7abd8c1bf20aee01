"""What the stage `train` trains: which model, on which device, from which rows, how many at once, how it is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import set_seed

from appliance.base_model.base import Base
from appliance.engines import flops, master_weights, memory
from appliance.engines.engine import Engine
from appliance.machine.device import Device
from appliance.prompt.encoding import Encoding
from appliance.recipe.fields import EvaluateSection, ModelSection, TrainSection, TuningSection
from appliance.rundir import results
from appliance.rundir.token_choice import TokenChoice
from appliance.tasks.task import Task
from appliance.training import micro_batch
from appliance.training.micro_batch import BatchSize


@dataclass(frozen=True)
class Training:
    """See above. `inputs`: what its checkpoints depend on."""

    engine: Engine
    device: Device
    base: Base
    model: ModelSection
    tuning: TuningSection
    train: TrainSection
    evaluate: EvaluateSection | None
    encoding: Encoding
    prepare_dir: Path
    stage_dir: Path
    inputs: Mapping[str, Any]
    tokens: TokenChoice
    utilization: flops.Utilization | None
    task: Task

    @property
    def checkpoints_dir(self) -> Path:
        return self.stage_dir / "checkpoints"

    @property
    def dtype(self) -> str:
        """The type of computation."""
        return self.device.compute_dtype(self.model.dtype)

    @property
    def token_rows(self) -> list[int]:
        """Ids whose rows are trained beside the adapter; full fine-tuning trains every row."""
        return [] if self.tuning.method == "full" else self.tokens.rows

    def first_size(self, lengths: Sequence[int], room: int) -> BatchSize:
        """What this training computes at once: as it began, or by the recipe and `room`, the bytes free before it.

        `lengths`: tokens of the train rows. What `auto` chose is kept, so that a resumed training computes the same.
        """
        before = micro_batch.kept(self.train, self.checkpoints_dir)
        if before:
            return before
        shape, longest = memory.shape_of(self.base.config), max(lengths)

        def needs(rows: int) -> int:
            assert shape
            return memory.training(
                shape,
                self.base.parameters,
                model=self.model,
                tuning=self.tuning,
                train=self.train,
                dtype=self.dtype,
                rows=rows,
                tokens=longest,
                checkpoints_gradients=self.device.kind == "cuda",
                engine=self.engine.name,
                room=room,
                trains_token_rows=bool(self.token_rows),
            ).total

        mean = sum(lengths) / len(lengths)
        size = micro_batch.chosen(self.train, needs if shape else None, room, self.device, mean)
        if size.asked == "auto":
            size.remember(self.checkpoints_dir)
        return size

    def load(self) -> Any:
        """(model, tokenizer), as they are before the first step."""
        set_seed(self.train.seed)
        loaded = self.engine.load_for_training(
            self.base.dir,
            self.model,
            self.tuning,
            self.encoding.max_seq_length,
            self.train.seed,
            self.token_rows,
            results.earlier_adapter(self.prepare_dir),
        )
        if self.tuning.method == "full":
            master_weights.refuse_others(loaded[0])
        return loaded
