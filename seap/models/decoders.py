"""The text decoder inside a multimodal model, as a causal language model of its own.

It shares its modules and its config with the model that it is of, the wrapper: what is cut of one is cut of the other,
and the wrapper is what is saved. Its outputs are those of the wrapper for text: the output layer over the text model's
states. Towers for images and sound, and what joins them to the decoder, aren't touched.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from seap.errors import UserError
from seap.models import modeling_seap
from seap.models.modes import cache_name

_MARK = "_seap_wrapper"
KEYS = ("text_config", "llm_config", "language_config", "decoder")  # of the config inside a wrapper's
# what a processor's settings lie in, beside the tokenizer's files
PROCESSOR = (
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
)
_made: dict[type, type] = {}


def text_config(config: Any) -> Any:
    """The config of the text decoder inside a wrapper's config; a language model's own config itself."""
    return config.get_text_config(decoder=True)


def is_wrapper(config: Any) -> bool:
    """Whether a config is of a model that holds a text decoder beside others.

    By the type, as transformers gives a copy of some configs, of encoders with decoders for instance.
    """
    return bool(text_config(config).model_type != config.model_type)


def said_of_decoder(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config.json that is about the text decoder."""
    return next((raw[key] for key in KEYS if isinstance(raw.get(key), dict)), raw)


def may_wrap(model_type: Any) -> bool:
    """Whether transformers knows the type as a model of images and text."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    return model_type in CONFIG_MAPPING and model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def auto_class(config: Any) -> Any:
    """transformers' auto class that builds what a config describes, whole."""
    import transformers

    name = "AutoModelForImageTextToText" if is_wrapper(config) else "AutoModelForCausalLM"
    return getattr(transformers, name)


def decoder_of(wrapper: Any) -> Any:
    """A wrapper's text decoder; a language model itself. Raises UserError where none is found inside."""
    config = wrapper.config
    if not is_wrapper(config):
        return wrapper
    own = text_config(config)
    inside = (module for module in wrapper.modules() if module is not wrapper)
    found = next((module for module in inside if type(getattr(module, "config", None)) is type(own)), None)
    if found is None or wrapper.get_output_embeddings() is None:
        raise UserError(f"no text decoder was found inside {type(wrapper).__name__}; give a causal language model")
    decoder = found if "generate" in dir(found) else _decoder_class(found)(found, wrapper.get_output_embeddings())
    key = next(key for key in KEYS if getattr(config, key, None) is own)
    setattr(config, key, decoder.config)  # so that both write into one
    decoder.config._name_or_path = config._name_or_path
    decoder.config.dtype = config.dtype if decoder.config.dtype is None else decoder.config.dtype
    decoder.generation_config = wrapper.generation_config
    decoder.__dict__[_MARK] = wrapper
    return decoder.train(wrapper.training)


def wrapper_of(model: Any) -> Any:
    """The wrapper that a decoder is of; any other model itself."""
    return model.__dict__.get(_MARK, model)


def is_inside(model: Any) -> bool:
    """Whether a model is the decoder of a wrapper."""
    return _MARK in model.__dict__


def refuse_wrapped(model: Any, what: str, instead: str) -> None:
    """Raise UserError for the decoder of a wrapper. what: that doesn't know such; instead: what to do."""
    if is_inside(model):
        raise UserError(
            f"{what} doesn't know multimodal models such as {wrapper_of(model).config.model_type}; {instead}"
        )


def ready_to_save_(model: Any) -> Any:
    """What is saved for a model: itself, or its wrapper, which then tells what the decoder knows of its pruning."""
    wrapper = wrapper_of(model)
    if wrapper is model:
        return model
    wrapper._seap_files = modeling_seap.kept_files(model)
    if getattr(model.config, "seap", None):
        for name in ("auto_map", "architectures"):  # the wrapper's own say what is loaded
            model.config.__dict__.pop(name, None)
        modeling_seap.adopt_(wrapper)
    else:
        modeling_seap.remember_(wrapper)
    return wrapper.to(model.dtype)


def _decoder_class(text_model: Any) -> Any:
    """A class of causal language models over one of a text model, with the abilities that its family's classes say."""
    from transformers import GenerationMixin, PreTrainedModel
    from transformers.modeling_outputs import CausalLMOutputWithPast

    kind = type(text_model)
    if kind in _made:
        return _made[kind]
    family: Any = [base for base in kind.__mro__ if issubclass(base, PreTrainedModel)][-2]
    given, cache = inspect.signature(kind.forward).parameters, cache_name(text_model)

    def __init__(self: Any, inner: Any, output: Any) -> None:
        family.__init__(self, inner.config)
        self.model, self.lm_head = inner, output

    def forward(self: Any, input_ids: Any = None, logits_to_keep: Any = 0, labels: Any = None, **kwargs: Any) -> Any:
        states = self.model(input_ids=input_ids, **kwargs)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(states[0][:, kept, :])
        most = getattr(self.config, "final_logit_softcapping", None)
        logits = logits if most is None else most * (logits / most).tanh()
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size)
        return CausalLMOutputWithPast(loss=loss, logits=logits, **{cache: states.get(cache)})

    def get_input_embeddings(self: Any) -> Any:
        return self.model.get_input_embeddings()

    own = ("self", "input_ids", "kwargs", "labels", "logits_to_keep")
    names = ["self", "input_ids", *(name for name in given if name not in own), "labels", "logits_to_keep"]
    places = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    rest = inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)
    forward.__signature__ = inspect.Signature([*places, rest])  # type: ignore[attr-defined]
    members: dict[str, Any] = {"__init__": __init__, "forward": forward, "get_input_embeddings": get_input_embeddings}
    members |= {"__module__": family.__module__, "base_model_prefix": "model", "_tied_weights_keys": None}
    _made[kind] = type("TextDecoder", (family, GenerationMixin), members)
    return _made[kind]
