"""What the built-in model is trained on: the recipe, a tokenizer and batches of texts of seap.builtin's tasks."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from seap.text.builtin import TASKS, draw, items

# Letters: B rows of a batch, T tokens of a row, V vocabulary.

END = "<|endoftext|>"
# Digits and capitals of Roman numerals stay single tokens; other words are merged with the space before them.
WORDS = r" ?\p{Lu}(?!\p{Ll})| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]|\s"
IGNORED = -100

Encoded = tuple[list[int], int]  # tokens with <|endoftext|> on both sides, number of tokens of the prompt


@dataclass(frozen=True)
class Batch:
    """Tokens, targets, loss weights [B,T]; attention bias [B,1,T,T], or None for plain causal attention."""

    tokens: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the weights; item_weights are frequencies of tasks, 1 where not named."""

    seed: int = 0
    steps: int = 4600
    rows: int = 64
    row_length: int = 64
    long_every: int = 12
    long_factor: int = 4
    vocab_size: int = 1024
    prompt_loss_weight: float = 0.05
    muon_rate: float = 0.005
    adam_rate: float = 0.003
    weight_decay: float = 0.02
    warmup_steps: int = 50
    decay_fraction: float = 0.7
    item_weights: tuple[tuple[str, float], ...] = (
        ("arithmetic", 1.5),
        ("brackets", 0.6),
        ("calendar", 2.0),
        ("list_sorting", 1.5),
        ("numerals", 0.8),
        ("sentiment", 1.0),
        ("string_reversal", 0.4),
        ("word_problems", 2.5),
    )


def build_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """A byte-level BPE over training texts; it puts <|endoftext|> before every text and pads on the left."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    corpus = (item.text for task in TASKS for item in items(task, "train", 2000, seed=recipe.seed))
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", pair=f"{END} $A {END} $B", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def encoded_items(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Iterator[Encoded]:
    """Endless training texts, drawn with the weights of the recipe."""
    rng = random.Random(recipe.seed)
    weights = [dict(recipe.item_weights).get(task, 1.0) for task in TASKS]
    while True:
        drawn = [draw(task, "train", rng) for task in rng.choices(list(TASKS), weights, k=512)]
        prompts = tokenizer([item.prompt for item in drawn])["input_ids"]
        texts = tokenizer([item.text for item in drawn])["input_ids"]
        for prompt, text in zip(prompts, texts, strict=True):
            assert text[: len(prompt)] == prompt, "the tokens of a text must begin with those of its prompt"
            yield [*text, tokenizer.eos_token_id], len(prompt)


def packed_row(waiting: list[Encoded], source: Iterator[Encoded], length: int) -> list[Encoded]:
    """Take from `waiting`, longest first, what fits into a row; refill it from `source`."""
    row: list[Encoded] = []
    while True:
        fitting = [text for text in waiting if len(text[0]) - 1 <= length]
        if not fitting:
            return row
        chosen = max(fitting, key=lambda text: len(text[0])) if row else waiting[0]
        waiting.remove(chosen)
        waiting.append(next(source))
        row.append(chosen)
        length -= len(chosen[0]) - 1


def batches(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Iterator[Batch]:
    """Endless batches of rows that hold whole texts back to back.

    In short rows a text sees only itself, as when it is asked alone. Every long_every-th batch has fewer and
    longer rows, in which it also sees the texts before it, as in packed calibration or perplexity text.
    """
    source = encoded_items(recipe, tokenizer)
    waiting = [next(source) for _ in range(64)]
    for step in count():
        is_long = step % recipe.long_every == recipe.long_every - 1
        length = recipe.row_length * (recipe.long_factor if is_long else 1)
        num_rows = recipe.rows // (recipe.long_factor if is_long else 1)
        rows = [packed_row(waiting, source, length) for _ in range(num_rows)]
        yield make_batch(rows, length, recipe.prompt_loss_weight, masked=not is_long)


def make_batch(rows: list[list[Encoded]], length: int, prompt_weight: float, *, masked: bool) -> Batch:
    shape = (len(rows), length)
    tokens, targets = torch.zeros(shape, dtype=torch.long), torch.full(shape, IGNORED)
    weights, texts = torch.zeros(shape), torch.zeros(shape, dtype=torch.long)
    for row, packed in enumerate(rows):
        start = 0
        for number, (ids, num_prompt) in enumerate(packed, start=1):
            end = start + len(ids) - 1
            tokens[row, start:end] = torch.tensor(ids[:-1])
            targets[row, start:end] = torch.tensor(ids[1:])
            weights[row, start : start + num_prompt - 1] = prompt_weight
            weights[row, start + num_prompt - 1 : end] = 1.0
            texts[row, start:end] = number
            start = end
    seen = (texts[:, :, None] == texts[:, None, :]) & torch.ones(length, length, dtype=torch.bool).tril()
    bias = torch.zeros(seen.shape, dtype=torch.bfloat16).masked_fill(~seen, -1e9)[:, None] if masked else None
    return Batch(tokens, targets, weights, bias)
