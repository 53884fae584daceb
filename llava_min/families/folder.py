"""What a checkpoint folder says of itself, and where the embedded checkpoint is.

in:  a folder, keys that replace those of its config.json
out: LlavaConfig, with the template of the folder in it

Read families/layouts.py, families/templates.py first.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ..base.files import read_json, regular
from ..config import LlavaConfig
from . import layouts, templates

log = logging.getLogger("llava_min")
EMBEDDED = Path(__file__).parents[1] / "weights" / "tiny"
EXAMPLE_PICTURE, EXAMPLE_QUESTION = EMBEDDED / "samples" / "shapes.png", "Describe the picture."


def config_of(
    folder: Path, overrides: Mapping[str, object] | None, context: int | None
) -> LlavaConfig:
    """The configuration of a folder, with its own template and, if given, another context."""
    config = layouts.read_config(folder, overrides)
    if context is not None:
        config = replace(config, text=replace(config.text, context=context))
    return replace(config, template=template_of(folder) or config.template)


def template_of(folder: Path) -> str | None:
    """The renderer that writes what the folder's chat template writes.

    It is recognised by the hash of the template's text; None where there is none, or one unknown.
    """
    text: str | None = None
    if regular(folder / "chat_template.jinja"):
        text = (folder / "chat_template.jinja").read_text("utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if text is None and regular(folder / name):
            found = read_json(folder / name, "chat template").get("chat_template")
            text = found if isinstance(found, str) else None
    if text is None:
        return None
    known = templates.known_template(text)
    if known is None:
        log.warning(
            "the checkpoint's chat template is not one that is known; choose a renderer with "
            "--template"
        )
    return known
