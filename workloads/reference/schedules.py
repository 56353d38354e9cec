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
        rows.append(row + b[len(f) - warm:])
    return rows


def eight_steps(h: int, q: int, m: int, stages: tuple[int, int], first: tuple[int, int], skip: bool) -> list[str]:
    """The eight steps DualPipe and DualPipeV share; `first` is where each phase's microbatches start."""
    done = {"F": [0, 0], "B": [0, 0]}
    late: deque[str] = deque()
    row: list[str] = []

    def take(kind: str, phase: int) -> str:
        count = done["F" if kind == "F" else "B"]
        count[phase] += 1
        microbatch = first[phase] + count[phase] - 1
        if kind == "I":
            late.append(f"{stages[phase]}W{microbatch}")
        return f"{stages[phase]}{kind}{microbatch}"

    def pair(x: int, y: int) -> None:
        row.append(f"({take('F', x)};{take('B', y)})")

    for _ in range(2 * (h - q - 1)):
        row.append(take("F", 0))
    for _ in range(q + 1):
        row.extend([take("F", 0), take("F", 1)])
    for _ in range(h - q - 1):
        row.extend([take("I", 1), late.popleft(), take("F", 1)])
    for i in range(m - 2 * h + q + 1):
        if i == 0 and skip:
            row.extend([take("F", 0), take("B", 1)])
        else:
            pair(0, 1)
        pair(1, 0)
    for _ in range(h - q - 1):
        row.append(take("B", 1))
        pair(1, 0)
    split = False
    for i in range(q + 1):
        split = split or (i == (q + 1) // 2 and q % 2 == 1)
        row.append(take("I" if split else "B", 1))
        split = split or (i == (q + 1) // 2 and q % 2 == 0)
        row.append(take("I" if split else "B", 0))
    for _ in range(h - q - 1):
        row.extend([late.popleft(), take("I", 0)])
    for _ in range(q + 1):
        row.append(late.popleft())
    assert not late
    return row


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
