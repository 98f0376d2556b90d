"""What a multimodal model's tokenizer knows of images: the processor beside it, read when the first image comes."""

from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from seap.errors import UserError, first_line, missing_extra
from seap.models.decoders import is_wrapper

_MARK = "_seap_sight"


@dataclass(frozen=True)
class Sight:
    """token: the id that stands where the model puts what it sees, once for each state of it."""

    folder: Path
    token: int
    trust_remote_code: bool = False

    @cached_property
    def processor(self) -> Any:
        """Raises UserError where it isn't there, or needs a package that isn't."""
        if find_spec("PIL") is None:
            raise missing_extra("Pillow", "images", "calibration with images")
        from transformers import AutoProcessor

        try:
            return AutoProcessor.from_pretrained(
                self.folder, trust_remote_code=self.trust_remote_code, local_files_only=not self.trust_remote_code
            )
        except (ImportError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{self.folder}: the processor that makes the model's inputs of images can't be read: "
                f"{first_line(error)}; install what is missing, copy its files (preprocessor_config.json, "
                "processor_config.json) from the model that this one came from, or leave images out: --images none"
            ) from error


def give_(tokenizer: Any, folder: Path, config: Any, *, trust_remote_code: bool = False) -> None:
    """Let the tokenizer of a model that sees know so."""
    token = getattr(config, "image_token_id", None) if is_wrapper(config) else None
    if isinstance(token, int):
        tokenizer.__dict__[_MARK] = Sight(folder, token, trust_remote_code)


def sight_of(tokenizer: Any) -> Sight | None:
    """None for a tokenizer of a model that reads text alone."""
    found: Sight | None = getattr(tokenizer, "__dict__", {}).get(_MARK)
    return found
