"""An answer that is one of a few texts, matches a regular expression, or is JSON of a schema.

in:  Options with json_schema, choices or regex; the tokenizer
out: a rule that bans every token after which the answer could not become such a text

The package llguidance, an extra, says which tokens may follow.
Read engine/rules.py first. Read next: engine/answers.py.
Agrees with: response_format of OpenAI's API; guided_choice, guided_regex and guided_json of vLLM's.

V vocabulary.
"""

import json
import re
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import ParameterError
from ..options import Options
from ..request.prepare import require_tokenizer
from ..tokenizer import Tokenizer
from .rules import BANNED, Rule

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

Vocabularies = dict[tuple[int, ...], "LLTokenizer"]  # by the ids that end an answer
FIELDS = ("json_schema", "choices", "regex")


def grammar_rules(
    options: Options,
    tokenizer: Tokenizer | None,
    ends: tuple[int, ...],
    made: Vocabularies | None = None,
) -> list[Rule]:
    """The rule that options ask for, if they do.

    ends: the ids that end an answer. made: vocabularies of this tokenizer that were made before.
    ParameterError for a grammar that cannot be understood, or without the package.
    """
    name = next((field for field in FIELDS if getattr(options, field)), None)
    if name is None:
        return []
    try:
        import llguidance
    except ImportError:
        raise ParameterError(
            f"{name} needs the package llguidance: pip install 'llava_min[grammar]'."
        ) from None
    matcher = llguidance.LLMatcher
    try:
        made = {} if made is None else made
        if ends not in made:
            made[ends] = vocabulary_of(require_tokenizer(tokenizer), ends)
        vocabulary = made[ends]
    except ValueError as error:
        raise ParameterError(f"{name} cannot be used with this tokenizer: {error}") from None
    try:
        if options.json_schema is not None:
            # without blanks, which a small model would write until it is cut
            grammar = matcher.grammar_from_json_schema(
                options.json_schema, overrides={"whitespace_flexible": False}
            )
        else:
            texts = "|".join(map(re.escape, options.choices))
            grammar = matcher.grammar_from_regex(options.regex or texts)
        wrong = matcher.validate_grammar(grammar, vocabulary)
    except ValueError as error:
        wrong = str(error)
    if wrong:
        raise ParameterError(f"{name} cannot be followed: {wrong.strip()}")
    return [Grammar(matcher(vocabulary, grammar), name)]


def vocabulary_of(tokenizer: Tokenizer, ends: tuple[int, ...]) -> "LLTokenizer":
    """The tokens as llguidance takes them, without the twins that tokenizer.py added."""
    import llguidance

    described = json.loads(tokenizer.inner.to_str())
    described["added_tokens"] = [
        token for token in described["added_tokens"] if token["id"] < len(tokenizer)
    ]
    return llguidance.LLTokenizer(
        json.dumps(described), n_vocab=len(tokenizer), eos_token=list(ends)
    )


class Grammar:
    """A rule that follows a grammar from token to token."""

    def __init__(self, matcher: "LLMatcher", name: str) -> None:
        self.matcher, self.name, self.followed = matcher, name, 0

    def __call__(self, logits: Tensor, new: list[int]) -> Tensor:
        """Logits in which every token is banned that cannot come next."""
        self.matcher.consume_tokens(new[self.followed :])
        self.followed = len(new)
        bits = np.frombuffer(self.matcher.compute_bitmask(), np.uint8)
        if self.matcher.is_error():
            raise ParameterError(f"{self.name} cannot be followed: {self.matcher.get_error()}")
        allowed = np.unpackbits(bits, bitorder="little", count=len(logits)).astype(bool)
        return logits.masked_fill(torch.from_numpy(~allowed).to(logits.device), BANNED)
