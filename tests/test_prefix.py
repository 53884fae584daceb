"""Prompt caches: the same answers without computing the beginning again, and no wrong beginning."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import llava_min
from llava_min import image
from llava_min.engine import prefix
from llava_min.errors import LlavaMinError, OutputError, PromptError
from llava_min.families.folder import EMBEDDED
from llava_min.media import video
from llava_min.segments import Text

FIRST, SECOND = small.picture(100, 60), small.picture(50, 80, seed=1)
CLIP = small.frames(4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small.small(tmp_path_factory.mktemp("model"), seed=3)


@pytest.fixture(scope="module")
def model(folder):
    return llava_min.load(folder)


@pytest.fixture
def file(tmp_path, model):
    """A cache of a question about a picture and a clip."""
    path = tmp_path / "cache.safetensors"
    model.generate("What?", images=[FIRST], videos=[CLIP], max_tokens=2, prompt_cache=path)
    return path


NUMBERS = st.lists(st.integers(-1, 1), min_size=1, max_size=6)


@settings(max_examples=300, deadline=None)
@given(NUMBERS, NUMBERS)
def test_the_common_part_ends_at_the_first_difference(held, wanted):
    count = prefix.common(np.array(held, np.int64), np.array(wanted, np.int64))
    assert count < len(wanted) and held[:count] == wanted[:count]
    longer = slice(0, count + 1)
    assert count == len(wanted) - 1 or held[longer] != wanted[longer]


def test_the_log_says_how_much_was_kept_and_where(model, tmp_path, caplog):
    path = tmp_path / "cache"
    with caplog.at_level("INFO"):
        answer = model.generate("What? " * 400, max_tokens=1, prompt_cache=path)
    (said,) = re.findall(r"([\d,]+) prompt tokens kept in (.*) \(([\d.]+) MiB\)", caplog.text)
    assert said[:2] == (f"{answer.usage['prompt_tokens']:,}", str(path))
    assert float(said[2]) * 1024**2 == pytest.approx(path.stat().st_size, abs=0.06 * 1024**2)
    assert float(said[2]) > 0.3


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_another_question_goes_on_from_the_file(folder, tmp_path, monkeypatch, dtype):
    """Nothing is encoded, the words of the question are all that is computed, the answer is the
    same, and the file is left as it was; in chats and with a picture more, too.
    """
    model, path = llava_min.load(folder, dtype=dtype), tmp_path / "cache"
    shown = {"images": [FIRST], "videos": [CLIP], "max_tokens": 8, "ignore_eos": True}
    shown |= {"temperature": 1.5, "seed": 4}  # greedy answers of random weights are all alike
    first = model.generate("What?", **shown, prompt_cache=path)
    alone = model.generate("And where is it?", **shown)
    data = path.read_bytes()
    encode = model.network.encode
    monkeypatch.setattr(model.network, "encode", lambda *given: iter(()))
    assert model.generate("What?", **shown, prompt_cache=path).token_ids == first.token_ids
    again = model.generate("And where is it?", **shown, prompt_cache=path)
    assert again.token_ids == alone.token_ids
    assert again.usage["cached_tokens"] > again.usage["image_tokens"]
    assert len(set(first.token_ids)) > 4 and first.token_ids != alone.token_ids
    chat = model.chat(prompt_cache=path, max_tokens=8, ignore_eos=True, temperature=1.5, seed=4)
    assert chat.ask("And where is it?", images=[FIRST], videos=[CLIP]).token_ids == alone.token_ids
    monkeypatch.setattr(model.network, "encode", encode)
    longer = {**shown, "videos": [CLIP, CLIP[::-1]]}
    more = model.generate("And?", **longer, prompt_cache=path)
    assert more.token_ids == model.generate("And?", **longer).token_ids
    assert more.usage["cached_tokens"] > 0 and path.read_bytes() == data
    assert os.listdir(tmp_path) == ["cache"]


@pytest.mark.parametrize("kv_dtype", ["auto", "int8", "fp8"])
def test_the_file_holds_the_cache_bit_for_bit(folder, tmp_path, kv_dtype):
    """Scales included; a cache of another kv-dtype does not go on from it."""
    model, path = llava_min.load(folder, kv_dtype=kv_dtype), tmp_path / "cache"
    kept, read = (prefix.Prefix(model.empty_cache(0)) for _ in range(2))
    options = {"images": [FIRST], "videos": [CLIP], "max_tokens": 3}
    answer = model.generate("What?", **options, prefix=kept, prompt_cache=path)
    kept.cache.rewind(int(kept.cache.host_lengths[0]) - answer.usage["prompt_tokens"] + 1)
    assert read.load(path, model.description, model.prepare("What?", [FIRST], [CLIP]), 3)
    assert read.cache.tensors().keys() == kept.cache.tensors().keys()
    for name, tensor in kept.cache.tensors().items():
        bits = torch.uint8 if tensor.dtype == torch.float8_e4m3fn else tensor.dtype
        assert torch.equal(read.cache.tensors()[name].view(bits), tensor.view(bits)), name
    assert ("key_scales" in kept.cache.tensors()) == (kv_dtype != "auto")
    other = llava_min.load(folder, kv_dtype="fp8" if kv_dtype == "auto" else "auto")
    with pytest.raises(PromptError, match="expected kv-dtype '.*', found '.*'"):
        other.generate("What?", **options, prompt_cache=path)


def test_in_a_new_process_through_the_command(tmp_path):
    """The second process prints what it prints without the file, and says what it took from it."""
    star, path = small.TINY / "samples" / "shapes.png", tmp_path / "star"

    def ask(question, *more):
        command = [sys.executable, "-m", "llava_min", question, "--image", star, *more]
        return subprocess.run(command, capture_output=True, text=True)

    first = ask("Where is the star?", "--prompt-cache", path)
    assert first.stdout == "In the top left.\n" and "kept in" in first.stderr
    second = ask("What color is the circle?", "--prompt-cache", path)
    assert second.stdout == "Blue.\n" and "prompt tokens come from" in second.stderr
    other = ask("What color is the circle?", "--prompt-cache", path, "--max-tiles", "1")
    assert other.returncode == 4 and other.stderr.count("\n") == 1
    assert "media 1 to be" in other.stderr and "other contents of that name" in other.stderr


def test_what_differs_is_named(model, folder, file, tmp_path):
    """Checkpoint, dtype, a key of config.json, which medium, or the words before it."""
    shown = {"images": [FIRST], "videos": [CLIP], "prompt_cache": file}

    def refused(match, model=model, **changed):
        with pytest.raises(PromptError, match=match) as error:
            model.generate("And?", **{**shown, **changed})
        assert str(error.value).count("\n") == 0 and "Remove the file" in str(error.value)

    refused("media 1 to be the Image, found other contents", images=[SECOND])
    refused("media 2 to be the ndarray, found other contents", videos=[CLIP[::-1]])
    refused("media 2 to be the ndarray, found none", videos=[])
    refused("media 1 to be the Image, found other text", system="Be brief.")
    refused("media 1 to be the Image, found the ndarray", images=[], videos=[CLIP])
    refused("dtype 'float32'|dtype 'float16'", llava_min.load(folder, dtype="float16"))
    other = small.small(tmp_path / "other", seed=4)
    refused("checkpoint", llava_min.load(other))
    theta = {"text_config": small.hf_config()["text_config"] | {"rope_theta": 1e5}}
    changed = llava_min.load(folder, config=theta)
    refused("config text.rope_theta 100000.0, found 1000000.0", changed)
    wider = llava_min.load(folder, context=9000)  # no key or value depends on it
    assert wider.generate("And?", **shown, max_tokens=2).usage["cached_tokens"] > 0


@pytest.mark.parametrize("part", [0, 7, 8, 100, 0.5, -1], ids=str)
def test_a_file_cut_short_is_one_line(model, file, part):
    data = file.read_bytes()
    file.write_bytes(data[: part if isinstance(part, int) else int(part * len(data))])
    with pytest.raises(PromptError, match="expected a whole prompt cache, found a file cut short"):
        model.generate("And?", images=[FIRST], videos=[CLIP], prompt_cache=file)


def test_a_foreign_file_is_one_line(model, file, tmp_path, folder):
    """A checkpoint, a text, a folder, metadata or tensors that are not as ours are."""
    with safe_open(file, framework="pt") as mine:
        said = mine.metadata()[prefix.KIND]
        tensors = {name: mine.get_tensor(name) for name in mine.keys()}
    text = tmp_path / "text"
    text.write_text("hello")
    foreign = [text, tmp_path, folder / "model.safetensors"]
    changes = (
        ({"tokens": tensors["tokens"]}, said),
        (tensors | {"keys.0.0": torch.zeros(3, 7)}, said),
        (tensors | {"keys.0.0": torch.zeros(3000, 12)[:, :5].contiguous()}, said),
        (tensors, "[]"),
        (tensors, "{"),
        (tensors, json.dumps(json.loads(said) | {"media": [["a.png"]]})),
    )
    for number, (changed, metadata) in enumerate(changes):
        foreign.append(tmp_path / f"foreign{number}")
        save_file(changed, foreign[-1], metadata={prefix.KIND: metadata})
    for path in foreign:
        said = "found a folder" if path.is_dir() else "a whole prompt cache, found .* another kind"
        with pytest.raises(PromptError, match=said):
            model.generate("And?", images=[FIRST], videos=[CLIP], prompt_cache=path)


def forbidden(**where):
    raise OSError(30, "Read-only file system")


def test_a_failed_write_leaves_nothing(model, tmp_path, monkeypatch, caplog):
    """No half of a file, under any name, and the answer is not lost. A folder that is not there, or
    takes no file, is refused before any work.
    """
    with pytest.raises(OutputError, match="a folder to write it to"):
        model.generate("What?", prompt_cache=tmp_path / "nowhere" / "cache")

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prefix, "save_file", full)
    with caplog.at_level("WARNING", logger="llava_min"):
        answer = model.generate("What?", max_tokens=1, prompt_cache=tmp_path / "cache")
    assert len(answer.token_ids) == 1 and "No space left on device" in caplog.text
    assert os.listdir(tmp_path) == []
    monkeypatch.setattr(model.network, "encode", None)
    monkeypatch.setattr(prefix.tempfile, "NamedTemporaryFile", forbidden)
    with pytest.raises(OutputError, match="a folder in which a file can be made, found Read-only"):
        model.generate("What?", images=[FIRST], prompt_cache=tmp_path / "cache")


def test_a_failed_reading_leaves_the_chat_usable(model, file):
    """After a mismatch, the same conversation goes on without the file."""
    chat = model.chat(prompt_cache=file, max_tokens=4)
    with pytest.raises(LlavaMinError):
        chat.ask("What?", images=[SECOND])
    assert len(chat.prefix.numbers) == 0
    chat.prompt_cache = None
    alone = model.generate("What?", images=[SECOND], max_tokens=4)
    assert chat.ask("What?", images=[SECOND]).token_ids == alone.token_ids


def test_a_clip_is_known_by_its_file_and_times(model, tmp_path, monkeypatch):
    """A copy of the file goes on without a tile made; other frames, or a changed file, do not."""
    clip, copy = small.TINY / "samples" / "clip.mp4", tmp_path / "copy.mp4"
    file = tmp_path / "cache"
    copy.write_bytes(clip.read_bytes())
    shown = {"frames": 4, "max_tokens": 4, "prompt_cache": file}
    first = model.generate("What?", videos=[clip], **shown)
    for source in ([clip], [copy], [clip.read_bytes()]):
        with monkeypatch.context() as patch:
            patch.setattr(image.FrameTiles, "__getitem__", None)
            again = model.generate("What?", videos=source, **shown)
        assert again.token_ids == first.token_ids and again.usage["cached_tokens"] > 0
    with pytest.raises(PromptError, match="media 1 to be .*found other contents of that name"):
        model.generate("What?", videos=[clip], **{**shown, "frames": 3})
    copy.write_bytes(copy.read_bytes() + b"\0" * 8)
    with pytest.raises(PromptError, match="media 1 to be .*copy.mp4"):
        model.generate("What?", videos=[copy], **shown)
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(3):
        small.picture(60, 50, seed=number).save(folder / f"{number}.png")
    hashes = [video.sample_clip(folder, video.Choice(2)).hash for _ in range(2)]
    small.picture(60, 50, seed=9).save(folder / "2.png")
    assert hashes[0] == hashes[1] != video.sample_clip(folder, video.Choice(2)).hash


def test_a_cache_grows_by_an_eighth_more_and_not_beyond_the_context(model):
    """So that few later questions copy it; and not at all where it is large enough."""
    one = prefix.Prefix(model.empty_cache(64))
    assert len(one.numbers) == one.reused == 0
    for capacity, context, grown in ((64, 999, 64), (80, 999, 90), (96, 100, 100), (120, 100, 120)):
        before = one.cache.keys
        one.grow(capacity, context)
        assert one.cache.capacity == grown and (one.cache.keys is before) == (capacity == 64)


def test_text_that_differs_is_not_called_media():
    """Its ids may be 0, and those of media are below."""
    held, wanted = np.array([0, 0, 0, -5, -6]), np.array([0, 0, 1, -5, -6, 7])
    given = [{"source": "b.png", "tokens": 2}]
    with pytest.raises(PromptError, match="media 1 to be a.png, found other text before it"):
        prefix.check_media(Path("file"), [("a.png", 2)], given, held, wanted, 2)


@pytest.mark.parametrize(
    "wanted, given, found",
    [
        ([1, -5, -6, 2, -9, 7, 8], ["a", "b"], None),  # all media of the file
        ([1, -5, -6, 2, -9], ["a", "b"], None),  # as many tokens as are to be looked at
        ([1, -5, -6, 2, 4], ["a"], None),  # the whole prompt is in the file
        ([1, -5, -6, 2, 4, 7], ["a"], "media 2 to be b, found none"),
        ([1, -5, -6, 2, -8, 7], ["a", "c"], "media 2 to be b, found c"),
        ([1, -5, -6, 2, -8, 7], ["a", "b"], "media 2 to be b, found other contents of that name"),
        ([1, -4, -3, 2, -9, 7], ["c", "b"], "media 1 to be a, found c"),
        ([1, -5, -6, 3, -9, 7], ["a", "b"], "media 2 to be b, found other text before it"),
        ([0, -5, -6, 2, -9, 7], ["a", "b"], "media 1 to be a, found other text before it"),
    ],
)
def test_the_first_visual_that_differs_is_named(wanted, given, found):
    """Unless the prompt is a part of the file, or has all of its media."""
    held, wanted = np.array([1, -5, -6, 2, -9, 3]), np.array(wanted)
    count, given = prefix.common(held, wanted), [{"source": name} for name in given]
    refused = pytest.raises(PromptError, match=found) if found else nullcontext()
    with refused:
        prefix.check_media(Path("file"), [("a", 2), ("b", 1)], given, held, wanted, count)


def test_every_token_has_a_number(model):
    """Of text its id; of a visual, below zero, its hash counted down, which a key changes."""
    prepared = model.prepare("What?", [FIRST, SECOND], [CLIP])
    visuals = [segment for segment in prepared.plan.segments if not isinstance(segment, Text)]
    assert len(visuals) == len(prepared.visuals) == 3
    for key in (b"", b"key"):
        hashes, expected = iter([one.hash(key) for one in prepared.visuals]), []
        for segment in prepared.plan.segments:
            if isinstance(segment, Text):
                expected += segment.ids
            else:
                first = next(hashes)
                expected += [-1 - first - row for row in range(segment.tokens)]
        assert prefix.numbers_of(prepared, key).tolist() == expected


def test_a_longer_prompt_goes_on_from_the_whole_file(model, tmp_path):
    """All that the file holds, its last token included; a shorter prompt from a part of it."""
    options = {"max_tokens": 5, "ignore_eos": True, "temperature": 1.5, "seed": 1}
    file = tmp_path / "cache"
    model.generate([7, 8, 9], **options, prompt_cache=file)
    for ids, kept in (([7, 8, 9, 10, 11], 3), ([7, 8], 1), ([7, 12, 9], 1), ([9, 8, 7], 0)):
        answer = model.generate(ids, **options, prompt_cache=file)
        assert answer.usage["cached_tokens"] == kept
        assert answer.token_ids == model.generate(ids, **options).token_ids


def test_a_checkpoint_is_known_by_numbers_everywhere(model):
    """The later half of any tensor that differs makes another checkpoint."""
    before = prefix.fingerprint(model.network)
    for tensor in model.network.state_dict().values():
        flat = tensor.reshape(-1)
        old = flat.clone()
        flat[len(flat) // 2 :] += 1
        assert prefix.fingerprint(model.network) != before
        flat.copy_(old)
    assert prefix.fingerprint(model.network) == before


@pytest.mark.parametrize("count", [1, 2, 5, prefix.SAMPLE, 2 * prefix.SAMPLE - 1])
def test_every_number_of_a_small_tensor_counts(count):
    """Where there are no more than can be looked at."""
    tensor = torch.zeros(count)
    network = SimpleNamespace(state_dict=lambda: {"weight": tensor})
    found = {prefix.fingerprint(network)}
    places = {0, count // 2, count - 1, *range(1, min(count, 5))}
    for place in places:
        tensor[place] = 1
        found.add(prefix.fingerprint(network))
        tensor[place] = 0
    assert len(found) == 1 + len(places)


@pytest.mark.parametrize("options", [{"bits": 4}, {"dtype": "bfloat16"}, {"dtype": "float32"}])
def test_weights_that_are_laid_out_count_too(tmp_path, options):
    """One matrix that differs makes another checkpoint, however it is kept."""
    for path in EMBEDDED.glob("*.json"):
        shutil.copy(path, tmp_path)
    tensors = load_file(EMBEDDED / "model.safetensors")
    next(tensor for name, tensor in tensors.items() if name.endswith("down_proj.weight")).neg_()
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    first, second = (llava_min.load(folder, device="cpu", **options).description
                     for folder in (EMBEDDED, tmp_path))  # fmt: skip
    assert first.pop("checkpoint") != second.pop("checkpoint") and first == second
