"""Schedules as text rows, written from their definitions a second time, for tests and for the claims page.

P ranks, M microbatches. Nothing here is timed: these are orders only. Sources: GPipe arXiv 1811.06965, 1F1B and
interleaving arXiv 2104.04473, ZB-H1 arXiv 2401.10241, DualPipe DeepSeek-V3 section 3.2.1 and its published code.
"""

from collections import deque

Rows = list[list[str]]


def gpipe(p: int, m: int) -> Rows:
    return [[f"{r}F{i}" for i in range(m)] + [f"{r}B{i}" for i in range(m)] for r in range(p)]


def one_f_one_b(p: int, m: int) -> Rows:
    rows = []
    for r in range(p):
        warm = min(p - r - 1, m)
        row = [f"{r}F{i}" for i in range(warm)]
        for i in range(m - warm):
            row += [f"{r}F{warm + i}", f"{r}B{i}"]
        rows.append(row + [f"{r}B{i}" for i in range(m - warm, m)])
    return rows


def zb1p(p: int, m: int) -> Rows:
    """1F1B with B split: rank r runs its weight gradients r input gradients late (ZB-H1)."""
    rows = []
    for r, row in enumerate(one_f_one_b(p, m)):
        out, done = [], 0
        for text in row:
            if "F" in text:
                out.append(text)
                continue
            out.append(text.replace("B", "I"))
            done += 1
            if done > r:
                out.append(f"{r}W{done - 1 - r}")
        rows.append(out + [f"{r}W{i}" for i in range(max(m - r, 0), m)])
    return rows


def interleaved(p: int, m: int, v: int = 2) -> Rows:
    """Megatron's interleaved 1F1B: rank r holds stages r, r + P, ...; microbatches go in groups of P."""
    forward = [(g * p + i, c) for g in range(m // p) for c in range(v) for i in range(p)]
    backward = [(g * p + i, v - 1 - c) for g in range(m // p) for c in range(v) for i in range(p)]
    rows = []
    for r in range(p):
        warm = min((p - r - 1) * 2 + (v - 1) * p, len(forward))
        f = [f"{c * p + r}F{i}" for i, c in forward]
        b = [f"{c * p + r}B{i}" for i, c in backward]
        row = f[:warm]
        for i in range(len(f) - warm):
            row += [f[warm + i], b[i]]
        rows.append(row + b[len(f) - warm :])
    return rows


class _Row:
    """A rank's row under construction: two phases (directions), each with its own stage and microbatches in order."""

    def __init__(self, stages: tuple[int, int], first: tuple[int, int]) -> None:
        self.stages, self.steps = stages, list[str]()
        self.next = {"F": list(first), "B": list(first)}
        self.late: deque[str] = deque()

    def take(self, kind: str, phase: int) -> str:
        """The phase's next forward (F) or backward (B whole, I with its W left for later)."""
        count = self.next["F" if kind == "F" else "B"]
        microbatch, count[phase] = count[phase], count[phase] + 1
        if kind == "I":
            self.late.append(f"{self.stages[phase]}W{microbatch}")
        return f"{self.stages[phase]}{kind}{microbatch}"

    def add(self, *actions: tuple[str, int]) -> None:
        self.steps += [self.late.popleft() if kind == "W" else self.take(kind, phase) for kind, phase in actions]

    def pair(self, x: int, y: int) -> None:
        self.steps.append(f"({self.take('F', x)};{self.take('B', y)})")


def eight_steps(h: int, q: int, m: int, stages: tuple[int, int], first: tuple[int, int], skip: bool) -> list[str]:
    """The eight steps DualPipe and DualPipeV share; `first` is where each phase's microbatches start.

    `skip` is for the innermost rank, whose very first pair cannot overlap: its backward needs its own forward.
    """
    row, outer = _Row(stages, first), h - q - 1
    row.add(*[("F", 0)] * (2 * outer))  # 1
    row.add(*[("F", 0), ("F", 1)] * (q + 1))  # 2
    for _ in range(outer):  # 3
        row.add(("I", 1))
        row.add(("W", 1), ("F", 1))
    _steady(row, m - 2 * h + q + 1, outer, skip)  # 4, 5
    _drain(row, q)  # 6
    for _ in range(outer):  # 7
        row.add(("W", 0), ("I", 0))
    row.add(*[("W", 0)] * (q + 1))  # 8
    return row.steps


def _steady(row: _Row, pairs: int, outer: int, skip: bool) -> None:
    for i in range(pairs):
        if skip and i == 0:
            row.add(("F", 0), ("B", 1))
        else:
            row.pair(0, 1)
        row.pair(1, 0)
    for _ in range(outer):
        row.add(("B", 1))
        row.pair(1, 0)


def _drain(row: _Row, q: int) -> None:
    """Backwards of both phases in turn; from the middle on only input gradients, the rest being left for the end."""
    whole = (q + 1) // 2 * 2 + (0 if q % 2 else 1)
    for i in range(2 * (q + 1)):
        row.add(("B" if i < whole else "I", 1 - i % 2))


def dualpipe(p: int, m: int) -> Rows:
    """Rank r holds stages r and P - 1 - r; half of the microbatches enter from each end."""
    half, rows = m // 2, []
    for r in range(p):
        q = min(r, p - 1 - r)
        first = (0, half) if r < p // 2 else (half, 0)
        rows.append(eight_steps(p // 2, q, half, (q, p - 1 - q), first, skip=q == p // 2 - 1))
    return rows


def dualpipev(p: int, m: int) -> Rows:
    """P ranks hold 2 P stages in a V: rank r has r and 2 P - 1 - r."""
    return [eight_steps(p, r, m, (r, 2 * p - 1 - r), (0, 0), skip=r == p - 1) for r in range(p)]
