"""Recorded tokens per expert (`routing.file`): CSV or Parquet with the columns layer, expert, tokens, and optionally
microbatch or step.

One row for each expert of each MoE layer, as a training log or the statistic of an expert balancer gives it. Layers are
numbered from 0 over all layers of the model, dense ones included, MTP modules last.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.errors import InputError
from simulator.inputs.problems import problem
from simulator.inputs.reading import LARGEST, MIB, read_text
from simulator.spec.uneven import ExpertCounts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

COLUMNS = ("layer", "expert", "tokens")
TIMES = ("microbatch", "step")
"""A column of either says which recording of a layer a row belongs to."""
SUMS_OFF = 1e-3
"""Sums of a layer over all experts may differ by this share: every layer sees the same tokens."""


def read_expert_counts(name: str, layers: Sequence[int], experts: int) -> ExpertCounts:
    """The recording in the file `name` of a model whose MoE layers are `layers`, with `experts` experts each."""
    path = Path(name)
    if not path.is_file():
        raise InputError(f"routing.file: {name!r} is no readable file")
    table, digest = _parquet(path) if path.suffix == ".parquet" else _csv(path)
    return _counts(table, digest, name, layers, experts)


def _csv(path: Path) -> tuple[dict[str, list[Any]], str]:
    text = read_text(path, str(path), "table")
    rows = csv.reader(io.StringIO(text))
    header = [cell.strip() for cell in next(rows, [])]
    _check_header(header, str(path))
    body = [row for row in rows if row]
    short = next((at for at, row in enumerate(body) if len(row) != len(header)), None)
    if short is not None:
        raise InputError(f"{path}: row {short + 2} has {len(body[short])} cells, the header {len(header)}")
    return dict(zip(header, map(list, zip(*body, strict=True)), strict=False)), _hash(text.encode())


def _parquet(path: Path) -> tuple[dict[str, list[Any]], str]:
    if find_spec("pyarrow") is None:
        raise InputError(f'{path}: Parquet needs pyarrow: install "foretrain[parquet]", or write CSV')
    if path.stat().st_size > LARGEST["table"]:
        raise InputError(f"{path}: has more than {LARGEST['table'] // MIB} MiB, the most that a table may have")
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read as Parquet: {str(error).splitlines()[0]}") from None
    _check_header(table.column_names, str(path))
    return table.to_pydict(), _hash(path.read_bytes())


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _check_header(header: Sequence[str], label: str) -> None:
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise InputError(f"{label}: the columns {', '.join(missing)} are missing; it needs {', '.join(COLUMNS)}")
    other = [name for name in header if name not in (*COLUMNS, *TIMES)]
    if other:
        raise InputError(f"{label}: column {other[0]!r} is not known; besides {', '.join(COLUMNS)} there is {TIMES[0]}")


def _counts(table: dict[str, list[Any]], digest: str, label: str, layers: Sequence[int], experts: int) -> ExpertCounts:
    import numpy as np

    if not table:
        raise InputError(f"{label}: holds no rows")
    layer, expert = (_numbers(table[name], label, name, whole=True) for name in ("layer", "expert"))
    tokens = _numbers(table["tokens"], label, "tokens", whole=False)
    when = next((name for name in TIMES if name in table), None)
    time = _numbers(table[when], label, when, whole=True) if when else np.zeros(len(layer))
    strange = ~np.isin(expert, np.arange(experts))
    if strange.any():
        raise problem(label, "expert", int(expert[strange][0]), f"the model's experts are 0 to {experts - 1}")
    strange = ~np.isin(layer, np.asarray(layers))
    if strange.any():
        raise problem(label, "layer", int(layer[strange][0]), f"no MoE layer; they are {_ranges(layers)}")
    missing = [one for one in layers if one not in set(layer.tolist())]
    if missing:
        raise InputError(
            f"{label}: layers {_ranges(missing)} are missing; the model's MoE layers are {_ranges(layers)}"
        )
    times, number = np.unique(time, return_inverse=True)
    filled = np.full((len(layers), len(times), experts), -1.0)
    place = np.searchsorted(np.asarray(layers), layer), number, expert.astype(np.intp)
    np.maximum.at(filled, place, tokens)
    if len(tokens) > (filled >= 0.0).sum():
        raise InputError(f"{label}: an expert of a layer stands in two rows; give each one row" + _of(when))
    if (filled < 0.0).any():
        at, when_at, which = np.argwhere(filled < 0.0)[0]
        raise InputError(f"{label}: expert {which} of layer {layers[at]} has no row" + _of(when, times[when_at]))
    _check_sums(filled, label, layers)
    return ExpertCounts(
        source=label,
        digest=digest,
        microbatches=len(times),
        tokens={one: filled[at] for at, one in enumerate(layers)},
    )


def _numbers(cells: Sequence[Any], label: str, name: str, *, whole: bool) -> NDArray[np.float64]:
    """A column as numbers: finite, not negative, and whole where they count something."""
    import numpy as np

    try:
        values = np.array([float(cell) for cell in cells])
    except (TypeError, ValueError):
        wrong = next(cell for cell in cells if not _is_number(cell))
        raise problem(label, name, wrong, "must be a number") from None
    bad = ~np.isfinite(values) | (values < 0.0)
    if whole:
        bad |= values != np.floor(values)
    if bad.any():
        right = "a whole number from 0" if whole else "a finite number from 0"
        raise problem(label, name, float(values[bad][0]), f"must be {right} (row {int(np.argmax(bad)) + 2})")
    return values


def _is_number(cell: Any) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError):
        return False
    return True


def _check_sums(tokens: NDArray[np.float64], label: str, layers: Sequence[int]) -> None:
    """In every microbatch the same tokens go through all layers, so the sums over experts are equal."""
    import numpy as np

    sums = tokens.sum(axis=2)
    usual = np.median(sums, axis=0)
    if (usual == 0.0).any():
        raise InputError(f"{label}: the tokens of all experts are 0")
    off = np.abs(sums / usual - 1.0)
    if off.max() > SUMS_OFF:
        at, when = np.unravel_index(int(off.argmax()), off.shape)
        raise InputError(
            f"{label}: the experts of layer {layers[int(at)]} got {sums[at, when]:g} tokens, those of most layers"
            f" {usual[when]:g}; every layer sees the same tokens"
        )


def _of(when: str | None, time: float | None = None) -> str:
    if when is None:
        return ""
    return f" in every {when}" if time is None else f" in {when} {time:g}"


def _ranges(numbers: Sequence[int]) -> str:
    """Whole numbers for people: `3 to 60, 61`."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    shown = [str(part[0]) if len(part) == 1 else f"{part[0]} to {part[1]}" for part in parts]
    return ", ".join([*shown[:6], "…"] if len(shown) > 6 else shown)
