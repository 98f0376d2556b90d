"""Model cards: what was removed, for which task, what that means off task, what was measured, and how to run it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TRANSFORMERS = """```python
import seap  # or, without it: AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True)
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(DIR)
tokenizer = AutoTokenizer.from_pretrained(DIR)
```"""
STOCK_TRANSFORMERS = TRANSFORMERS.partition("\n")[0] + TRANSFORMERS[TRANSFORMERS.index("\nfrom") :]
OPENVINO = """```python
import openvino_genai
from huggingface_hub import snapshot_download

pipeline = openvino_genai.LLMPipeline(snapshot_download(DIR), "CPU")
print(pipeline.generate("…", max_new_tokens=100))
```"""
_STOCK = "This is a stock `{}`: whatever runs that runs it, with no code of its own. "
_PADDED = "Its layers are padded with zeros to one width: the outputs are those of the pruned model, its speed isn't."
TORCHAO = "```\npip install torchao\n```\n\n" + TRANSFORMERS
FORMS = {
    "uniform": (_STOCK + "Every layer has the same width.", STOCK_TRANSFORMERS),
    "padded": (_STOCK + _PADDED, STOCK_TRANSFORMERS),
    "whole-layers": (_STOCK + "It has fewer layers than the dense model.", STOCK_TRANSFORMERS),
    "torchao": ("The decoder layers' linears have 8-bit weights, by torchao.", TORCHAO),
    "openvino": ("This is the model for OpenVINO, its layers as wide as pruning left them.", OPENVINO),
}
ENGINES = """## Other engines

```
vllm serve DIR                            # where seap is installed; --trust-remote-code where it isn't
seap export DIR --to gguf --out m.gguf    # llama.cpp (Llama, Mistral, Qwen2): llama-server -m m.gguf
seap export DIR --to openvino --out ov    # openvino-genai: LLMPipeline("ov", "CPU")
seap export DIR --to padded --out stock   # anything that runs the stock class; zeros in place of what was cut
```"""


def model_card(about: Mapping[str, Any], rows: Sequence[Mapping[str, Any]] = (), *, repo: str | None = None) -> str:
    """Of a pruned checkpoint. rows: those of `seap eval`. repo: the id that the snippets load, on the Hub."""
    own = f"`seap/mask.safetensors` says which units stayed, `seap.json` how they were chosen.\n\n{ENGINES}"
    return _placed(f"{_head(about)}\n{_measured(about, rows)}\n{TRANSFORMERS}\n\n{own}\n", repo)


def exported_card(
    about: Mapping[str, Any],
    target: str,
    class_name: str,
    rows: Sequence[Mapping[str, Any]] = (),
    *,
    repo: str | None = None,
) -> str:
    """Of a checkpoint that was exported (uniform, padded, openvino or torchao), or of one with fewer layers."""
    form, snippet = FORMS[target]
    return _placed(f"{_head(about)}\n{_measured(about, rows)}\n{form.format(class_name)}\n\n{snippet}\n", repo)


def _placed(card: str, repo: str | None) -> str:
    if repo is None:
        return card
    return (
        card.replace("(DIR", f'("{repo}"').replace("serve DIR", f"serve {repo}").replace("export DIR", f"export {repo}")
    )


def _head(about: Mapping[str, Any]) -> str:
    tasks = ", ".join(about["tasks"]) or "no task (weights alone)"
    name = Path(about["model"]).name or "model"
    on_hub = "/" in about["model"] and not Path(about["model"]).exists()
    base = f'base_model: "{about["model"]}"\n' if on_hub else ""
    return f"""---
library_name: transformers
{base}tags: [seap, pruned]
---
# {name}, pruned for {tasks}

{about["realised_sparsity"]:.1%} of the attention and MLP parameters of `{about["model"]}` were removed
({about["params_before"]:,} → {about["params_after"]:,} parameters in all, {about["total_sparsity"]:.1%} fewer), method
`{about["method"]}`, calibrated on {about["num_tokens"]:,} tokens of: {tasks}.{_gone(about["layers"])}
{_vocabulary(about)}"""


def _vocabulary(about: Mapping[str, Any]) -> str:
    cut = about.get("vocabulary")
    if not cut:
        return ""
    return (
        f"\nIts vocabulary has {cut['tokens_after']:,} of {cut['tokens_before']:,} tokens, those that such text uses "
        f"first ({cut['params_before']:,} → {cut['params_after']:,} parameters of embeddings). The tokenizer of this "
        "folder reads and writes any text, rare words in smaller pieces; the original's doesn't fit this model.\n"
    )


def _gone(layers: Sequence[Mapping[str, int]]) -> str:
    """A sentence on the sub-blocks that went whole."""
    kinds = {"attention": "kv_groups", "MLP": "channels"}
    found = {name: [i for i, layer in enumerate(layers) if layer.get(axis) == 0] for name, axis in kinds.items()}
    told = [f"the {name} of {_these(where)}" for name, where in found.items() if where]
    return f"\nOf what went, {' and '.join(told)} went whole." if told else ""


def _these(layers: Sequence[int]) -> str:
    return f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"


def _measured(about: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    tasks = ", ".join(about["tasks"]) or "no task (weights alone)"
    unknown = "" if rows else ", and by how much was not measured here"
    warning = f"""**Off task this model is worse than the dense one{unknown}.** The units that {tasks}
used least are gone for good; text of another kind may need them. Measure your own task before you rely on it.
"""
    return f"{warning}\n{_table(rows)}" if rows else warning


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown of `seap eval`'s own rows: loss with its standard error, accuracy, likeness to the dense model."""
    lines = [
        "| test text of | loss per token | perplexity | accuracy | same first choice as dense |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        if "loss" not in row:
            continue
        accuracy = f"{row['acc']:.1%} ± {row['acc_stderr']:.1%}, n = {row['n']}" if row.get("acc") is not None else ""
        same = f"{row['agreement']:.1%}" if row.get("agreement") is not None else ""
        loss = f"{row['loss']:.3f} ± {row['loss_stderr']:.3f}"
        lines.append(f"| {row['task']} | {loss} | {row['ppl']:.2f} | {accuracy} | {same} |")
    return "\n".join(lines) + "\n"
