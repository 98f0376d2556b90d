"""What stands between a prompt and its answer: a completion goes on where the prompt ends, a chat's answer begins."""

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from live import PROMPT, running
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from toy import WORDS
from transformers import PreTrainedTokenizerFast
from workload import Bench


def words_with_their_space() -> Any:
    """The toy tokenizer's words, decoded as Llama-2's and Mistral's are: a text's first space is left out."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"▁{word}": 3 + i for i, word in enumerate(WORDS)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token="<s>")


@pytest.fixture(scope="module", params=["words", "words with their space"])
def bench(request: pytest.FixtureRequest) -> Bench:
    bench = Bench()
    if request.param != "words":
        bench.tokenizer = bench.scheduler.tokenizer = words_with_their_space()
    return bench


@pytest.fixture(scope="module")
def client(bench: Bench) -> Iterator[openai.OpenAI]:
    with (
        running(bench) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, http_client=httpx.Client()) as client,
    ):
        yield client


def text_of(bench: Bench, ids: list[int]) -> str:
    text: str = bench.tokenizer.decode(ids, skip_special_tokens=True)
    return text


def completed(client: openai.OpenAI, **asked: Any) -> list[tuple[str, str]]:
    """Text and reason of each answer."""
    given: dict[str, Any] = {"model": "red", "prompt": PROMPT, "max_tokens": 5, "temperature": 0} | asked
    made: Any = client.completions.create(**given)
    parts = [one for chunk in made for one in chunk.choices] if asked.get("stream") else made.choices
    found: dict[int, tuple[str, str]] = {}
    for part in parts:
        text, reason = found.get(part.index, ("", ""))
        found[part.index] = text + part.text, part.finish_reason or reason
    return [found[index] for index in sorted(found)]


@pytest.mark.parametrize("stream", [False, True])
def test_prompt_and_answer_are_the_whole_text(client: openai.OpenAI, bench: Bench, stream: bool) -> None:
    ids = bench.tokenizer(PROMPT)["input_ids"]
    whole = text_of(bench, [*ids, *bench.expected(ids, "red", 5)])
    assert whole.startswith(f"{PROMPT} w")
    for text, _ in completed(client, n=2, stream=stream):
        assert PROMPT + text == whole
    assert completed(client, echo=True, stream=stream) == [(whole, "length")]
    assert completed(client, prompt=[ids, [*range(20, 40), *ids]], stream=stream)[0][0] == whole.removeprefix(PROMPT)


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_at_the_very_beginning(client: openai.OpenAI, bench: Bench, stream: bool) -> None:
    ids = bench.tokenizer(PROMPT)["input_ids"]
    first = text_of(bench, bench.expected(ids, "red", 1))
    for stop, text in ((first, " "), (f" {first}", ""), (" ", ""), (first[:2], " ")):
        assert completed(client, stop=[stop], stream=stream) == [(text, "stop")]


def test_a_chats_answer_begins_a_text(client: openai.OpenAI, bench: Bench) -> None:
    ids = bench.tokenizer(PROMPT)["input_ids"]
    turns: Any = [{"role": "user", "content": PROMPT}]
    made = client.chat.completions.create(model="red", messages=turns, max_tokens=5, temperature=0)
    assert made.choices[0].message.content == text_of(bench, bench.expected(ids, "red", 5))
