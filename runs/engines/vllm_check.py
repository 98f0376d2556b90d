"""A pruned folder in vLLM against transformers: greedy tokens and their log-probabilities.

    python runs/engines/vllm_check.py reference small --out reference.json     # where transformers and seap are
    python runs/engines/vllm_check.py engine small --reference reference.json --out results/engines/vllm.json

Two steps, since vLLM pins other versions. With seap installed beside vLLM its plugin is what makes the folder load;
without it, add --trust-remote-code. On a CPU: VLLM_CPU_KVCACHE_SPACE=1.
"""

import argparse
import importlib.util
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

PROMPTS = ("Natalia sold clips to", "A train travels 60 miles", "Tom has 3 apples and", "The price of a book is")
TOKENS = 24


def reference(folder: str) -> dict[str, Any]:
    """Prompt → greedy token ids and their log-probabilities, in float32."""
    import torch

    import seap

    model, tokenizer = seap.load(folder, dtype="float32", device="cpu")
    found = {}
    for prompt in PROMPTS:
        given = tokenizer(prompt, return_tensors="pt")
        start = given["input_ids"].shape[1]
        made = model.generate(**given, max_new_tokens=TOKENS, do_sample=False, pad_token_id=0)
        with torch.no_grad():
            known = model(made).logits[0].log_softmax(-1)
        ids = made[0, start:].tolist()
        found[prompt] = {"ids": ids, "logprobs": [float(known[start - 1 + i, token]) for i, token in enumerate(ids)]}
    return found


def engine(folder: str, expected: dict[str, Any], trust_remote_code: bool) -> dict[str, Any]:
    import vllm
    from vllm import LLM, SamplingParams

    options: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "max_model_len": 256}
    llm = LLM(folder, trust_remote_code=trust_remote_code, **options)
    sampling = SamplingParams(temperature=0, max_tokens=TOKENS, logprobs=0)
    equal, worst = 0, 0.0
    for prompt, made in zip(expected, llm.generate([*expected], sampling), strict=True):
        own = expected[prompt]
        answer = made.outputs[0]
        equal += list(answer.token_ids) == own["ids"][: len(answer.token_ids)]
        for token, wanted, known, value in zip(
            answer.token_ids, own["ids"], answer.logprobs or (), own["logprobs"], strict=False
        ):
            if token != wanted:
                break
            worst = max(worst, abs(known[token].logprob - value))
    return {
        "greedy_equal": equal,
        "of": len(expected),
        "largest_difference_of_logprobs": worst,
        "seap_installed": importlib.util.find_spec("seap") is not None,
        "trust_remote_code": trust_remote_code,
        "versions": {name: version(name) for name in ("torch", "transformers")} | {"vllm": vllm.__version__},
        "python": platform.python_version(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("reference", "engine"))
    parser.add_argument("folder")
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--trust-remote-code", action="store_true")
    parser.add_argument("--commit", default=None, help="of seap, for the result")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.step == "reference":
        arguments.out.write_text(json.dumps(reference(arguments.folder), indent=1))
        return
    rows = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else []
    found = engine(arguments.folder, json.loads(arguments.reference.read_text()), arguments.trust_remote_code)
    arguments.out.write_text(json.dumps({"commit": arguments.commit, "rows": [*rows, found]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
