"""The pictures of the walk are those that the command draws, and the README links them."""

import numpy as np
import pictures
from PIL import Image
from test_house import ROOT, chain


def test_the_pictures_are_what_the_command_draws(tmp_path):
    """Numbers of another processor may move a colour a little; a stage that moves does more."""
    pictures.draw(tmp_path)
    drawn = sorted(path.name for path in tmp_path.iterdir())
    assert drawn == sorted(path.name for path in pictures.FOLDER.iterdir())
    for name in drawn:
        made, kept = (Image.open(folder / name) for folder in (tmp_path, pictures.FOLDER))
        assert (tmp_path / name).stat().st_size < 60_000
        assert made.size == kept.size
        difference = np.abs(np.asarray(made).astype(int) - np.asarray(kept)).max(-1)
        assert (difference > 40).mean() < 0.002 and len(np.unique(np.asarray(made))) > 4, name


def test_each_file_of_the_walk_has_one_that_is_linked():
    text = (ROOT / "README.md").read_text()
    assert [stage.__name__ for stage in pictures.STAGES] == chain()
    for name in chain():
        assert f"(docs/walk/{name}.png)" in text
