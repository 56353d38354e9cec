"""One checked claim."""

from dataclasses import dataclass


def percent(share: float, digits: int) -> str:
    """0.0234 as "2.3 %"."""
    return f"{100 * share:.{digits}f} %"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A published statement compared with the result of the reference model."""

    key: str
    claim: str
    published: str
    ours: str
    source: str
    remark: str
    values: tuple[tuple[str, float], ...]  # the numbers behind `ours`, by name
    agrees: bool | None  # None where there is no figure to agree with
    figure: str | None = None  # file name below figures/
