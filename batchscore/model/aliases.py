"""The aliases of a model, who moved them when, and which versions are gone: one small JSON document."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Aliases", "Move"]

# Of each alias; a document is read at every load.
_MOVES_KEPT = 20


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Move(_Table):
    """One move of an alias.

    Attributes:
        alias: The alias.
        before: The version it stood for; None at its first.
        after: The version it has stood for since.
        at: The instant, in UTC.
        by: User and host.
        back: Whether it went back to where it was before.
    """

    alias: str
    before: int | None
    after: int
    at: str
    by: str
    back: bool = False


class Aliases(_Table):
    """The document; empty where there is none.

    Attributes:
        aliases: The version of each alias.
        history: The last moves of each, oldest first.
        pruned: The versions that were removed, or are about to be: no alias may be pointed at them.
    """

    aliases: dict[str, int] = Field(default_factory=dict)
    history: tuple[Move, ...] = ()
    pruned: tuple[int, ...] = ()

    @classmethod
    def parsed(cls, text: bytes | None) -> Self:
        """The document in these bytes; one of before there was a history has the aliases alone.

        Raises:
            ValueError: They hold none.
        """
        if text is None:
            return cls()
        data = json.loads(text)
        # An alias may be called aliases, and stands for a number.
        return cls.model_validate(
            data if isinstance(data, dict) and isinstance(data.get("aliases"), dict) else {"aliases": data}
        )

    def to_bytes(self) -> bytes:
        """The document as it is kept."""
        return self.model_dump_json(indent=2).encode() + b"\n"

    def moved(self, alias: str, version: int, at: str, by: str, *, back: bool = False) -> Self:
        """The same with the alias at another version; the very same where it is there already."""
        before = self.aliases.get(alias)
        if before == version:
            return self
        move = Move(alias=alias, before=before, after=version, at=at, by=by, back=back)
        # Places in the history: two moves may be alike.
        own = [place for place, each in enumerate(self.history) if each.alias == alias]
        dropped = set(own[: max(0, len(own) + 1 - _MOVES_KEPT)])
        kept = tuple(each for place, each in enumerate(self.history) if place not in dropped)
        aliases = dict(sorted((self.aliases | {alias: version}).items()))
        return self.model_copy(update={"aliases": aliases, "history": (*kept, move)})

    def before(self, alias: str) -> int | None:
        """The version that the alias goes back to; each time it goes back, that is one further back."""
        places: list[int | None] = []
        for move in self.history:
            if move.alias != alias:
                continue
            if not move.back:
                places.append(move.before)
            elif places:
                places.pop()
        return places[-1] if places else None

    def needed(self) -> set[int]:
        """The versions that an alias stands for, or goes back to."""
        back = {self.before(alias) for alias in self.aliases}
        return {*self.aliases.values(), *(version for version in back if version is not None)}

    def without(self, versions: Iterable[int]) -> Self:
        """The same with these versions marked as removed."""
        return self.model_copy(update={"pruned": tuple(sorted({*self.pruned, *versions}))})
