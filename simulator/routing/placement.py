"""Which experts each rank holds, redundant copies included."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulator.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The experts in the slots of each rank.

    Parameters
    ----------
    experts : experts of the layer, numbered from 0.
    slots : by rank, the number of the expert in each of its slots; all ranks have as many. An expert in several slots
        is redundant: its tokens are spread evenly over its copies.

    Raises InputError where an expert is missing, unknown, or ranks have different numbers of slots.
    """

    experts: int
    slots: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        held = Counter(expert for rank in self.slots for expert in rank)
        unknown = sorted(expert for expert in held if not 0 <= expert < self.experts)
        missing = [expert for expert in range(self.experts) if expert not in held]
        if unknown:
            raise InputError(f"placement: there is no expert {unknown[0]}; they are 0 to {self.experts - 1}")
        if missing:
            raise InputError(f"placement: no rank holds expert {missing[0]}; every expert needs a slot")
        if len({len(rank) for rank in self.slots}) > 1:
            raise InputError("placement: ranks have different numbers of slots; give every rank as many")

    @property
    def ranks(self) -> int:
        """Ranks of the group."""
        return len(self.slots)

    def rows(self, tokens: NDArray[np.float64]) -> NDArray[np.float64]:
        """Tokens of each slot (ranks x slots) from those of each expert (experts)."""
        import numpy as np

        held = np.array(self.slots, dtype=np.intp)
        copies = np.bincount(held.ravel(), minlength=self.experts)
        spread: NDArray[np.float64] = (tokens / copies)[held]
        return spread


def in_order(experts: int, ranks: int) -> Placement:
    """Experts in order, as many on each rank, no copies. Raises InputError where they do not spread evenly."""
    if ranks < 1 or experts % ranks:
        raise InputError(f"{experts} experts do not spread evenly over {ranks} ranks; take a divisor of {experts}")
    each = experts // ranks
    return Placement(
        experts=experts, slots=tuple(tuple(range(rank * each, (rank + 1) * each)) for rank in range(ranks))
    )
