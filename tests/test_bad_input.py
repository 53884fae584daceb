"""Bad checkpoints, configurations, tokenizers, prompts and arguments: each gets one clear line.

Each case has a harmless twin beside it that answers; bad_input.py says what every case asserts.
"""

import json
import os
import pickle
import struct

import pytest
import small
import torch
from bad_input import Case, ask, check, rows
from safetensors.torch import load_file, save_file

CHECKPOINT, QUESTION, PARAMETER = 3, 4, 2


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small random checkpoint, which every case copies."""
    return small.small(tmp_path_factory.mktemp("model") / "model", tied=False)


def plain(folder):
    """The twin of most cases: the same checkpoint as it was."""
    return ask(folder)


# Editing a checkpoint ----------------------------------------------------------------------------


def tensors(change):
    """The weights after `change`, written again."""

    def make(folder):
        path = folder / "model" / "model.safetensors"
        held = load_file(path)
        change(held)
        save_file(held, path, metadata={"format": "pt"})
        return ask(folder)

    return make


def split(path):
    """(header, data) of a safetensors file."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header, data: bytes = b"") -> bytes:
    """A safetensors file from a header (an object or its bytes) and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def header(change):
    """The header after `change`, in front of the same data; `change` may return it as bytes."""

    def make(folder):
        path = folder / "model" / "model.safetensors"
        entries, data = split(path)
        changed = change(entries)
        path.write_bytes(joined(entries if changed is None else changed, data))
        return ask(folder)

    return make


def content(change):
    """The whole file after `change`, from bytes to bytes."""

    def make(folder):
        path = folder / "model" / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))
        return ask(folder)

    return make


def sentence_pieces(data: bytes):
    """The checkpoint with these bytes as tokenizer.model in place of its tokenizer.json."""

    def make(folder):
        arguments = text_file("tokenizer.model", data)(folder)
        (folder / "model" / "tokenizer.json").unlink()
        return arguments

    return make


def text_file(name: str, data):
    """A file of the folder with these contents."""

    def make(folder):
        data_bytes = data if isinstance(data, bytes) else json.dumps(data).encode()
        (folder / "model" / name).write_bytes(data_bytes)
        return ask(folder)

    return make


def edited(name: str, change):
    """A JSON file of the folder after `change`."""

    def make(folder):
        path = folder / "model" / name
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))
        return ask(folder)

    return make


def config(**values):
    """config.json with other values; `text_config__x` reaches into a section."""

    def change(held):
        for key, value in values.items():
            section, _, name = key.rpartition("__")
            (held[section] if section else held)[name] = value

    return edited("config.json", change)


def sharded(change):
    """The same checkpoint in two shards, its index after `change`."""

    def make(folder):
        small.small(folder / "two", tied=False, shards=2)
        (folder / "model").rename(folder / "one")
        (folder / "two").rename(folder / "model")
        path = folder / "model" / "model.safetensors.index.json"
        listing = json.loads(path.read_text())
        change(listing["weight_map"], folder / "model")
        path.write_text(json.dumps(listing))
        return ask(folder)

    return make


def without_index(folder):
    """Two shards, and nothing that lists them."""
    arguments = sharded(lambda weight_map, folder: None)(folder)
    (folder / "model" / "model.safetensors.index.json").unlink()
    return arguments


def processor(name: str, **values):
    """A processor file with these values."""

    def make(folder):
        (folder / "model" / name).write_text(json.dumps(values))
        return ask(folder)

    return make


def slow_tokenizer(added):
    """The tokenizer in files of the older kind, with these added tokens."""

    def make(folder):
        model = folder / "model"
        vocabulary = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
        (model / "tokenizer.json").unlink()
        (model / "vocab.json").write_text(json.dumps(vocabulary))
        (model / "merges.txt").write_text("#version: 0.2\n")
        (model / "added_tokens.json").write_text(json.dumps(added))
        return ask(folder)

    return make


def template_file(data: bytes):
    """chat_template.jinja in place of chat_template.json, which comes first."""

    def make(folder):
        (folder / "model" / "chat_template.json").unlink()
        (folder / "model" / "chat_template.jinja").write_bytes(data)
        return ask(folder)

    return make


def cut(size):
    return content(lambda data: data[: size if size >= 0 else len(data) + size])


def as_pipe(name: str):
    """A named pipe in place of a file: opening it would wait for ever."""

    def make(folder):
        path = folder / "model" / name
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        return ask(folder)

    return make


def as_folder(name: str):
    def make(folder):
        path = folder / "model" / name
        path.unlink(missing_ok=True)
        path.mkdir()
        return ask(folder)

    return make


NEWLINE, HEAD = "image_newline", "language_model.lm_head.weight"
LINEAR = "multi_modal_projector.linear_1.weight"


def poison(name, index, value):
    return tensors(lambda held: held[name].view(-1).__setitem__(index, value))


def retype(name, dtype):
    return tensors(lambda held: held.update({name: held[name].to(dtype)}))


def entry(name, **values):
    """A header whose entry `name` has other values."""
    return header(lambda entries: entries[name].update(values))


def doubled(name, **values):
    """A header that lists a tensor twice, the second time with other values."""

    def change(entries):
        again = json.dumps({name: {**entries[name], **values}})
        return (json.dumps(entries)[:-1] + ", " + again[1:]).encode()

    return header(change)


def replaced(old: str, new: str):
    """A header in which the first `old` reads `new`."""
    return header(lambda entries: json.dumps(entries).replace(old, new, 1).encode())


def shifted(begin, end):
    """A header in which the newline's range is moved at both ends."""

    def change(entries):
        offsets = entries[NEWLINE]["data_offsets"]
        entries[NEWLINE]["data_offsets"] = [offsets[0] + begin, offsets[1] + end]

    return header(change)


def trap(folder):
    """A pickle that would make a file when opened, and nothing else."""
    (folder / "model" / "model.safetensors").unlink()
    payload = Trap(str(folder / "touched"))
    (folder / "model" / "pytorch_model.bin").write_bytes(pickle.dumps(payload))
    return ask(folder)


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def shrinking():
    """While tensors are read, the file is cut to half its size."""
    from llava_min.weights import checkpoint

    original, seen = checkpoint.read_tensor, []

    def read(shard, slices, name, part):
        seen.append(name)
        if len(seen) == 3:
            os.truncate(slices.path, slices.path.stat().st_size // 2)
        return original(shard, slices, name, part)

    checkpoint.read_tensor = read


same_header = header(lambda entries: None)
two_shards = sharded(lambda weight_map, folder: None)
tidy = content(lambda data: data)


def point(target):
    """An index whose first tensor lies in the file `target`; beside the folder lies a real one."""

    def change(weight_map, folder):
        outside = folder.parent / "outside.safetensors"
        outside.write_bytes((folder / next(iter(weight_map.values()))).read_bytes())
        name = str(outside) if target == "absolute" else target
        weight_map[next(iter(weight_map))] = name

    return sharded(change)


CHECKPOINTS = [
    *rows(
        "CK-MISS",
        CHECKPOINT,
        "",
        plain,
        {
            name: (tensors(lambda held, name=name: held.pop(name)), name.replace(".", r"\."))
            for name in (
                NEWLINE,
                HEAD,
                LINEAR,
                "language_model.model.layers.1.self_attn.k_proj.bias",
            )
        },
    ),
    *rows(
        "CK-NAN",
        7,
        LINEAR.replace(".", r"\.") + ".*index 5",
        plain,
        {
            "NaN": poison(LINEAR, 5, float("nan")),
            "infinity": poison(LINEAR, 5, float("inf")),
            "minus infinity": poison(LINEAR, 5, float("-inf")),
        },
    ),
    *rows(
        "CK-DTYPE",
        CHECKPOINT,
        "image_newline",
        retype(NEWLINE, torch.float64),
        {
            "I8": (retype(NEWLINE, torch.int8), "I8"),
            "BOOL": (retype(NEWLINE, torch.bool), "BOOL"),
            "I64": (retype(NEWLINE, torch.int64), "I64"),
            "F8": (retype(NEWLINE, torch.float8_e4m3fn), "F8_E4M3"),
        },
    ),
    *rows("CK-PICKLE", CHECKPOINT, "pickled", plain, {"only a .bin file": trap}),
    *rows(
        "CK-TRAV",
        CHECKPOINT,
        "plain file name",
        two_shards,
        {
            name: point(target)
            for name, target in {
                "a parent": "../outside.safetensors",
                "an absolute path": "absolute",
                "through a folder": "a/../../outside.safetensors",
                "a backslash": "..\\outside",
                "NUL": "x\0y",
                "a number": 5,
                "null": None,
                "empty": "",
                "dots": "..",
            }.items()
        },
    ),
    *rows(
        "CK-AUTOMAP",
        CHECKPOINT,
        "architectures",
        config(auto_map={"AutoModel": "evil.Model"}, trust_remote_code=True),
        {
            "a class of its own": config(
                architectures=["EvilForCausalLM"], auto_map={"AutoModel": "evil.M"}
            ),
        },
    ),
    *rows(
        "CK-HDRLEN",
        CHECKPOINT,
        r"model\.safetensors.*header.*\d bytes",
        same_header,
        {
            str(length): content(lambda data, length=length: struct.pack("<Q", length) + data[8:])
            for length in (0, 1000, 10**8 + 1, 2**63, 2**64 - 1)
        },
    ),
    *rows(
        "CK-TRUNC",
        CHECKPOINT,
        r"model\.safetensors.*\d bytes",
        tidy,
        {f"cut at {size}": cut(size) for size in (0, 1, 7, 8, 9, 500, 50_000, -1)},
    ),
    *rows(
        "CK-LFS",
        CHECKPOINT,
        "a Git LFS pointer to it",
        tidy,
        {
            name: text_file(name, b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n")
            for name in ("model.safetensors", "config.json", "tokenizer.json")
        },
    ),
    *rows(
        "CK-OVERLAP",
        CHECKPOINT,
        "image_newline",
        same_header,
        {
            "a hole": shifted(4, 0),
            "an overlap": shifted(-4, 0),
            "moved": shifted(4, 4),
            "reversed": shifted(192, -192),
            "past the end": shifted(0, 1 << 40),
            "negative": entry(NEWLINE, data_offsets=[-192, 0]),
            "an alias": (
                header(lambda e: e.update({"alias": {**e[NEWLINE]}})),
                "image_newline|alias",
            ),
            "trailing bytes": (content(lambda data: data + b"\0"), r"model\.safetensors"),
        },
    ),
    *rows(
        "CK-DUPKEY",
        CHECKPOINT,
        "twice",
        same_header,
        {
            "a tensor, the same": doubled(NEWLINE),
            "another dtype": doubled(NEWLINE, dtype="I32"),
            "other offsets": doubled(NEWLINE, data_offsets=[0, 192]),
            "a field": replaced('"dtype": "F32"', '"dtype": "F32", "dtype": "F32"'),
            "the metadata": replaced('"__metadata__"', '"__metadata__": {}, "__metadata__"'),
        },
    ),
    *rows(
        "CK-JSON",
        CHECKPOINT,
        r"model\.safetensors",
        same_header,
        {
            "an open brace": header(lambda e: b"{"),
            "a list": header(lambda e: b"[]"),
            "null": header(lambda e: b"null"),
            "a text": header(lambda e: b'"a"'),
            "no tensors": header(lambda e: b"{}"),
            "trailing braces": header(lambda e: json.dumps(e).encode() + b"{}"),
            "NaN": replaced('"shape": [48]', '"shape": [NaN]'),
            "a byte order mark": header(lambda e: b"\xef\xbb\xbf" + json.dumps(e).encode()),
            "UTF-16": header(lambda e: json.dumps(e).encode("utf-16")),
            "NUL padding": header(lambda e: json.dumps(e).encode() + b"\0" * 8),
            "200,000 deep": header(lambda e: b'{"a":' * 200_000),
            "a number of 5,000 digits": replaced('"shape": [48]', '"shape": [%s]' % ("9" * 5000)),
            "half a surrogate": replaced('"image_newline"', '"\\ud800"'),
            "not UTF-8": header(lambda e: b'{"\xff": 1}'),
            "true as a size": replaced('"shape": [48]', '"shape": [true]'),
            "2.0 as a size": replaced('"shape": [48]', '"shape": [48.0]'),
            "a text as a size": replaced('"shape": [48]', '"shape": ["48"]'),
            "three offsets": entry(NEWLINE, data_offsets=[0, 1, 2]),
            "an unknown dtype": entry(NEWLINE, dtype="F33"),
            "no dtype": entry(NEWLINE, dtype=None),
            "an entry that is a list": header(lambda e: e.update({NEWLINE: []})),
            "metadata with a number": header(lambda e: e.update({"__metadata__": {"a": 1}})),
            "a line break and colors in a name": (
                header(lambda e: e.update({"\n\x1b[31mred": e.pop(NEWLINE)})),
                r"\\n\\x1b\[31mred",
            ),
        },
    ),
    *rows(
        "CK-SHAPE",
        CHECKPOINT,
        "image_newline",
        same_header,
        {
            "one too few": tensors(lambda held: held.update({NEWLINE: torch.ones(47)})),
            "two dimensions": entry(NEWLINE, shape=[6, 8]),
            "negative": entry(NEWLINE, shape=[-48]),
            "zero": entry(NEWLINE, shape=[0]),
            "an overflow": entry(NEWLINE, shape=[2**40, 2**40]),
            "a scalar": tensors(lambda held: held.update({NEWLINE: torch.tensor(1.0)})),
        },
    ),
    *rows(
        "CK-SHRINK",
        CHECKPOINT,
        r"model\.safetensors.*cut short",
        plain,
        {"while it is read": ask},
        before=shrinking,
        keeps=False,
    ),
    *rows(
        "CK-FIFO",
        CHECKPOINT,
        "",
        plain,
        {
            f"{name} as a {kind}": (how(name), name.replace(".", r"\."))
            for name in (
                "config.json",
                "model.safetensors",
                "model.safetensors.index.json",
                "tokenizer.json",
                "generation_config.json",
            )
            for kind, how in (("pipe", as_pipe), ("folder", as_folder))
        },
    ),
    *rows(
        "CK-TIE",
        CHECKPOINT,
        "lm_head",
        plain,
        {
            "untied and absent": tensors(lambda held: held.pop(HEAD)),
        },
    ),
    *rows(
        "CK-SHARD",
        CHECKPOINT,
        "shards without their",
        plain,
        {"no index": without_index},
    ),
]


def added(change):
    """tokenizer.json with its added tokens changed."""
    return edited("tokenizer.json", lambda held: change(held["added_tokens"]))


def raw_config(old: str, new: str):
    """config.json with its text changed."""

    def make(folder):
        path = folder / "model" / "config.json"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
        return ask(folder)

    return make


HUGE, PICTURES = 2**31 - 1, "preprocessor_config.json"
CONFIGS = [
    *rows(
        "CK-CONFIG",
        CHECKPOINT,
        r"config\.json",
        plain,
        {
            "absent": lambda folder: [(folder / "model" / "config.json").unlink(), ask(folder)][1],
            "not JSON": text_file("config.json", b"{"),
            "empty": text_file("config.json", b""),
            "a list": text_file("config.json", []),
            "binary": text_file("config.json", b"\xff\0\1"),
            "deep": text_file("config.json", b"[" * 100_000),
            "5 MB": text_file("config.json", b" " * (5 << 20) + b"{}"),
            "a key twice": (raw_config('"model_type"', '"model_type": 1, "model_type"'), "twice"),
            "heads do not divide": (
                config(text_config__num_attention_heads=5),
                "num_attention_heads",
            ),
            "no architectures": (config(architectures=None), "architectures"),
            "another family": (config(architectures=["BertModel"]), "BertModel"),
            "LLaVA with another decoder": (
                config(architectures=["LlavaMptForCausalLM"]),
                "Its decoder is MPT",
            ),
            "an unknown tower": (config(vision_config__model_type="dinov2"), "model_type"),
            **{
                f"huge {key}": (config(**{f"{section}__{key}": HUGE}), key)
                for section, keys in (
                    (
                        "text_config",
                        (
                            "hidden_size",
                            "intermediate_size",
                            "vocab_size",
                            "num_hidden_layers",
                            "num_attention_heads",
                            "head_dim",
                        ),
                    ),
                    (
                        "vision_config",
                        (
                            "hidden_size",
                            "intermediate_size",
                            "num_hidden_layers",
                            "image_size",
                            "patch_size",
                        ),
                    ),
                )
                for key in keys
            },
            **{
                f"rope_theta {value}": (config(text_config__rope_theta=value), named)
                for value, named in (
                    (0, "rope_theta"),
                    (-1.0, "rope_theta"),
                    (float("nan"), "NaN"),
                    (float("inf"), "Infinity"),
                )
            },
            "rope_theta 1e999": (
                raw_config('"rope_theta": 1000000.0', '"rope_theta": 1e999'),
                "rope_theta",
            ),
            "rms_norm_eps -1.0": (config(text_config__rms_norm_eps=-1.0), "rms_norm_eps"),
            "a rope factor of 0": (
                config(text_config__rope_scaling={"type": "linear", "factor": 0.0}),
                "factor",
            ),
            "an odd head": (config(text_config__head_dim=11), "head_dim"),
            "a head of 0": (config(text_config__head_dim=0), "head_dim"),
            "patches larger than the picture": (
                config(vision_config__patch_size=100),
                "patch_size",
            ),
            "no grids": (config(image_grid_pinpoints=[]), "image_grid_pinpoints"),
            "a grid of a million tiles": (
                config(image_grid_pinpoints=[[56000, 56000]]),
                "image_grid_pinpoints",
            ),
            "a range of grids without end": (
                config(image_grid_pinpoints="(1x1),...,(99999999x99999999)"),
                "image_grid_pinpoints",
            ),
            "an end token that is a text": (config(text_config__eos_token_id="2"), "eos_token_id"),
        },
    ),
    *rows(
        "CK-PROCESSOR",
        CHECKPOINT,
        r"processor_config\.json",
        plain,
        {
            "another size": (processor(PICTURES, size={"height": 84, "width": 84}), "size"),
            "no resizing": (processor(PICTURES, do_resize=False), "do_resize"),
            "another filter": (processor(PICTURES, resample=2), "resample"),
            "not scaled": (processor(PICTURES, do_rescale=False), "do_rescale"),
            "a deviation of 0": (processor(PICTURES, image_std=[0.5, 0.5, 0]), "image_std"),
            "other grids": (
                processor(PICTURES, image_grid_pinpoints=[[56, 56]]),
                "image_grid_pinpoints",
            ),
            "another class": (
                processor(PICTURES, image_processor_type="ViTImageProcessor"),
                "image_processor_type",
            ),
            "in a section": (
                processor("processor_config.json", image_processor={"resample": 0}),
                "image_processor: resample",
            ),
            "a section that is a number": (
                processor("processor_config.json", video_processor=5),
                "video_processor",
            ),
            "clips of another size": (
                processor("video_preprocessor_config.json", size={"height": 84, "width": 84}),
                "size",
            ),
            "no frames": (processor("video_preprocessor_config.json", num_frames=0), "num_frames"),
            "a list": text_file("preprocessor_config.json", []),
        },
    ),
    *rows(
        "CK-TOK",
        CHECKPOINT,
        r"tokenizer\.json",
        plain,
        {
            "not JSON": text_file("tokenizer.json", b"{"),
            "a list": text_file("tokenizer.json", []),
            "empty": text_file("tokenizer.json", {}),
            "binary": text_file("tokenizer.json", b"\0\xff"),
            "no model": edited("tokenizer.json", lambda held: held.pop("model")),
            "a vocabulary that is a list": edited(
                "tokenizer.json", lambda held: held["model"].update(vocab=[])
            ),
            "added tokens that are no list": edited(
                "tokenizer.json", lambda held: held.update(added_tokens=5)
            ),
            "an added token that is a text": (
                added(lambda tokens: tokens.append("x")),
                "tokenizer",
            ),
            "an added token without an id": (
                added(lambda tokens: tokens[0].pop("id")),
                "tokenizer",
            ),
            "a tokenizer.model that is none": (sentence_pieces(b"\n\x05"), "SentencePiece"),
            "a tokenizer.model of no pieces": (sentence_pieces(b""), r"tokenizer\.model"),
            "a special token is missing": (
                added(
                    lambda tokens: next(t for t in tokens if t["content"] == "<|im_end|>").update(
                        content="<|gone|>"
                    )
                ),
                "im_end",
            ),
            "a special token with another number": (
                added(lambda tokens: tokens[-1].update(id=5000)),
                "5000",
            ),
            "added_tokens.json with an id that is a text": (
                slow_tokenizer({"<|im_start|>": 508, "<|im_end|>": "509"}),
                r"added_tokens\.json",
            ),
            "an added token with a flag that is a text": added(
                lambda tokens: tokens[0].update(lstrip="yes")
            ),
            "an added_tokens_decoder that is a list": (
                edited("tokenizer_config.json", lambda held: held.update(added_tokens_decoder=[1])),
                r"tokenizer_config\.json.*added_tokens_decoder",
            ),
            "an added_tokens_decoder of texts": (
                edited(
                    "tokenizer_config.json",
                    lambda held: held.update(added_tokens_decoder={"508": "<|im_start|>"}),
                ),
                r"tokenizer_config\.json.*added tokens",
            ),
            "an added_tokens_decoder that leaves out a number": (
                edited(
                    "tokenizer_config.json",
                    lambda held: held["added_tokens_decoder"].update({"513": {"content": "[SEG]"}}),
                ),
                r"\[SEG\].*513",
            ),
            "a chat template that is no text": (template_file(b"\xff"), r"chat_template\.jinja"),
            "more tokens than rows": (config(text_config__vocab_size=300), "300"),
            "merges that name nothing": edited(
                "tokenizer.json", lambda held: held["model"].update(merges=[["nothing", "here"]])
            ),
        },
    ),
]


def flags(*arguments):
    """A wrong use of options, without a checkpoint of its own."""
    return lambda folder: ["What?", *arguments]


def prompt(text, *more):
    """Another text in place of the question."""
    return lambda folder: [text, *ask(folder)[1:], *more]


def prompt_file(data: bytes):
    def make(folder):
        (folder / "prompt.txt").write_bytes(data)
        return [f"@{folder / 'prompt.txt'}", *ask(folder)[1:]]

    return make


def picture(folder):
    path = folder / "picture.png"
    small.picture(40, 30).save(path)
    return str(path)


def with_pictures(text, count):
    return lambda folder: [text, *ask(folder)[1:], *["--image", picture(folder)] * count]


def as_stdin(data: bytes):
    return lambda folder: ["-", *ask(folder)[1:], data]


ARGUMENTS = [
    *rows(
        "TX-COUNT",
        QUESTION,
        "prompt: expected as many <image>",
        with_pictures("What?", 2),
        {
            f"{places} places, {count} pictures": (
                with_pictures("<image>" * places + "?", count),
                rf"\({count}\).*found {places}",
            )
            for places, count in ((1, 2), (1, 0), (2, 1), (3, 2))
        },
    ),
    *rows(
        "TX-LONG",
        QUESTION,
        r"too long.*4,096 tokens.*text \+ .*for the answer",
        plain,
        {
            "a long prompt": prompt("word " * 20_000),
            "a long answer": (
                lambda folder: ask(folder, "--max-tokens", "5000"),
                "5,000 for the answer",
            ),
            "pictures": (with_pictures("<image>" * 300 + "?", 300), "pictures"),
            "2 MiB of text": (prompt_file(b"a" * (2 << 20)), "at most 1048576 bytes"),
        },
    ),
    *rows(
        "CLI-UTF8",
        QUESTION,
        "UTF-8",
        prompt("été ★ 😀"),
        {
            "the prompt": (prompt("\udcff\udcfe"), "0xff at 0"),
            "a file in UTF-16": (prompt_file("été".encode("utf-16")), r"prompt\.txt.*0xff at 0"),
            "a file in Latin-1": (prompt_file("été".encode("latin-1")), r"prompt\.txt.*0xe9 at 0"),
            "stdin": (as_stdin(b"caf\xe9"), "stdin.*0xe9 at 3"),
            "the system turn": prompt("a", "--system", "\udcff"),
            "the prefill": prompt("a", "--prefill", "a\udcff"),
        },
    ),
    *rows(
        "CLI-EMPTY",
        QUESTION,
        "expected a question",
        plain,
        {
            "nothing": prompt(""),
            "blanks": prompt(" \n\t "),
            "an empty file": prompt_file(b""),
            "an empty stdin": as_stdin(b""),
        },
    ),
    *rows(
        "CLI-FILE",
        QUESTION,
        "cannot read the prompt",
        prompt_file(b"What?"),
        {
            "no such file": (prompt("@nothing.txt"), r"nothing\.txt"),
            "a folder": (prompt("@."), "a file"),
            "a name that is too long": (prompt("@" + "a" * 5000), "aaa"),
            "a file that cannot be read": (prompt("@/proc/self/mem"), "/proc/self/mem"),
        },
    ),
    *rows(
        "PA-NONFINITE",
        PARAMETER,
        "",
        plain,
        {
            f"{option} {value}": (flags(f"--{option}={value}"), f"--{option}")
            for option, values in {
                "temperature": ("nan", "inf", "1e999", "-1", "-nan"),
                "top-p": ("nan", "0", "1.5", "-1"),
                "min-p": ("nan", "-0.1", "2"),
                "repetition-penalty": ("nan", "0", "-1", "inf"),
                "top-k": ("-1", "1.5"),
                "seed": ("-1", str(2**63), "9" * 400, "abc"),
            }.items()
            for value in values
        },
    ),
    *rows(
        "CLI-FLAGS",
        PARAMETER,
        "",
        plain,
        {
            " ".join(arguments)[:60]: (flags(*arguments), named)
            for arguments, named in (
                (("--max-tokens", "0"), "--max-tokens"),
                (("--max-tokens", "1.5"), "--max-tokens"),
                (("--max-tokens", "-5"), "--max-tokens"),
                (("--max-tokens", ""), "--max-tokens"),
                (("--max-tokens",), "--max-tokens"),
                (("--frames", "many"), "--frames"),
                (("--frames", "0"), "--frames"),
                (("--max-tiles", "0"), "--max-tiles"),
                (("--context", "0"), "--context"),
                (("--threads", "0"), "--threads"),
                (("--device", "tpu"), "--device"),
                (("--dtype", "int8"), "--dtype"),
                (("--kernels", "magic"), "--kernels"),
                (("--multi-image", "x"), "--multi-image"),
                (("--config", "novalue"), "--config"),
                (("--config", "=1"), "--config"),
                (("--json", "--jsonl"), "--json"),
                (("--nonsense",), "--nonsense"),
                (("--max-new-tokens", "0"), "--max-tokens"),
                (("--" + "a" * 5000,), "--aaa"),
                (("--quiet=1",), "--quiet"),
                (("--at", "1", "--fps", "2"), "at and fps"),
                (("--resume",), "--resume needs --batch"),
                (("--temp", "x"), "--temperature"),
                (("again",), "again"),
                (("two\nlines",), r"two\\nlines"),
                (("--template", "jinja"), "jinja"),
                (("--stop", ""), "stop"),
                (("-Z",), "-Z"),
                (("--image", "-", "--image", "-"), "stdin"),
                (("--image",), "--image"),
            )
        },
    ),
    *rows(
        "CLI-MODEL",
        CHECKPOINT,
        "",
        plain,
        {
            "no such folder": (flags("-m", "nowhere"), "nowhere"),
            "a file": (
                lambda folder: ["What?", "-m", folder / "model" / "config.json"],
                "a folder",
            ),
            "a name that is too long": (flags("-m", "a" * 5000), "aaa"),
            "a line break in the name": (flags("-m", "a\nb"), r"a\\nb"),
            "a deep override": (
                flags("--config", "vision_config=" + "[" * 100_000),
                "vision_config",
            ),
            "an override that is NaN": (flags("--config", "vision_config=NaN"), "vision_config"),
        },
    ),
]


@pytest.mark.parametrize("case", [*CHECKPOINTS, *CONFIGS, *ARGUMENTS], ids=str)
def test_bad_input(case: Case, model, tmp_path):
    check(case, tmp_path, model)
    assert not (tmp_path / "bad" / "touched").exists()
