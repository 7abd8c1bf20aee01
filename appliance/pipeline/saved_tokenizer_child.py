"""Asks transformers, without torch, whether it gives the ids with which `prepare` has encoded the rows.

`python -m appliance.pipeline.saved_tokenizer_child`, started by saved_tokenizer.py: a second and a half of CPU time;
with torch, transformers takes six. It says the fingerprint of the prompt format with the tokenizer that transformers
loads, once the saved one has given the same ids, and nothing if anything is wrong: whoever started it then asks in its
own process, whose messages are for people.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from appliance.process import child
from appliance.process.child import Tell
from appliance.prompt import format as prompt_format
from appliance.prompt import tokenizer
from appliance.rundir.token_choice import TokenChoice


def serve(line: str, tell: Tell) -> None:
    """The child's work. `stage_dir` null: there are no prepared rows."""
    from appliance.pipeline import saved_tokenizer

    job = json.loads(line)
    base_dir, stage_dir = Path(job["base_dir"]), job["stage_dir"]
    loaded = tokenizer.load(base_dir)
    TokenChoice(job["eos_token"]).apply_to(loaded)
    prompt = prompt_format.from_transformers(job["format"], loaded)
    if stage_dir is not None and prompt.fingerprint == job["fingerprint"]:
        saved_tokenizer.refuse_lossy(Path(stage_dir), base_dir, prompt)
    tell({"fingerprint": prompt.fingerprint})


if __name__ == "__main__":
    child.leave_out("torch", *child.UNUSED)
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"
    child.main(serve)
