"""Imported: the commands that are killed, and the tiny model, texts and artefacts that they read."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PLAIN = "--score wanda --allocate uniform --compensate none --min-channels 4"
TABLES = "--min-channels 4 --metric loss --num-items 3"
WORDS = [f"w{i}" for i in range(97)]


@dataclass(frozen=True)
class Case:
    """A command that writes `out` over what the same command, with other words for `{}`, wrote there before."""

    name: str
    words: str
    old: str
    new: str
    out: tuple[str, ...]  # files, or folders that are written as a whole
    together: bool = True  # several of `out` are replaced together, or none of them


TOY = "--task toy=a.txt"
TWO = "--tasks a=a.txt,b=b.txt"
CASES = (
    Case("prune", f"prune dense {TOY} --sparsity {{}} --out small {PLAIN}", "0.3", "0.5", ("small",)),
    Case(
        "prune --stream", f"prune dense {TOY} --sparsity {{}} --out small --stream {PLAIN}", "0.3", "0.5", ("small",)
    ),
    Case(
        "calibrate",
        "calibrate dense --task a=a.txt --task b=b.txt --num-texts {} --out stats",
        "9",
        "20",
        ("stats/a.safetensors", "stats/b.safetensors"),
        together=False,
    ),
    Case(
        "mask", f"mask dense in/a.safetensors --sparsity {{}} --out m.safetensors {PLAIN}", "0.3", "0.5",
        ("m.safetensors",),
    ),
    Case(
        "merge", "merge in/a.safetensors in/b.safetensors --task {} --out m.safetensors", "one", "two",
        ("m.safetensors",),
    ),
    Case(
        "pack", "pack dense a=in/m{0}.safetensors b=in/m{0}.safetensors --out tasks", "3", "5",
        ("tasks/a.safetensors", "tasks/b.safetensors"), together=False,
    ),
    Case("export uniform", "export in/p{} --to uniform --out e", "3", "5", ("e",)),
    Case("export padded", "export in/p{} --to padded --out e", "3", "5", ("e",)),
    Case("export gguf", "export in/u{} --to gguf --tokenizer none --out e.gguf", "3", "5", ("e.gguf",)),
    Case("export torchao", "export in/p{} --to torchao --weights int8 --out e", "3", "5", ("e",)),
    Case("report", "report in/s{}.json --out r.html", "3", "5", ("r.html", "r_files")),
    Case("route fit", f"route fit dense {TWO} --router-seed {{}} --out r.safetensors", "0", "1", ("r.safetensors",)),
    Case(
        "route eval",
        f"route eval dense {TWO} --router in/r.safetensors --masks in/tasks --metric loss --num-items {{}} "
        "--out e.json",
        "2", "4", ("e.json",),
    ),
    Case(
        "corpus write",
        "corpus write dense --like a.txt --num {} --max-new-tokens 8 --slack 1e9 --out t.jsonl",
        "3", "5", ("t.jsonl", "t.jsonl.meta.json"),
    ),
    Case(
        "corpus answer",
        "corpus answer dense --prompts a.jsonl --num {} --max-new-tokens 30 --attempts 9 --out t.jsonl",
        "20", "40", ("t.jsonl", "t.jsonl.meta.json"),
    ),
    Case(
        "bench", "bench dense in/p{} --batch 1 --prompt-length 4 --new-tokens 2 --repeats 1 --out b.json", "3", "5",
        ("b.json",),
    ),
    Case(
        "compare", f"compare dense --tasks toy=a.txt --methods wanda-sp --sparsity {{}} {TABLES} --out c", "0.3", "0.5",
        ("c/compare.json",),
    ),
    Case(
        "sweep", f"sweep dense {TOY} --sparsity {{}} --method wanda-sp --repeats 1 {TABLES} --out s", "0.3", "0.5",
        ("s/sweep.json",),
    ),
    Case(
        "analyze", f"analyze dense {TWO} --sparsity {{}} --num-states 3 --embedding PCA --out a.json", "0.3", "0.4",
        ("a.json",),
    ),
)  # fmt: skip
LEFT_OUT = {
    "demo": "takes minutes; it writes by what prune and report write by",
    "export --to openvino": "its extra isn't installed",
    "push": "writes nothing here",
}
INPUTS = (
    "calibrate dense --task a=a.txt --task b=b.txt --out in",
    *(f"mask dense in/a.safetensors --sparsity 0.{n} --out in/m{n}.safetensors {PLAIN}" for n in (3, 5)),
    *(f"prune dense {TOY} --sparsity 0.{n} --out in/p{n} {PLAIN.replace('uniform', 'one-width')}" for n in (3, 5)),
    *(f"export in/p{n} --to uniform --out in/u{n}" for n in (3, 5)),
    "pack dense a=in/m3.safetensors b=in/m5.safetensors --out in/tasks",
    f"route fit dense {TWO} --out in/r.safetensors",
    *(f"sweep dense {TOY} --sparsity 0.{n} --method wanda-sp --repeats 1 {TABLES} --out in/s{n}" for n in (3, 5)),
)


def make_inputs(place: Path, run: Callable[[Path, str], int]) -> None:
    """Into a folder: a tiny model, two texts, and what the commands read. run: a command there, to its exit code."""
    torch.manual_seed(0)
    tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="w0"))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    sizes = {"vocab_size": 97, "hidden_size": 24, "intermediate_size": 120, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8, "max_position_embeddings": 64}
    config = LlamaConfig(**sizes, **heads, bos_token_id=1, eos_token_id=1)
    LlamaForCausalLM(config).save_pretrained(place / "dense")
    PreTrainedTokenizerFast(tokenizer_object=tokens, unk_token="w0", eos_token="w1").save_pretrained(place / "dense")
    chance = random.Random(0)
    for name in ("a", "b"):
        texts = [" ".join(chance.choices(WORDS[2:], k=12)) for _ in range(60)]
        (place / f"{name}.txt").write_text("\n\n".join(texts))
        lines = [json.dumps({"prompt": text, "answer": "w5"}) for text in texts]
        (place / f"{name}.jsonl").write_text("\n".join(lines))
    for command in INPUTS:
        if run(place, command):
            raise SystemExit(f"{command}: {(place / 'log').read_text()[-2000:]}")
    for n in (3, 5):
        (place / "in" / f"s{n}" / "sweep.json").rename(place / "in" / f"s{n}.json")
