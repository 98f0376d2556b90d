"""Small tokenizers as models have them: byte-level BPE with a given split, and pieces with byte fallback."""

import json
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "The cat sat on the mat, and the dog sat on the log. It's 2026: 12 cats, 345 dogs!",
    "def add(a, b):\n    return a + b  # adds\n\nprint(add(1, 22))\n",
    "Zażółć gęślą jaźń. Привет, мир! 你好。 What's that? I'LL say: THE END…",
] * 4


def byte_level(*splits: str, size: int = 400) -> Any:
    """A byte-level BPE that puts <s> first and splits words at these expressions."""
    built = Tokenizer(models.BPE())
    steps = [pre_tokenizers.Split(Regex(split), "isolated") for split in splits]
    built.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(False, use_regex=False)])
    built.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<s>", "</s>"]
    built.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    built.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=built, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def unigram(*, byte_fallback: bool = True, size: int = 520) -> Any:
    """A Unigram over ▁-joined text, as ALBERT's or XGLM's, with or without tokens of bytes."""
    special = ["<unk>", "<s>", "</s>"] + ([f"<0x{byte:02X}>" for byte in range(256)] if byte_fallback else [])
    built = Tokenizer(models.Unigram())
    built.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=special, unk_token="<unk>", show_progress=False, shrinking_factor=0.9
    )
    built.train_from_iterator(TEXTS, trainer)
    described = json.loads(built.to_str())
    described["model"]["byte_fallback"] = byte_fallback
    described["added_tokens"] = [token for token in described["added_tokens"] if token["content"] in special[:3]]
    built = Tokenizer.from_str(json.dumps(described))
    steps = [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")]
    built.decoder = decoders.Sequence(steps) if byte_fallback else steps[1]
    built.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=built, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )


def whole_words(built: Any) -> Any:
    """The same, with words that are tokens taken as they are, without merging, as Llama 3's."""
    described = json.loads(built.backend_tokenizer.to_str())
    described["model"]["ignore_merges"] = True
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(described)),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
    )


def with_added(built: Any) -> Any:
    """The same with a chat template, a special token beyond its vocabulary, a plain added one, and placeholders."""
    built.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    built.add_tokens(["<tool>", "<unused0>", "<unused1>"])
    built.chat_template = (
        "{% for m in messages %}<|turn|>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|turn|>assistant: {% endif %}"
    )
    return built


def sentencepiece(*, metaspace: bool = False) -> Any:
    """A BPE over ▁-joined text whose unknown characters fall back to bytes, as Llama 2's and Mistral's."""
    special, escaped = ["<unk>", "<s>", "</s>"], [f"<0x{byte:02X}>" for byte in range(256)]
    built = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    built.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special + escaped, show_progress=False)
    built.train_from_iterator([text.split("\n")[0].split(" Zażółć")[0] for text in TEXTS], trainer)
    described = json.loads(built.to_str())
    described["added_tokens"] = [token for token in described["added_tokens"] if token["content"] in special]
    if not metaspace:
        described["pre_tokenizer"] = None
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        described["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]}
    built = Tokenizer.from_str(json.dumps(described))
    built.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    built.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=built, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )
