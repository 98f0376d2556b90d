"""Tokens in an order of which every beginning is closed: each comes after the two that it is merged from."""

from collections.abc import Iterable, Mapping, Sequence


def closed_order(first: Iterable[int], ranked: Iterable[int], parts: Mapping[int, tuple[int, int]]) -> list[int]:
    """`first`, then `ranked` in their order, each behind what it is merged from. Every id once.

    With a beginning of it, a text whose tokens are all there is read as before: all that is merged on the way is there,
    the merges keep their order, and of those that are left each is still the first that applies.
    """
    placed: dict[int, None] = {}
    for tokens in (first, ranked):
        for token in tokens:
            waiting = [token]
            while waiting:
                missing = [part for part in parts.get(waiting[-1], ()) if part not in placed]
                if missing:
                    waiting += missing
                else:
                    placed[waiting.pop()] = None
    return list(placed)


def is_closed(kept: Iterable[int], parts: Mapping[int, tuple[int, int]]) -> bool:
    """Whether what every token is merged from is there too."""
    there = set(kept)
    return all(part in there for token in there for part in parts.get(token, ()))


def kept_merges(merges: Sequence[tuple[str, str]], tokens: Iterable[str]) -> list[tuple[str, str]]:
    """The merges whose two parts and result stay, in their order."""
    there = set(tokens)
    return [pair for pair in merges if pair[0] in there and pair[1] in there and pair[0] + pair[1] in there]
