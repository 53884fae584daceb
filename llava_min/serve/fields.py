"""Every field of a chat completion request: honoured, ignored or refused, and by whom it is known.

in:  the body of a request, parsed JSON
out: Wanted: the messages, the arguments of Options, and what is to come back; or a Refusal

A field that the table does not know is ignored, as other servers do, and named once in the log.
null stands for a field that is not there.
Read serve/errors.py first. Read next: serve/parts.py.
Agrees with: /v1/chat/completions of OpenAI's API; the extra fields of vLLM's.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..options import is_schema
from .errors import Refusal, wrong

Body = Mapping[str, Any]
Check = Callable[[str, Any], Any]  # a field's name and value -> the value that is meant


@dataclass
class Wanted:
    """A chat completion that is asked for.

    options: arguments of Options; named: the field that each of them came from. top: how many
    likely tokens to tell at each place; None: no probabilities at all. prefilled: the last message
    is the beginning of the answer. progress: tell in the stream how much of the prompt was read.
    """

    messages: list[Any]
    options: dict[str, Any] = field(default_factory=dict)
    named: dict[str, str] = field(default_factory=dict)
    stream: bool = False
    include_usage: bool = False
    n: int = 1
    top: int | None = None
    logit_bias: dict[int, float] = field(default_factory=dict)
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    prefilled: bool = False
    progress: bool = False

    def choose(self, option: str, value: Any, written: str) -> None:
        """Take an option from a field; Refusal where another field says something else of it."""
        if self.options.get(option, value) != value:
            message = f"{self.named[option]} and {written} differ."
            raise Refusal(400, message, written, "invalid_value")
        self.options[option], self.named[option] = value, written


def whole(low: int, high: int) -> Check:
    """A whole number from `low` to `high`; 3.0 is one, as JSON has one kind of number."""

    def check(name: str, value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int or not low <= value <= high:
            raise wrong(name, f"a whole number from {low} to {high}")
        return value

    return check


def number(low: float, high: float) -> Check:
    """A number from `low` to `high`."""

    def check(name: str, value: Any) -> float:
        if type(value) not in (int, float) or not low <= value <= high:
            raise wrong(name, f"a number from {low:g} to {high:g}")
        return float(value)

    return check


def boolean(name: str, value: Any) -> bool:
    """true or false; 0 and 1 are neither."""
    if type(value) is not bool:
        raise wrong(name, "true or false")
    return value


def text(name: str, value: Any) -> str:
    """Any text, also an empty one."""
    if not isinstance(value, str):
        raise wrong(name, "a text")
    return value


def expression(name: str, value: Any) -> str:
    """A text that is not empty; whether it is a regular expression is seen by the grammar."""
    if not isinstance(value, str) or not value:
        raise wrong(name, "a regular expression")
    return value


def schema(name: str, value: Any) -> str:
    """A JSON schema, or one as text."""
    try:
        written = value if isinstance(value, str) else json.dumps(value)
    except RecursionError:
        written = ""
    if not is_schema(written):
        raise wrong(name, "a JSON schema, which is an object")
    return written


def one_of(*values: Any) -> Check:
    """One of a few values, others of which are not supported."""

    def check(name: str, value: Any) -> Any:
        if not any(type(value) is type(one) and value == one for one in values):
            shown = " or ".join(json.dumps(one) for one in values)
            raise wrong(name, f"{shown}; nothing else is supported", "unsupported_value")
        return value

    return check


def texts(most: int, least: int = 0) -> Check:
    """A text, or a list of `least` to `most`, none of them empty."""

    def check(name: str, value: Any) -> tuple[str, ...]:
        found = (value,) if isinstance(value, str) else value
        if not isinstance(found, list | tuple) or not least <= len(found) <= most:
            raise wrong(name, f"a text or a list of {least} to {most}")
        if not all(isinstance(one, str) and one for one in found):
            raise wrong(name, "a text that is not empty, or a list of such")
        return tuple(found)

    return check


ANY_NUMBER, A_COUNT = number(0, 1e6), whole(1, 2**31 - 1)
TOKEN_ID = re.compile(r"[0-9]{1,10}")


def token_ids(name: str, value: Any) -> tuple[int, ...]:
    """A list of whole numbers from 0."""
    if not isinstance(value, list) or not all(type(one) is int and one >= 0 for one in value):
        raise wrong(name, "a list of token ids")
    return tuple(value)


def times(name: str, value: Any) -> tuple[float, ...]:
    """A list of seconds from 0."""
    if not isinstance(value, list):
        raise wrong(name, "a list of times in seconds")
    return tuple(ANY_NUMBER(name, one) for one in value)


def biases(name: str, value: Any) -> dict[int, float]:
    """{token id: what to add to its logit}; ids are keys of JSON and so texts."""
    if not isinstance(value, dict) or not all(TOKEN_ID.fullmatch(key) for key in value):
        raise wrong(name, "an object with token ids as keys")
    return {int(key): number(-100, 100)(name, one) for key, one in value.items()}


def mapping(name: str, value: Any) -> Body:
    """A JSON object."""
    if not isinstance(value, dict):
        raise wrong(name, "an object")
    return value


# Fields with a form of their own: each changes what is wanted -----------------------


def stream_options(wanted: Wanted, name: str, value: Any) -> None:
    """{"include_usage": true | false}; other keys are ignored."""
    usage = mapping(name, value).get("include_usage")
    wanted.include_usage = usage is not None and boolean(f"{name}.include_usage", usage)


def response_format(wanted: Wanted, name: str, value: Any) -> None:
    """{"type": "text" | "json_object" | "json_schema"}, the last with a schema."""
    kind = mapping(name, value).get("type")
    if kind == "json_object":
        wanted.choose("json_schema", '{"type": "object"}', name)
    elif kind == "json_schema":
        held = mapping(f"{name}.json_schema", value.get("json_schema"))
        form = schema(f"{name}.json_schema.schema", held.get("schema"))
        wanted.choose("json_schema", form, name)
    elif kind != "text":
        raise wrong(f"{name}.type", "text, json_object or json_schema", "unsupported_value")


def structured_outputs(wanted: Wanted, name: str, value: Any) -> None:
    """vLLM's newer name for the guided_* fields."""
    for key, inner in mapping(name, value).items():
        if key not in ("json", "regex", "choice"):
            raise Refusal(400, f"{name}.{key} is not supported.", name, "unsupported_parameter")
        if inner is not None:
            FIELDS[f"guided_{key}"].apply(wanted, f"{name}.{key}", inner)


def media_io_kwargs(wanted: Wanted, name: str, value: Any) -> None:
    """{"video": {"num_frames", "fps"}}, as vLLM takes it; num_frames -1 is all of the default."""
    for kind, given in mapping(name, value).items():
        if given is None:
            continue
        known = {"video": {"num_frames": "frames", "fps": "fps"}, "image": {}}.get(kind)
        if known is None:
            raise Refusal(400, f"{name}.{kind} is not supported.", name, "unsupported_parameter")
        media_options(wanted, f"{name}.{kind}", mapping(f"{name}.{kind}", given), known)


def mm_processor_kwargs(wanted: Wanted, name: str, value: Any) -> None:
    """{"num_frames", "frames", "fps", "max_tiles"}."""
    known = {"num_frames": "frames", "frames": "frames", "fps": "fps", "max_tiles": "max_tiles"}
    media_options(wanted, name, mapping(name, value), known)


def media_options(wanted: Wanted, name: str, given: Body, known: Mapping[str, str]) -> None:
    """Options for media by the names that they have elsewhere."""
    for key, value in given.items():
        if key not in known:
            raise Refusal(400, f"{name}.{key} is not supported.", name, "unsupported_parameter")
        if value is not None and value != -1:
            FIELDS[known[key]].apply(wanted, f"{name}.{key}", value)


def logprobs(wanted: Wanted, name: str, value: Any) -> None:
    """true: tell the probability of each token, and of as many others as top_logprobs says."""
    if boolean(name, value):
        wanted.top = wanted.top or 0


def top_logprobs(wanted: Wanted, name: str, value: Any) -> None:
    """How many likely tokens to tell; it needs logprobs."""
    wanted.top = whole(0, 20)(name, value)


def tools(wanted: Wanted, name: str, value: Any) -> None:
    """Nothing where it is empty, as some clients send it always."""
    if value not in ([], {}):
        raise Refusal(400, f"{name} are not supported.", name, "unsupported_parameter")


def refused(wanted: Wanted, name: str, value: Any) -> None:
    """Refuse the field, because an answer without it would be another one."""
    raise Refusal(400, f"{name} is not supported.", name, "unsupported_parameter")


def ignored(wanted: Wanted, name: str, value: Any) -> None:
    """Nothing: it would not change the answer."""


# The table ------------------------------------------------------------------------


@dataclass(frozen=True)
class Field:
    """What becomes of a field: "honoured", "ignored" or "refused"; about: for the docs."""

    rule: str
    about: str
    apply: Callable[[Wanted, str, Any], None]


def option(name: str, check: Check, about: str) -> Field:
    """A field that is an argument of Options."""

    def apply(wanted: Wanted, written: str, value: Any) -> None:
        wanted.choose(name, check(written, value), written)

    return Field("honoured", about, apply)


def attribute(name: str, check: Check, about: str) -> Field:
    """A field that is an attribute of Wanted."""

    def apply(wanted: Wanted, written: str, value: Any) -> None:
        setattr(wanted, name, check(written, value))

    return Field("honoured", about, apply)


def checked(check: Check, about: str) -> Field:
    """A field with values that ask for nothing else than what happens anyway."""
    return Field("honoured", about, lambda wanted, name, value: check(name, value))


FIELDS: dict[str, Field] = {
    "messages": checked(lambda name, value: value, "roles system, developer, user, assistant"),
    "model": checked(text, "any name is answered as the model that is served"),
    "max_tokens": option("max_tokens", A_COUNT, "default 512, cut to what fits"),
    "max_completion_tokens": option("max_tokens", A_COUNT, "as max_tokens"),
    "temperature": option("temperature", number(0, 100), "default 0, which is greedy"),
    "top_p": option("top_p", number(1e-9, 1), "above 0"),
    "seed": option("seed", whole(0, 2**63 - 1), "default 0; answer i of n has seed + i"),
    "stop": option("stop", texts(16), "a text or up to 16"),
    "stream": attribute("stream", boolean, "server-sent events"),
    "stream_options": Field("honoured", "include_usage", stream_options),
    "n": attribute("n", whole(1, 16), "up to as many as there are slots"),
    "logprobs": Field("honoured", "before temperature and penalties", logprobs),
    "top_logprobs": Field("honoured", "0 to 20, with logprobs", top_logprobs),
    "logit_bias": attribute("logit_bias", biases, "-100 to 100 for each token id"),
    "frequency_penalty": attribute("frequency_penalty", number(-2, 2), "of the answer's tokens"),
    "presence_penalty": attribute("presence_penalty", number(-2, 2), "of the answer's tokens"),
    "response_format": Field("honoured", "text, json_object, json_schema", response_format),
    # of vLLM
    "top_k": option("top_k", whole(-1, 2**31 - 1), "0 or -1: all"),
    "min_p": option("min_p", number(0, 1), ""),
    "repetition_penalty": option("repetition_penalty", number(0.01, 100), "counts the prompt too"),
    "ignore_eos": option("ignore_eos", boolean, ""),
    "min_tokens": attribute("min_tokens", whole(0, 2**31 - 1), "no end before"),
    "stop_token_ids": attribute("stop_token_ids", token_ids, "end the answer too"),
    "add_generation_prompt": checked(boolean, "true, or continue_final_message"),
    "continue_final_message": attribute("prefilled", boolean, "the last message is continued"),
    "guided_json": option("json_schema", schema, "a JSON schema"),
    "guided_choice": option("choices", texts(10_000, 1), "one of these texts"),
    "guided_regex": option("regex", expression, "a regular expression"),
    "structured_outputs": Field("honoured", "json, choice, regex", structured_outputs),
    "media_io_kwargs": Field("honoured", "video: num_frames, fps", media_io_kwargs),
    "mm_processor_kwargs": Field("honoured", "num_frames, fps, max_tiles", mm_processor_kwargs),
    # of llama-server
    "return_progress": attribute("progress", boolean, "prompt_progress in the stream"),
    # of the command
    "frames": option("frames", whole(1, 2**20), "of each video"),
    "fps": option("fps", number(1e-6, 1000), "frames of a second of video"),
    "start": option("start", ANY_NUMBER, "of the part of a video, in seconds"),
    "end": option("end", ANY_NUMBER, "of the part of a video, in seconds"),
    "at": option("at", times, "times of the frames, in seconds"),
    "max_tiles": option("max_tiles", whole(1, 2**20), "of each picture"),
    "multi_image": option("multi_image", one_of("auto", "pad", "anyres"), "several pictures"),
    "system": option("system", text, "a system turn before the messages"),
    "timestamps": option("timestamps", boolean, "tell the times of frames"),
    # without effect
    "tools": Field("refused", "unless empty", tools),
    "functions": Field("refused", "unless empty", tools),
    "tool_choice": checked(one_of("none", "auto"), "without tools"),
    "function_call": checked(one_of("none", "auto"), "without functions"),
    "modalities": checked(one_of(["text"]), "text alone"),
    "audio": Field("refused", "", refused),
    "prediction": Field("refused", "", refused),
    "web_search_options": Field("refused", "", refused),
    "best_of": checked(one_of(1), "1 alone"),
    "use_beam_search": checked(one_of(False), "false alone"),
    "echo": checked(one_of(False), "false alone"),
    "chat_template": Field("refused", "turns are written as the checkpoint was trained", refused),
    **{
        name: Field("ignored", "", ignored)
        for name in (
            "user",
            "metadata",
            "store",
            "service_tier",
            "safety_identifier",
            "prompt_cache_key",
            "prompt_cache_retention",
            "prompt_cache_options",
            "parallel_tool_calls",
            "verbosity",
            "reasoning_effort",
            "reasoning",
            "moderation",
            "cache_control",
            "chat_template_kwargs",
            "skip_special_tokens",
            "spaces_between_special_tokens",
        )
    },
}


def wanted_of(body: Any) -> tuple[Wanted, list[str]]:
    """What a request asks for, and the names of its fields that nobody knows."""
    if not isinstance(body, dict):
        raise Refusal(400, "The body must be a JSON object.", code="invalid_type")
    given = {name: value for name, value in body.items() if value is not None}
    if not isinstance(given.get("messages"), list) or not given["messages"]:
        raise wrong("messages", "a list of at least one message")
    wanted = Wanted(given["messages"])
    for name, value in given.items():
        if name in FIELDS:
            FIELDS[name].apply(wanted, name, value)
    check_together(wanted, given)
    return wanted, [name for name in given if name not in FIELDS]


def check_together(wanted: Wanted, given: Body) -> None:
    """Refuse fields that contradict each other, and those that need another."""
    if given.get("top_logprobs") and not given.get("logprobs"):
        raise Refusal(400, "top_logprobs needs logprobs.", "top_logprobs", "invalid_value")
    if not given.get("logprobs"):
        wanted.top = None
    generation = given.get("add_generation_prompt", not wanted.prefilled)
    if generation == wanted.prefilled:
        raise wrong("add_generation_prompt", "the opposite of continue_final_message")
    if wanted.options.get("top_k") == -1:
        wanted.options["top_k"] = 0
