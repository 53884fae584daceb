"""Logits, token counts and answers against transformers' LlavaOnevisionForConditionalGeneration, in
float32.

The bound: 5e-5 * max(1, max|logit| / 5), five times what the two implementations differ by.
"""

import json

import pytest
import small
import torch

import llava_min

pytest.importorskip("transformers")
SIZES = [
    (1, 1),
    (1, 2400),
    (2400, 1),
    (84, 84),
    (85, 84),
    (84, 85),
    (168, 168),
    (300, 200),
    (200, 300),
    (640, 480),
    (480, 640),
    (1024, 899),
    (500, 1500),
    (101, 997),
    (997, 101),
    (33, 40),
    (7, 5),
    (169, 170),
    (252, 84),
    (1153, 767),
]
FRAMES = [1, 2, 5, 8, 16]


class Oracle:
    """transformers' model and processors on a checkpoint folder, without torchvision."""

    def __init__(self, folder):
        from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration
        from transformers.models.llava_onevision import (
            image_processing_pil_llava_onevision as processing,
        )
        from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

        self.model, self.info = LlavaOnevisionForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
        self.model.eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.processor = processing.LlavaOnevisionImageProcessorPil.from_pretrained(folder)
        tile = self.processor.size["height"]
        self.frames = SiglipImageProcessorPil(
            size={"height": tile, "width": tile}, image_mean=[0.5] * 3, image_std=[0.5] * 3
        )
        self.tile, self.side = tile, tile // 14

    def features(self, size) -> int:
        """How many placeholders transformers' processor writes for one picture."""
        from transformers import LlavaOnevisionProcessor

        counter = object.__new__(LlavaOnevisionProcessor)
        counter.image_processor, counter.num_image_tokens = self.processor, self.side**2
        counter.vision_aspect_ratio = "anyres_max_9"
        return counter._get_number_of_features(size[1], size[0], self.tile, self.tile)

    def prompt(self, placeholders: str, question: str) -> dict:
        text = f"<|im_start|>user {placeholders}\n{question}<|im_end|><|im_start|>assistant\n"
        return dict(self.tokenizer(text, return_tensors="pt"))

    def images(self, pictures, question: str) -> dict:
        if len(pictures) == 1:
            pixels = self.processor(pictures, return_tensors="pt")
            placeholders = "<image>" * self.features(pictures[0].size)
        else:
            pixels = self.processor([pictures], return_tensors="pt")
            placeholders = "<image>" * ((self.side**2 + 1) * len(pictures))
        return {**self.prompt(placeholders, question), **pixels}

    def video(self, frames, question: str) -> dict:
        pixels = self.frames(list(frames), return_tensors="pt")["pixel_values"][None]
        count = len(frames) * (-(-self.side // 2)) ** 2 + 1
        return {**self.prompt("<video>" * count, question), "pixel_values_videos": pixels}

    @torch.no_grad()
    def logits(self, inputs) -> torch.Tensor:
        return self.model(**inputs).logits[0]

    @torch.no_grad()
    def greedy(self, inputs, count: int) -> list[int]:
        ids = self.model.generate(**inputs, do_sample=False, max_new_tokens=count)
        return ids[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.fixture(scope="module")
def tiny():
    return llava_min.load(small.TINY, dtype="float32"), Oracle(small.TINY)


def check(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    bound = 5e-5 * max(1.0, theirs.abs().max().item() / 5)
    assert (ours - theirs).abs().max().item() <= bound


def check_answer(ours: list[int], theirs: list[int], logits: torch.Tensor, error: float) -> None:
    """Equal tokens; only where the first one's margin is within four errors may they differ."""
    top = logits[-1].topk(2).values
    if (top[0] - top[1]).item() > 4 * error:
        assert ours == theirs


def test_embedded_checkpoint_loads_whole_in_transformers(tiny):
    info = tiny[1].info
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_one_picture(tiny, size):
    model, oracle = tiny
    picture = small.picture(*size, seed=sum(size))
    inputs = oracle.images([picture], "Describe the picture.")
    theirs = oracle.logits(inputs)
    ours = model.logits("Describe the picture.", images=[picture])
    check(ours, theirs)
    answer = model.generate("Describe the picture.", images=[picture], max_tokens=12)
    assert answer.usage["prompt_tokens"] == inputs["input_ids"].shape[1]
    check_answer(
        answer.token_ids, oracle.greedy(inputs, 12), theirs, (ours - theirs).abs().max().item()
    )


@pytest.mark.parametrize("count", FRAMES)
def test_one_clip(tiny, count):
    model, oracle = tiny
    frames = small.frames(count, seed=count)
    inputs = oracle.video(frames, "Describe the video.")
    theirs = oracle.logits(inputs)
    ours = model.logits("Describe the video.", videos=[frames])
    check(ours, theirs)
    answer = model.generate("Describe the video.", videos=[frames], max_tokens=12)
    assert answer.usage["prompt_tokens"] == inputs["input_ids"].shape[1]
    check_answer(
        answer.token_ids, oracle.greedy(inputs, 12), theirs, (ours - theirs).abs().max().item()
    )


def test_several_pictures_are_one_padded_tile_each(tiny):
    model, oracle = tiny
    pictures = [small.picture(90, 60, 1), small.picture(40, 100, 2), small.picture(84, 84, 3)]
    inputs = oracle.images(pictures, "What is different?")
    check(model.logits("What is different?", images=pictures), oracle.logits(inputs))


def test_text_alone(tiny):
    model, oracle = tiny
    check(
        model.logits("Where is the star?"), oracle.logits(oracle.prompt("", "Where is the star?"))
    )


def test_chat_template_writes_the_same_ids(tiny):
    """The renderer against the stored jinja template, over several turns and a system turn."""
    model, oracle = tiny
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "text", "text": "Where is the star?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "At the top."}]},
        {"role": "user", "content": [{"type": "text", "text": "What is\non the left?"}]},
    ]
    ours = model.prepare(messages).ids
    from transformers.utils.chat_template_utils import render_jinja_template

    template = (small.TINY / "chat_template.json").read_text()
    rendered, _ = render_jinja_template(
        [messages], chat_template=json.loads(template)["chat_template"], add_generation_prompt=True
    )
    assert ours == oracle.tokenizer(rendered[0])["input_ids"]


@pytest.mark.parametrize(
    "text", ["How many?", "naïve café ☕", "数字 42", "a  b\n\n c\t", "'s don't I'LL 007", "🎈🎈"]
)
def test_tokenizer_gives_the_same_ids(tiny, text):
    model, oracle = tiny
    assert model.tokenizer.encode_text(text) == oracle.tokenizer(text)["input_ids"]
    assert model.tokenizer.decode(model.tokenizer.encode_text(text)) == text


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("names", ["old", "4.52", "5"])
def test_small_random_models_under_every_name(tmp_path, seed, names):
    """post_layernorm and image_newline random: a tower that applied the one or forgot the other
    would show.
    """
    config = small.hf_config(tied=bool(seed))
    model = small.random_model(config, seed)
    tensors = {
        rename(name, names): tensor for name, tensor in small.tensors_of(model, "hf").items()
    }
    folder = small.write(tmp_path, config, tensors)
    processor = small.TINY / "preprocessor_config.json"
    text = processor.read_text().replace("84", "56")
    settings = json.loads(text)
    settings["image_grid_pinpoints"] = config["image_grid_pinpoints"]
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    oracle, ours = Oracle(folder), llava_min.load(folder, dtype="float32")
    assert not oracle.info["missing_keys"] and not oracle.info["unexpected_keys"]
    for width, height in ((100, 60), (30, 200)):
        pictures = [small.picture(width, height, seed)]
        check(
            ours.logits("What?", images=pictures), oracle.logits(oracle.images(pictures, "What?"))
        )
    frames = small.frames(3, seed=seed)
    check(ours.logits("What?", videos=[frames]), oracle.logits(oracle.video(frames, "What?")))


def rename(name: str, names: str) -> str:
    """A name of the old HF layout in the wording of a later version."""
    if names == "old":
        return name
    renames = [
        ("language_model.model.", "model.language_model."),
        ("language_model.lm_head.", "lm_head."),
        ("vision_tower.", "model.vision_tower."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
        ("image_newline", "model.image_newline"),
    ]
    for old, new in renames:
        if name.startswith(old):
            name = new + name[len(old) :]
            break
    return name.replace("vision_tower.vision_model.", "vision_tower.") if names == "5" else name


def test_mutants_are_caught(tiny, monkeypatch):
    """Named slips that the comparison must see."""
    from llava_min import projector, vision
    from llava_min.kernels import activation

    model, oracle = tiny
    picture, end_rows = small.picture(200, 150, 5), projector.end_rows
    theirs = oracle.logits(oracle.images([picture], "What?"))
    mutants = [
        (activation, "gelu_torch", lambda rows, kind: torch.nn.functional.gelu(rows)),
        (
            vision,
            "normalise",
            lambda tiles, config, dtype: (tiles.float() / 256 - 0.5).div(0.5).permute(0, 3, 1, 2),
        ),
        (projector, "end_rows", lambda patch_map, newline: end_rows(patch_map, 0 * newline)),
    ]
    for module, name, mutant in mutants:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, mutant)
            ours = model.logits("What?", images=[picture])
        bound = 5e-5 * max(1.0, theirs.abs().max().item() / 5)
        assert (ours - theirs).abs().max().item() > bound, name
