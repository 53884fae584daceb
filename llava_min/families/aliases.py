"""Short names of published checkpoints."""

ALIASES = {
    # alias: (repository, its weights in units of 10^9 bytes at 16 bits)
    "interleave-0.5b": ("llava-hf/llava-interleave-qwen-0.5b-hf", 1.7),
    "onevision-0.5b": ("llava-hf/llava-onevision-qwen2-0.5b-ov-hf", 1.8),
    "llava-1.5-7b": ("llava-hf/llava-1.5-7b-hf", 14.1),
    "llava-1.6-vicuna-7b": ("llava-hf/llava-v1.6-vicuna-7b-hf", 14.1),
    "next-video-7b": ("llava-hf/LLaVA-NeXT-Video-7B-hf", 14.1),
    "llava-1.6-mistral-7b": ("llava-hf/llava-v1.6-mistral-7b-hf", 15.1),
    "long-llava-7b": ("aws-prototyping/long-llava-qwen2-7b", 15.9),
    "llava-video-7b": ("lmms-lab/LLaVA-Video-7B-Qwen2", 16.1),
    "onevision-7b": ("llava-hf/llava-onevision-qwen2-7b-ov-hf", 16.1),
    "interleave-7b": ("llava-hf/llava-interleave-qwen-7b-hf", 16.3),
    "llava-next-llama3-8b": ("llava-hf/llama3-llava-next-8b-hf", 16.7),
    "llava-1.5-13b": ("llava-hf/llava-1.5-13b-hf", 26.7),
    "llava-1.6-vicuna-13b": ("llava-hf/llava-v1.6-vicuna-13b-hf", 26.7),
    "llava-1.6-34b": ("llava-hf/llava-v1.6-34b-hf", 69.5),
    "llava-video-72b": ("lmms-lab/LLaVA-Video-72B-Qwen2", 146.3),
    "onevision-72b": ("llava-hf/llava-onevision-qwen2-72b-ov-hf", 146.3),
}
