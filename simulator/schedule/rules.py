"""What each schedule asks of the number of ranks, microbatches and virtual stages."""

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import TypeAlias

from simulator.errors import ScheduleError

Rule: TypeAlias = Callable[[str, int, int], Iterator[str]]
"""(name, pp, microbatches) -> the violations."""


def rules(name: str, pp: int, microbatches: int, vpp: int = 1) -> list[str]:
    """Every rule of the schedule that these numbers break, one sentence each; empty if it can be built."""
    check_name(name)
    broken = [
        f"{name} needs at least one {what}: {key} is {value}"
        for what, key, value in (("rank", "pp", pp), ("microbatch", "microbatches", microbatches))
        if value < 1
    ]
    broken += _vpp_rule(name, vpp)
    if pp >= 1 and microbatches >= 1:
        broken += [text for rule in _RULES[name] for text in rule(name, pp, microbatches)]
    return broken


def check(name: str, pp: int, microbatches: int, vpp: int = 1) -> None:
    """Raise with all broken rules in one line."""
    broken = rules(name, pp, microbatches, vpp)
    if broken:
        raise ScheduleError("; ".join(broken))


def check_name(name: str) -> None:
    """Raise, with the nearest name, for a schedule that does not exist."""
    if name in _RULES:
        return
    near = get_close_matches(name.lower(), _RULES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(_RULES)}"
    raise ScheduleError(f"there is no schedule {name!r}: {hint}")


def stages_of(name: str, pp: int, vpp: int = 1) -> int:
    """Number of stages [1] the model is cut into: pp, or more where a microbatch visits a rank repeatedly."""
    check_name(name)
    return {"interleaved": pp * vpp, "dualpipev": 2 * pp, "zbv": 2 * pp}.get(name, pp)


def _vpp_rule(name: str, vpp: int) -> list[str]:
    if name == "interleaved":
        fits, text = vpp >= 2, f"interleaved needs a vpp of at least 2: vpp is {vpp}; for vpp 1 use 1f1b"
    else:
        fits, text = vpp == 1, f"{name} has no virtual stages: vpp is {vpp}; set vpp to 1, or use interleaved"
    return [] if fits else [text]


def _whole_rounds(name: str, pp: int, microbatches: int) -> Iterator[str]:
    """Megatron-LM takes microbatches through a chunk in rounds of pp (Narayanan et al. 2021, section 2.2)."""
    if microbatches % pp:
        below, above = microbatches // pp * pp, -(-microbatches // pp) * pp
        advice = f"{below} or {above}" if below else f"{above}"
        given = f"pp {pp}, {microbatches} microbatches"
        yield f"{name} needs a multiple of pp microbatches: {given}; {advice} would do"


def _even_ranks(name: str, pp: int, microbatches: int) -> Iterator[str]:
    if pp % 2:
        advice = f"{pp - 1} or {pp + 1}" if pp > 1 else "2"
        yield f"{name} needs an even pp: pp is {pp}; {advice} would do"


def _even_microbatches(name: str, pp: int, microbatches: int) -> Iterator[str]:
    """Half of them enter the pipeline from each end."""
    if microbatches % 2:
        enough = max(microbatches + 1, 2 * pp)
        yield f"{name} needs an even number of microbatches: there are {microbatches}; {enough} would do"


def _full_pipeline(name: str, pp: int, microbatches: int) -> Iterator[str]:
    if microbatches < 2 * pp:
        yield (
            f"{name} needs at least 2 x pp microbatches: pp {pp}, {microbatches} microbatches;"
            f" {2 * pp} or more would do"
        )


_RULES: dict[str, tuple[Rule, ...]] = {
    "gpipe": (),
    "1f1b": (),
    "interleaved": (_whole_rounds,),
    "zb1p": (),
    "zb2p": (),
    "zbv": (),
    "dualpipe": (_even_ranks, _even_microbatches, _full_pipeline),
    "dualpipev": (_full_pipeline,),
}
