"""Tiny models that see, with processors made here: folders, images, and data with both."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BatchFeature, PreTrainedTokenizerFast
from wrappers import wrapper

from seap.models import sight
from seap.models.decoders import decoder_of
from seap.models.sight import sight_of

IMAGE, START, END, FAKE, OVER = range(90, 95)
NAMED = {"<image>": IMAGE, "<boi>": START, "<eoi>": END, "<fake_token_around_image>": FAKE, "<end_of_utterance>": OVER}
CHANGES: dict[str, dict[str, Any]] = {
    "Qwen2VLForConditionalGeneration": {"image_token_id": IMAGE, "vision_start_token_id": START},
    "Qwen3VLForConditionalGeneration": {"image_token_id": IMAGE, "vision_start_token_id": START},
}
SEEING = ("Gemma3", "Llava", "Idefics3", "Qwen2VL", "Qwen3VL")
TEMPLATE = (
    "{% for m in messages %}{{ 'w5 ' if m.role == 'user' else 'w6 ' }}{% for p in m.content %}"
    "{{ 'MARK ' if p.type == 'image' else p.text + ' ' }}{% endfor %}w7 {% endfor %}"
    "{% if add_generation_prompt %}w6 {% endif %}"
)


def tokenizer() -> Any:
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, 90)} | NAMED
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = {"image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>"}
    own = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "extra_special_tokens": named}
    return PreTrainedTokenizerFast(tokenizer_object=words, **own)


class Patches:
    """A processor as Qwen's, whose own needs torchvision for videos."""

    image_token = "<image>"

    def __init__(self, images: Any, tokenizer: Any, template: str) -> None:
        self.images, self.tokenizer, self.chat_template = images, tokenizer, template

    def __call__(self, text: list[str], images: list[Any], return_tensors: str, add_special_tokens: bool) -> Any:
        found = self.images(images[0], return_tensors=return_tensors)
        for grid in found["image_grid_thw"]:
            many = " ".join(["<many>"] * (int(grid.prod()) // 4))
            text = [text[0].replace("<image>", many, 1)]
        ids = self.tokenizer(text[0].replace("<many>", "<image>"), add_special_tokens=add_special_tokens)["input_ids"]
        both = torch.tensor([ids])
        return BatchFeature({**found, "input_ids": both, "mm_token_type_ids": (both == IMAGE).long()})


def processor(kind: str) -> Any:
    own, square = tokenizer(), {"height": 16, "width": 16}
    template = TEMPLATE.replace(
        "MARK", {"Gemma3": "<boi>"}.get(kind, "<boi> <image> <eoi>" if "Qwen" in kind else "<image>")
    )
    if kind == "Gemma3":
        images = transformers.Gemma3ImageProcessorPil(size=square)
        return transformers.Gemma3Processor(images, own, chat_template=template, image_seq_length=4)
    if kind == "Llava":
        images = transformers.SiglipImageProcessorPil(size=square)
        more = {"patch_size": 8, "vision_feature_select_strategy": "full", "chat_template": template}
        return transformers.LlavaProcessor(images, own, **more)
    if kind == "Idefics3":
        longest = {"longest_edge": 16}
        images = transformers.Idefics3ImageProcessorPil(size=longest, max_image_size=longest, do_image_splitting=False)
        return transformers.Idefics3Processor(images, own, image_seq_len=1, chat_template=template)
    temporal = 2 if kind == "Qwen2VL" else 1
    images = transformers.Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=temporal, min_pixels=64, max_pixels=256
    )
    return Patches(images, own, template)


def whole(kind: str) -> Any:
    """The multimodal model."""
    name = f"{kind}ForConditionalGeneration"
    more: dict[str, Any] = {"vision_feature_select_strategy": "full"} if kind == "Llava" else {}
    return wrapper(name, **CHANGES.get(name, {}), **more)


def seeing(kind: str) -> tuple[Any, Any, Any]:
    """The decoder, its tokenizer that knows of images, and the processor."""
    model, made = whole(kind), processor(kind)
    decoder, own = decoder_of(model), tokenizer()
    sight.give_(own, Path(), model.config)
    found = sight_of(own)
    assert found is not None
    found.__dict__["processor"], own.chat_template = made, made.chat_template
    return decoder, own, made


def folder(path: Path, kind: str) -> Path:
    whole(kind).save_pretrained(path)
    processor(kind).save_pretrained(path)
    return path


def image(number: int, size: tuple[int, int] = (16, 16)) -> Any:
    torch.manual_seed(number)
    values = torch.randint(0, 255, (size[1], size[0], 3), dtype=torch.uint8)
    return Image.fromarray(values.numpy())


def conversations(place: Path, count: int = 12) -> Path:
    """A file of conversations about images, of one and of two, and some about none."""
    rows = []
    for number in range(count):
        shown = [f"{number}.{i}.png" for i in range(1 + number % 2)] if number % 4 else []
        for i, name in enumerate(shown):
            image(10 * number + i).save(place / name)
        words = [f"w{20 + (number * 3 + i * (number + 2)) % 60}" for i in range(3 + number % 5)]
        parts = [{"type": "image", "path": name} for name in shown] + [{"type": "text", "text": " ".join(words)}]
        said = [{"role": "user", "content": parts}, {"role": "assistant", "content": " ".join(reversed(words[1:]))}]
        rows.append({"messages": said})
    (place / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return place / "data.jsonl"
