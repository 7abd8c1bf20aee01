"""The card of the rows of a run, if they are published as a dataset."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import yaml

from appliance.wording import counted

_CODE = "```"


def text(name: str, counts: Mapping[str, Any], repo: str, files: Collection[str], torn: int) -> str:
    """README.md of the rows of the run `name`, for the repository `repo`. `counts`: prepare/summary.json.

    `files`: the CSVs in the folder; `torn`: questions on more than one side.
    """
    sides = [{"split": {"val": "validation"}.get(s, s), "path": f"{s}.csv"} for s in ("train", "val", "test")]
    matter = {"pretty_name": name, "configs": [{"config_name": "default", "data_files": sides}]}
    code = f'{_CODE}python\nfrom datasets import load_dataset\n\nrows = load_dataset("{repo}")\n{_CODE}'
    train = f"`--set data.csv=hf://datasets/{repo}/rows.csv --set data.split=column`"
    again = f"`rows.csv` has all rows with the side of each: {train} trains with the same split."
    if torn:
        again = (
            f"`rows.csv` has all rows with the side of each. {counted(torn, 'question is', 'questions are')} on two "
            f"sides, so {train} refuses it."
        )
    notebook = ""
    if "train_ds.csv" in files:
        notebook = "\n`train_ds.csv` has the train and validation rows, `test_ds.csv` the test rows.\n"
    return (
        f"---\n{yaml.safe_dump(matter, allow_unicode=True, sort_keys=False)}---\n\n# {name}\n\n"
        f"The rows that {name} is trained on ({counts['train']} train), selected by ({counts['val']} validation) "
        f"and scored on ({counts['test']} test). `row` is the line number in the original CSV.\n\n{code}\n\n"
        f"{again}\n{notebook}"
    )
