"""What requests may hold: null is not given, nothing is ignored that would change the answer, errors name the field."""

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seap.serving.server.fields import HARMLESS, NEUTRAL, FieldError
from seap.serving.server.messages import read_messages
from seap.serving.server.protocol import ChatRequest, CompletionRequest, read_request
from seap.writing.sampling import Adjustments, Sampler

KINDS: dict[type, dict[str, Any]] = {
    CompletionRequest: {"model": "red", "prompt": "w5"},
    ChatRequest: {"model": "red", "messages": [{"role": "user", "content": "w5"}]},
}
BOTH = pytest.mark.parametrize("kind", KINDS)


def refused(kind: type, **fields: Any) -> FieldError:
    with pytest.raises(FieldError) as found:
        read_request(kind, KINDS[kind] | fields)
    return found.value


@BOTH
def test_null_is_not_given(kind: type) -> None:
    names = {field.alias or name for name, field in kind.model_fields.items()} - KINDS[kind].keys()  # type: ignore[attr-defined]
    nulls = dict.fromkeys([*names, *NEUTRAL, *HARMLESS, "nobody_knows"])
    assert read_request(kind, KINDS[kind] | nulls) == read_request(kind, KINDS[kind])
    for name in KINDS[kind]:
        found = refused(kind, **{name: None})
        assert found.param == name and "missing" in str(found)


@BOTH
def test_what_asks_for_nothing_passes_and_what_asks_for_something_is_refused_by_name(kind: type) -> None:
    plain, own = read_request(kind, KINDS[kind]), {field.alias or name for name, field in kind.model_fields.items()}  # type: ignore[attr-defined]
    for name, values in NEUTRAL.items():
        for value in values:
            assert read_request(kind, KINDS[kind] | {name: value}) == plain
        if name not in own:
            for value in ({"a": 1}, [[1]], "xyz", 7.5):
                found = refused(kind, **{name: value})
                assert found.param == name and name in str(found) and "leave it out" in str(found)
    for name in HARMLESS:
        assert read_request(kind, KINDS[kind] | {name: "x"}) == plain
    assert refused(kind, best_of=2).param == "best_of"
    assert read_request(kind, KINDS[kind] | {"best_of": 3, "n": 3}).n == 3
    chat = kind is ChatRequest
    assert read_request(kind, KINDS[kind] | {"add_special_tokens": not chat}) == plain
    assert refused(kind, add_special_tokens=chat).param == "add_special_tokens"


@BOTH
@settings(max_examples=60, deadline=None)
@given(name=st.text(min_size=1, max_size=20), value=st.integers() | st.text() | st.lists(st.integers()))
def test_a_field_that_nobody_knows_is_refused(kind: type, name: str, value: Any) -> None:
    known = {*NEUTRAL, *HARMLESS, *KINDS[kind], *(field.alias or own for own, field in kind.model_fields.items())}  # type: ignore[attr-defined]
    if name not in known:
        assert refused(kind, **{name: value}).param == name


def test_a_slip_is_told() -> None:
    assert "did you mean temperature" in str(refused(CompletionRequest, temprature=0.5))


NUMBERS = {
    "max_tokens": (1, 99),
    "temperature": (0, 1e-30, 0.7, 2),
    "top_p": (1e-37, 0.5, 1),
    "top_k": (-1, 0, 5, 2**40),
    "min_p": (0, 0.1, 1),
    "repetition_penalty": (0.01, 1, 100),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 0.5, 2),
    "seed": (-(2**63), 2**63 - 1, 5.0),
    "n": (1, 16),
}
WRONG: dict[str, tuple[Any, ...]] = {
    "max_tokens": (-1, 1.5, 1e300),
    "temperature": (-0.1, 2.1, 1e-46, 5e-324),
    "top_p": (0, 1.1, 1e-46, 1e-39, -1),
    "top_k": (-2, 0.5),
    "min_p": (-0.1, 1.1, 1e-46),
    "repetition_penalty": (0, -1, 1e-46, 1e38, 0.001),
    "presence_penalty": (-2.1, 3),
    "frequency_penalty": (1e30, -3),
    "seed": (2**63, -(2**63) - 1, 0.5),
    "n": (0, 17, -1),
}


@BOTH
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(kind: type, name: str) -> None:
    for value in NUMBERS[name]:
        assert getattr(read_request(kind, KINDS[kind] | {name: value}), name) == value
    for value in (*WRONG[name], math.nan, math.inf, -math.inf, 10**400, -(10**400), "1", True, [1], {}):
        found = refused(kind, **{name: value})
        assert found.param == name and str(found).startswith(f"{name}: ") and len(str(found)) < 300


finite = st.floats(allow_nan=True, allow_infinity=True)


@settings(max_examples=300, deadline=None)
@given(
    asked=st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(("temperature", "top_p", "min_p"), finite | st.floats(0, 1) | st.floats(0, 1e-36)),
            **dict.fromkeys(("repetition_penalty",), finite | st.floats(0, 101)),
            **dict.fromkeys(("presence_penalty", "frequency_penalty"), finite | st.floats(-2, 2)),
            "top_k": st.integers(-3, 20) | st.integers(),
            "seed": st.integers(),
            "logit_bias": st.dictionaries(
                st.integers(-2, 20).map(str) | st.text(max_size=3), finite | st.floats(-100, 100), max_size=4
            ),
        },
    ),
    scale=st.sampled_from([1e-30, 1.0, 1e4, 1e30]),
)
def test_what_is_accepted_never_makes_the_sampler_raise(asked: dict[str, Any], scale: float) -> None:
    """Whatever the logits are, if they are finite; and a token of the vocabulary comes out, with finite numbers."""
    try:
        request = read_request(CompletionRequest, KINDS[CompletionRequest] | asked)
        adjustments = request.adjustments(12)
    except FieldError as error:
        assert error.param.partition(".")[0] in asked
        return
    sampler = Sampler(
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        logprobs=3,
        top_k=max(request.top_k, 0),
        min_p=request.min_p,
        adjustments=adjustments,
        prompt=(1, 2, 3),
    )
    logits = torch.linspace(-1, 1, 12) * scale
    logits[5] = -math.inf
    for _ in range(5):
        token = sampler.choose(logits)
        assert 0 <= token.id < 12 and token.logprob is not None and math.isfinite(token.logprob)
        assert json.dumps(token.top, allow_nan=False)


def test_biases_and_stop_ids_are_of_the_vocabulary() -> None:
    ask = KINDS[CompletionRequest]
    asked = read_request(CompletionRequest, ask | {"logit_bias": {"3": -100, "0": 2.5}, "stop_token_ids": [0, 4]})
    assert asked.adjustments(5) == Adjustments(bias=((3, -100.0), (0, 2.5)))
    for name in ("5", "-1", "x", "", "1.0", "9" * 30, "٣"):
        with pytest.raises(FieldError) as found:
            read_request(CompletionRequest, ask | {"logit_bias": {name: 1}}).adjustments(5)
        assert found.value.param.startswith("logit_bias")
    with pytest.raises(FieldError, match=r"stop_token_ids\[1\]"):
        read_request(CompletionRequest, ask | {"stop_token_ids": [1, 5]}).adjustments(5)
    for value in (101, -101, math.nan, math.inf, "1", None, True):
        assert refused(CompletionRequest, logit_bias={"3": value}).param == "logit_bias.3"
    assert refused(CompletionRequest, logit_bias=[1]).param == "logit_bias"


PLACES: list[tuple[type, dict[str, Any], str]] = [
    (ChatRequest, {"messages": []}, "messages"),
    (ChatRequest, {"messages": "hi"}, "messages"),
    (ChatRequest, {"messages": ["hi"]}, "messages[0]"),
    (ChatRequest, {"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    (ChatRequest, {"messages": [{"role": "user"}]}, "messages[0].content"),
    (ChatRequest, {"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    (ChatRequest, {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    (
        ChatRequest,
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "image_url"}]}]},
        "messages[0].content[1].type",
    ),
    (ChatRequest, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    (ChatRequest, {"messages": [{"role": "user", "content": "x", "mood": "bad"}]}, "messages[0].mood"),
    (ChatRequest, {"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]}, "messages[0].tool_calls[0]"),
    (ChatRequest, {"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0]"),
    (ChatRequest, {"top_logprobs": 2}, "top_logprobs"),
    (ChatRequest, {"max_tokens": 0}, "max_tokens"),
    (CompletionRequest, {"max_tokens": 0}, "max_tokens"),
    (CompletionRequest, {"prompt": {"a": 1}}, "prompt"),
    (CompletionRequest, {"prompt": [[1], "x", 3]}, "prompt"),
    (CompletionRequest, {"prompt": [True]}, "prompt"),
    (CompletionRequest, {"logprobs": 6}, "logprobs"),
    (CompletionRequest, {"stop": [""]}, "stop"),
    (CompletionRequest, {"stop": 3}, "stop"),
    (CompletionRequest, {"stream": "yes"}, "stream"),
    (CompletionRequest, {"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    (CompletionRequest, {"stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous_usage_stats"),
    (CompletionRequest, {"stream_options": []}, "stream_options"),
]


@pytest.mark.parametrize(("kind", "fields", "param"), PLACES)
def test_the_place_of_what_is_wrong(kind: type, fields: dict[str, Any], param: str) -> None:
    assert refused(kind, **fields).param == param


surrogates = st.integers(0xD800, 0xDFFF).map(chr)


@settings(max_examples=60, deadline=None)
@given(half=surrogates, deep=st.integers(0, 3))
def test_half_a_character_is_refused_wherever_it_is(half: str, deep: int) -> None:
    text: Any = f"a{half}b"
    for _ in range(deep):
        text = [text] if deep % 2 else {"x": text}
    for kind in KINDS:
        for name in (*KINDS[kind], "stop", "user", "metadata"):
            assert "surrogate" in str(refused(kind, **{name: text}))
        assert "surrogate" in str(refused(kind, **{half: 1}))
        assert "surrogate" in str(refused(kind, logit_bias={half: 1}))
    found = refused(ChatRequest, messages=[{"role": "user", "content": [{"type": "text", "text": half}]}])
    assert found.param == "messages[0].content[0].text"


def test_deep_bodies_are_no_recursion() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    assert refused(CompletionRequest, metadata=deep, nobody_knows=1).param == "nobody_knows"


@pytest.mark.parametrize("body", [None, [], "x", 5, True])
@BOTH
def test_a_body_that_is_no_object(kind: type, body: Any) -> None:
    with pytest.raises(FieldError, match="must be a JSON object"):
        read_request(kind, body)


CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
HISTORY = [
    {"role": "developer", "content": "be short"},
    {"role": "user", "content": [{"type": "text", "text": "1 +"}, {"type": "text", "text": " 1?"}], "name": "ann"},
    {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None, "annotations": []},
    {"role": "tool", "content": "2", "tool_call_id": "c1"},
    {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": "no json"}},
    {"role": "function", "name": "add", "content": "3"},
]


def test_tool_turns_in_the_history() -> None:
    messages = read_messages(HISTORY)
    assert [one.role for one in messages] == ["developer", "user", "assistant", "tool", "assistant", "tool"]
    assert [one.text for one in messages] == ["be short", "1 + 1?", "", "2", "", "3"]
    told = [one.turn(tools=True, developer=True) for one in messages]
    assert told[0] == {"role": "developer", "content": "be short"}
    assert told[1] == {"role": "user", "content": "1 + 1?", "name": "ann"}
    called = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    assert told[2] == {"role": "assistant", "content": "", "tool_calls": [called]}
    assert told[3] == {"role": "tool", "content": "2", "tool_call_id": "c1"}
    assert told[4]["tool_calls"][0]["function"] == {"name": "add", "arguments": "no json"}
    plain = [one.turn(tools=False, developer=False) for one in messages]
    assert [one["role"] for one in plain] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert plain[2]["content"] == '{"name": "add", "arguments": {"a": 1}}'
