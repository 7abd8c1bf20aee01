"""The recipe's `task` and the modules of appliance/tasks/ are one list."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import get_args

import peft
import pytest
import transformers

from appliance.recipe.fields import Recipe
from appliance.tasks import find

MODULES = Path(find.__file__).parent.glob("*.py")


def test_the_recipe_allows_what_there_is() -> None:
    assert get_args(Recipe.model_fields["task"].annotation) == find.NAMES
    assert {path.stem for path in MODULES} - {"__init__", "task", "find", "new_head"} == set(find.NAMES)


@pytest.mark.parametrize("name", find.NAMES)
def test_a_task_has_its_name_and_libraries_know_its_kind(name: str) -> None:
    task = find.named(name)
    assert task.name == name
    assert callable(getattr(transformers, task.auto_class).from_pretrained)
    assert peft.TaskType(task.peft_type)


def test_an_unknown_task_is_named_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"no task is called 'reward'; there are causal"):
        find.named("reward")


def test_naming_a_task_loads_no_library() -> None:
    import subprocess

    code = "import sys; from appliance.tasks import find; [find.named(n) for n in find.NAMES]; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "tokenizers", "peft"}.intersection(loaded)
