"""The prompt format: text, BOS, EOS, labels, chat template, parsing of answers. Owned here and nowhere else.

A format *is* its chat template (the texts: prompt/templates.py): training and evaluation render the very Jinja text
that is released with the tokenizer, so that all three produce the same ids by construction. Pure: knows tokenizers, but
no model and no file of ours.

>>> print(render(chat_template("alpaca"), user_message("가격은?")))
Below is an instruction that describes a task. Write a response that appropriately completes the request.
<BLANKLINE>
### Instruction:
가격은?
<BLANKLINE>
### Response:
<BLANKLINE>
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers import __version__ as tokenizers_version

from appliance.errors import DataError, EnvironmentUnavailable
from appliance.prompt import fixed_start, spans, tokenizer
from appliance.prompt.batch import IGNORED
from appliance.prompt.encoded import Encoded as Encoded
from appliance.prompt.special_tokens import (
    BRACKETED,
    added_tokens,
    adds_bos,
    adds_eos,
    default_template,
    find_end_token,
    find_lead,
    find_padding,
    required_template,
    separators,
)
from appliance.prompt.templates import FOR_ENCODERS, IN_INPUT, INPUT_MARKER, MARKERS, adapted, frame, pinned
from appliance.prompt.templates import Message as Message
from appliance.prompt.templates import chat_template as chat_template
from appliance.prompt.templates import render as render
from appliance.prompt.templates import sketch as sketch
from appliance.prompt.templates import user_message as user_message
from appliance.prompt.tokenizer import NotTokenized as NotTokenized

_CELL = "\x00"  # no template writes it
_MARKED = INPUT_MARKER.strip()  # "### Input:"; by it our templates find where the input of a row begins


@dataclass(frozen=True)
class Prompt:
    """A format bound to one tokenizer: turns rows into ids and ids into answers.

    `backend` is the `tokenizers.Tokenizer` that transformers itself calls. `eos_token` ends an answer: it is trained,
    and generation stops at it; under `chat` it may differ (<|im_end|>) from the tokenizer's own `eos_token`, which
    templates write and which is `tokenizer_eos`. `pad_token` None: padding is `pad_token_id` only, and the tokenizer
    must stay without a pad token. `chat_template` is the template to release.
    """

    name: str
    backend: Tokenizer
    bos_token: str | None
    eos_token: str
    tokenizer_eos: str
    pad_token: str | None
    pad_token_id: int
    chat_template: str
    answer_lead: str

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of all that the ids of a row depend on besides its text: template, special tokens, whole tokenizer."""
        texts = (self.name, self.chat_template, self.bos_token, self.eos_token, self.tokenizer_eos, self.answer_lead)
        own = json.dumps([*texts, tokenizers_version], ensure_ascii=True)
        return hashlib.sha256(f"{own}\n{self.backend.to_str()}".encode()).hexdigest()

    @cached_property
    def eos_token_id(self) -> int:
        found = self.backend.token_to_id(self.eos_token)
        assert found is not None, f"`bind` admits only tokens of the vocabulary, not {self.eos_token!r}"
        return found

    def text(self, messages: Sequence[Message]) -> str:
        """The prompt up to where the answer begins, with BOS if the template writes it.

        Raises DataError: the conversation has a role, or an order of roles, that the format does not know.
        """
        return render(self.chat_template, messages, bos_token=self.bos_token, eos_token=self.tokenizer_eos)

    def text_without_bos(self, messages: Sequence[Message]) -> str:
        """The prompt for those who add BOS themselves: people who read it, Ollama, a tokenizer called on plain text."""
        text = self.text(messages)
        return text.removeprefix(self.bos_token) if self.bos_token else text

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of `text(messages)`: what training masks, what evaluation generates from, what a server sends.

        Raises DataError: as `text`, or NotTokenized.
        """
        return self._ids(self.text(messages))

    def _ids(self, text: str) -> list[int]:
        with tokenizer.tokenizing():
            return list(self.backend.encode(text, add_special_tokens=False).ids)

    @property
    def marks_spans(self) -> bool:
        """Whether an answer is a part of the input, and not a text of its own (prompt/spans.py)."""
        return self.name in IN_INPUT

    def encode(
        self, instruction: str, input_text: str, output: str, start: int | None = None, *, loss_on: str = "answer"
    ) -> Encoded:
        """Prompt masked (unless `loss_on` is "all"), answer and exactly one EOS trained.

        Prompt and answer are tokenized separately: no merge can cross the boundary, so the prompt's ids are those of
        inference. `start`: the output's place in the input, if it has one there and the format marks it. Raises
        DataError: a cell contains a special token of this tokenizer, or a marker of the format; NotTokenized.
        """
        if self.marks_spans:
            return self._marked(instruction, input_text, output, start)
        question, answer = map(self._ids, self.texts(instruction, input_text, output))
        self.refuse_commands(question, answer, bool(input_text))
        return self.labelled([*question, *answer, self.eos_token_id], len(question), loss_on=loss_on)

    def read(self, instruction: str, input_text: str) -> spans.Read:
        """Question and context, of a format that marks spans. Raises DataError as `encode`."""
        if _MARKED in instruction:
            raise DataError(f"the question contains {_MARKED!r}, behind which the format has the text")
        before, between, after = self._frames[True]
        text = before + instruction + between + input_text + after
        begin = len(text) - len(after) - len(input_text)
        with tokenizer.tokenizing():
            found = spans.read(self.backend, text, begin, input_text)
        self.refuse_commands(found.ids, [], has_input=True)
        return found

    def _marked(self, instruction: str, input_text: str, output: str, start: int | None) -> Encoded:
        found, both = self.read(instruction, input_text), [spans.NOWHERE] * spans.PLACES
        if output:
            begin = input_text.find(output) if start is None else start
            if begin < 0:
                raise DataError("the answer does not stand in the text")
            both = list(spans.tokens_of(found.offsets, begin, begin + len(output)))
        return self.labelled([*found.ids, *both], found.head)

    def texts(self, instruction: str, input_text: str, output: str) -> tuple[str, str]:
        """Prompt and answer of one row, to be tokenized separately.

        Raises DataError: a cell contains a marker of the format, or as `text`.
        """
        self._refuse_markers(instruction, input_text, output)
        around = self._frames[bool(input_text)]
        if not around or _MARKED in instruction or _MARKED in input_text:  # a template looks for it in both
            return self.text(user_message(instruction, input_text)), self.answer_lead + output
        parts = [around[0], instruction, around[1]]
        if input_text:
            parts += [input_text, around[2]]
        return "".join(parts), self.answer_lead + output

    def refuse_commands(self, question: Sequence[int], answer: Sequence[int], has_input: bool) -> None:
        """Raises DataError: a cell contains a special token of this tokenizer."""
        self._refuse_commands(question, self._own_commands[has_input])
        self._refuse_commands(answer, self._lead_commands)

    @cached_property
    def _frames(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What the template writes around the cells of a row without input, and of one with it: rendered once.

        Empty for `chat`: a base's own template is a program, whose text may depend on what a cell holds.
        """
        if self.name == "chat":
            return (), ()
        questions = user_message(_CELL), user_message(_CELL, _CELL)
        without, with_input = (tuple(self.text(question).split(_CELL)) for question in questions)
        return without, with_input

    @cached_property
    def starts(self) -> tuple[fixed_start.Start, fixed_start.Start]:
        """What the prompt of every row without input begins with, and of every row with it: tokenized once."""
        questions = [(user_message(cell), user_message(cell, cell)) for cell in ("x", "y")]
        without, with_input = (list(map(self.text, pair)) for pair in zip(*questions, strict=True))
        of_prompts = partial(fixed_start.of_prompts, self.backend, ids=self._ids)
        return of_prompts(without), of_prompts(with_input)

    def labelled(self, ids: list[int], prompt_tokens: int, *, loss_on: str = "answer") -> Encoded:
        """A row from its ids, EOS included, of which the first `prompt_tokens` are the prompt."""
        masked = [IGNORED] * prompt_tokens
        if loss_on == "all":
            # A chat template ends the user's turn like an answer: trained there too, EOS would be trained twice.
            # And nothing predicts the first token: as a label it would only be counted, and dilute the mean loss.
            masked[1:] = [IGNORED if token == self.eos_token_id else token for token in ids[1:prompt_tokens]]
        return Encoded(ids, masked + ids[prompt_tokens:], prompt_tokens)

    @cached_property
    def _commands(self) -> dict[int, str]:
        """Tokens that no cell may contain: special ones, and other added ones that the template itself writes."""
        added = added_tokens(self.backend)
        fixed = {i for i in self.prompt_ids(user_message("x", "x")) if i in added}
        written = {i for i in fixed if BRACKETED.fullmatch(added[i].content)} | {self.eos_token_id}
        return {i: token.content for i, token in added.items() if token.special or i in written}

    @cached_property
    def command_ids(self) -> frozenset[int]:
        """Tokens that no cell may contain, and that a row has only where its format writes them."""
        return frozenset(self._commands)

    @cached_property
    def _own_commands(self) -> tuple[Counter[int], Counter[int]]:
        """How often the template itself writes each command, for a row without input and for one with it."""
        of_cell = Counter(i for i in self._ids("x") if i in self._commands)  # the unknown token, in a small vocabulary
        without, with_input = (
            Counter(i for i in self.prompt_ids(user_message("x", text)) if i in self._commands) for text in ("", "x")
        )
        return without - of_cell, with_input - of_cell - of_cell

    @cached_property
    def _lead_commands(self) -> Counter[int]:
        """How often the template writes each command in front of an answer: BOS, if a decoder begins with it."""
        return Counter(i for i in self._ids(self.answer_lead) if i in self._commands)

    @cached_property
    def control_ids(self) -> list[int]:
        """The control tokens of every row: EOS, and those that the template itself writes."""
        return sorted({*self.template_ids, self.eos_token_id})

    @cached_property
    def template_ids(self) -> frozenset[int]:
        """The control tokens that the template writes before an answer."""
        return frozenset(self._own_commands[0] | self._own_commands[1])

    def _refuse_commands(self, ids: Sequence[int], own: Mapping[int, int]) -> None:
        if self.command_ids.isdisjoint(ids):
            return
        left = Counter(own)
        for token in ids:
            if token in self.command_ids:
                left[token] -= 1
                if left[token] < 0:
                    found = self._commands[token]
                    raise DataError(
                        f"contains the special token {found!r}, which would be read as a command, not as text"
                    )

    def _refuse_markers(self, *cells: str) -> None:
        for marker in MARKERS.get(self.name, ()):
            if any(marker in cell for cell in cells):
                raise DataError(f"contains {marker!r}, which the prompt format {self.name} writes itself")

    def answer_text(self, ids: Sequence[int]) -> str:
        """The answer that generated `ids` spell: up to the first EOS, special tokens and padding left out, stripped."""
        ids = list(ids)
        if self.eos_token_id in ids:
            ids = ids[: ids.index(self.eos_token_id)]
        ids = [token for token in ids if token != self.pad_token_id]  # a byte used as padding is not special
        return str(self.backend.decode(ids, skip_special_tokens=True)).strip()


def from_folder(
    name: str, model_dir: Path, eos_token: str | None = None, *, backend: Tokenizer | None = None
) -> Prompt:
    """The format `name` for the tokenizer in `model_dir`, from its tokenizer.json: no torch, no transformers needed.

    `eos_token`: ends an answer in place of the tokenizer's own (rundir/token_choice.py). `backend`: what tokenizer.json
    holds, if it has been read already.
    Raises EnvironmentUnavailable: no tokenizer.json there, no EOS, nothing usable as padding. RecipeError: see `bind`.
    """
    path = model_dir / tokenizer.FILE
    if not path.is_file():
        raise EnvironmentUnavailable(
            f"{model_dir} has no {tokenizer.FILE}",
            hint="convert it once: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)",
        )
    backend = backend or tokenizer.backend(model_dir)
    named, by_id = tokenizer.named_tokens(model_dir), tokenizer.from_ids(model_dir, backend)
    tokens = {key: named[key] or by_id.get(key) for key in ("bos_token", "eos_token", "pad_token")}
    tokens["eos_token"] = eos_token or tokens["eos_token"]
    template = default_template(tokenizer.settings(model_dir).get("chat_template"))
    return bind(name, backend, **tokens, own_template=template)


def from_transformers(name: str, tokenizer: Any) -> Prompt:
    """The format `name` for a loaded transformers tokenizer (its own backend is used); raises as `bind`."""
    return bind(
        name,
        tokenizer.backend_tokenizer,
        tokenizer.bos_token,
        tokenizer.eos_token,
        tokenizer.pad_token,
        own_template=default_template(tokenizer.chat_template),
    )


def bind(
    name: str,
    backend: Tokenizer,
    bos_token: str | None,
    eos_token: str | None,
    pad_token: str | None,
    *,
    own_template: str | None = None,
) -> Prompt:
    """A Prompt with padding that is never EOS. `own_template`: the base's chat template, which `chat` uses.

    Raises EnvironmentUnavailable: no EOS, nothing usable as padding. RecipeError: the format is `chat`, and the base's
    chat template is missing or cannot be trained with.
    """
    if eos_token is None or backend.token_to_id(eos_token) is None:
        raise EnvironmentUnavailable(
            f"this tokenizer has no EOS token in its vocabulary (eos_token: {eos_token!r})",
            hint="a model cannot learn to stop without one; choose another base model",
        )
    backend.no_padding()
    backend.no_truncation()
    if name == "chat":
        template = pinned(required_template(own_template))
    else:
        begins, ends = adds_bos(backend, bos_token), adds_eos(backend, eos_token)
        between = separators(backend) if name in IN_INPUT else ""
        template = adapted(chat_template(name), begins=begins, ends=ends, between=between)
    leads = ("", bos_token) if name in FOR_ENCODERS else ("",)
    around = frame(template, bos_token=bos_token, eos_token=eos_token, leads=leads)
    end_token = find_end_token(backend, around.tail, eos_token)
    pad_token, pad_token_id = find_padding(backend, pad_token, {bos_token, eos_token, end_token}, template)
    return Prompt(
        name=name,
        backend=backend,
        bos_token=bos_token,
        eos_token=end_token,
        tokenizer_eos=eos_token,
        pad_token=pad_token,
        pad_token_id=pad_token_id,
        chat_template=template,
        answer_lead=find_lead(backend, around.lead),
    )
