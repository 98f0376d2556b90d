"""What README and docs tell a reader to type is typed here: page by page, in their order, on a tiny model.

What can't run in a test is in ELSEWHERE with the reason; what is written otherwise for a tiny model, in READERS.
"""

import contextlib
import gc
import io
import re
import shlex
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import guide
import httpx
import pytest
import torch
from guide import PAGES, Piece, name_of, pieces
from paths import ROOT
from transformers import AutoModelForCausalLM

import seap
from seap.cli.main import main
from seap.models.families import LLAMA
from seap.serving.server import draining

ELSEWHERE = {  # how a command or a snippet begins → why it isn't run here
    r"pip install": "nothing is fetched in a test; that the extras are there is a test of its own",
    r"make (demo|test|unit)": "the demonstration, and all tests, are what CI runs",
    r"vllm serve": "vLLM's wheels need CUDA; runs/engines/vllm_check.py says what was run by hand",
    r"llama-(server|quantize)": "llama.cpp's programs are in no package index",
    r"import openvino_genai": "run by hand (runs/engines/engines.py); tests/exports has the folder that it reads",
    r"lm_eval --model local-completions": "asks the Hub for ARC-Easy; tests/serving/test_lm_eval.py has its own task",
    r"python runs/serving/ray_serve.py": "starts a Ray cluster",
    r"seap push (?!.*--dry-run)": "goes up to the Hub; tests/exports/test_push.py has a stand-in",
    r"seap prune \./my-vlm": "wants a model that sees; tests/activations/test_images.py has tiny ones",
    r"seap prune .*--target-speed": "a tiny model's time is its calls'; tests/pruning/test_targets.py has a wider one",
}
OF_THEIR_OWN = {  # pages whose commands another test runs, which looks at what comes out as well
    "docs/chat.md": "tests/test_chat.py",
    "docs/howto/after_pruning.md": "tests/test_docs.py",
}
NEEDS = {  # a word of a command or snippet → the module without which it is left out
    "--to gguf": "gguf",
    "--to mlx": "mlx",
    "--to onnx": "onnx",
    "--to openvino": "openvino_tokenizers",
    "--to torchao": "torchao",
    "mlx_lm.generate": "mlx_lm",
    "onnxruntime_genai": "onnxruntime_genai",
    "quantize_": "torchao",
}
MORE = {"corpus": ["--slack", "1e9", "--max-new-tokens", "16"]}  # what a random model writes is nothing like the texts
SMALLER = {
    "meta-llama/Llama-3.2-1B": "./my-model",
    "HuggingFaceTB/SmolLM2-135M-Instruct": "./my-model",
    "--task arc_easy": "--task tickets=tickets.jsonl",
    "200MB": "180kB",
    "--vocabulary 8192": "--vocabulary 320",
}
BUILTIN = {"builtin": "./my-model", "arithmetic": "arithmetic=tickets.jsonl", "calendar": "calendar=gsm8k.jsonl"}
PRUNED = "seap prune ./my-model --task tickets=tickets.jsonl --method wanda-sp --sparsity 0.3 --out small"


@dataclass(frozen=True)
class Reader:
    """What a page's reader has, and what is written otherwise for a tiny model."""

    before: tuple[str, ...] = ()  # commands
    furnish: Callable[[], None] | None = None  # beside what all have
    instead: dict[str, str] = field(default_factory=dict)
    more: dict[str, list[str]] = field(default_factory=dict)  # options, by command
    files: dict[str, tuple[str, ...]] = field(default_factory=dict)  # a language → the files that its snippets are
    names: dict[str, Any] = field(default_factory=dict)  # what a snippet goes on from
    leaves: dict[str, str] = field(default_factory=dict)  # a file → what stands in it at the end


SHARDS = tuple(f"seap calibrate ./my-model --task tickets=part{part}.jsonl --out shard{part}" for part in range(2))
QUICK = {"prune": ["--effort", "quick", "--num-texts", "64"], "eval": ["--num-items", "12", "--max-new-tokens", "8"]}
READERS = {
    "docs/usage.md": Reader(
        before=SHARDS,
        furnish=guide.furnish_a_writer,
        instead={"corpus write ./my-model": "corpus write my-words", "tickets.jsonl --num": "words.jsonl --num"},
        leaves={"small/config.json": "per_layer", "llama-gsm8k/modeling_seap.py": "import", "report.html": "<html"},
    ),
    "docs/deploy.md": Reader(
        before=(PRUNED,), furnish=guide.furnish_for_engines, instead={"--experts 64": "--experts 3"}
    ),
    "docs/serving.md": Reader(files={"json": ("backends.json",)}),
    "docs/performance.md": Reader(
        before=(PRUNED,), names={"AutoModelForCausalLM": AutoModelForCausalLM, "seap": seap, "torch": torch}
    ),
    "docs/adding_a_model.md": Reader(furnish=guide.furnish_with_a_stranger, names={"replace": replace, "LLAMA": LLAMA}),
    "docs/howto/recipes.md": Reader(files={"yaml": ("recipe.yaml", "own.yaml")}),
    "docs/howto/notebook.md": Reader(instead=BUILTIN),
    "docs/tutorials/first_prune.md": Reader(more=QUICK, leaves={"small/seap.json": '"model": "builtin"'}),
    "docs/tutorials/several_tasks.md": Reader(instead=BUILTIN),
    "docs/tutorials/into_an_engine.md": Reader(before=(PRUNED,)),
}
TYPED = [page for page in PAGES if pieces(page) and name_of(page) not in OF_THEIR_OWN]


def why_not(piece: Piece) -> str | None:
    return next((why for start, why in ELSEWHERE.items() if re.match(start, piece.text)), None)


def lacks(piece: Piece) -> set[str]:
    """Modules that it needs and that aren't here."""
    return {module for word, module in NEEDS.items() if word in piece.text and find_spec(module) is None}


def as_typed(text: str, reader: Reader) -> list[str]:
    """The words of a command, for the tiny model; what it would write over is written over."""
    for old, new in (SMALLER | reader.instead).items():
        text = re.sub(rf"(?<![\w-]){re.escape(old)}(?![\w=.-])", new, text)
    text = re.sub(r"(?<=[ ,])gsm8k(?=,| |$)", "gsm8k=gsm8k.jsonl", text)
    words = shlex.split(text)
    more = MORE.get(words[1], []) + reader.more.get(words[1], []) if words[0] == "seap" else []
    for name, value in zip(more[::2], more[1::2], strict=True):
        words += [] if name in words else [name, value]  # the page's own word stands
    replaced = {"prune", "export", "pack", "route", "corpus", "merge"}
    if "--out" in words and words[1] in replaced and Path(words[words.index("--out") + 1]).exists():
        words.append("--overwrite")
    return words


def run_seap(words: Sequence[str]) -> tuple[int, str]:
    """How it ended, and what it printed, which a `>` sends to a file."""
    words, target = (words[:-2], Path(words[-1])) if words[-2] == ">" else (words, None)
    if words[1] == "serve":
        words = [*words, "--port", "0"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed) if target else contextlib.nullcontext():
        ended = main(list(words[1:]))
    if target is not None:
        target.write_text(printed.getvalue())
    return ended, printed.getvalue()


class AnswersOnce:
    """In place of a server that runs until it is stopped: it is asked once whether it is well, over a socket."""

    asked: ClassVar[list[int]] = []

    def __init__(self, app: Any, grants: Any, **options: Any) -> None:
        self.server = MAKE_SERVER(app, grants, **options)

    def run(self, sockets: list[Any]) -> None:
        thread = threading.Thread(target=lambda: self.server.run(sockets=sockets))
        thread.start()
        try:
            port = sockets[0].getsockname()[1]
            self.asked.append(httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=30).status_code)
        finally:
            self.server.should_exit = True
            thread.join()


MAKE_SERVER = draining.make_server


def run(piece: Piece, reader: Reader, names: dict[str, Any]) -> None:
    if piece.kind == "python":
        text = piece.text
        for old, new in reader.instead.items():
            text = text.replace(f'"{old}"', f'"{new}"')
        exec(text, names)
    elif piece.kind == "command" and piece.text.startswith("seap "):
        refuses = {0, 1} if piece.text.startswith("seap check ") else {0}  # whether widths divide is what it says
        assert run_seap(as_typed(piece.text, reader))[0] in ({1} if piece.fails else refuses), piece.text
    elif piece.kind == "command":
        settings = [word for word in shlex.split(piece.text) if re.match(r"[A-Z_]+=", word)]
        program, *words = shlex.split(piece.text)[len(settings) :]
        command = ["env", *settings, str(Path(sys.executable).parent / program), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{piece.text}: {done.stderr[-2000:]}"


@pytest.mark.parametrize("page", TYPED, ids=name_of)
def test_what_a_page_says_to_type_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(draining, "make_server", AnswersOnce)
    monkeypatch.setattr(AnswersOnce, "asked", [])
    gc.freeze()  # bench collects garbage: not all that the suite has made
    reader = READERS.get(name_of(page), Reader())
    guide.furnish()
    if reader.furnish is not None:
        reader.furnish()
    for command in reader.before:
        assert main(shlex.split(command)[1:]) == 0, command
    for kind, files in reader.files.items():
        for file, text in zip(files, guide.snippets(page, kind), strict=True):
            Path(file).write_text(text)
    names, missing = dict(reader.names), set()
    typed = [piece for piece in pieces(page) if why_not(piece) is None]
    for piece in typed:
        missing |= lacks(piece)
        if not lacks(piece):
            run(piece, reader, names)
    served = [piece for piece in typed if piece.text.startswith("seap serve ")]
    assert AnswersOnce.asked == [200] * len(served)
    assert all(text in Path(file).read_text() for file, text in reader.leaves.items())
    if missing:
        pytest.skip(f"all but what needs {', '.join(sorted(missing))} was run")


def test_what_is_run_elsewhere_is_on_a_page_and_has_its_test() -> None:
    texts = [piece.text for page in PAGES for piece in pieces(page)]
    for start in ELSEWHERE:
        assert any(re.match(start, text) for text in texts), f"{start} is on no page any more"
    for page, test in OF_THEIR_OWN.items():
        assert Path(page).name in (ROOT / test).read_text() and pieces(ROOT / page), page
    assert set(READERS) <= {name_of(page) for page in TYPED}


def test_what_is_installed_is_an_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    texts = [page.read_text() for page in PAGES]
    named = {name for text in texts for names in re.findall(r"seap\[([\w,]+)\]", text) for name in names.split(",")}
    assert named and named <= set(extras), named - set(extras)
