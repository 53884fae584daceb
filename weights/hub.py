"""What -m names -> a folder on this machine: a path, an alias, or org/name[@revision] on the hub.

in:  a path or name, bytes of one weight, bytes that are free
out: a folder; CheckpointError or MemoryBudgetError where there is none

A path that exists wins. Anything else comes from the Hugging Face hub by way of its local cache,
brought up to date where the hub can be reached. huggingface_hub does the work, so HF_ENDPOINT,
HF_HUB_OFFLINE, HF_TOKEN and HF_HOME mean what they always mean. Only safetensors, JSON, text,
jinja, README and LICENSE files of the repository's top folder are taken: nothing that could run.
Read next: weights/checkpoint.py.
"""

import logging
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from ..errors import CheckpointError, MemoryBudgetError, shown
from ..families.aliases import ALIASES

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo
    from huggingface_hub.hf_api import RepoSibling

log = logging.getLogger("llava_min")
NAME = re.compile(r"(\w[\w.-]*(?:/\w[\w.-]*)?)(?:@([\w./-]+))?", re.ASCII)
DESCRIPTION = (  # all but the weights
    "*.json",
    "*.txt",
    "*.jinja",
    "tokenizer.model",
    "README.md",
    "LICENSE*",
)
EVERYTHING = (*DESCRIPTION, "*.safetensors")
RESTRICTIVE = (
    # what a model card's license, or its name, holds -> what that means
    (r"-nc\b|non-?commercial", "non-commercial use only"),
    (r"llama", "the Llama community license, with limits on use"),
    (r"research", "for research only"),
)


class Wanted(TypedDict):
    """Which files of a repository are taken, in the words of huggingface_hub."""

    allow_patterns: list[str]
    ignore_patterns: list[str]


def find(
    name: str | Path,
    itemsize: int = 2,
    room: int | None = None,
    files: tuple[str, ...] = EVERYTHING,
) -> Path:
    """The folder of a checkpoint, whose files are downloaded first where they must be.

    itemsize: bytes of one weight in memory; room: bytes that are free for all of them, None if
    unknown. CheckpointError where there is none to be had, MemoryBudgetError where it cannot fit.
    """
    if "\0" in str(name):
        raise not_found(str(name))
    match = NAME.fullmatch(str(name))
    if os.path.exists(name) or match is None:
        return Path(name)
    repository, revision = match.groups()
    repository = ALIASES.get(repository, (repository, 0))[0]
    if "/" not in repository:
        raise not_found(str(name))
    from huggingface_hub import HfApi, errors, utils

    wanted = Wanted(allow_patterns=list(files), ignore_patterns=["*/*"])
    try:
        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    except errors.GatedRepoError:
        raise gated(repository) from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(
            "cannot download", repository, f"the revision {revision}", "none"
        ) from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise not_found(str(name)) from None
    except (errors.HTTPError, OSError):  # no connection, or HF_HUB_OFFLINE
        return cached(repository, revision, wanted)
    listed = info.siblings or []
    found = list(utils.filter_repo_objects(listed, key=lambda f: f.rfilename, **wanted))
    check_room(repository, found, itemsize, room)
    return download(repository, revision, info, found, wanted)


def not_found(name: str) -> CheckpointError:
    """The error for a name that is no folder, alias or repository."""
    known = f"a folder, a repository on the hub (org/name), or one of {', '.join(ALIASES)}"
    hint = "Without a name it is the embedded toy. A private repository needs HF_TOKEN."
    return CheckpointError("cannot find the checkpoint", shown(name), known, "neither", hint)


def gated(repository: str) -> CheckpointError:
    """The error for a repository whose terms must be accepted first."""
    hint = "Accept its terms on its page of the hub, then set HF_TOKEN."
    return CheckpointError(
        "cannot download", repository, "access to it", "a gated repository", hint
    )


def cached(repository: str, revision: str | None, wanted: Wanted) -> Path:
    """The copy in the hub's cache, without a look at the hub."""
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(
            snapshot_download(repository, revision=revision, local_files_only=True, **wanted)
        )
    except errors.LocalEntryNotFoundError:
        expected = "a connection to the hub, or a whole copy in its cache"
        raise CheckpointError("cannot download", repository, expected, "neither") from None


def check_room(
    repository: str, files: list["RepoSibling"], itemsize: int, room: int | None
) -> None:
    """MemoryBudgetError, with what would fit, where the weights exceed the memory that is free."""
    stored = sum(file.size or 0 for file in files if file.rfilename.endswith(".safetensors"))
    if room is None or stored / 2 * itemsize <= room:  # published weights have 16 bits
        return
    fitting = [a for a, (_, size) in ALIASES.items() if size * 1e9 / 2 * itemsize <= room]
    fitting = [f"-m {fitting[-1]}"] if fitting else []
    fitting += ["--dtype bfloat16"] if itemsize > 2 and stored <= room else []
    free, found = f"at most {room / 1e9:.1f} GB of weights", f"{stored / 2e9 * itemsize:.1f} GB"
    hint = f"What would fit: {' or '.join(fitting) or 'none that is known'}."
    raise MemoryBudgetError(
        "cannot load", repository, f"{free} in the memory that is free", found, hint
    )


def download(
    repository: str,
    revision: str | None,
    info: "ModelInfo",
    files: list["RepoSibling"],
    wanted: Wanted,
) -> Path:
    """All wanted files in the hub's cache; those that are there already stay."""
    import huggingface_hub as hub
    from huggingface_hub import errors

    have = lambda file: hub.try_to_load_from_cache(repository, file.rfilename, revision=info.sha)
    missing = [file for file in files if not isinstance(have(file), str)]
    if missing:
        size, license = sum(file.size or 0 for file in missing) / 1e9, "not stated"
        if info.card_data is not None:
            named = info.card_data.get("license_name") or info.card_data.get("license")
            license = str(named or license)
        log.info(
            f"downloading {repository} at {str(info.sha)[:7]}: {len(missing)} files, "
            f"{size:.2f} GB, license {license}"
        )
    if not sys.stderr.isatty() or log.getEffectiveLevel() > logging.INFO:
        hub.utils.disable_progress_bars()
    try:
        return Path(hub.snapshot_download(repository, revision=revision, **wanted))
    except errors.GatedRepoError:
        raise gated(repository) from None
    except (errors.HTTPError, OSError) as error:
        raise CheckpointError(
            "cannot download",
            repository,
            "all of it",
            type(error).__name__,
            "Run it again: files that are whole stay.",
        ) from None


def restriction(folder: Path) -> str | None:
    """What the license in a folder's model card, the YAML on top of README.md, forbids."""
    try:
        card = (folder / "README.md").read_text("utf-8", errors="replace")
    except OSError:
        return None
    head = card.split("\n---", 1)[0] if card.startswith("---") else ""
    license = " ".join(re.findall(r"^license(?:_name)?:\s*(.+?)\s*$", head, re.MULTILINE))
    found = (words for pattern, words in RESTRICTIVE if re.search(pattern, license, re.I))
    meaning = next(found, None)
    return meaning and f"the license of this checkpoint is {license}: {meaning}"
