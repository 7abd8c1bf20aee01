"""What can be known before training of what evaluate will refuse after it. Imports neither torch nor transformers."""

from __future__ import annotations

from pathlib import Path

from appliance.errors import RecipeError
from appliance.recipe.fields import EvaluateSection


def refuse_unreadable(wanted: EvaluateSection) -> None:
    """Checks the user's files that evaluate will read. Raises DataError."""
    from appliance.evaluation import extra_questions

    extra_questions.refuse_unreadable(wanted.extra_prompts)
    if wanted.other_answers:
        from appliance.evaluation import other_model

        other_model.refuse_unreadable(Path(wanted.other_answers))


def refuse_unaskable(wanted: EvaluateSection, prompt_name: str, base_dir: Path) -> None:
    """Raises RecipeError: the base is to be asked in its own chat template only, and has none that can be used."""
    from appliance.prompt import format as prompt_format

    # The other ways are always possible, or depend on the rows; a tokenizer without this file is for transformers.
    if set(wanted.base_prompts) != {"chat"} or prompt_name == "chat" or not (base_dir / "tokenizer.json").is_file():
        return
    try:
        prompt_format.from_folder("chat", base_dir)
    except RecipeError as error:
        why = str(error).removeprefix("prompt: chat: ")
        raise RecipeError(
            f"evaluate.base_prompts: the base cannot be asked with its own chat template: {why}",
            hint="add prompt or examples to evaluate.base_prompts, or leave it out",
        ) from error
