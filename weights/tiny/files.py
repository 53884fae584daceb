"""The text files of the embedded checkpoint: configuration, tokenizer, chat template, preprocessor.

    python -m llava_min.weights.tiny.files      writes them next to this file
They have the names and keys of a published llava_onevision checkpoint, so that transformers loads
the folder unchanged. The tokenizer is a byte-level BPE, trained on questions and answers of
scenes.py, with Qwen2's splitting rule and special tokens.
Read scenes.py first. Read next: lessons.py.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from ...families.vocabulary import QWEN2_SPLIT
from . import scenes

FOLDER = Path(__file__).parent
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
WORDS = 507  # byte-level tokens; with the five special ones the vocabulary has 512
TILE = 84
CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{# Render all images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ "
    "'<image>' }}{% endfor %}"
    "{# Render all video then #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}{{ "
    "'<video>' }}{% endfor %}"
    "{# Render all text next #}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\n' + content['text'] }}{% endfor %}"
    "{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ '\n' + content['text'] }}{% endgeneration %}{% endfor %}"
    "{% endif %}{{'<|im_end|>'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def corpus(count: int = 4000) -> Iterator[str]:
    """Questions and answers of freshly drawn scenes, and the words of the templates."""
    rng = np.random.default_rng(0)
    yield "system\nYou are a helpful assistant."
    for _ in range(count):
        questions = scenes.picture_questions(rng, scenes.draw_scene(rng, (96, 96)))
        questions += scenes.draw_pair(rng, (96, 96))[1]
        questions += scenes.clip_questions(rng, scenes.draw_clip(rng, (96, 96), 6))
        for _, question, answer in questions:
            yield f"user \n{question}"
            yield f"assistant\n{answer}"


def tokenizer() -> Tokenizer:
    """Byte-level BPE over the corpus, then the special tokens."""
    built = Tokenizer(models.BPE())
    built.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated")
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    built.pre_tokenizer = pre_tokenizers.Sequence([split, in_bytes])
    built.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    built.train_from_iterator(
        corpus(),
        trainers.BpeTrainer(vocab_size=WORDS, initial_alphabet=alphabet, show_progress=False),
    )
    missing = WORDS - built.get_vocab_size()
    built.add_tokens([f"<|unused_{index}|>" for index in range(missing)])
    built.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    )
    return built


def configuration(ids: dict[str, int]) -> dict[str, object]:
    """config.json: the architecture of llava-onevision at toy size."""
    return {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "model_type": "llava_onevision",
        "image_token_index": ids["<image>"],
        "video_token_index": ids["<video>"],
        "image_grid_pinpoints": [
            [TILE * rows, TILE * columns] for rows in range(1, 7) for columns in range(1, 7)
        ],
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
        "vision_aspect_ratio": "anyres_max_9",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "num_channels": 3,
            "image_size": TILE,
            "patch_size": 14,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
            "vision_use_head": False,
        },
        "text_config": {
            "model_type": "qwen2",
            "vocab_size": WORDS + len(SPECIAL),
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "hidden_act": "silu",
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "tie_word_embeddings": True,
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
        },
    }


def write(folder: Path = FOLDER) -> None:
    """Write every file but the weights into `folder`.

    A tokenizer that is there stays: the weights were trained with it.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        tokenizer().save(str(path))
    built = Tokenizer.from_file(str(path))
    ids = {token: number for token in SPECIAL if (number := built.token_to_id(token)) is not None}
    image_processor = {
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "do_pad": True,
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "size": {"height": TILE, "width": TILE},
        "image_grid_pinpoints": configuration(ids)["image_grid_pinpoints"],
    }
    video_processor = {
        key: value
        for key, value in image_processor.items()
        if key not in ("image_processor_type", "image_grid_pinpoints", "do_pad")
    }
    contents = {
        "config.json": configuration(ids),
        "generation_config.json": {
            "bos_token_id": ids["<|endoftext|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
        },
        "tokenizer_config.json": {
            "tokenizer_class": "Qwen2Tokenizer",
            "add_prefix_space": False,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "unk_token": None,
            "bos_token": None,
            "model_max_length": 32768,
            "padding_side": "left",
            "additional_special_tokens": list(SPECIAL[1:]),
            "errors": "replace",
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": False,
            "added_tokens_decoder": {
                str(ids[token]): {
                    "content": token,
                    "special": True,
                    "normalized": False,
                    "lstrip": False,
                    "rstrip": False,
                    "single_word": False,
                }
                for token in SPECIAL
            },
        },
        "chat_template.json": {"chat_template": CHAT_TEMPLATE},
        "preprocessor_config.json": image_processor,
        "video_preprocessor_config.json": {
            "video_processor_type": "LlavaOnevisionVideoProcessor",
            "num_frames": 16,
            **video_processor,
        },
        "processor_config.json": {
            "processor_class": "LlavaOnevisionProcessor",
            "image_token": "<image>",
            "video_token": "<video>",
            "num_image_tokens": (TILE // 14) ** 2,
            "vision_feature_select_strategy": "full",
            "vision_aspect_ratio": "anyres_max_9",
        },
    }
    for name, value in contents.items():
        (folder / name).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
