"""The recipe's section `train`: how long, in which steps, and when it stops."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from appliance.recipe.data_fields import Positive, Section


class TrainSection(Section):
    epochs: Annotated[float, Field(gt=0)] = Field(3, description="Passes over the train rows.")
    max_steps: Positive | None = Field(None, description="Stop after this many steps, regardless of epochs.")
    batch_size: Positive | None = Field(
        8,
        description="Rows per step. null: micro_batch_size x gradient_accumulation_steps, as recipes of earlier "
        "versions have it.",
    )
    micro_batch_size: Literal["auto"] | Positive = Field(
        "auto",
        description="Rows computed at once, a divisor of batch_size. auto: as many as leave a tenth of the memory "
        "free; the rows of a step and what they teach stay the same.",
    )
    gradient_accumulation_steps: Positive | None = Field(
        None,
        description="Forward passes per step, in place of batch_size. null: as many as batch_size takes.",
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(2e-4, description="Peak learning rate.")
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "cosine", description="How the learning rate falls."
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(5, description="Steps over which the learning rate rises.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.01, description="AdamW's weight decay.")
    optimizer: Literal["adamw_torch", "adamw_8bit"] = Field("adamw_8bit", description="AdamW, plain or 8-bit.")
    eval_every: Literal["auto"] | Positive = Field(
        "auto",
        description="Steps between evaluations on val; each also saves a checkpoint. auto: about 20 evaluations, at "
        "least 20 steps apart, taking at most 15 % of the training time.",
    )
    val_rows: Positive | None = Field(
        512,
        description="At most this many val rows, a random choice of whole groups, are evaluated on during training. "
        "With eval_every: auto, a short training uses fewer. null: all of them.",
    )
    patience: Positive = Field(
        3, description="Evaluations without a val loss better by min_delta before training stops."
    )
    min_delta: Annotated[float, Field(ge=0)] = Field(
        0.001, description="How far the val loss must fall to count; small falls add up."
    )
    sample_answers: Annotated[int, Field(ge=0, le=16)] = Field(
        3, description="Val questions answered at each evaluation, to look at; they change nothing. 0: none."
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none",
        description="With task: classify. balanced: in training, a row of a rare class counts as much more as it is "
        "rarer; the val loss counts all rows alike.",
    )
    loss_on: Literal["answer", "all"] = Field("answer", description="Train on the answer only, or the prompt as well.")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        123, description="Seed of the split, the adapter weights, the row order and the dropout."
    )
    report_to: (
        Literal["none", "tensorboard", "trackio", "wandb", "mlflow"]
        | list[Literal["tensorboard", "trackio", "wandb", "mlflow"]]
    ) = Field("none", description="A tracker, or a list of them, that gets the metrics too; never rows or weights.")

    @property
    def effective_batch_size(self) -> int:
        """Rows per step."""
        if self.gradient_accumulation_steps is not None and isinstance(self.micro_batch_size, int):
            return self.micro_batch_size * self.gradient_accumulation_steps
        assert self.batch_size is not None  # see _rows_of_a_step
        return self.batch_size

    @model_validator(mode="before")
    @classmethod
    def _as_in_earlier_versions(cls, given: Any) -> Any:
        """Recipes once named the two factors of `batch_size`; left out, a micro batch had 2 rows."""
        if not isinstance(given, dict) or given.get("gradient_accumulation_steps") is None:
            return given
        return {"batch_size": None, "micro_batch_size": 2} | given

    @model_validator(mode="after")
    def _rows_of_a_step(self) -> TrainSection:
        rows, micro, passes = self.batch_size, self.micro_batch_size, self.gradient_accumulation_steps
        if passes is None and rows is None:
            raise ValueError("train.batch_size: null leaves the rows of a step open; name a number, such as 8")
        if passes is not None and not isinstance(micro, int):
            raise ValueError(
                "train.gradient_accumulation_steps needs a number as train.micro_batch_size; leave it out (null), and "
                "name the rows of a step as train.batch_size"
            )
        if passes is not None and isinstance(micro, int) and rows not in (None, micro * passes):
            raise ValueError(
                f"train.batch_size: {rows} is not micro_batch_size {micro} x gradient_accumulation_steps {passes} = "
                f"{micro * passes}; leave gradient_accumulation_steps out (null), or name {micro * passes}"
            )
        if passes is None and rows is not None and isinstance(micro, int) and rows % micro:
            raise ValueError(
                f"train.micro_batch_size: {micro} does not divide train.batch_size {rows}, the rows of a step; name a "
                "divisor, or auto"
            )
        return self
