"""The recipe: one frozen, strict model of everything a run depends on; each field's description is its documentation.

`recipe/resolve.py` fills it from YAML, the environment and --set. The whole Recipe stops in pipeline/run.py: below it
go single sections or plain values. No secret is ever part of a recipe.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from appliance.recipe import hub_names
from appliance.recipe.data_fields import Columns as Columns
from appliance.recipe.data_fields import DataSection as DataSection
from appliance.recipe.data_fields import Positive, Section

LONGEST_NAME = 255  # bytes that ext4, XFS and overlayfs take for the name of a folder
# Output heads and embeddings by their usual names. trl's loss bypasses a tuned head, and if a base ties the two, a
# merge would change both.
HEAD_AND_EMBEDDINGS = frozenset({"lm_head", "embed_out", "embed_tokens", "embed_in", "wte", "wpe"})


class ModelSection(Section):
    id: str = Field(min_length=1, description="Base model: a Hub id, a local folder, or `demo` (built on the spot).")
    revision: str | None = Field(None, description="Commit, tag or branch on the Hub; null pins the newest commit.")
    hub_id: str | None = Field(
        None, description="What a local folder is on the Hub, as USER/NAME, for the model card and the adapter."
    )
    max_seq_length: Literal["auto"] | Annotated[int, Field(ge=8)] = Field(
        "auto", description="Longest row in tokens; auto takes the smallest multiple of 64 that fits all rows."
    )
    load_in_4bit: bool = Field(
        True, description="Train on the base quantised to 4 bits (QLoRA): a third of the memory."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Compute type; auto decides by device: float32 on a CPU, 16 bits on a GPU."
    )

    @field_validator("id")
    @classmethod
    def _id_of_its_page(cls, value: str) -> str:
        return hub_names.model_id(value)

    @field_validator("hub_id")
    @classmethod
    def _whole_name(cls, value: str | None) -> str | None:
        name = None if value is None else hub_names.repo_id(value)
        if name is not None and "/" not in name:
            raise ValueError("expected USER/NAME")
        return name


class TuningSection(Section):
    method: Literal["lora", "full"] = Field(
        "lora", description="lora: low-rank adapters on frozen weights. full: every weight, for many times the memory."
    )
    r: Positive = Field(16, description="Rank of the adapters: higher learns more and takes more memory.")
    alpha: Positive = Field(32, description="Scale of the adapters; the delta is multiplied by alpha / r.")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.05, description="Dropout before the adapters.")
    target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = Field(
        "all-linear", description="Which linear layers get an adapter: all but the output head, or a list of names."
    )
    rslora: bool = Field(False, description="Scale by alpha / sqrt(r) instead of alpha / r.")
    dora: bool = Field(False, description="Train the length of each weight row separately from its direction (DoRA).")

    @model_validator(mode="after")
    def _full_has_no_adapter(self) -> TuningSection:
        if self.method == "full":
            defaults = {name: field.default for name, field in type(self).model_fields.items() if name != "method"}
            changed = [name for name, default in defaults.items() if getattr(self, name) != default]
            if changed:
                raise ValueError(f"tuning.{', tuning.'.join(changed)}: no effect with method: full; leave it out")
        return self

    @model_validator(mode="after")
    def _head_and_embeddings_stay(self) -> TuningSection:
        named = [name for name in self.target_modules if name.rpartition(".")[2] in HEAD_AND_EMBEDDINGS]
        if isinstance(self.target_modules, list) and named:
            raise ValueError(
                f"tuning.target_modules: {', '.join(named)} cannot be tuned here; name linear layers of the blocks"
            )
        return self


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
    loss_on: Literal["answer", "all"] = Field("answer", description="Train on the answer only, or the prompt as well.")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        123, description="Seed of the split, the adapter weights, the row order and the dropout."
    )
    report_to: Literal["none"] = Field("none", description="Metrics stay in the run directory.")

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


class SamplingSection(Section):
    """How answers to extra prompts are drawn; temperature 0 takes the likeliest token each time."""

    temperature: Annotated[float, Field(ge=0.0)] = Field(
        0.0, description="0: the likeliest token each time. Above 0: sampled, reproducibly through train.seed."
    )
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0, description="Sample from the likeliest tokens that together reach this probability."
    )
    repetition_penalty: Annotated[float, Field(gt=0.0)] = Field(
        1.0, description="Above 1: tokens already in the prompt or the answer become less likely."
    )
    no_repeat_ngram_size: Annotated[int, Field(ge=0)] = Field(
        0, description="No sequence of this many tokens is repeated; 0 allows any."
    )
    scored: bool = Field(
        False, description="Answer the test rows this way too; false: greedily, so that no score depends on chance."
    )


class EvaluateSection(Section):
    max_rows: Positive = Field(200, description="Test rows to answer; more rows narrow the interval.")
    max_new_tokens: Positive = Field(256, description="Tokens after which an answer that has not stopped is cut.")
    stop: list[Annotated[str, Field(min_length=1)]] = Field([], description="Texts that end an answer, besides EOS.")
    primary: Literal["exact_match", "facts_right", "f1", "rouge_l", "chrf"] = Field(
        "f1",
        description="The metric that decides the verdict. facts_right judges only rows whose wanted answer holds "
        "numbers, links or Latin names.",
    )
    base_prompts: Annotated[list[Literal["prompt", "chat", "examples"]], Field(min_length=1)] = Field(
        ["prompt", "chat", "examples"],
        description="How the base is asked, as far as it can be; the verdict compares with the best. prompt: as the "
        "tuned model. chat: in its own chat template. examples: as the tuned model, behind up to 4 similar train rows.",
    )
    extra_prompts: str | list[Annotated[str, Field(min_length=1)]] = Field(
        [],
        description="Your own questions, as a list or a text file with one per line: both models answer them, "
        "side by side in extra_answers.csv and report.html; nothing is scored.",
    )
    train_questions: Annotated[int, Field(ge=0)] = Field(
        0, description="Also ask this many train questions, next to extra_prompts, to see what was learnt by heart."
    )
    sampling: SamplingSection = SamplingSection()
    other_answers: str | None = Field(
        None,
        description="CSV of another model's answers to the test rows, scored in the same table. Columns: row or "
        "question, and answer.",
    )


class PublishSection(Section):
    repo_id: str | None = Field(
        None,
        description="USER/NAME on the Hub for the merged model; the adapter goes to USER/NAME-adapter, the rows to "
        "USER/NAME-dataset. null stops at the release folder.",
    )
    visibility: Literal["private", "public"] = Field("private", description="Who may see the repository.")
    adapter: bool = Field(True, description="Release the adapter (method: lora).")
    merged: bool = Field(True, description="Release the merged 16-bit model.")
    examples: bool | None = Field(
        False,
        description="Show rows in the model card: answers to test rows side by side. null: if it is private.",
    )
    dataset: bool = Field(
        False, description="Release the rows too: train, val and test as CSV. Only if they are yours to give."
    )
    require_improvement: bool = Field(False, description="Refuse to release unless the verdict is `better`.")
    min_stop_rate: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.8, description="Refuse to release a model that ends a smaller share of its answers itself; 0 accepts any."
    )

    @property
    def shows_examples(self) -> bool:
        return self.visibility == "private" if self.examples is None else self.examples

    def repositories(self, *, has_adapter: bool) -> dict[str, tuple[str, Literal["model", "dataset"]]]:
        """Part of the release -> the repository it goes to, and its type. Empty without `repo_id`."""
        if self.repo_id is None:
            return {}
        found: dict[str, tuple[str, Literal["model", "dataset"]]] = {}
        if self.merged:
            found["model"] = (self.repo_id, "model")
        if self.adapter and has_adapter:
            found["adapter"] = (f"{self.repo_id}-adapter" if self.merged else self.repo_id, "model")
        if self.dataset:
            found["dataset"] = (f"{self.repo_id}-dataset", "dataset")
        return found

    @field_validator("repo_id")
    @classmethod
    def _id_of_its_page(cls, value: str | None) -> str | None:
        return None if value is None else hub_names.repo_id(value)

    @model_validator(mode="after")
    def _something_is_released(self) -> PublishSection:
        if not self.adapter and not self.merged:
            raise ValueError("publish.adapter and publish.merged are both false: nothing would be released")
        return self


class Recipe(Section):
    """Everything a run depends on."""

    name: str = Field(pattern=r"^[\w][\w.-]*$", description="Name of the run: its folder under the runs directory.")
    engine: Literal["auto", "unsloth", "transformers"] = Field(
        "auto",
        description="Library that loads the model; auto takes Unsloth if there is CUDA and it knows the base.",
    )
    model: ModelSection
    data: DataSection
    prompt: Literal["alpaca", "alpaca_oneline", "korean_qa", "qa_tokens", "chat"] = Field(
        "alpaca", description="Prompt format; chat is the base's own chat template (instruct models)."
    )
    rehearse: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Try a few steps of everything that follows before training. auto: only before a long training or "
        "on an untested architecture.",
    )
    tuning: TuningSection = TuningSection()
    train: TrainSection = TrainSection()
    evaluate: EvaluateSection = EvaluateSection()
    publish: PublishSection = PublishSection()

    @field_validator("name")
    @classmethod
    def _fits_a_folder(cls, value: str) -> str:
        if (size := len(value.encode())) > LONGEST_NAME:
            raise ValueError(f"{size} bytes in UTF-8, expected at most {LONGEST_NAME}: it names a folder")
        return value

    @model_validator(mode="after")
    def _full_tunes_16_bits(self) -> Recipe:
        if self.tuning.method == "full" and self.model.load_in_4bit:
            raise ValueError("tuning.method: full trains the weights themselves: set model.load_in_4bit to false")
        if self.tuning.method == "full" and not self.publish.merged:
            raise ValueError("publish.merged: false leaves nothing to release: method: full makes no adapter")
        return self

    @model_validator(mode="after")
    def _repositories_have_names(self) -> Recipe:
        for name, _ in self.publish.repositories(has_adapter=self.tuning.method == "lora").values():
            try:
                hub_names.refuse_name(name)
            except ValueError as error:
                raise ValueError(f"publish.repo_id: {error}") from error
        return self

    @model_validator(mode="after")
    def _sides_leave_room(self) -> Recipe:
        if self.data.split == "group" and self.data.test_fraction + self.data.val_fraction >= 0.9:
            raise ValueError("data.test_fraction + data.val_fraction leave less than a tenth of the rows to train on")
        return self


def fields(section: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, pydantic FieldInfo) of every leaf of the recipe."""
    for name, info in section.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from fields(info.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", info


def documentation() -> list[tuple[str, str, str]]:
    """(field, default, meaning) of every leaf, for `recipe schema` and the README."""
    rows = []
    for key, info in fields():
        default = "(required)" if info.is_required() else "null" if info.default is None else str(info.default)
        rows.append((key, default, str(info.description)))
    return rows
