"""What tokens are in answers with logprobs: bytes and texts, by every kind of vocabulary, and who waits for them."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from live import PROMPT, listening, running
from tiny import model
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from toy import tokenizer
from transformers import PreTrainedTokenizerFast
from workload import Bench

from seap.models import loader
from seap.serving.networks.runtime import TaskRuntime
from seap.serving.options import Limits
from seap.serving.scheduling.scheduler import Scheduler
from seap.serving.server.answers import Answer, written
from seap.serving.server.app import Service, create_app
from seap.serving.server.spelling import Spelling

MARKS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def byte_level() -> Any:
    """A token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(models.BPE({sign: place for place, sign in enumerate(alphabet)}, []))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=words, **MARKS)


def pieces() -> Any:
    """SentencePiece as Llama 2's tokenizer.json has it: a space at the start of a text is put there, and taken away."""
    known = ["▁the", "▁cat", "▁sat", "▁", "<0xC3>", "<0xA9>", *"abcdehrst"]
    words = Tokenizer(models.Unigram([("<unk>", 0.0), *((word, -1.0 * len(word)) for word in known)], 0, False))
    words.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    words.decoder = decoders.Sequence(parts)
    return PreTrainedTokenizerFast(tokenizer_object=words, **MARKS)


@contextmanager
def serving(words: Any) -> Iterator[str]:
    net = model("llama", vocab_size=len(words) + 1)
    net.generation_config.eos_token_id = None
    scheduler = Scheduler(TaskRuntime(net, {}), words, Limits())
    with listening(create_app(Service(scheduler=scheduler, tokenizer=words, name="tiny"))) as url:
        yield url


def asked(url: str, path: str = "completions", **body: Any) -> Any:
    given = {"model": "dense", "temperature": 0, "max_tokens": 3} | body
    answer = httpx.post(f"{url}/v1/{path}", json=given, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


def test_bytes_are_those_that_decoding_gives() -> None:
    """Of every token of a real byte-level vocabulary; together they are the text, also where they are parts of it."""
    words = loader.load_for_work("builtin")[1]
    spelling, text = Spelling(words), "Grüße, 日本 🤗\n"
    found = [spelling.of(token) for token in range(len(words))]
    assert [one.data.decode(errors="replace") for one in found] == [
        words.decode([token]) for token in range(len(words))
    ]
    assert len({one.text for one in found}) == len(found)
    assert (
        b"".join(spelling.of(token).data for token in words(text, add_special_tokens=False)["input_ids"]).decode()
        == text
    )
    assert spelling.of(len(words) + 9).data == b""


@pytest.mark.parametrize(
    ("make", "token", "text", "data"),
    [
        (byte_level, "Ã", "bytes:\\xc3", b"\xc3"),
        (byte_level, "Ġ", " ", b" "),
        (byte_level, "</s>", "</s>", b"</s>"),
        (pieces, "<0xC3>", "bytes:\\xc3", b"\xc3"),
        (pieces, "▁cat", " cat", b" cat"),
        (pieces, "</s>", "</s>", b"</s>"),
        (tokenizer, "w9", "w9", b"w9"),
    ],
)
def test_spelling_by_hand(make: Any, token: str, text: str, data: bytes) -> None:
    words = make()
    spelling = Spelling(words)
    assert spelling.of(words.convert_tokens_to_ids(token)) == (text, data)
    assert spelling.of(words.convert_tokens_to_ids(token), bare=True) == (text.lstrip(), data.lstrip())


def test_parts_of_characters_are_told_apart() -> None:
    words = byte_level()
    first, second = words("é")["input_ids"]
    with serving(words) as url:
        found = asked(url, prompt="x", max_tokens=1, logprobs=5, logit_bias={str(first): 100})["logprobs"]
        assert found["tokens"] == ["bytes:\\xc3"] and len(found["top_logprobs"][0]) == 5
        both = {str(first): 100, str(second): 99.9}
        chat = {"messages": [{"role": "user", "content": "x"}], "logprobs": True, "top_logprobs": 5}
        choice = asked(url, "chat/completions", max_tokens=2, frequency_penalty=2, logit_bias=both, **chat)
        assert choice["message"]["content"] == "é"
        assert [one["bytes"] for one in choice["logprobs"]["content"]] == [[0xC3], [0xA9]]
        every = [one["token"] for one in choice["logprobs"]["content"][0]["top_logprobs"]]
        assert len({*every}) == 5


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_tokens_of_pieces_are_the_text(echo: bool, stream: bool) -> None:
    """With the space that each begins with, but for that which the text's decoder takes away at its start."""
    words = pieces()
    sat = words.convert_tokens_to_ids("▁sat")
    with serving(words) as url:
        body = {"prompt": "the cat", "logprobs": 2, "echo": echo, "logit_bias": {str(sat): 100}}
        if stream:
            given = {"model": "dense", "temperature": 0, "max_tokens": 3, "stream": True} | body
            lines = httpx.post(f"{url}/v1/completions", json=given).text.split("\n\n")
            parts = [json.loads(line[6:])["choices"][0] for line in lines if line.startswith("data: {")]
        else:
            parts = [asked(url, **body)]
    text = "".join(part["text"] for part in parts)
    tokens = [token for part in parts for token in part["logprobs"]["tokens"]]
    tops = [top for part in parts for top in part["logprobs"]["top_logprobs"]]
    assert "".join(tokens) == text and len(tokens) == (5 if echo else 3)
    assert text.split() == ["the", "cat"] * echo + ["sat"] * 3
    assert all(top is None or len(top) == 2 for top in tops) and tokens[-1] == " sat"


@pytest.mark.parametrize("stream", [False, True])
def test_long_answers_are_put_together_apart(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server answers others while it does; before, it waited seconds for 180,000 tokens with their alternatives."""
    begun, go, made = threading.Event(), threading.Event(), Answer._logprobs

    def slow(self: Any, *given: Any) -> Any:
        begun.set()
        assert go.wait(20)
        return made(self, *given)

    monkeypatch.setattr(Answer, "_logprobs", slow)
    with running(Bench()) as url, ThreadPoolExecutor(1) as pool:
        body = {"model": "red", "prompt": PROMPT, "max_tokens": 0, "echo": True, "logprobs": 2, "stream": stream}
        answer = pool.submit(httpx.post, f"{url}/v1/completions", json=body, timeout=30)
        assert begun.wait(20)
        try:
            assert httpx.get(f"{url}/health", timeout=3).status_code == 200
        finally:
            go.set()
        assert answer.result().status_code == 200


@pytest.mark.parametrize("ascii", [False, True])
def test_json_in_slices_is_json(ascii: bool) -> None:
    value = {"é": [{"a": [0.5, None]}] * 700, "none": [], "one": [[1, {"b": "\n"}]], "deep": {"x": {"y": True}}}
    text = written(value, ascii=ascii)
    assert json.loads(text) == value and text.isascii() == ascii and " " not in text
