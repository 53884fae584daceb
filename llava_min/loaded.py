"""What load() gives: weights, tokenizer and preprocessing in one handle, which answers questions.

in:  a checkpoint folder; then prompts with pictures and videos      out: Answer, or pieces of text
Read next: generate.py.
"""

import hashlib
import logging
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import budget, image, media, prompt, video
from . import config as configuration
from .cache import Cache
from .config import LlavaConfig
from .errors import CheckpointError, ParameterError, PromptError
from .generate import Finished, Options, Token, generate
from .image import Tiles
from .model import Llava
from .tokenizer import VISUAL, Tokenizer, split_specials
from .tokenizer import read as read_tokenizer
from .weights import load as weights
from .weights.checkpoint import Checkpoint

log = logging.getLogger("llava_min")
EMBEDDED = Path(__file__).parent / "weights" / "tiny"
EXAMPLE_PICTURE, EXAMPLE_QUESTION = EMBEDDED / "samples" / "shapes.png", "Describe the picture."
DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
}


@dataclass(frozen=True)
class Answer:
    """What a question got. Times in seconds; `media` says what became of each picture and video."""

    text: str
    token_ids: list[int]
    finish_reason: str
    usage: dict[str, int]
    timings: dict[str, float]
    memory: dict[str, int]
    media: list[dict]


@dataclass
class Prepared:
    """A prompt ready for the model: its plan, the tiles of each visual, and how long that took."""

    plan: budget.Plan
    tokenizer: Tokenizer | None
    visuals: list[tuple[Tiles, bool]]  # tiles, and whether they are frames of a clip
    media: list[dict]
    seconds: float = 0.0

    @property
    def ids(self) -> list[int]:
        return [
            i
            for segment in self.plan.segments
            if isinstance(segment, budget.Text)
            for i in segment.ids
        ]

    def text(self) -> str:
        """The rendered prompt as one text, special tokens and the places of visuals included."""
        parts = []
        for segment in self.plan.segments:
            if isinstance(segment, budget.Text):
                ids = list(segment.ids)
                parts.append(
                    self.tokenizer.inner.decode(ids, skip_special_tokens=False)
                    if self.tokenizer
                    else str(ids)
                )
            else:
                kind = "image" if isinstance(segment, budget.Image) else "video"
                parts.append(f"<{kind}: {segment.tokens} tokens>")
        return "".join(parts)

    @property
    def visual_tokens(self) -> int:
        return sum(
            segment.tokens for segment in self.plan.segments if not isinstance(segment, budget.Text)
        )


@dataclass
class Clock:
    """Seconds spent inside an iterator."""

    seconds: float = 0.0

    def around(self, pieces: Iterator[Tensor]) -> Iterator[Tensor]:
        while True:
            start = time.perf_counter()
            piece = next(pieces, None)
            self.seconds += time.perf_counter() - start
            if piece is None:
                return
            yield piece


@dataclass
class LoadedModel:
    """A checkpoint in memory. `generate` answers, `stream` answers piece by piece, `logits` and
    `embed` look inside.
    """

    name: str
    config: LlavaConfig
    network: Llava
    tokenizer: Tokenizer | None
    load_seconds: float = 0.0
    details: list[str] = field(default_factory=list)

    def generate(self, question=None, *, images=(), videos=(), **options) -> Answer:
        """Answer a question about pictures and videos.

        question: text (with <image> and <video> where they go, or without: then they come first),
        messages in OpenAI's style, or token ids with -200 where a visual goes. images: path, URL,
        bytes, PIL, or uint8 [H W 3], each; videos: path, URL, bytes, or uint8 [F H W 3]. options:
        the fields of Options. Raises LlavaMinError.
        """
        *_, answer = self.events(question, images=images, videos=videos, **options)
        return answer

    def stream(self, question=None, *, images=(), videos=(), **options) -> Iterator[str]:
        """The answer's text in pieces of whole characters, as they come."""
        for event in self.events(question, images=images, videos=videos, **options):
            if isinstance(event, Token | Finished) and event.text:
                yield event.text

    def events(
        self, question=None, *, images=(), videos=(), **given
    ) -> Iterator[Prepared | Token | Finished | Answer]:
        """Everything that happens: Prepared, Tokens, Finished, and the Answer that sums it up."""
        options, began = Options.of(**given), time.perf_counter()
        prepared = self.prepare(question, images, videos, options)
        prepared.plan.check_fits(options.max_tokens)
        yield prepared
        vision, start = Clock(), time.perf_counter()
        logits, cache = self.prefilled(prepared, options.max_tokens, vision)
        prefilled = time.perf_counter()
        ids, text = [], ""
        for event in generate(
            self.network, self.tokenizer, logits[-1], cache, prepared.ids, options
        ):
            yield event
            text += event.text
            if isinstance(event, Token):
                ids.append(event.id)
            else:
                finished = event
        decode = finished.last - finished.first if ids else 0.0
        timings = {
            "load_s": self.load_seconds,
            "preprocess_s": prepared.seconds,
            "vision_s": vision.seconds,
            "prefill_s": prefilled - start - vision.seconds,
            "ttft_s": finished.first - began if ids else 0.0,
            "decode_s": decode,
            "tokens_per_s": (len(ids) - 1) / decode if len(ids) > 1 else 0.0,
        }
        usage = {"prompt_tokens": prepared.plan.tokens, "completion_tokens": len(ids),
                 "image_tokens": prepared.visual_tokens}  # fmt: skip
        yield Answer(
            text,
            ids,
            finished.reason,
            usage,
            {name: round(s, 4) for name, s in timings.items()},
            {"peak_bytes": peak_bytes(self.network.device)},
            prepared.media,
        )

    def prefilled(
        self, prepared: Prepared, more: int, vision: Clock | None = None, keep: str = "last"
    ):
        """(logits, the cache behind the prompt with room for `more` tokens)."""
        vision = vision or Clock()
        embedding = self.network.decoder.embedding.weight
        cache = Cache.empty(
            self.config.text,
            1,
            prepared.plan.tokens + more,
            embedding.dtype,
            device=embedding.device,
        )
        visuals = [
            vision.around(self.network.encode(tiles, is_clip))
            for tiles, is_clip in prepared.visuals
        ]
        return self.network.prefill(prepared.plan, visuals, cache, keep=keep), cache

    def logits(self, question, *, images=(), videos=(), **options) -> Tensor:
        """Logits after every row of the prompt: [rows V] float32, on the CPU."""
        prepared = self.prepare(question, images, videos, Options.of(**options))
        return self.prefilled(prepared, 0, keep="all")[0].cpu()

    def embed(self, question, *, images=(), videos=(), **options) -> Tensor:
        """The rows that enter the decoder, text and visuals alike: [rows W]."""
        prepared = self.prepare(question, images, videos, Options.of(**options))
        visuals = [self.network.encode(tiles, is_clip) for tiles, is_clip in prepared.visuals]
        return torch.cat(list(self.network.rows(prepared.plan, visuals)))

    # Preparing
    # -------------------------------------------------------------------------------------

    def prepare(self, question, images, videos, options: Options) -> Prepared:
        """Read the media, render the prompt, and lay out the plan."""
        start = time.perf_counter()
        images, videos = one_or_many(images), one_or_many(videos)
        if (
            isinstance(question, (list, tuple))
            and all(isinstance(item, int) for item in question)
            and question
        ):
            ids = list(question)
            kinds = [("image", i) for i in range(len(images))] + [
                ("video", i) for i in range(len(videos))
            ]
            if ids.count(VISUAL) != len(kinds):
                raise PromptError(
                    f"cannot place the visuals: token ids: expected {len(kinds)} times {VISUAL}, "
                    f"found {ids.count(VISUAL)}."
                )
        else:
            turns, images, videos = self.turns(question, images, videos, options)
            pieces = self.pieces(turns, options)
            ids = self.text_tokenizer().encode(pieces)
            kinds = [
                (piece.kind, piece.index) for piece in pieces if isinstance(piece, prompt.Visual)
            ]
        opened = self.open_media(images, videos, options)
        visuals = [opened[kind] for kind in kinds]
        segments, remaining = [], iter(visuals)
        for run in split_at_visuals(ids):
            segments.append(
                next(remaining)[0] if run == [VISUAL] else budget.Text(tuple(self.checked_ids(run)))
            )
        plan = budget.Plan(tuple(segments), self.config.text.context)
        described = [dict(entry, tokens=segment.tokens) for segment, _, _, entry in visuals]
        prepared = Prepared(
            plan, self.tokenizer, [(tiles, is_clip) for _, tiles, is_clip, _ in visuals], described
        )
        prepared.seconds = time.perf_counter() - start
        return prepared

    def turns(self, question, images: list, videos: list, options: Options):
        """(turns, image sources, video sources) of a plain prompt or of messages."""
        if isinstance(question, (list, tuple)):
            turns, image_sources, video_sources = prompt.from_messages(list(question))
            images = fill_in(image_sources, images, "image")
            videos = fill_in(video_sources, videos, "video")
        else:
            text = default_question(images, videos) if question is None else question
            if not text.strip():
                raise PromptError("cannot ask: prompt: expected a question, found an empty text.")
            if options.raw:
                return text, images, videos
            turns = [prompt.user_turn(text, len(images), len(videos))]
        if options.system is not None:
            turns = [prompt.Turn("system", ((options.system,),)), *turns]
        return turns, images, videos

    def pieces(self, turns, options: Options) -> list[prompt.Piece]:
        """The rendered prompt. With --raw the text is complete; its special tokens are parsed."""
        if options.raw:
            text = turns
            visual = {f"<{kind}>" for kind in ("image", "video")}
            counts = dict.fromkeys(visual, 0)
            pieces: list[prompt.Piece] = []
            for part in prompt.PLACEHOLDER.split(text):
                token = f"<{part}>"
                if token in visual:
                    pieces.append(prompt.Visual(part, counts[token]))
                    counts[token] += 1
                else:
                    pieces += split_specials(part, self.text_tokenizer())
        else:
            name = self.config.template if options.template == "auto" else options.template
            if name not in prompt.TEMPLATES:
                raise ParameterError(f"cannot render the prompt: template: expected one of "
                                     f"{', '.join(prompt.TEMPLATES)}, found {name!r}.")  # fmt: skip
            pieces = list(prompt.TEMPLATES[name](turns))
        return [*pieces, options.prefill] if options.prefill else pieces

    def text_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise CheckpointError(
                f"cannot read text: {self.name}: expected tokenizer.json, or vocab.json and "
                "merges.txt, found neither. Pass token ids instead."
            )
        return self.tokenizer

    def checked_ids(self, ids: list[int]) -> list[int]:
        """Ids that the embedding knows."""
        for token in ids:
            if not 0 <= token < self.config.text.vocab_size:
                raise PromptError(
                    "cannot embed the prompt: token id: expected 0 to "
                    f"{self.config.text.vocab_size - 1}, "
                    f"found {token}."
                )
        return ids

    def open_media(self, images: list, videos: list, options: Options) -> dict:
        """{(kind, index): (segment, tiles, is a clip, description)} of every picture and clip."""
        opened = {}
        mode = self.config.one_image
        if len(images) > 1:
            mode = (
                self.config.several_images if options.multi_image == "auto" else options.multi_image
            )
            how = "padded to a square, one tile" if mode == "pad" else "in a grid of tiles"
            log.info(f"{len(images)} pictures: each {how} (--multi-image {options.multi_image})")
        padded = mode == "pad"
        settings = limited(self.config, options.max_tiles)
        for index, source in enumerate(images):
            picture = media.open_picture(source, log.warning)
            tiles = (
                image.padded_tile(picture, settings)
                if padded
                else image.anyres_tiles(picture, settings)
            )
            segment = budget.picture(picture.size, padded, settings)
            entry = {
                "type": "image",
                "source": media.name_of(source),
                "size": list(picture.size),
                "tiles": len(tiles.pixels),
            }
            opened["image", index] = (segment, tiles, False, entry)
        for index, source in enumerate(videos):
            clip = video.read(source, options.frames or self.config.frames)
            tiles = Tiles(
                image.frame_tiles(clip.frames, self.config), clip.frames.shape[2:0:-1], None
            )
            segment = budget.clip(list(clip.times), self.config)
            entry = {"type": "video", "source": media.name_of(source), "size": list(tiles.size),
                     "frames": len(clip.times), "times": list(clip.times)}  # fmt: skip
            opened["video", index] = (segment, tiles, True, entry)
        return opened


def limited(settings: LlavaConfig, max_tiles: int | None) -> LlavaConfig:
    """The configuration with grids of at most `max_tiles` tiles."""
    if max_tiles is None:
        return settings
    return replace(
        settings, grids=tuple(grid for grid in settings.grids if grid[0] * grid[1] <= max_tiles)
    )


def one_or_many(sources) -> list:
    """A list of sources, also of one that was given alone."""
    single = isinstance(sources, (str, bytes, Path, np.ndarray)) or hasattr(sources, "convert")
    return [sources] if single else list(sources or ())


def fill_in(sources: list, beside: list, kind: str) -> list:
    """Sources from the messages, those that were None taken from what is passed beside them, in
    order.
    """
    open_places = sum(source is None for source in sources)
    if open_places != len(beside):
        raise PromptError(
            f"cannot place the visuals: messages: expected {open_places} {kind}s beside them, "
            f"found {len(beside)}."
        )
    remaining = iter(beside)
    return [next(remaining) if source is None else source for source in sources]


def default_question(images: list, videos: list) -> str:
    """What is asked about media without a prompt."""
    if not images and not videos:
        raise PromptError("cannot ask: prompt: expected a question, found none.")
    nouns = [
        noun + "s" * (count > 1)
        for noun, count in (("picture", len(images)), ("video", len(videos)))
        if count
    ]
    return f"Describe the {' and the '.join(nouns)}."


def split_at_visuals(ids: list[int]) -> Iterator[list[int]]:
    """Runs of text ids, and [VISUAL] alone for each visual."""
    run: list[int] = []
    for token in ids:
        if token == VISUAL:
            if run:
                yield run
            yield [VISUAL]
            run = []
        else:
            run.append(token)
    if run:
        yield run


def peak_bytes(device: torch.device) -> int:
    """The most memory so far: of the GPU where the model lives there, otherwise of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


# Loading
# -------------------------------------------------------------------------------------------


def load(
    folder=None, *, device="auto", dtype="auto", config=None, context=None, progress=None
) -> LoadedModel:
    """Load a checkpoint folder, or the embedded checkpoint, ready to answer."""
    start = time.perf_counter()
    path = Path(folder) if folder is not None else EMBEDDED
    checkpoint = Checkpoint.open(path)
    tokenizer = read_tokenizer(path)
    settings = configuration.read(path, config)
    if context is not None:
        settings = replace(settings, text=replace(settings.text, context=context))
    settings = replace(settings, template=template_of(checkpoint) or settings.template)
    device = pick_device(device)
    torch_dtype = pick_dtype(dtype, device)
    network = weights.on_meta(settings)
    weights.fill(network, checkpoint, torch_dtype, device, progress)
    name = "llava_min embedded toy" if path == EMBEDDED else str(folder)
    return LoadedModel(
        name,
        settings,
        network,
        tokenizer,
        time.perf_counter() - start,
        list(settings.ignored),
    )


def pick_device(device: str) -> str:
    """auto: a GPU where there is one."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda", "mps"):
        raise ParameterError(
            f"cannot load: device: expected auto, cpu, cuda or mps, found {device!r}."
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise ParameterError(
            "cannot load: device: expected a CUDA GPU that torch can use, found none. Use "
            "--device cpu."
        )
    return device


def pick_dtype(dtype: str, device: str) -> torch.dtype:
    """auto: bfloat16 on a GPU, float32 on a CPU."""
    if dtype == "auto":
        return torch.float32 if device == "cpu" else torch.bfloat16
    if dtype not in DTYPES:
        raise ParameterError(
            f"cannot load: dtype: expected auto, {', '.join(DTYPES)}, found {dtype!r}."
        )
    return DTYPES[dtype]


def template_of(checkpoint: Checkpoint) -> str | None:
    """The renderer that writes what the folder's chat template writes, recognised by the hash of
    its text.
    """
    text = None
    if checkpoint.has("chat_template.jinja"):
        text = (checkpoint.folder / "chat_template.jinja").read_text("utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if text is None and checkpoint.has(name):
            text = checkpoint.json(name, "chat template").get("chat_template")
    if not isinstance(text, str):
        return None
    found = prompt.PUBLISHED.get(hashlib.sha256(text.strip().encode()).hexdigest()[:16])
    if found is None:
        log.warning(
            "the checkpoint's chat template is not one that is known; choose a renderer with "
            "--template"
        )
    return found
