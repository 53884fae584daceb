"""Talk about a video: it is looked at once, and later questions compute only their own words.

python examples/conversation.py [VIDEO] [-q QUESTION]... [-m MODEL]
"""

import argparse
from pathlib import Path

import llava_min

CLIP = Path(__file__).parents[1] / "weights" / "tiny" / "samples" / "clip.mp4"
QUESTIONS = ["Describe the video.", "What color is the circle at the end?"]

parser = argparse.ArgumentParser()
parser.add_argument("video", nargs="?", default=CLIP)
parser.add_argument("-q", "--question", action="append")
parser.add_argument("-m", "--model")
given = parser.parse_args()

chat = llava_min.load(given.model).chat()
videos = [given.video]
for question in given.question or QUESTIONS:
    answer = chat.ask(question, videos=videos)
    usage, videos = answer.usage, []  # the chat remembers what it was shown
    print(f"{question} {answer.text}")
    print(f"  {usage['prompt_tokens']} tokens, of which {usage['cached_tokens']} were cached")
