"""Model cards: what was removed, for which task, what that means off task, what was measured, and how to run it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seap.selection.targets import target_words

TRANSFORMERS = """```python
import seap  # or, without it: AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True)
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(DIR)
tokenizer = AutoTokenizer.from_pretrained(DIR)
```"""
WITHOUT = """Without seap and without `trust_remote_code=True`, transformers ends with "pruned by seap: import seap
before loading it …", or, where an attention implementation is asked for, lists weights as MISMATCH: no class of its
own builds layers of different widths. Nothing is damaged then; add one of the two."""
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
COMPRESSED = "```\nvllm serve DIR\npip install compressed-tensors  # for transformers\n```\n\n" + TRANSFORMERS
NAS = "```\nvllm serve DIR --trust-remote-code\nmlx_lm.generate --model DIR --prompt …  # on a Mac\n```"
MLX = "```\nmlx_lm.generate --model DIR --trust-remote-code --prompt …\n```"
ONNX = """```python
import onnxruntime_genai
from huggingface_hub import snapshot_download

model = onnxruntime_genai.Model(snapshot_download(DIR))
```"""
FORMS = {
    "uniform": (_STOCK + "Every layer has the same width.", STOCK_TRANSFORMERS),
    "padded": (_STOCK + _PADDED, STOCK_TRANSFORMERS),
    "whole-widths": (_STOCK + "Every layer is as wide as the dense model's.", STOCK_TRANSFORMERS),
    "whole-layers": (_STOCK + "It has fewer layers than the dense model.", STOCK_TRANSFORMERS),
    "torchao": ("The decoder layers' linears have 8-bit weights, by torchao.", TORCHAO),
    "compressed-tensors": (
        "The decoder layers' linears are integers of 8 or 4 bits, packed as compressed-tensors packs them, which vLLM "
        "reads.",
        COMPRESSED,
    ),
    "openvino": ("This is the model for OpenVINO, its layers as wide as pruning left them.", OPENVINO),
    "onnx": ("This is the model for onnxruntime, its layers as wide as pruning left them.", ONNX),
    "mlx": ("This is the model for mlx-lm, with the file that builds its layers; trust that, or read it.", MLX),
    "nemotron-nas": ("This is a `DeciLMForCausalLM`, whose layers may differ, as vLLM and mlx-lm run it.", NAS),
}
ENGINES = """## Other engines

```
vllm serve DIR                            # where seap is installed; --trust-remote-code where it isn't
seap export DIR --to gguf --out m.gguf    # llama.cpp (Llama, Mistral, Qwen2): llama-server -m m.gguf
seap export DIR --to openvino --out ov    # openvino-genai: LLMPipeline("ov", "CPU")
seap export DIR --to padded --out stock   # anything that runs the stock class; zeros in place of what was cut
```"""

CITATION = """## The method

```bibtex
@inproceedings{liang2026seap,
  title     = {SEAP: Sparse Expert Activation Pruning Unlocks the Brainpower of Large Language Models},
  author    = {Liang, Xun and Wang, Hanyu and Lai, Huayi and Niu, Simin and Song, Shichao and Yang, Jiawei and
               Zhao, Jihao and Xiong, Feiyu and Tang, Bo and Li, Zhiyu},
  booktitle = {Proceedings of the AAAI Conference on Artificial Intelligence},
  year      = {2026},
  doi       = {10.1609/aaai.v40i38.40463}
}
```"""


def model_card(about: Mapping[str, Any], rows: Sequence[Mapping[str, Any]] = (), *, repo: str | None = None) -> str:
    """Of a pruned checkpoint. rows: those of `seap eval`. repo: the id that the snippets load, on the Hub."""
    own = (
        f"{WITHOUT}\n\n`seap/mask.safetensors` says which units stayed, `seap.json` how they were chosen.\n\n"
        f"{ENGINES}\n\n{CITATION}"
    )
    return _placed(f"{_head(about)}\n{_measured(about, rows)}\n{TRANSFORMERS}\n\n{own}\n", repo)


def exported_card(
    about: Mapping[str, Any],
    target: str,
    class_name: str,
    rows: Sequence[Mapping[str, Any]] = (),
    *,
    repo: str | None = None,
) -> str:
    """Of a checkpoint that was exported (uniform, padded, openvino or torchao), or of another of a stock class."""
    form, snippet = FORMS[target]
    return _placed(
        f"{_head(about)}\n{_measured(about, rows)}\n{form.format(class_name)}\n\n{snippet}\n\n{CITATION}\n", repo
    )


def saved_card(
    about: Mapping[str, Any],
    class_name: str,
    rows: Sequence[Mapping[str, Any]] = (),
    *,
    is_stock: bool,
    repo: str | None = None,
) -> str:
    """Of a checkpoint as it was saved. is_stock: whether its class builds what is left of it."""
    if not is_stock:
        return model_card(about, rows, repo=repo)
    form = "whole-layers" if about["realised_sparsity"] else "whole-widths"
    return exported_card(about, form, class_name, rows, repo=repo)


def unknown_card(
    config: Mapping[str, Any],
    params: int,
    about: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]] = (),
    *,
    repo: str,
) -> str:
    """Of a pruned checkpoint whose seap.json is gone. about: the metadata of its masks, where it has those."""
    known = ""
    if about.get("realised_sparsity") is not None:
        known = (
            f" {about['realised_sparsity']:.1%} of the attention and MLP parameters were removed, method "
            f"`{about.get('method')}`, for {', '.join(about.get('tasks') or []) or 'no task'}."
        )
    name = repo.rpartition("/")[2]
    return _placed(
        f"""---
{_front_matter({"model": ""})}---
# {name}

A `{config.get("model_type")}` model that seap pruned and another program saved since, {params:,} parameters; it may
have been trained in between.{known} {_widths(config)}

**Off the text that it was made for it is worse than the dense model.** Measure your own task before you rely on it.

{_table(rows) if rows else ""}
{TRANSFORMERS}

{WITHOUT}

{ENGINES}

{CITATION}
""",
        repo,
    )


def _widths(config: Mapping[str, Any]) -> str:
    """`Its layers differ: intermediate_size is 120 to 340, num_key_value_heads 2 to 4.`"""
    layers = [layer for layer in (config.get("per_layer_config") or {}).values() if isinstance(layer, Mapping)]
    spans = []
    for name in (config.get("seap") or {}).get("widths", ()):
        values = [layer[name] for layer in layers if isinstance(layer.get(name), int)]
        if values:
            spans.append(f"{name} from {min(values):,} to {max(values):,}")
    return f"Its layers differ: {', '.join(spans)}." if spans else ""


def _placed(card: str, repo: str | None) -> str:
    if repo is None:
        return card
    return (
        card.replace("(DIR", f'("{repo}"').replace("serve DIR", f"serve {repo}").replace("export DIR", f"export {repo}")
    )


def _head(about: Mapping[str, Any]) -> str:
    tasks, name = _tasks(about), _name(about["model"])
    earlier = about.get("pruned_before") or {}
    before = f"""
It had been pruned before, for {", ".join(earlier.get("tasks") or []) or "no task"}.{_of_base(earlier)}
"""
    return f"""---
{_front_matter(about)}---
# {name}, pruned for {tasks}

{_removed(about, name, tasks)}
{before if earlier else ""}{_vocabulary(about)}{_target(about)}{_made_by(about)}"""


def _removed(about: Mapping[str, Any], name: str, tasks: str) -> str:
    """The sentence on the units that went, or that none did."""
    before, after = f"{about['params_before']:,}", f"{about['params_after']:,}"
    params = f"({before} → {after} parameters in all, {about['total_sparsity']:.1%} fewer)"
    if not about["realised_sparsity"]:
        return f"All attention and MLP parameters of `{name}` are here\n{params}."
    return (
        f"{about['realised_sparsity']:.1%} of the attention and MLP parameters of `{name}` were removed\n{params}, "
        f"method\n`{about['method']}`, calibrated on {about['num_tokens']:,} tokens of: {tasks}."
        f"{_gone(about['layers'])}"
    )


def _vocabulary(about: Mapping[str, Any]) -> str:
    cut = about.get("vocabulary")
    if not cut:
        return ""
    return (
        f"\nIts vocabulary has {cut['tokens_after']:,} of {cut['tokens_before']:,} tokens, first those that such text "
        f"uses, then those that the model expects in it ({cut['params_before']:,} → {cut['params_after']:,} parameters "
        "of embeddings). The tokenizer of this folder reads and writes any text, rare words in smaller pieces; the "
        "original's doesn't fit this model.\n"
    )


def _target(about: Mapping[str, Any]) -> str:
    return f"\nAsked and met: {target_words(about['target'])}.\n" if about.get("target") else ""


def _gone(layers: Sequence[Mapping[str, int]]) -> str:
    """A sentence on the sub-blocks that went whole."""
    kinds = {"attention": "kv_groups", "MLP": "channels"}
    found = {name: [i for i, layer in enumerate(layers) if layer.get(axis) == 0] for name, axis in kinds.items()}
    told = [f"the {name} of {_these(where)}" for name, where in found.items() if where]
    return f"\nOf what went, {' and '.join(told)} went whole." if told else ""


def _these(layers: Sequence[int]) -> str:
    return f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"


def _front_matter(about: Mapping[str, Any]) -> str:
    """What the Hub reads: of the base model and the data sets only what has a name there."""
    first = (about.get("pruned_before") or {}).get("base") or about["model"]
    told = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": "[seap, pruned]"}
    if _on_hub(first):
        told["base_model"] = f'"{first}"'
    sets = [str(corpus.get("source", "")) for corpus in (about.get("corpora") or {}).values()]
    named = [source.removeprefix("hub:").partition("@")[0].partition("[")[0].partition(":")[0] for source in sets]
    named = sorted({one for one, source in zip(named, sets, strict=True) if source.startswith("hub:")})
    if named:
        told["datasets"] = f"[{', '.join(named)}]"
    told |= {key: json.dumps(value) for key, value in (about.get("base_card") or {}).items()}
    return "".join(f"{key}: {value}\n" for key, value in told.items())


def _made_by(about: Mapping[str, Any]) -> str:
    command = " ".join(_without_place(word) for word in str(about.get("command") or "").split())
    return f"\n```\n{command}\n```\n" if command.startswith("seap ") else ""


def _without_place(word: str) -> str:
    """A word of a command line with the last part of the paths in it: where they lay is nobody's business."""
    start, equals, place = word.rpartition("=")
    absolute = place.startswith(("/", "~", "..")) or (len(place) > 2 and place[1:3] == ":\\")
    return start + equals + (Path(place.replace("\\", "/")).name if absolute else place)


def _of_base(earlier: Mapping[str, Any]) -> str:
    if earlier.get("removed_of_base") is None:
        return ""
    return (
        f" Of the {earlier['base_params']:,} parameters of `{_name(earlier['base'])}`, the model at first, "
        f"{earlier['removed_of_base']:.1%} are gone in all."
    )


def _name(model: str) -> str:
    """A Hub id as it is, of a path the last part."""
    return model if _on_hub(model) else Path(model).name or "model"


def _on_hub(model: str) -> bool:
    return model.count("/") == 1 and not model.startswith((".", "/", "~")) and not Path(model).exists()


def _tasks(about: Mapping[str, Any]) -> str:
    return ", ".join(about["tasks"]) or "no task (weights alone)"


def _measured(about: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    tasks, damage = _tasks(about), about.get("damage")
    unknown = "" if rows else ", and by how much was not measured here"
    gone = "units" if about["realised_sparsity"] else "tokens"
    again = "The weights were saved again after the pruning, and may have been trained since.\n"
    parts = [
        *([again] if about.get("saved_again") else []),
        f"""**Off task this model is worse than the dense one{unknown}.** The {gone} that {tasks}
used least are gone for good; text of another kind may need them. Measure your own task before you rely on it.
""",
    ]
    if damage:
        before, after = damage["loss_before"], damage["loss_after"]
        parts.append(
            f"On {damage['tokens']:,} tokens of {damage['text']} of {tasks} the loss went from {before:.3f} to "
            f"{after:.3f} nats per token when it was cut; KL to the dense model: {damage['kl']:.3f}.\n"
        )
    return "\n".join([*parts, *([_table(rows)] if rows else [])])


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown of `seap eval`'s own rows: loss with its standard error, accuracy, likeness to the dense model."""
    paired = any(row.get("added_loss") is not None for row in rows)
    more, bar = (" than dense |", "---|") if paired else ("", "")
    lines = [
        f"| test text of | loss per token |{more} perplexity | accuracy | same first choice as dense |",
        f"|---|---|{bar}---|---|---|",
    ]
    for row in rows:
        if "loss" not in row:
            continue
        accuracy = f"{row['acc']:.1%} ± {row['acc_stderr']:.1%}, n = {row['n']}" if row.get("acc") is not None else ""
        if accuracy and isinstance((row.get("dense") or {}).get("acc"), float):
            accuracy += f" (dense {row['dense']['acc']:.1%})"
        same = f"{row['agreement']:.1%}" if row.get("agreement") is not None else ""
        added = f" {row['added_loss']:+.3f} |" if row.get("added_loss") is not None else " |" * paired
        loss = f"{row['loss']:.3f} ± {row['loss_stderr']:.3f}"
        lines.append(f"| {row['task']} | {loss} |{added} {row['ppl']:.2f} | {accuracy} | {same} |")
    return "\n".join(lines) + "\n"
