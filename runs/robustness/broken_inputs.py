"""What `fuzz.py` damages: a tiny model, data of every format, one of each artefact, and the commands that read them."""

import json
import os
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

WORDS = [f"w{i}" for i in range(60)]
QUICK = ["--score", "wifv", "--allocate", "logistic", "--compensate", "none"]
SMALL = ["--num-texts", "8", "--seq-len", "32"]
TEST = ["--num-items", "4", "--window", "32", "--metric", "loss"]
# Kind → the file that is damaged, and the commands that read it. OUT is a place to write to.
PRUNE = ["prune", "model", "--task", "t=t.jsonl", "--sparsity", "0.3", *QUICK, *SMALL, "--out", "OUT"]
SUBJECTS: dict[str, tuple[str, list[list[str]]]] = {
    "config": ("model/config.json", [["inspect", "model"], ["check", "model"], PRUNE]),
    "weights": ("model/model.safetensors", [["inspect", "model"], PRUNE]),
    "tokenizer": ("model/tokenizer.json", [PRUNE]),
    "tokenizer config": ("model/tokenizer_config.json", [PRUNE]),
    "statistics": (
        "stats/t.safetensors",
        [
            ["inspect", "FILE"],
            ["mask", "model", "FILE", "--sparsity", "0.3", *QUICK, "--out", "OUT.safetensors"],
            [
                "mask",
                "model",
                "FILE",
                "--sparsity",
                "0.3",
                "--score",
                "obs",
                "--allocate",
                "logistic",
                "--out",
                "OUT.safetensors",
            ],
            ["merge", "FILE", "stats2/t.safetensors", "--out", "OUT.safetensors"],
            [
                "prune",
                "model",
                "--stats",
                "FILE",
                "--sparsity",
                "0.3",
                "--score",
                "obs",
                "--allocate",
                "logistic",
                "--out",
                "OUT",
            ],
        ],
    ),
    "mask": (
        "mask.safetensors",
        [
            ["inspect", "FILE"],
            ["prune", "model", "--mask-file", "FILE", "--compensate", "none", "--out", "OUT"],
            ["pack", "model", "FILE", "--out", "OUT"],
        ],
    ),
    "network": (
        "tasks/t.safetensors",
        [
            ["inspect", "FILE"],
            [
                "route",
                "eval",
                "model",
                "--tasks",
                "t=t.jsonl,u=u.jsonl",
                "--router",
                "router.safetensors",
                "--masks",
                "tasks",
                *TEST,
            ],
        ],
    ),
    "router": ("router.safetensors", [["inspect", "FILE"], ["route", "predict", "model", "w1 w2", "--router", "FILE"]]),
    "pruned config": (
        "small/config.json",
        [["inspect", "small"], ["check", "small"], ["eval", "small", "--task", "t=t.jsonl", *TEST]],
    ),
    "pruned mask": (
        "small/seap/mask.safetensors",
        [["prune", "small", *PRUNE[2:]], ["pack", "model", "small", "--out", "OUT"]],
    ),
    "seap.json": (
        "small/seap.json",
        [
            ["inspect", "small"],
            ["export", "small", "--to", "padded", "--out", "OUT"],
            ["push", "small", "a/b", "--dry-run"],
        ],
    ),
    "result": ("compare/compare.json", [["report", "FILE", "--out", "OUT.html"]]),
    "analysis": ("analyze.json", [["report", "FILE", "--out", "OUT.html"]]),
    "evaluation": ("eval.json", [["push", "small", "a/b", "--dry-run", "--results", "FILE"]]),
    **{
        f"data {name}": (
            f"data.{name}",
            [
                ["calibrate", "model", "--task", "t=FILE", *SMALL, "--out", "OUT"],
                ["eval", "model", "--task", "t=FILE", *TEST],
            ],
        )
        for name in ("jsonl", "json", "csv", "tsv", "txt", "parquet")
    },
}


def make(room: Path) -> None:
    """The model, its data, and one of each artefact, by seap's own commands."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    from seap.cli.main import main

    torch.manual_seed(0)
    shape = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "max_position_embeddings": 64,
    }
    config = transformers.LlamaConfig(
        **shape, num_attention_heads=4, num_key_value_heads=2, bos_token_id=1, eos_token_id=2
    )
    transformers.LlamaForCausalLM(config).save_pretrained(room / "model")
    words = Tokenizer(
        models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2} | {w: 3 + i for i, w in enumerate(WORDS)}, unk_token="<pad>")
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(room / "model")
    rng = random.Random(0)
    rows = [{"prompt": " ".join(rng.choices(WORDS, k=9)), "answer": rng.choice(WORDS)} for _ in range(24)]
    for name in ("t", "u"):
        (room / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows[:: 1 if name == "t" else -1]))
    write_data(room, rows)
    os.chdir(room)
    for command in (
        ["calibrate", "model", "--task", "t=t.jsonl", "--second-moments", *SMALL, "--out", "stats"],
        [
            "calibrate",
            "model",
            "--task",
            "t=u.jsonl",
            "--second-moments",
            "--seed",
            "1",
            "--num-texts",
            "5",
            "--out",
            "stats2",
        ],
        ["mask", "model", "stats/t.safetensors", "--sparsity", "0.3", *QUICK, "--out", "mask.safetensors"],
        [*PRUNE[:-1], "small"],
        [
            "pack",
            "model",
            "--task",
            "t=t.jsonl",
            "--task",
            "u=u.jsonl",
            "--sparsity",
            "0.3",
            "--score",
            "obs",
            "--allocate",
            "logistic",
            "--no-sequential",
            *SMALL,
            "--out",
            "tasks",
        ],
        ["route", "fit", "model", "--tasks", "t=t.jsonl,u=u.jsonl", "--masks", "tasks", "--out", "router.safetensors"],
        [
            "compare",
            "model",
            "--tasks",
            "t=t.jsonl",
            "--methods",
            "flap,wanda-sp",
            "--sparsity",
            "0.3",
            *SMALL,
            *TEST,
            "--out",
            "compare",
        ],
        ["analyze", "model", "--tasks", "t=t.jsonl,u=u.jsonl", "--num-texts", "8", "--out", "analyze.json"],
    ):
        if main(command) != 0:
            raise SystemExit(f"can't make the artefacts: seap {' '.join(command)}")
    row = {
        "task": "t",
        "loss": 1.0,
        "loss_stderr": 0.1,
        "ppl": 2.7,
        "acc": 0.5,
        "acc_stderr": 0.1,
        "n": 4,
        "agreement": 0.9,
    }
    Path("eval.json").write_text(json.dumps({"model": "small", "rows": [row]}))


def check_whole(room: Path, kinds: Sequence[str]) -> None:
    """Run every command on whole files, in this process: so all succeed, and forks find everything imported."""
    from seap.cli.main import main

    for kind in kinds:
        file, commands = SUBJECTS[kind]
        for words in commands:
            with tempfile.TemporaryDirectory(dir=room.parent) as place:
                for source in room.iterdir():
                    (Path(place) / source.name).symlink_to(source)
                os.chdir(place)
                if main([word.replace("FILE", file).replace("OUT", "out") for word in words]) != 0:
                    raise SystemExit(f"a whole {file} is refused by seap {' '.join(words)}")
    os.chdir(room)


def write_data(room: Path, rows: Sequence[dict[str, str]]) -> None:
    import pyarrow
    import pyarrow.parquet

    (room / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (room / "data.json").write_text(json.dumps(rows))
    for name, delimiter in (("csv", ","), ("tsv", "\t")):
        lines = [delimiter.join(row.values()) for row in [{"a": "prompt", "b": "answer"}, *rows]]
        (room / f"data.{name}").write_text("\n".join(lines))
    (room / "data.txt").write_text("\n\n".join(row["prompt"] for row in rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), room / "data.parquet")
