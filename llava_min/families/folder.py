"""What a checkpoint folder says of itself, and where the embedded checkpoint is.

in:  a folder, keys that replace those of its config.json
out: LlavaConfig, with the template of the folder in it

Read families/layouts.py, families/templates.py first.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from .. import weights
from ..base.files import read_json, regular
from ..base.habits import refuse_unread
from ..config import LlavaConfig
from ..errors import CheckpointError
from . import layouts, templates

log = logging.getLogger("llava_min")
EMBEDDED = Path(weights.__path__[0]) / "tiny"
TOY = "llava_min embedded toy"  # what the model in it is called
EXAMPLE_PICTURE, EXAMPLE_QUESTION = EMBEDDED / "samples" / "shapes.png", "Describe the picture."


def config_of(
    folder: Path, overrides: Mapping[str, object] | None, context: int | None
) -> LlavaConfig:
    """The configuration of a folder, with its own template and, if given, another context."""
    config = layouts.read_config(folder, overrides)
    refuse_unread(overrides, config.ignored)
    if context is not None:
        config = replace(config, text=replace(config.text, context=context))
    return replace(config, template=template_of(folder) or config.template)


def template_of(folder: Path) -> str | None:
    """The renderer that writes what the folder's chat template writes.

    It is recognised by the template's text; None where there is none, or one unknown.
    """
    stored = stored_template(folder)
    if stored is None:
        return None
    text = named_default(stored)
    known = templates.known_template(text) if isinstance(text, str) else None
    if known is None:
        number = f" ({templates.fingerprint(text)})" if isinstance(text, str) else ""
        log.warning(
            f"the checkpoint's chat template{number} is not one that is known; choose a renderer "
            "with --template"
        )
    return known


def stored_template(folder: Path) -> object:
    """The first chat template of a folder, in the order in which transformers looks for one.

    That is its processor's order, then its tokenizer's.
    """
    for name in ("processor_config.json", "chat_template.json"):
        found = template_in(folder / name)
        if found is not None:
            return found
    files = {path.stem: path for path in (folder / "chat_templates").glob("*.jinja")}
    if regular(folder / "chat_template.jinja"):
        files["default"] = folder / "chat_template.jinja"
    if files:
        return {name: text_of(path) for name, path in files.items()}
    return template_in(folder / "tokenizer_config.json")


def template_in(path: Path) -> object:
    """The chat_template of a JSON file, or None."""
    return read_json(path, "chat template").get("chat_template") if regular(path) else None


def text_of(path: Path) -> str:
    """The text of a chat template's own file; CheckpointError where it is not UTF-8."""
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what, expected = "cannot read the chat template", "a text in UTF-8"
        raise CheckpointError(what, path.name, expected, str(error)) from None


def named_default(stored: object) -> object:
    """The template named "default" of several, {name: template} or [{"name", "template"}]."""
    if isinstance(stored, list):
        stored = {
            each.get("name"): each.get("template") for each in stored if isinstance(each, dict)
        }
    return stored.get("default") if isinstance(stored, dict) else stored
