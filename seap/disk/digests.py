"""Checksums of files: XXH3, 128 bits, which is faster than any disk. They find damage, not a forger."""

from collections.abc import Mapping
from pathlib import Path

import xxhash

from seap.errors import UserError

PREFIX = "xxh3-128:"
PIECE = 1 << 20  # bytes read at a time
WEIGHTS = (".safetensors", ".bin", ".onnx", ".data")  # .bin: OpenVINO's; .data: ONNX's


def digest_of(path: Path) -> str:
    """Of a file's content."""
    sums, piece = xxhash.xxh3_128(), bytearray(PIECE)
    view = memoryview(piece)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(piece):
            sums.update(view[:count])
    return PREFIX + sums.hexdigest()


def weight_digests(folder: Path) -> dict[str, str]:
    """Of every weight file at the top of a model's folder, by name."""
    files = (path for path in folder.iterdir() if path.suffix in WEIGHTS and path.is_file())
    return {path.name: digest_of(path) for path in sorted(files)}


def damaged(folder: Path, told: Mapping[str, str]) -> dict[str, str]:
    """What is wrong with the files that these digests are of, by name."""
    found = {}
    for name, expected in told.items():
        path = folder / name
        if not path.is_file():
            found[name] = "is missing"
        elif expected.startswith(PREFIX) and digest_of(path) != expected:
            found[name] = "isn't what was written"
    return found


def check_digests(folder: Path, told: Mapping[str, str]) -> None:
    """Raise UserError for a file that isn't there or not as it was written."""
    if wrong := damaged(folder, told):
        name, what = next(iter(wrong.items()))
        raise UserError(
            f"{folder / name} {what}: seap.json has another digest of it ({len(wrong)} of {len(told)} files are "
            "wrong); copy or make the folder again"
        )
