"""Draw one picture twice, plainly and with cached features, and save both side by side.

python samples/first_picture.py "a red heart"
"""

import sys
import time

import torch
from PIL import Image

from diffaccel import DeepCache, Taylor, accelerate, models

prompt = sys.argv[1] if len(sys.argv) > 1 else "a red heart"
pipe = models.load("emoji-sd")


def draw() -> Image.Image:
    """Sample with the same noise every time, and say how long it took."""
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(0)
    picture: Image.Image = pipe(prompt, num_inference_steps=20, guidance_scale=2.0, generator=generator).images[0]
    print(f"{time.perf_counter() - start:.2f} s")
    return picture


plain = draw()
with accelerate(pipe, DeepCache(interval=3, forecast=Taylor(1))) as handle:
    cached = draw()
print(handle.report())

both = Image.new("RGB", (2 * plain.width, plain.height))
both.paste(plain, (0, 0))
both.paste(cached, (plain.width, 0))
both.save("first_picture.png")
print("first_picture.png: plain on the left, cached on the right")
