"""Ask a server about a picture with OpenAI's client, and print the answer while it comes.

llava-min serve                                   (in another terminal; -m MODEL serves a real one)
python examples/client.py [PICTURE] [QUESTION] [--server http://127.0.0.1:8000]

It needs `pip install openai`, and 'llava_min[serve]' for the server.
"""

import argparse
import base64
from pathlib import Path

import openai

SAMPLES = Path(__file__).parents[1] / "weights" / "tiny" / "samples"

parser = argparse.ArgumentParser()
parser.add_argument("picture", nargs="?", type=Path, default=SAMPLES / "shapes.png")
parser.add_argument("question", nargs="?", default="Where is the star?")
parser.add_argument("--server", default="http://127.0.0.1:8000")
given = parser.parse_args()

client = openai.OpenAI(base_url=given.server + "/v1", api_key="EMPTY")
url = "data:image/png;base64," + base64.b64encode(given.picture.read_bytes()).decode()
picture = {"type": "image_url", "image_url": {"url": url}}
turn = {"role": "user", "content": [picture, {"type": "text", "text": given.question}]}
for chunk in client.chat.completions.create(model="llava", messages=[turn], stream=True):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
