"""From a step's logits to tokens, told to whom they belong: each row for itself, so that none fails by another's."""

import logging
import math
from dataclasses import dataclass

from torch import Tensor

from seap.serving.scheduling.steps import Part
from seap.serving.scheduling.tickets import Piece, Read, Ticket
from seap.writing.sampling import Token

log = logging.getLogger(__name__)


def failed(ticket: Ticket, error: Exception) -> None:
    """Log why, and tell the client that it failed."""
    log.error("a request of task %s failed", ticket.task, exc_info=error)
    ticket.fail(f"the model failed: {type(error).__name__}")


@dataclass(frozen=True)
class Teller:
    """ends: tokens that end a text. num_embeddings: how many tokens the model can read."""

    ends: frozenset[int]
    num_embeddings: int

    def advance_(self, part: Part) -> int:
        """Choose every row's next token and tell its owner; rows that are finished or that fail leave.

        Returns how many tokens were made.
        """
        rows = part.rows
        likeliest, largest = part.logits.argmax(-1).tolist(), part.logits.amax(-1).tolist()
        last, leaving, before = [0] * len(rows.owners), [], sum(owner.num_tokens for owner in rows.live.values())
        owners = rows.live
        for place, owner in owners.items():
            try:
                if part.read:
                    owner.sink(Read(part.read[place]))
                if not math.isfinite(largest[place]):
                    raise ArithmeticError("the model's logits aren't finite")
                last[place] = self._told(owner, part.logits[place], likeliest[place])
            except Exception as error:
                failed(owner, error)
            if owner.done:
                leaving.append(place)
                last[place] = 0  # free rows are decoded along
        rows.last = rows.last.new_tensor(last)
        rows.leave_(leaving)
        return sum(owner.num_tokens for owner in owners.values()) - before

    def _told(self, ticket: Ticket, logits: Tensor, likeliest: int) -> int:
        """Choose a token, pass it on, and finish where it is the last one. Returns its id."""
        request, writer = ticket.request, ticket.writer
        if request.max_tokens == 0:
            ticket.finish("length", "")
            return 0
        token = request.sampler.choose(logits, likeliest)
        if token.id >= self.num_embeddings:
            raise IndexError(f"token {token.id} was chosen; the model reads {self.num_embeddings}")
        ended = token.id in self.ends and not request.ignore_ends
        self._pass_on(ticket, token, "" if ended else writer.push(token.id))
        stopped = ended or writer.stopped or token.id in request.stop_ids
        if stopped or ticket.num_tokens >= request.max_tokens:
            ticket.finish("stop" if stopped else "length", writer.flush())
        return token.id

    def _pass_on(self, ticket: Ticket, token: Token, text: str) -> None:
        ticket.num_tokens += 1
        ticket.sink(Piece(text, token))
