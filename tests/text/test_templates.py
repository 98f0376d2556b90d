"""Chat templates run apart, within limits of time, memory and output."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from toy import tokenizer

from seap.errors import UserError
from seap.text import templates
from seap.text.templates import render

TURNS = [{"role": "user", "content": "w3 w4"}, {"role": "assistant", "content": "w5", "name": None}]
PLAIN = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}\n{% endfor %}"
PLAIN += "{% if add_generation_prompt %}[assistant] {% endif %}{{ colour }}"


@pytest.fixture(scope="module", autouse=True)
def ended() -> Iterator[None]:
    yield
    templates.close_all()


def with_template(text: str) -> Any:
    words = tokenizer()
    words.chat_template = text
    return words


@pytest.mark.parametrize("prompted", [True, False])
def test_it_writes_what_transformers_writes(prompted: bool) -> None:
    words = with_template(PLAIN)
    expected = words.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=prompted, colour="é✓")
    assert render(words, TURNS, add_generation_prompt=prompted, colour="é✓") == expected
    tools = [{"type": "function", "function": {"name": "f"}}]
    words = with_template("{{ tools | tojson }}")
    assert render(words, TURNS, tools=tools) == words.apply_chat_template(TURNS, tools=tools, tokenize=False)


def test_one_process_serves_many_requests() -> None:
    words = with_template(PLAIN)
    assert len({render(words, TURNS) for _ in range(3)}) == 1
    assert len(templates._idle) == 1


@pytest.mark.parametrize(
    "endless",
    [
        "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
        "{% macro again() %}{% for i in range(9) %}{{ again() }}{% endfor %}{% endmacro %}{{ again() }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    ],
)
def test_a_template_that_does_not_end_is_stopped_and_the_next_request_goes_on(endless: str) -> None:
    render(with_template(PLAIN), TURNS)
    started = time.monotonic()
    with pytest.raises(UserError, match="chat template"):
        render(with_template(endless), TURNS, seconds=0.5)
    assert time.monotonic() - started < 60
    assert "w3 w4" in render(with_template(PLAIN), TURNS)


@pytest.mark.parametrize(
    ("greedy", "said"),
    [
        ("{{ 'x' * 9000000 }}", "wrote 9,000,000 characters"),
        ("{{ 'x' * (2 ** 33) }}", "memory"),
        ("{% set n = namespace(s='x') %}{% for i in range(40) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}", "mem"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{% for", "refuses"),
    ],
)
def test_what_a_template_may_not_do_is_said(greedy: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        render(with_template(greedy), TURNS, seconds=20)


def test_a_tokenizer_without_template_and_no_messages_are_refused() -> None:
    with pytest.raises(UserError, match="no chat template"):
        render(tokenizer(), TURNS)
    with pytest.raises(UserError, match="no messages"):
        render(with_template(PLAIN), [])


PARTS_ALONE = (
    "{% for message in messages %}<{{ message['role'] }}>{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}; {% endfor %}"
)


def test_texts_are_given_as_parts_to_a_template_that_reads_nothing_else() -> None:
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Why? "}]
    assert render(with_template(PARTS_ALONE), said) == "<system>Be brief.; <user> Why? ; "
    strict = "{% if messages[0]['content'] is not string %}{{ raise_exception('texts') }}{% endif %}none"
    assert render(with_template(strict), said) == "none"  # neither way writes it
