"""Which fields a request may have beside those that are done, and what numbers may be: nothing is ignored that would
change the answer.

OpenAI's servers refuse fields that they don't know, vLLM's ignore them; here they are refused, as a constraint that is
ignored looks like one that was kept.
"""

import contextlib
import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from seap.errors import UserError

TINY = 1.1754943508222875e-38  # the least float32 that isn't rounded to zero somewhere
NOTHING: tuple[Any, ...] = ([], {}, "", False)

# fields of OpenAI's and vLLM's that aren't done, and the values that ask for nothing; null never does
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "add_special_tokens": (),  # its default is another one for chats: protocol.py
    "allowed_token_ids": (),
    "audio": (),
    "bad_words": NOTHING,
    "best_of": (),  # n: protocol.py
    "chat_template": (),
    "chat_template_kwargs": NOTHING,
    "continue_final_message": (False,),
    "documents": NOTHING,
    "early_stopping": (False,),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": NOTHING,
    "guided_choice": NOTHING,
    "guided_grammar": ("",),
    "guided_json": (),
    "guided_json_object": (False,),
    "guided_regex": ("",),
    "include_reasoning": (True,),
    "include_stop_str_in_output": (False,),
    "kv_transfer_params": NOTHING,
    "length_penalty": (1,),
    "logits_processors": NOTHING,
    "max_completion_tokens": (),
    "min_tokens": (0,),
    "mm_processor_kwargs": NOTHING,
    "modalities": (["text"],),
    "prompt_logprobs": (False,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "structured_outputs": NOTHING,
    "suffix": ("",),
    "tool_choice": ("none", "auto"),  # of no tools
    "tools": NOTHING,
    "top_logprobs": (0,),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "verbosity": (),
    "vllm_xargs": NOTHING,
    "web_search_options": (),
}
# fields that change no answer, whatever they say
HARMLESS = frozenset(
    {
        "cache_salt",
        "guided_decoding_backend",
        "guided_whitespace_pattern",
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "priority",
        "prompt_cache_key",
        "prompt_cache_retention",
        "request_id",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)


class FieldError(UserError):
    """Something wrong with one field; `param` is its place in the body, such as messages[0].content."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(f"{param}: {message}" if param else message)
        self.param = param


@contextlib.contextmanager
def about(param: str) -> Iterator[None]:
    """What is wrong inside is wrong with this field."""
    try:
        yield
    except FieldError:
        raise
    except UserError as error:
        raise FieldError(param, str(error)) from error


def given(body: Mapping[str, Any], done: Iterable[str], **neutral: tuple[Any, ...]) -> dict[str, Any]:
    """The fields of a body that are done and not null. Raises FieldError for one that would change the answer.

    neutral: further values that ask for nothing, by field.
    """
    check_text(body)
    allowed = NEUTRAL | {name: (*NEUTRAL.get(name, ()), *values) for name, values in neutral.items()}
    found = {name: value for name, value in body.items() if value is not None}
    for name, value in found.items():
        if name in done or name in HARMLESS or any(same(value, one) for one in allowed.get(name, ())):
            continue
        if name in NEUTRAL:
            values = " or ".join(repr(one) for one in (*allowed[name], None))
            raise FieldError(name, f"{value!r:.60} is not supported; leave it out (what asks for nothing: {values})")
        close = difflib.get_close_matches(name, [*done, *NEUTRAL], n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise FieldError(name[:64], f"no field of this kind of request is called so{hint} Leave it out".strip())
    return {name: value for name, value in found.items() if name in done}


def same(value: Any, neutral: Any) -> bool:
    """Equal, and a bool only to a bool: 1 isn't true."""
    return isinstance(value, bool) == isinstance(neutral, bool) and bool(value == neutral)


def check_text(body: Any) -> None:
    """Raise FieldError for text with a lone surrogate, which no tokenizer reads and no answer holds."""
    for place, text in _texts(body):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise FieldError(
                place, f"half a character at {error.start} (a lone surrogate, {text[error.start]!r}); mend it"
            ) from None


def _texts(body: Any) -> Iterator[tuple[str, str]]:
    """Every string with its place, names of fields too; without recursion, as bodies nest as deep as they like."""
    waiting: list[tuple[str, Any]] = [("", body)]
    while waiting:
        place, found = waiting.pop()
        if isinstance(found, str):
            yield place, found
        elif isinstance(found, dict):
            for name, value in found.items():
                yield place, name
                waiting.append((joined(place, name), value))
        elif isinstance(found, list):
            waiting += [(joined(place, number), value) for number, value in enumerate(found)]


def joined(place: str, name: str | int) -> str:
    """messages, 0 → messages[0]; then content → messages[0].content."""
    if isinstance(name, int):
        return f"{place}[{name}]"
    return f"{place}.{name}" if place else name


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"must be a number, got {value!r:.60}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"must be a number that a float holds, got one of {len(str(value))} digits") from None


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**63:
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"must be a whole number, got {value!r:.60}")
    if not -(2**63) <= value < 2**63:
        raise ValueError("must be a whole number of 64 bits")
    return value


def _not_underflowing(value: float) -> float:
    if 0 < abs(value) < TINY:
        raise ValueError(f"{value!r} is nearer to 0 than float32 can tell; give 0, or {TINY:.3g} at least")
    return value


# numbers as JSON has them: no strings, no true and false, nothing that overflows or underflows where it is used
Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False), AfterValidator(_not_underflowing)]
Whole = Annotated[int, BeforeValidator(_whole)]
