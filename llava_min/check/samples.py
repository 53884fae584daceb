"""The pictures and clips that others asked about: those that are there, fetched where allowed.

in:  the published samples, a folder
out: what `generate` takes, by the samples' names; or blank ones of the same sizes

Read check/published.py first. Read next: check/verify.py.
"""

from __future__ import annotations  # numpy and Pillow are imported when they are needed

import hashlib
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import MediaError
from ..media import limits, web
from .published import Sample

SAMPLES = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "llava_min" / "samples"


@dataclass
class Samples:
    """The samples that are there. fetch: whether missing ones may be fetched into the folder."""

    known: Mapping[str, Sample]
    folder: Path
    fetch: bool = False
    hashes: dict[str, str] = field(default_factory=dict)  # of those that were used

    def path(self, name: str) -> Path | None:
        """The file of a sample, fetched where that is allowed; None where there is none."""
        sample = self.known[name]
        path = self.folder / sample.file
        if not path.exists() and self.fetch:
            print(f"fetching {sample.url}", file=sys.stderr)
            data = web.fetch(sample.url, limits.IMAGE_BYTES)
            self.folder.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        if not path.exists():
            return None
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if sample.sha256 not in (None, found):
            expected = f"SHA-256 {sample.sha256}"
            raise MediaError("cannot use the sample", sample.file, expected, found)
        self.hashes[sample.file] = found
        return path

    def of(self, names: Iterable[str]) -> tuple[dict[str, Any], list[Sample]]:
        """(what generate takes of these samples by name, those that are missing)."""
        media: dict[str, Any] = {}
        missing = []
        for name in dict.fromkeys(names):
            path = self.path(name)
            if path is None:
                missing.append(self.known[name])
            elif path.suffix == ".npy":
                import numpy as np

                media[name] = np.load(path, allow_pickle=False)
            else:
                media[name] = path
        return media, missing

    def blank(self, names: Iterable[str]) -> dict[str, Any] | None:
        """Blank ones of the same sizes; None where a size is not known."""
        import numpy as np
        from PIL import Image

        media: dict[str, Any] = {}
        for name in names:
            sample = self.known[name]
            if sample.frames:
                media[name] = np.zeros((sample.frames, 48, 64, 3), np.uint8)
            elif sample.size:
                media[name] = Image.new("RGB", sample.size)
            else:
                return None
        return media
