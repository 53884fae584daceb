"""A JSON object is read key by key, each with a type and its allowed values.

in:  a JSON object, the file that it comes from
out: values of the type that was asked for, or CheckpointError, which names the key

What is not understood is refused, never guessed. The keys that were asked for are remembered, so
that the others can be listed.
Read config.py first. Read next: families/sections.py.
"""

import math
from collections.abc import Collection
from types import EllipsisType
from typing import Any, TypeVar, overload

from ..errors import CheckpointError, shown

Value = TypeVar("Value")
MOST = {
    # the largest number that a key may have, where it is not 2**20
    "max_position_embeddings": 2**31 - 1,
    "vocab_size": 2**24,
    "image_size": 2**13,
    "num_hidden_layers": 2**10,
    "head_dim": 2**10,
}

NOT_READ = frozenset(  # keys that change nothing in what is computed here
    """
    architectures dtype torch_dtype transformers_version bos_token_id eos_token_id pad_token_id
    use_cache attention_dropout initializer_range max_window_layers sliding_window auto_map
    layer_types image_seq_length video_seq_length ignore_index _name_or_path pretraining_tp dropout
    initializer_factor model_type freeze_mm_mlp_adapter freeze_mm_vision_resampler max_length
    tune_mm_mlp_adapter tune_mm_vision_resampler unfreeze_mm_vision_tower use_mm_proj
    image_crop_resolution image_split_resolution mm_projector_lr mm_vision_tower_lr
    mm_tunable_parts tokenizer_model_max_length tokenizer_padding_side
    """.split()
)


class Fields:
    """A JSON object, `where` it comes from, and the keys that were `asked` for."""

    def __init__(self, values: dict[str, object], where: str) -> None:
        self.values, self.where = values, where
        self.asked: set[str] = set()

    @overload
    def get(
        self,
        key: str,
        kind: type[Value],
        default: None,
        choices: Collection[Value | None] | None = None,
    ) -> Value | None: ...

    @overload
    def get(
        self,
        key: str,
        kind: type[Value],
        default: Value | EllipsisType = ...,
        choices: Collection[Value] | None = None,
    ) -> Value: ...

    def get(
        self,
        key: str,
        kind: type[Value],
        default: Value | EllipsisType | None = ...,
        choices: Collection[Value | None] | None = None,
    ) -> Value | None:
        """The value of `key`, of type `kind`, among `choices` if given.

        CheckpointError for any other, and where the key is missing and has no default. With None as
        the default, null is none too. Whole numbers are 0 or more.
        """
        self.asked.add(key)
        value = self.values.get(key, default)
        if value is ...:
            raise CheckpointError(
                "cannot read the configuration",
                self.where,
                f"the key {key!r}",
                "none",
                "Is the file complete?",
            )
        if value is None and default is None:
            return None
        if kind is float and type(value) is int:
            value = float(value)
        if not isinstance(value, kind) or type(value) is not kind:  # True is an int, but no number
            raise self.refused(key, f"a value of type {kind.__name__}", value)
        if isinstance(value, int) and value < 0:
            raise self.refused(key, f"a value of type {kind.__name__}", value)
        if choices is not None and value not in choices:
            raise self.refused(key, " or ".join(map(repr, choices)), value)
        return value

    def integer(self, key: str, default: int, choices: tuple[int, ...]) -> int:
        """A whole number, perhaps negative, among `choices`."""
        self.asked.add(key)
        value = self.values.get(key, default)
        if type(value) is not int or value not in choices:
            raise self.refused(key, " or ".join(map(str, choices)), value)
        return value

    def size(self, key: str, default: int | EllipsisType = ...) -> int:
        """A count from 1 on, small enough that no product of two overflows or takes forever."""
        value, most = self.get(key, int, default), MOST.get(key, 2**20)
        if not 1 <= value <= most:
            raise self.refused(key, f"a number from 1 to {most}", value)
        return value

    def positive(self, key: str, default: float | EllipsisType = ...) -> float:
        """A finite number above 0."""
        value = self.get(key, float, default)
        if not 0 < value < math.inf:
            raise self.refused(key, "a finite number above 0", value)
        return value

    def section(self, key: str) -> "Fields":
        """The object under `key`."""
        section: dict[str, Any] = self.get(key, dict)
        return Fields(section, f"{self.where}: {key}")

    def refused(self, key: str, expected: str, found: object, hint: str = "") -> CheckpointError:
        """The error for a key whose value is not supported."""
        return CheckpointError(
            "not supported", f"{self.where}: {key}", expected, shown(found), hint
        )


def ignored(*sections: Fields) -> tuple[str, ...]:
    """The keys that were not read and are not known to change nothing."""
    return tuple(
        f"{section.where}: {key}"
        for section in sections
        for key in section.values
        if key not in section.asked and key not in NOT_READ
    )
