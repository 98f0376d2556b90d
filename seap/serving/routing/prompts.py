"""What users may send in place of a task's test prompt: wrapped in a chat, without its template, shortened, its
beginning alone, altered."""

import random
from collections import Counter
from collections.abc import Callable, Sequence

from seap.text.items import Item
from seap.text.turns import said_by_user

CHAT = "User: {}\nAssistant:"
COMMON = 0.5  # a first or last word that so many prompts share belongs to the template
LOST_WORDS = 0.15
BEGINNING = (0.125, 0.5)  # of the words of a text of one line
FEWEST_WORDS = 4


def prompt_of(item: Item) -> str:
    """What a user would send: what the user says in a conversation, or the prompt, the question, or the text."""
    if item.is_free:
        return said_by_user(item.turns[:-1] if item.answer is not None else item.turns)
    return item.prompt or item.question or item.text


def in_chat(prompts: Sequence[str], rng: random.Random) -> list[str]:
    return [CHAT.format(prompt) for prompt in prompts]


def without_template(prompts: Sequence[str], rng: random.Random) -> list[str]:
    """Without the first and last words that at least half of the prompts share; one that is all template stays."""
    split = [prompt.split() for prompt in prompts]
    for end in (0, -1):
        while True:
            counts = Counter(words[end] for words in split if len(words) > 1)
            word, count = counts.most_common(1)[0] if counts else ("", 0)
            if count < COMMON * len(split):
                break
            split = [_without(words, end) if len(words) > 1 and words[end] == word else words for words in split]
    return [" ".join(words) for words in split]


def _without(words: list[str], end: int) -> list[str]:
    return words[:-1] if end else words[1:]


def shortened(prompts: Sequence[str], rng: random.Random) -> list[str]:
    """The first half of the words."""
    split = [prompt.split() for prompt in prompts]
    return [" ".join(words[: (len(words) + 1) // 2]) for words in split]


def beginning(prompts: Sequence[str], rng: random.Random) -> list[str]:
    """What is asked before the rest: the first of several lines, or an eighth to a half of the words; no template.

    A task that has only texts has its answers in them, and its users send what comes before.
    """
    made = []
    for prompt, bare in zip(prompts, without_template([_first_line(prompt) for prompt in prompts], rng), strict=True):
        words = bare.split()
        if "\n" not in prompt.strip():
            words = words[: max(round(len(words) * rng.uniform(*BEGINNING)), FEWEST_WORDS)]
        made.append(" ".join(words))
    return made


def _first_line(prompt: str) -> str:
    return prompt.strip().partition("\n")[0]


def altered(prompts: Sequence[str], rng: random.Random) -> list[str]:
    """Lower case, a courtesy in front, one word in seven lost: a light paraphrase that needs no other model."""
    courtesies = ("please: ", "hi, ", "can you help? ", "")
    made = []
    for prompt in prompts:
        words = prompt.lower().split()
        kept = [word for word in words if rng.random() >= LOST_WORDS] or words
        made.append(rng.choice(courtesies) + " ".join(kept))
    return made


VARIANTS: dict[str, Callable[[Sequence[str], random.Random], list[str]]] = {
    "as it is": lambda prompts, rng: list(prompts),
    "in a chat": in_chat,
    "without template": without_template,
    "first half": shortened,
    "beginning": beginning,
    "altered": altered,
}
