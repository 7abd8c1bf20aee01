"""Whether a base was ever trained on the tokens that every prompt holds, EOS above all; and what to do if not.

If an instruct model's tokenizer lies beside a base's weights, it names an EOS (<end_of_turn>, <|eot_id|>, <|im_end|>)
that the base never saw. Its row equals those of the reserved tokens, so an adapter, which leaves the rows as they are,
cannot make the model write one and not the others: no answer would ever stop. weights/embedding_rows.py measures it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from appliance.base_model.base import Base
from appliance.errors import EnvironmentUnavailable
from appliance.findings import Finding
from appliance.process import console
from appliance.process.files import read_json
from appliance.prompt.format import Prompt, from_folder
from appliance.prompt.special_tokens import eos_ids, unused_ids
from appliance.recipe.fields import TuningSection
from appliance.rundir.token_choice import TokenChoice
from appliance.tasks.task import Task
from appliance.weights.embedding_rows import Matrices, Untrained, matrices_of, untrained_of

WHAT = "control tokens"  # the finding's name
INSTRUCT = "choose the instruct version of this base, which was trained on them"


class Rows:
    """The rows of a base's embeddings and head, as far as a prompt's control tokens are concerned."""

    def __init__(self, base: Base, matrices: Matrices, prompt: Prompt) -> None:
        self._matrices, self._prompt = matrices, prompt
        self.named = _named_ends(base, prompt)
        self._judged = {*prompt.control_ids, *self.named}

    def is_untrained(self, token: int, *, ends: bool) -> bool:
        """Whether the base never learned to read the token or, if it `ends` an answer, to write it."""
        return any(rows.holds(token) for rows in self._asked(token, ends=ends))

    def cosine(self, token: int, *, ends: bool) -> float:
        """The highest one to an unused row."""
        return max(rows.cosine(token) for rows in self._asked(token, ends=ends))

    def _asked(self, token: int, *, ends: bool) -> Iterator[Untrained]:
        """An end of answers is written; what the template writes is read."""
        if self._matrices.head is None or not ends or token in self._prompt.template_ids:
            yield self._read
        if self._matrices.head is not None and ends:
            yield self._written

    @cached_property
    def _read(self) -> Untrained:
        matrix = self._matrices.embeddings
        return untrained_of(matrix, unused_ids(self._prompt.backend, matrix.shape[0]), self._judged)

    @cached_property
    def _written(self) -> Untrained:
        matrix = self._matrices.head or self._matrices.embeddings
        return untrained_of(matrix, unused_ids(self._prompt.backend, matrix.shape[0]), self._judged)


def of_base(base: Base, prompt_name: str, task: Task) -> TokenChoice:
    """As `choose`, with the tokenizer in the base's folder, which is read without transformers.

    Raises as prompt/format.py's `bind`.
    """
    if not task.writes:
        return TokenChoice(why_not="nothing is written, so no token has to end an answer")
    if not (base.dir / "tokenizer.json").is_file():
        return TokenChoice(why_not="not looked at: the base has no tokenizer.json")
    return choose(base, from_folder(prompt_name, base.dir))


def choose(base: Base, prompt: Prompt) -> TokenChoice:
    """Which EOS to use, and which rows to train, for a base whose weights are on this disk.

    `prompt`: the recipe's format with the tokenizer's own EOS. A format of ours can end with any token: it takes one
    that config.json or generation_config.json names and that was trained. A chat template fixes its own.
    """
    matrices = matrices_of(base.dir, base.config)
    if matrices is None:
        return TokenChoice(why_not="not looked at: the base's embeddings have another name, or another type of numbers")
    rows, eos = Rows(base, matrices, prompt), prompt.eos_token_id
    found = [token for token in prompt.control_ids if rows.is_untrained(token, ends=token == eos)]
    texts = {token: str(prompt.backend.id_to_token(token)) for token in {*found, *rows.named}}
    notes = [
        f"{'EOS' if token == eos else 'the template token'} {texts[token]!r} (id {token}) was never trained: cosine "
        f"{rows.cosine(token, ends=token == eos):.2f} to an unused token's row"
        for token in found
    ]
    instead = None
    if eos in found and prompt.name != "chat":
        instead = next((token for token in rows.named if not rows.is_untrained(token, ends=True)), None)
    if instead is not None:
        found.remove(eos)
        notes.append(f"answers end with {texts[instead]!r}, which config.json names and which was trained")
    eos_token = None if instead is None else texts[instead]
    return TokenChoice(eos_token, {texts[token]: token for token in found}, tuple(notes), is_compared=True)


def _named_ends(base: Base, prompt: Prompt) -> list[int]:
    """The ends of text that config.json and generation_config.json name, without the prompt's own."""
    path = base.dir / "generation_config.json"
    declared = (base.config, read_json(path) if path.is_file() else {})
    listed = [token for config in declared for token in eos_ids(config.get("eos_token_id"))]
    ids = dict.fromkeys(token for token in listed if token >= 0)
    taken = {prompt.eos_token_id, prompt.pad_token_id}
    return [token for token in ids if token not in taken and prompt.backend.id_to_token(token) is not None]


def finding(choice: TokenChoice | None, base: Base, tuning: TuningSection) -> Finding:
    """What `check` says about a choice; None: nothing is known yet."""
    if choice is None:
        return Finding(WHAT, "looked at when the weights are here, before any row is read", "", "ok")
    if not choice.is_compared:
        return Finding(WHAT, choice.why_not or "not looked at: training was begun by an earlier version", "", "ok")
    if not choice.notes:
        return Finding(WHAT, "EOS and the template's tokens look trained", "", "ok")
    found, needed = "; ".join(choice.notes), "trained tokens"
    if not choice.untrained:
        return Finding(WHAT, found, needed, "ok")
    names = ", ".join(map(repr, choice.untrained))
    obstacle = _obstacle(base, tuning)
    if obstacle:
        fix = f"{INSTRUCT}; or use tuning.method=full, which trains every row"
        return Finding(WHAT, f"{found}; {obstacle}", needed, "fails", fix)
    how = "full fine-tuning trains" if tuning.method == "full" else "trained beside the adapter:"
    return Finding(WHAT, found, needed, "warning", f"{how} the rows of {names}; or {INSTRUCT}")


def announce(choice: TokenChoice, base: Base, tuning: TuningSection) -> None:
    """Says what was chosen, if anything was. Raises EnvironmentUnavailable: rows that have to be trained cannot be."""
    seen = finding(choice, base, tuning)
    if seen.verdict == "fails":
        raise EnvironmentUnavailable(f"{base.public_id}: {seen.found}", hint=seen.fix)
    if choice.notes:
        console.say("; ".join(filter(None, (seen.found, seen.fix))), style="warning")


def _obstacle(base: Base, tuning: TuningSection) -> str | None:
    """Why single rows cannot be trained beside the adapter."""
    matrices = matrices_of(base.dir, base.config)
    has_bias = matrices is not None and matrices.head_has_bias
    return "peft cannot train single rows of a head with a bias" if has_bias and tuning.method != "full" else None
