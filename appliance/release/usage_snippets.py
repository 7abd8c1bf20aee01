"""Code to copy for users of a release: transformers, `appliance serve`, vLLM, TGI, Ollama. Text only; knows no run."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

from appliance.prompt import spans
from appliance.tasks import causal
from appliance.tasks.task import Task

_CODE = "```"
NOT_TRIED = "not tried with this release"
MARK = "\x00"  # in place of the question, where a prompt is split at it


def with_transformers(repo: str, max_new_tokens: int, task: Task = causal.TASK) -> str:
    """The merged model, prompted with its own chat template; of a classifier, its `pipeline`."""
    if not task.writes:
        return f"""{_CODE}python
from transformers import pipeline

classify = pipeline("{task.pipeline_tag}", model="{repo}")
print(classify("…"))  # further context in a line of its own: "…\\n…"
{_CODE}"""
    answer = 'answer[0, inputs["input_ids"].shape[1]:]' if task.continues else "answer[0]"
    return f"""{_CODE}python
from transformers import {task.auto_class}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{repo}")
model = {task.auto_class}.from_pretrained("{repo}", dtype="auto", device_map="auto")
messages = [{{"role": "user", "content": "…"}}]  # one question; further context: "…\\n\\n### Input:\\n…"
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**inputs.to(model.device), max_new_tokens={max_new_tokens})
print(tokenizer.decode({answer}, skip_special_tokens=True))
{_CODE}"""


def with_answers(repo: str, how: Mapping[str, Any]) -> str:
    """A model that finds answers in texts. `how`: `spans` of metrics.json."""
    return _found(finder(repo, how))


def with_answers_of_peft(base: str | None, revision: str | None, repo: str, how: Mapping[str, Any]) -> str:
    """As `with_answers`, of an adapter and its head on the base they were trained on; see `with_peft`."""
    return _found(_finder(_added(base, revision, repo), how))


def _found(code: str) -> str:
    return f"""{_CODE}python
{code}
print(answers("…", "…")[0])  # a question, and the text that the answer stands in
{_CODE}"""


def finder(repo: str, how: Mapping[str, Any]) -> str:
    """The function `answers` in plain transformers, as evaluation chose them; version 5 has no pipeline for it."""
    return _finder(_merged(repo), how)


def _merged(repo: str) -> str:
    """A reader of texts by itself: the lines that load it as `model`, and its `tokenizer`."""
    return f"""from transformers import AutoModelForQuestionAnswering, AutoTokenizer

repo = {json.dumps(repo, ensure_ascii=False)}
tokenizer = AutoTokenizer.from_pretrained(repo)
model = AutoModelForQuestionAnswering.from_pretrained(repo, dtype=torch.float32).eval()"""


def _added(base: str | None, revision: str | None, repo: str) -> str:
    """As `_merged`, of an adapter. peft's own model would leave out the types of tokens: it is merged."""
    at = f', revision="{revision}"' if revision else ""
    return f"""from peft import PeftModel
from transformers import AutoConfig, AutoModelForQuestionAnswering, AutoTokenizer

repo = {json.dumps(repo, ensure_ascii=False)}
tokenizer = AutoTokenizer.from_pretrained(repo)
own = {{"config": AutoConfig.from_pretrained(repo), "ignore_mismatched_sizes": True, "dtype": torch.float32}}
base = AutoModelForQuestionAnswering.from_pretrained("{base or "FOLDER_OF_THE_BASE_MODEL"}"{at}, **own)
model = PeftModel.from_pretrained(base, repo).merge_and_unload().eval()"""


def _finder(loading: str, how: Mapping[str, Any]) -> str:
    length, stride, longest = how["max_seq_length"], how["stride"], how["max_answer_tokens"]
    types, given = "", ""
    if how["token_types"]:
        given = ", token_type_ids=types"
        types = """
    ends = (windows["input_ids"] == tokenizer.sep_token_id).long()
    types = (ends.cumsum(1) > ends).long() * windows["attention_mask"]  # 0 up to the first separator, then 1"""
    nothing = (
        f"""
    scored[""] = min(nothing) - {how["threshold"]}  # no answer"""
        if how["threshold"] is not None
        else ""
    )
    return f'''import unicodedata

import torch
{loading}


{inspect.getsource(spans.continues)}

def answers(question, context):
    """The likeliest parts of the context, best first, each with its score."""
    windows = tokenizer(question, context, truncation="only_second", max_length={length}, stride={stride}, padding=True,
                        return_overflowing_tokens=True, return_offsets_mapping=True, return_tensors="pt"){types}
    with torch.no_grad():
        found = model(windows["input_ids"], attention_mask=windows["attention_mask"]{given})
    scored, nothing = {{}}, []
    for i, (start, end) in enumerate(zip(found.start_logits, found.end_logits)):
        inside = [n for n, part in enumerate(windows.sequence_ids(i)) if part == 1]
        first, size = inside[0], len(inside)
        both = start[first : first + size, None] + end[None, first : first + size]
        possible = torch.ones_like(both, dtype=torch.bool).triu().tril({longest - 1})
        best = both.masked_fill(~possible, -torch.inf).flatten().topk(min(20, size))
        for score, place in zip(best.values.tolist(), best.indices.tolist()):
            begin = int(windows["offset_mapping"][i, first + place // size, 0])
            stop = int(windows["offset_mapping"][i, first + place % size, 1])
            while continues(context, begin):
                begin -= 1
            while continues(context, stop):
                stop += 1
            text = context[begin:stop].strip()
            scored[text] = max(score, scored.get(text, score))
        nothing.append(float(start[0] + end[0])){nothing}
    return sorted(scored.items(), key=lambda one: -one[1])
'''


def with_peft(base: str | None, revision: str | None, repo: str, eos: str, task: Task = causal.TASK) -> str:
    """The adapter on the base it was trained on, greedily. `base`: its id on the Hub; None if it is not there.

    The base's own generation_config.json may sample, penalise or suppress EOS: evaluation did not use it. Of a
    classifier, the classes come from the adapter's config.json, and its head from the adapter, whatever the base has.
    """
    at = f', revision="{revision}"' if revision else ""
    if not task.writes:
        return f"""{_CODE}python
from peft import PeftModel
from transformers import {task.auto_class}, AutoConfig, AutoTokenizer, pipeline

own = {{"config": AutoConfig.from_pretrained("{repo}"), "ignore_mismatched_sizes": True}}
base = {task.auto_class}.from_pretrained("{base or "FOLDER_OF_THE_BASE_MODEL"}"{at}, **own)
model = PeftModel.from_pretrained(base, "{repo}").merge_and_unload()
classify = pipeline("{task.pipeline_tag}", model=model, tokenizer=AutoTokenizer.from_pretrained("{repo}"))
print(classify("…"))
{_CODE}"""
    begins = "" if task.continues else ", decoder_start_token_id=base.generation_config.decoder_start_token_id"
    return f"""{_CODE}python
from peft import PeftModel
from transformers import {task.auto_class}, AutoTokenizer, GenerationConfig

base = {task.auto_class}.from_pretrained("{base or "FOLDER_OF_THE_BASE_MODEL"}"{at}, dtype="auto", device_map="auto")
model = PeftModel.from_pretrained(base, "{repo}")
tokenizer = AutoTokenizer.from_pretrained("{repo}")
eos = tokenizer.convert_tokens_to_ids({json.dumps(eos, ensure_ascii=False)})
ids = {{"eos_token_id": eos, "pad_token_id": tokenizer.pad_token_id}}
model.generation_config = GenerationConfig(**ids{begins})  # not the base's own
{_CODE}"""


def with_vllm(repo: str) -> str:
    """A server that applies the chat template of the release."""
    return f"""{_CODE}shell
vllm serve {repo}
{_asked(8000, repo)}
{_CODE}"""


def with_tgi(repo: str) -> str:
    """As `with_vllm`, by Text Generation Inference."""
    return f"""{_CODE}shell
text-generation-launcher --model-id {repo} --port 8080
{_asked(8080, repo)}
{_CODE}"""


def with_serve(run: str, name: str) -> str:
    """A server of ours. `run`: the run directory as a shell reads it; `name`: the model's."""
    return f"""{_CODE}shell
appliance serve {run}
{_asked(8322, name)}
{_CODE}"""


def _asked(port: int, model: str) -> str:
    """A question to a server with OpenAI's API, decoded greedily as evaluation did."""
    body = {"model": model, "messages": [{"role": "user", "content": "…"}], "temperature": 0}
    sent = json.dumps(body, ensure_ascii=False).replace("'", "'\\''")
    return f"""curl localhost:{port}/v1/chat/completions -H 'Content-Type: application/json' \\
  -d '{sent}'"""


def with_ollama(repo: str, prompt: str, stop: Sequence[str], max_new_tokens: int, *, leave_out: str = "") -> str:
    """A Modelfile. `prompt`: a rendered prompt with MARK in place of the question.

    Ollama's templates cannot inspect a message: this one writes the prompt of rows without input. `leave_out`: files of
    the repository that it does not need.
    """
    return f"""{_CODE}shell
hf download {repo}{f" --exclude '{leave_out}'" if leave_out else ""} --local-dir model
cat > Modelfile <<'END'
{modelfile("./model", prompt, stop, max_new_tokens)}END
ollama create my-model -f Modelfile && ollama run my-model "…"
{_CODE}"""


def modelfile(source: str, prompt: str, stop: Sequence[str], max_new_tokens: int) -> str:
    """Ollama's description of a model in `source`, a file or a folder, that answers as evaluation did.

    Greedy; without the penalty on repetition that Ollama has by default (1.1), which greedy answers would feel too.
    """
    before, after = prompt.split(MARK)
    stops = "".join(f'PARAMETER stop "{_escaped(text)}"\n' for text in stop)
    return f"""FROM {source}
TEMPLATE \"\"\"{before}{{{{ .Prompt }}}}{after}\"\"\"
PARAMETER temperature 0
PARAMETER repeat_penalty 1
PARAMETER num_predict {max_new_tokens}
{stops}"""


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
