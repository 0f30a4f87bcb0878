"""Ask about pictures drawn here: python examples/pictures.py MODEL [PLACEHOLDER].

MODEL is the folder of a model that sees pictures; PLACEHOLDER what its prompts hold for one:
<image> (Llava, SmolVLM), <|image_pad|> (Qwen), <start_of_image> (Gemma 3), [IMG] or <|image|>.
"""

import sys

from PIL import Image, ImageDraw

from ranvier import LLM, SamplingParams


def shapes() -> Image.Image:
    picture = Image.new("RGB", (224, 224), "white")
    draw = ImageDraw.Draw(picture)
    draw.ellipse((20, 20, 120, 120), fill="red")
    draw.rectangle((110, 110, 200, 200), fill="blue")
    return picture


def chart() -> Image.Image:
    picture = Image.new("RGB", (320, 200), "white")
    draw = ImageDraw.Draw(picture)
    for i, height in enumerate((60, 150, 90, 120)):
        draw.rectangle((30 + 70 * i, 180 - height, 75 + 70 * i, 180), fill="seagreen")
    draw.line((20, 180, 305, 180), fill="black", width=2)
    return picture


def text() -> Image.Image:
    picture = Image.new("RGB", (240, 80), "white")
    ImageDraw.Draw(picture).text((20, 30), "EXIT 7  LEFT", fill="black")
    return picture


def ask(llm: LLM, mark: str) -> list[str]:
    """One question about each picture, and one about all."""
    pictures = [shapes(), chart(), text()]
    asked = [(f"{mark} What is in this picture ?", [picture]) for picture in pictures]
    asked.append((f"{mark} {mark} {mark} Compare these pictures .", pictures))
    prompts = [{"prompt": words, "multi_modal_data": {"image": own}} for words, own in asked]
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=32))
    return [output.outputs[0].text for output in outputs]


if __name__ == "__main__":
    with LLM(sys.argv[1]) as model:
        for answer in ask(model, sys.argv[2] if len(sys.argv) > 2 else "<image>"):
            print(repr(answer))
