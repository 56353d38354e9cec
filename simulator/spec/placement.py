"""Where the blocks of a model stand, in the words of Megatron-Core.

`--pipeline-model-parallel-layout` writes a stage after the other, `|` between them: E the embedding, t a layer, m an
MTP module, L the output heads and their losses. `t*3` repeats a letter, `(tt|)*29` a group; commas only make it
readable (megatron/core/transformer/pipeline_parallel_layer_layout.py, 2025). DeepSeek-V3 on 16 ranks of two stages, its
embedding with three layers, its MTP module and its loss on stages of their own: `Et*3|(tt|)*29,m|L`. What the loss of
an MTP module on another stage needs travels with the layers' output, in a message as long.
"""

from __future__ import annotations

import re

from simulator.errors import InputError
from simulator.spec.job import Layout
from simulator.spec.model import BlockKind, ModelSpec

LETTERS = "EtmL"
_GROUP = re.compile(r"\(([^()]*)\)\*(\d+)")
_LETTER = re.compile(rf"([{LETTERS}|])\*(\d+)")
MOST = 10_000
"""Letters of a layout: more are a mistake."""


def is_written(stages: object) -> bool:
    """Whether `layout.stages` is such a text."""
    return isinstance(stages, str) and stages not in ("balanced", "even")


def letters(text: str) -> list[str]:
    """The letters of each stage: `Et|t*2|L` gives Et, tt and L.

    Raises
    ------
    InputError : what cannot be read.
    """
    plain = text.replace(",", "").replace(" ", "")
    while (group := _GROUP.search(plain)) is not None:
        plain = _repeated(plain, group, text)
    while (letter := _LETTER.search(plain)) is not None:
        plain = _repeated(plain, letter, text)
    odd = next((character for character in plain if character not in f"{LETTERS}|"), "")
    if odd:
        raise InputError(
            f'layout.stages: "{text}": {odd!r} is no part of a layout; write "balanced", "even", a list of numbers, '
            'or a layout such as "Et*3|(tt|)*29,m|L"'
        )
    return plain.split("|")


def _repeated(plain: str, found: re.Match[str], text: str) -> str:
    many = int(found[2])
    if len(found[1]) * many > MOST:
        raise InputError(f'layout.stages: "{text}": repeats {found[1]} {many} times; write at most {MOST} letters')
    return plain[: found.start()] + found[1] * many + plain[found.end() :]


def placed(text: str, model: ModelSpec, stages: int) -> tuple[tuple[BlockKind, ...], ...]:
    """The blocks of each stage.

    Raises
    ------
    InputError : what the text places is not the model.
    """
    found = letters(text)
    every = "".join(found)
    wrong = _wrong(found, every, model, stages)
    if wrong:
        raise InputError(f'layout.stages: "{text}": {wrong}')
    layers = iter(model.layer_kinds())
    last = BlockKind.MOE if model.is_moe else BlockKind.DENSE
    kinds = {
        "E": lambda: [BlockKind.EMBED],
        "t": lambda: [next(layers)],
        "m": lambda: [BlockKind.MTP, last],
        "L": lambda: [BlockKind.HEAD] * (1 + model.num_nextn_predict_layers),
    }
    return tuple(tuple(kind for letter in stage for kind in kinds[letter]()) for stage in found)


def _wrong(found: list[str], every: str, model: ModelSpec, stages: int) -> str:
    """What is wrong with the letters of a layout; empty if nothing."""
    if len(found) != stages:
        return f"has {len(found)} stages, the schedule has {stages}"
    for letter, many, what in (
        ("E", 1, "embedding (E)"),
        ("t", model.num_hidden_layers, "layers (t)"),
        ("m", model.num_nextn_predict_layers, "MTP modules (m)"),
        ("L", 1, "loss (L)"),
    ):
        if every.count(letter) != many:
            return f"places {every.count(letter)} of {many} {what}"
    if sorted(every, key=LETTERS.index) != list(every):
        return "places them in another order than E, t, m, L"
    return ""


def decoder_counts(layout: Layout, layers: int, stages: int) -> tuple[int, ...] | str:
    """Layers of each stage where the first or the last pipeline rank has a number of its own, or what is wrong.

    The others share the rest evenly, and the stages of a rank share its layers (Megatron-Core,
    --decoder-first-pipeline-num-layers and --decoder-last-pipeline-num-layers).
    """
    pp, chunks = layout.pp, stages // layout.pp
    first, last = layout.decoder_first_pipeline_num_layers, layout.decoder_last_pipeline_num_layers
    given = {rank: many for rank, many in ((0, first), (pp - 1, last)) if many is not None}
    rest, others = layers - sum(given.values()), pp - len(given)
    if rest < 0 or (others and rest % others) or (not others and rest):
        return f"leaves {rest} layers to {others} other ranks, which must share them evenly"
    each = [given.get(rank, rest // others if others else 0) for rank in range(pp)]
    uneven = next((many for many in each if many % chunks), None)
    if uneven is not None:
        return f"puts {uneven} layers on a rank of {chunks} stages, which must share them evenly"
    return tuple(each[stage % pp] // chunks for stage in range(stages))
