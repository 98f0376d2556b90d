"""The options of `options.py` as keyword arguments, for editors and type checkers; a test holds the two together."""

from typing import TypedDict

from seap.exports.options import PadTo, Quantize, Weights


class ExportKeywords(TypedDict, total=False):
    """As the fields of `Export`."""

    pad_to: PadTo
    quantize: Quantize
    tokenizer: str
    weights: Weights
