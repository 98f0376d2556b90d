"""The options of `options.py` as keyword arguments, for editors and type checkers; a test holds the two together."""

from typing import TypedDict

from seap.text.options import Images, Template, Weigh, Wording


class ReadingKeywords(TypedDict, total=False):
    """As the fields of `Reading`."""

    template: Template
    weigh: Weigh
    images: Images


class CalibrationKeywords(ReadingKeywords, total=False):
    """As the fields of `Calibration`."""

    num_texts: int
    seq_len: int
    pack: bool
    max_tokens: int | None
    batch_tokens: int
    second_moments: bool
    moments: str
    wording: Wording
    seed: int
