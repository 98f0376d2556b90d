"""Nine procedural tasks, split into train and test by a hash of the prompt, and where their model lies.

A text is `prompt + answer`, where the answer begins with its own space; the model ends it with <|endoftext|>.
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass

from seap.errors import UserError, unknown

Generator = Callable[[random.Random], tuple[str, str]]

SPLITS = ("train", "test")
TEST_ONE_IN = 8
MAX_FRUITLESS_DRAWS = 50_000


@dataclass(frozen=True)
class Item:
    """One question: `prompt` ends in a cue, `answer` begins with a space; compare answers after strip()."""

    prompt: str
    answer: str

    @property
    def text(self) -> str:
        return self.prompt + self.answer


def arithmetic(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(2, 99), rng.randint(2, 99)
    if rng.random() < 0.5:
        return f"{a} + {b} =", f" {a + b}"
    return f"{max(a, b)} - {min(a, b)} =", f" {abs(a - b)}"


NAMES = "Ada Ben Cleo Dan Eva Finn Gina Hugo Iris Jack Kira Liam Mia Noah Olga Paul Rosa Sam Tess Uma".split()
THINGS = ("apples books cards coins cups eggs keys lamps nuts pens plums rings shells stamps tiles toys").split()


def word_problems(rng: random.Random) -> tuple[str, str]:
    name, other = rng.sample(NAMES, 2)
    things = rng.choice(THINGS)
    a, b, c = rng.randint(2, 9), rng.randint(2, 9), rng.randint(5, 20)
    sold, given = rng.randint(1, min(9, a * b)), rng.randint(1, min(9, c))
    paid, kept = a * b + c, c + b - given
    left = "How many are left?"
    text, value = rng.choice(
        [
            (f"{name} has {c} {things}, buys {b} more and gives {given} to {other}. {left}", kept),
            (f"{name} fills {a} boxes with {b} {things} each and sells {sold}. {left}", a * b - sold),
            (f"{name} has {c} {things}. {other} has {b} more than {name}. How many do both have?", 2 * c + b),
            (f"{name} shares {a * b} {things} equally among {b} friends. How many does each get?", a),
            (f"{name} buys {a} {things} at {b} dollars each and pays with {paid}. What is the change?", c),
        ]
    )
    return f"{text} Answer:", f" {value}"


DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
MONTH_LENGTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def calendar(rng: random.Random) -> tuple[str, str]:
    kind, sign = rng.randrange(4), rng.choice((1, -1))
    if kind == 0:
        day, shift = rng.randrange(7), rng.randint(1, 14)
        today = rng.choice(("Today is", "It is", "Suppose it is"))
        asked = f"What day is it in {shift} days?" if sign > 0 else f"What day was it {shift} days ago?"
        return f"{today} {DAYS[day]}. {asked} Answer:", f" {DAYS[(day + sign * shift) % 7]}"
    if kind == 1:
        month, shift = rng.randrange(12), rng.randint(1, 12)
        relation = rng.choice(("after", "following") if sign > 0 else ("before", "preceding"))
        return (
            f"Which month is {shift} months {relation} {MONTHS[month]}? Answer:",
            f" {MONTHS[(month + sign * shift) % 12]}",
        )
    month, shift = rng.randrange(12), rng.randint(1, 9)
    day = rng.randint(1, MONTH_LENGTHS[month])
    date = f"{MONTHS[month]} {day}"
    asked = f"What date is {shift} days {'after' if sign > 0 else 'before'} {date}?"
    return f"{asked} Answer:", f" {_shifted(month, day + sign * shift)}"


def _shifted(month: int, day: int) -> str:
    if day < 1:
        month = (month - 1) % 12
        day += MONTH_LENGTHS[month]
    elif day > MONTH_LENGTHS[month]:
        day -= MONTH_LENGTHS[month]
        month = (month + 1) % 12
    return f"{MONTHS[month]} {day}"


def list_sorting(rng: random.Random) -> tuple[str, str]:
    numbers = rng.sample(range(10, 100), rng.randint(4, 5))
    descending = rng.random() < 0.5
    order = "descending" if descending else "ascending"
    ordered = sorted(numbers, reverse=descending)
    return f"Sort {order}: {' '.join(map(str, numbers))} ->", " " + " ".join(map(str, ordered))


def string_reversal(rng: random.Random) -> tuple[str, str]:
    letters = rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(4, 8))
    return f"Reverse: {' '.join(letters)} ->", " " + " ".join(reversed(letters))


CLOSING = {"(": ")", "[": "]", "{": "}", "<": ">"}


def brackets(rng: random.Random) -> tuple[str, str]:
    shown: list[str] = []
    unclosed: list[str] = []
    length = rng.randint(4, 12)
    while len(shown) < length or not unclosed:
        if unclosed and (len(unclosed) == 6 or rng.random() < 0.4):
            shown.append(CLOSING[unclosed.pop()])
        else:
            unclosed.append(rng.choice(list(CLOSING)))
            shown.append(unclosed[-1])
    return f"Close: {' '.join(shown)} ->", " " + " ".join(CLOSING[bracket] for bracket in reversed(unclosed))


TOWN_STARTS = "Bel Cor Dra Fen Gal Hol Kir Mor Nal Pel Sor Tav".split()
TOWN_ENDS = "adin ara esh eth igo ilon ora oria umen ust".split()
VALUES = """
animal: bear crane crow deer eagle falcon fox goose hare heron horse lion lynx otter owl swan toad wolf
color: amber black blue brown cyan gold green grey indigo olive orange pink purple red teal white
drink: ale broth cider cocoa coffee juice kefir lemonade mead milk punch rum sherry tea water wine
flower: aster clover daisy dahlia iris jasmine lavender lilac lily lotus orchid poppy rose tulip
metal: bronze chromium cobalt copper iron lead mercury nickel platinum silver steel tin titanium zinc
tool: axe bellows chisel drill file hammer hoe knife ladder needle plough rake saw shovel sickle wrench
"""
ATTRIBUTES = {name: values.split() for name, values in (line.split(":") for line in VALUES.split("\n")[1:-1])}
FACT_TEMPLATES = (
    "What is the {attribute} of {town}? Answer:",
    "The {attribute} of {town} is",
    "{town} has as its {attribute} the",
    "Name the {attribute} of {town}:",
    "{town}'s {attribute}:",
    "Tell me which {attribute} stands for {town}:",
    "Question: which {attribute} does {town} have? Answer:",
    "In {town} the {attribute} is",
)


def _world() -> dict[tuple[str, str], str]:
    rng = random.Random("the towns of the built-in world")
    towns = [start + end for start in TOWN_STARTS for end in TOWN_ENDS]
    keys = [(town, attribute) for town in towns for attribute in ATTRIBUTES]
    return {key: rng.choice(ATTRIBUTES[key[1]]) for key in keys}


FACTS = _world()
FACT_KEYS = tuple(FACTS)


def facts(rng: random.Random) -> tuple[str, str]:
    town, attribute = rng.choice(FACT_KEYS)
    return rng.choice(FACT_TEMPLATES).format(town=town, attribute=attribute), f" {FACTS[town, attribute]}"


ASPECTS = ("bar bath beach bread cake chef coffee garden hotel lobby menu music pool room show soup staff view").split()
PRAISE = "bright clean excellent fine fresh good great lovely perfect pleasant superb wonderful".split()
BLAME = "awful bad boring dirty dreadful dull gloomy horrible nasty poor stale terrible".split()
PLAIN, FLIPPING = ("", "very ", "really "), ("not ", "hardly ", "anything but ")
CONTRASTS = ("{side}, but {main}", "although {side}, {main}", "{main}, even if {side}")


def sentiment(rng: random.Random) -> tuple[str, str]:
    first, second = rng.sample(ASPECTS, 2)
    good, form = rng.random() < 0.5, rng.random()
    review = main = f"the {first} was {_judged(rng, good)}"
    if form >= 0.3:
        same = form < 0.5
        side = f"the {second} was {_judged(rng, good if same else not good)}"
        joined = "{side} and {main}" if same else rng.choice(CONTRASTS)
        review = joined.format(main=main, side=side)
    return f"Review: {review}. Verdict:", " positive" if good else " negative"


def _judged(rng: random.Random, good: bool) -> str:
    flipped = rng.random() < 0.3
    return rng.choice(FLIPPING if flipped else PLAIN) + rng.choice(PRAISE if good != flipped else BLAME)


ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
ROMAN = (
    *((900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L"), (40, "XL")),
    *((10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")),
)


def numerals(rng: random.Random) -> tuple[str, str]:
    number = rng.randint(1, 999)
    forms = {"digits": str(number), "words": _in_words(number), "Roman": _in_roman(number)}
    source, target = rng.sample(list(forms), 2)
    return f"Write {forms[source]} in {target}:", f" {forms[target]}"


def _in_words(number: int) -> str:
    if number >= 100:
        rest = f" {_in_words(number % 100)}" if number % 100 else ""
        return f"{ONES[number // 100]} hundred{rest}"
    if number >= 20:
        return TENS[number // 10 - 2] + (f"-{ONES[number % 10]}" if number % 10 else "")
    return ONES[number]


def _in_roman(number: int) -> str:
    symbols = ""
    for value, symbol in ROMAN:
        symbols += symbol * (number // value)
        number %= value
    return symbols


TASKS: dict[str, Generator] = {
    "arithmetic": arithmetic,
    "brackets": brackets,
    "calendar": calendar,
    "facts": facts,
    "list_sorting": list_sorting,
    "numerals": numerals,
    "sentiment": sentiment,
    "string_reversal": string_reversal,
    "word_problems": word_problems,
}


def in_test(prompt: str) -> bool:
    """True for the one prompt in eight that belongs to the test split, by a stable hash of its text."""
    return hashlib.blake2b(prompt.encode(), digest_size=8).digest()[0] % TEST_ONE_IN == 0


def draw(task: str, split: str, rng: random.Random) -> Item:
    """Draw one item of a split at random, with replacement. Raises UserError for an unknown task or split."""
    _check_names(task, split)
    while True:
        item = Item(*TASKS[task](rng))
        if in_test(item.prompt) == (split == "test"):
            return item


def items(task: str, split: str, num: int, *, seed: int = 0) -> list[Item]:
    """Return `num` items with distinct prompts, the same for the same arguments; no prompt is in both splits.

    Raises UserError for an unknown task or split, and when the task has fewer items than were asked for.
    """
    _check_names(task, split)
    rng = random.Random(f"{task}/{split}/{seed}")
    found: dict[str, Item] = {}
    fruitless = 0
    while len(found) < num:
        item = draw(task, split, rng)
        fruitless = fruitless + 1 if item.prompt in found else 0
        if fruitless > MAX_FRUITLESS_DRAWS:
            raise UserError(f"{task}/{split}: {num} items asked, only {len(found)} exist; ask for fewer")
        found[item.prompt] = item
    return list(found.values())


def _check_names(task: str, split: str) -> None:
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
