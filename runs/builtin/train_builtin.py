"""Train the built-in model from scratch on the tasks of seap.builtin and write results/builtin/builtin_model.json.

nice -n 5 python runs/builtin/train_builtin.py    # about an hour on two CPU cores with avx512_bf16
"""

import argparse
import copy
import hashlib
import json
import shutil
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
from builtin_batches import IGNORED, Batch, Recipe, batches, build_tokenizer
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from seap.environment import command_line, commit, machine, versions
from seap.models.loader import model_path
from seap.text.builtin import TASKS, items

RESULT_PATH = Path("results/builtin/builtin_model.json")


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    end = tokenizer.eos_token_id
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.04,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=end, eos_token_id=end, pad_token_id=end, max_new_tokens=24, do_sample=False
    )
    return model


def build_optimizers(recipe: Recipe, model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if not any(p is matrix for matrix in matrices)]
    muon = torch.optim.Muon(
        matrices, lr=recipe.muon_rate, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    adam = torch.optim.AdamW(others, lr=recipe.adam_rate, betas=(0.9, 0.98), weight_decay=0.0)
    return [muon, adam]


def rate_factor(recipe: Recipe, step: int, progress: float) -> float:
    """Linear warmup, constant, then linear decay to 0 over the last decay_fraction of the run."""
    return min((step + 1) / recipe.warmup_steps, 1.0, (1 - progress) / recipe.decay_fraction)


def train_(
    model: LlamaForCausalLM,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerFast,
    *,
    max_seconds: float,
    save_every: int,
) -> dict[str, float]:
    """Train in place, for recipe.steps or max_seconds; now and then save a checkpoint and evaluate it.

    On a slow machine the learning rate follows the clock instead of the steps, so that it always decays to 0.
    """
    optimizers, source = build_optimizers(recipe, model), batches(recipe, tokenizer)
    began, seconds, step, num_tokens, mean_loss = time.perf_counter(), 0.0, 0, 0, float("nan")
    while (progress := max(step / recipe.steps, seconds / max_seconds)) < 1:
        batch = next(source)
        loss = backward_(model, batch)
        update_(model, optimizers, rate_factor(recipe, step, progress))
        step += 1
        num_tokens += int((batch.weights > 0).sum())
        mean_loss = loss if step == 1 else 0.95 * mean_loss + 0.05 * loss
        seconds = time.perf_counter() - began
        if step % 20 == 0:
            speed = num_tokens / seconds
            log(f"step {step}/{recipe.steps} loss {mean_loss:.4f} {speed:.0f} tokens/s {seconds:.0f} s")
        if step % save_every == 0:
            save(model, tokenizer, model_path())
            report(evaluate(model_path(), num=32))
    return {"loss": mean_loss, "steps": step, "tokens": num_tokens, "seconds": seconds}


def backward_(model: LlamaForCausalLM, batch: Batch) -> float:
    """Add the gradients of the weighted mean cross-entropy of a batch; return the loss."""
    # On CPU fused attention is several times slower than plain attention in short rows, faster in long ones.
    model.set_attn_implementation("sdpa" if batch.bias is None else "eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=batch.tokens, attention_mask=batch.bias, use_cache=False).logits
    losses = functional.cross_entropy(
        logits.flatten(0, 1).float(), batch.targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    loss = (losses * batch.weights.flatten()).sum() / batch.weights.sum()
    loss.backward()
    return loss.item()


def update_(model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("peak", group["lr"]) * factor
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the folder in bfloat16 beside its place and swap it in, so that nobody reads half a model."""
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    shutil.rmtree(fresh, ignore_errors=True)
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(fresh)
    tokenizer.save_pretrained(fresh)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def evaluate(folder: Path, *, num: int) -> dict[str, dict[str, float]]:
    """Share of `num` test items of each task whose greedy answer is exactly right, with standard errors."""
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    scores = {}
    for task in TASKS:
        asked = items(task, "test", num)
        given = answers(model, tokenizer, [item.prompt for item in asked])
        right = sum(text == item.answer.strip() for text, item in zip(given, asked, strict=True)) / num
        scores[task] = {"accuracy": right, "n": num, "standard_error": (right * (1 - right) / num) ** 0.5}
    return scores


@torch.inference_mode()
def answers(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> list[str]:
    inputs = tokenizer(prompts, padding=True, return_tensors="pt")
    output = model.generate(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def mean_accuracy(scores: dict[str, dict[str, float]]) -> float:
    return sum(score["accuracy"] for score in scores.values()) / len(scores)


def report(scores: dict[str, dict[str, float]]) -> None:
    shown = " ".join(f"{task} {score['accuracy']:.3f}" for task, score in scores.items())
    log(f"test accuracy: {shown} mean {mean_accuracy(scores):.4f}")


def log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def data_hash() -> str:
    """Hash of 500 training and 400 test texts of every task: it changes when the generators do."""
    digest = hashlib.blake2b(digest_size=16)
    for task in TASKS:
        for item in items(task, "train", 500) + items(task, "test", 400):
            digest.update(item.text.encode() + b"\n")
    return digest.hexdigest()


def provenance(recipe: Recipe) -> dict[str, object]:
    return {
        "commit": commit(),
        "command": command_line(),
        "seed": recipe.seed,
        "data_hash": data_hash(),
        "versions": versions() | {"tokenizers": version("tokenizers")},
        "machine": machine(),
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--max-minutes", type=float, default=85)
    parser.add_argument("--save-every", type=int, default=400, help="steps between checkpoints")
    parser.add_argument("--eval-num", type=int, default=400, help="test items per task at the end")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    recipe = Recipe(steps=options.steps)
    torch.manual_seed(recipe.seed)
    tokenizer = build_tokenizer(recipe)
    model = build_model(tokenizer)
    num_parameters = sum(p.numel() for p in model.parameters())
    log(f"{num_parameters} parameters, {len(tokenizer)} tokens in the vocabulary")
    seconds = 60 * options.max_minutes
    training = train_(model, recipe, tokenizer, max_seconds=seconds, save_every=options.save_every)
    save(model, tokenizer, model_path())
    scores = evaluate(model_path(), num=options.eval_num)
    report(scores)
    write_result(scores, training, num_parameters, recipe)


def write_result(
    scores: dict[str, dict[str, float]], training: dict[str, float], num_parameters: int, recipe: Recipe
) -> None:
    result = {
        "mean_accuracy": mean_accuracy(scores),
        "tasks": scores,
        "parameters": num_parameters,
        "training": training,
        "recipe": asdict(recipe),
        **provenance(recipe),
    }
    RESULT_PATH.parent.mkdir(exist_ok=True)
    RESULT_PATH.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
