"""What a split model answers, in a process of its own: `python split_model.py OUT LOAD.JSON`.

A rank that dies ends the process that leads it, and that should not be the one that runs the tests.
"""

import json
import sys
from collections import Counter

import numpy as np
import torch

import llava_min
from llava_min.engine.slots import Slots
from llava_min.families.folder import EXAMPLE_PICTURE
from llava_min.options import Options

PHOTO = str(EXAMPLE_PICTURE)
FRAMES = 8  # of which three parts, at two each, first look at six; one has none of the last two
CLIP = np.random.default_rng(5).integers(0, 255, (FRAMES, 84, 84, 3)).astype(np.uint8)
QUESTION = "Describe the picture."
ANSWER = "In the top left. Yes."


def answers(model) -> dict[str, object]:
    """Numbers and texts of many ways of asking."""
    found: dict[str, object] = {
        "photo": model.logits(QUESTION, images=[PHOTO]),
        "clip": model.logits("What moves?", videos=[CLIP]),
        "text": model.logits("hello"),
        "score": torch.tensor(model.score(QUESTION, ANSWER, images=[PHOTO]).log_probabilities),
        "greedy": model.generate(QUESTION, images=[PHOTO], max_tokens=24).token_ids,
        "sampled": model.generate(
            QUESTION, images=[PHOTO], max_tokens=9, temperature=1.5
        ).token_ids,
    }
    chat = model.chat(max_tokens=6)
    first = chat.ask("Where is the star?", images=[PHOTO]).token_ids
    found["chat"] = first, chat.ask("How many shapes are there?").token_ids
    chat.clear()  # rewinds
    found["again"] = chat.ask("Where is the star?", images=[PHOTO]).token_ids
    requests = [
        {"question": QUESTION, "images": [PHOTO], "max_tokens": 7},
        {"question": "Is there a star?", "images": [PHOTO], "max_tokens": 3},
        {"question": "hello", "max_tokens": 12, "ignore_eos": True},
    ]
    found["batch"] = [answer.token_ids for answer in model.generate_batch(requests)]
    found["slots"] = in_slots(model)
    return found


def in_slots(model) -> torch.Tensor:
    """Logits behind answers of three rounds in two rows, which share the beginning of a prompt."""
    slots, found = Slots(model, 2, 900), []
    for number in range(8):
        options = Options.of(max_tokens=2 + number % 3, ignore_eos=True)
        prepared = model.prepare("word " * 80 + f"and number {number} of {number * number}")
        asked = slots.submit(prepared, options, 0.0)
        take = asked.reply.take
        asked.reply.take = lambda logits, likely, take=take: (
            found.append(logits.clone()) or take(logits, likely)
        )
        if number % 3 == 2:
            while slots.busy:
                slots.round()
    while slots.busy:
        slots.round()
    return torch.stack(found)


def counting(found: Counter) -> None:
    """Count the calls of torch.distributed with rows or tiles, and their bytes, in this process.

    A header is bytes too, after its length, and is never sent by isend.
    """
    from llava_min.engine import ranks

    for name in ("all_reduce", "broadcast", "send", "isend", "recv"):
        call = getattr(ranks.dist, name)

        def counted(tensor, *more, call=call, name=name, **named):
            if tensor.is_floating_point() or name == "isend":
                found[name] += 1
                found[f"{name} bytes"] += tensor.nbytes
            return call(tensor, *more, **named)

        setattr(ranks.dist, name, counted)


def main() -> None:
    torch.set_num_threads(1)
    load = json.loads(sys.argv[2])
    if kernels := load.pop("kernels", None):  # in Triton's interpreter, which is slow: little
        llava_min.use_kernels(kernels)
        torch.save({"text": llava_min.load(**load).logits("hello")}, sys.argv[1])
        return
    found: Counter = Counter()
    model = llava_min.load(**load)
    parameters = sum(p.numel() for p in model.network.decoder.blocks.parameters())
    layers, heads = model.network.decoder.config.num_layers, model.empty_cache(8).keys.shape[2]
    result = answers(model)
    counting(found)
    asked = model.generate("What number is written?", images=[PHOTO], max_tokens=5, ignore_eos=True)
    result |= {
        "traffic": dict(found),
        "tokens": (asked.usage["prompt_tokens"], len(asked.token_ids)),
        "held": (parameters, layers, heads),
    }
    torch.save(result, sys.argv[1])


if __name__ == "__main__":
    main()
