"""Schedules and architectures from outside the tree: installed packages, scripts, and what may be wrong with them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reports.api import compare
from reports.views import variants
from simulator import plugins
from simulator.errors import InputError, ScheduleError
from simulator.inputs import ARCHITECTURES, Architecture, load_model, load_scenario, register_architecture
from simulator.plugins import Registry
from simulator.results.simulate import simulate
from simulator.schedule import SCHEDULES, ScheduleRecord, build, register, rules, stages_of
from simulator.studies.search import question, search

ROOT = Path(__file__).parents[2]

EARLY = '''
from simulator.schedule import ScheduleRecord
from simulator.schedule.numbering import number


def rows(pp, microbatches, vpp):
    """1F1B with twice the forwards before the first backward."""
    early = [min(2 * (pp - rank - 1), microbatches) for rank in range(pp)]
    return tuple(
        number(["F0"] * n + ["F0", "B0"] * (microbatches - n) + ["B0"] * n, stages=[rank])
        for rank, n in enumerate(early)
    )


def enough(name, pp, microbatches, vpp):
    if microbatches < pp:
        yield f"{name} needs as many microbatches as ranks: pp {pp}, {microbatches} microbatches"


EARLY = ScheduleRecord(
    name="early-1f1b", generate=rows, description="1F1B that starts forwards early", source="this test", year=2026,
    rules=(enough,),
)
'''
SPELLED = """
from simulator.inputs import Architecture

SPELLED = Architecture(
    keys={
        "vocabulary": "vocab_size", "dim": "hidden_size", "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads", "n_kv_heads": "num_key_value_heads", "ffn_multiple": "intermediate_size",
    },
    finish=lambda table: table | {"intermediate_size": table["intermediate_size"] * table["hidden_size"]},
)
"""
SHAPE = {"vocab_size": 32000, "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8}
LLAMA = {"model_type": "llama", **SHAPE, "num_key_value_heads": 4, "intermediate_size": 1536}
CONFIG = {
    "model_type": "spelled",
    **{"vocabulary": 32000, "dim": 512, "n_layers": 8, "n_heads": 8, "n_kv_heads": 4, "ffn_multiple": 3},
}

Install = Callable[..., Path]


def installed(site: Path, entries: str, *, package: str = "outside", **modules: str) -> Path:
    """A package as an installer would leave it: modules, metadata, entry points."""
    (site / package).mkdir(parents=True)
    (site / package / "__init__.py").write_text("")
    for name, text in modules.items():
        (site / package / f"{name}.py").write_text(text)
    metadata = site / f"{package}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(entries)
    return site


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a package for this process; the registries look anew, and forget it afterwards."""
    site = tmp_path / "site"

    def one(entries: str, **modules: str) -> Path:
        return installed(site, entries, **modules)

    monkeypatch.syspath_prepend(str(site))
    for registry in (SCHEDULES, ARCHITECTURES):
        monkeypatch.setattr(registry, "_offers", None)
        monkeypatch.setattr(registry, "_loaded", {})
        monkeypatch.setattr(registry, "registered", {})
    monkeypatch.setattr(plugins, "_registered", set())
    yield one
    for name in [name for name in sys.modules if name.split(".")[0] in ("outside", "other")]:
        del sys.modules[name]


def foretrain(site: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """The program as a process that finds the packages of `site`."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(site)])}
    command = [sys.executable, "-m", "cli", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=120)


def metrics(done: subprocess.CompletedProcess[str]) -> dict[str, float]:
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout)["metrics"]
    return found


# ---- what works --------------------------------------------------------------------------------------------------


def test_a_package_brings_a_schedule_and_an_architecture(tmp_path: Path) -> None:
    site = installed(
        tmp_path / "site",
        "[foretrain.schedules]\nearly-1f1b = outside.early:EARLY\n"
        "[foretrain.architectures]\nspelled = outside.spelled:SPELLED\n",
        early=EARLY,
        spelled=SPELLED,
    )
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "llama.json").write_text(json.dumps(LLAMA))
    assert foretrain(site, "show", "schedule").stdout.split()[-2:] == ["dualpipev", "early-1f1b"]
    assert "spelled" in foretrain(site, "show", "architecture").stdout.split()
    shown = foretrain(site, "show", "schedule", "early-1f1b", "--text", "--microbatches", "10")
    assert "0: 0F0 0F1 0F2 0F3 0F4 0F5 0F6 0B0" in shown.stdout
    (tmp_path / "early.txt").write_text(shown.stdout)

    def simulated(model: str, schedule: str | Path) -> dict[str, float]:
        changed = (f"model={tmp_path / model}", f"layout.schedule={schedule}", "layout.ep=1", "layout.recompute=none")
        args = [word for change in changed for word in ("--set", change)]
        return metrics(foretrain(site, "simulate", "tiny-1f1b", *args, "--json"))

    assert simulated("config.json", "early-1f1b") == simulated("llama.json", tmp_path / "early.txt")
    broken = foretrain(site, "show", "schedule", "early-1f1b", "--pp", "8", "--microbatches", "4")
    assert broken.stderr == "foretrain: early-1f1b needs as many microbatches as ranks: pp 8, 4 microbatches\n"


def test_a_broken_package_is_one_line_of_the_program(tmp_path: Path) -> None:
    site = installed(tmp_path / "site", "[foretrain.schedules]\nearly-1f1b = outside.nowhere:EARLY\n")
    done = foretrain(site, "simulate", "tiny-1f1b", "--set", "layout.schedule=early-1f1b")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "early-1f1b', outside.nowhere:EARLY of package outside 1.0, cannot be loaded: ModuleNotF" in done.stderr
    assert foretrain(site, "simulate", "tiny-1f1b", "-q").returncode == 0
    assert foretrain(site, "show", "schedule").stdout.split()[-1] == "early-1f1b"


def test_what_a_package_brings_is_reported_with_its_origin(install: Install) -> None:
    install("[foretrain.schedules]\nearly-1f1b = outside.early:EARLY\n", early=EARLY)
    assert SCHEDULES.origin("early-1f1b") == "outside.early:EARLY of package outside 1.0"
    assert SCHEDULES["early-1f1b"].description == "1F1B that starts forwards early"
    assert "outside.early" in sys.modules
    assert SCHEDULES.origin("1f1b") == "shipped with foretrain"


def test_a_package_is_imported_only_when_its_name_is_asked_for(install: Install) -> None:
    install("[foretrain.schedules]\nearly-1f1b = outside.early:EARLY\n", early=EARLY)
    assert "early-1f1b" in list(SCHEDULES)
    build("1f1b", pp=2, microbatches=4)
    assert "outside.early" not in sys.modules
    assert stages_of("early-1f1b", 4) == 4
    assert "outside.early" in sys.modules


def record(**changes: Any) -> ScheduleRecord:
    """A schedule of a script: GPipe under another name."""
    gpipe = SCHEDULES["gpipe"]
    known = {"name": "mine", "generate": gpipe.generate, "description": "", "source": "", "year": 2026}
    return ScheduleRecord(**known | changes)


def test_a_script_registers_a_schedule(install: Install) -> None:
    register(record())
    mine, gpipe = (
        simulate(load_scenario("tiny-1f1b", [f"layout.schedule={name}"]), engine="longest-path")
        for name in ("mine", "gpipe")
    )
    assert mine.schedule.name == "mine"
    assert mine.metrics == gpipe.metrics
    with pytest.raises(ScheduleError, match=r"schedule 'mine' cannot be registered: .*, registered by a script"):
        register(record())
    with pytest.raises(ScheduleError, match=r"schedule '1f1b' cannot be registered: .*, shipped with foretrain"):
        register(record(name="1f1b"))


def test_a_search_knows_what_its_script_registered(install: Install) -> None:
    """Worker processes would not: this process searches alone."""
    register(record())
    asked = question("tiny-1f1b", [], ["layout.recompute=deepseek,full", "layout.schedule=mine,gpipe"])
    found = search(asked, jobs=2)
    steps = {asked.values(candidate.number): candidate.step for candidate in found.best}
    assert set(steps) == {(how, name) for how in ("deepseek", "full") for name in ("mine", "gpipe")}
    assert all(steps[how, "mine"] == steps[how, "gpipe"] for how in ("deepseek", "full"))
    with pytest.raises(InputError, match="--executor dask: other machines do not know"):
        search(asked, executor="dask", address="tcp://127.0.0.1:1")


def test_a_comparison_knows_what_its_script_registered(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a variant takes, none goes to another process."""
    monkeypatch.setattr(variants, "_WORTH_A_PROCESS", 0.0)
    monkeypatch.setattr(variants, "_pool", crash)
    register(record())
    found = compare("tiny-1f1b", {"layout.schedule": ["mine", "gpipe"], "layout.recompute": ["deepseek", "full"]})
    steps = found.set_index(["layout.schedule", "layout.recompute"])["step_time_s"]
    assert list(steps["mine"]) == list(steps["gpipe"])
    assert steps.notna().all()


def test_a_script_registers_an_architecture(install: Install, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(LLAMA | {"model_type": "mine"}))
    with pytest.raises(InputError, match=r"model_type: \"mine\": not a known architecture: "):
        load_model(str(file))
    register_architecture("mine", ARCHITECTURES["llama"])
    assert load_model(str(file)).hidden_size == 512
    with pytest.raises(InputError, match=r"architecture 'llama' cannot be registered"):
        register_architecture("llama", Architecture(keys={}))


# ---- what may be wrong -------------------------------------------------------------------------------------------

BROKEN = [
    ("mine = outside.nowhere:X", "", "cannot be loaded: ModuleNotFoundError: No module named 'outside.nowhere'"),
    ("mine = outside.early:LATE", EARLY, "cannot be loaded: AttributeError: module 'outside.early' has no attribute"),
    ("mine = outside.early:EARLY", "raise RuntimeError('two\\nlines')", "cannot be loaded: RuntimeError: two lines"),
    ("mine = outside.early:rows", EARLY, "must be of class simulator.schedule.record.ScheduleRecord, and is of func"),
    ("mine = outside.early:EARLY", EARLY, "calls itself 'early-1f1b': both must be the same"),
    ("1f1b = outside.early:EARLY", EARLY, "schedule '1f1b' is there twice, shipped with foretrain and outside.early"),
]


@pytest.mark.parametrize(("entry", "early", "expected"), BROKEN)
def test_a_broken_package_is_one_line_when_it_is_used(entry: str, early: str, expected: str, install: Install) -> None:
    install(f"[foretrain.schedules]\n{entry}\n", early=early)
    name = entry.partition(" ")[0]
    assert list(SCHEDULES)[:2] == ["gpipe", "1f1b"]
    assert build("gpipe", pp=2, microbatches=2).name == "gpipe"
    for ask in (lambda: build(name, pp=2, microbatches=4), lambda: rules(name, 2, 4), lambda: stages_of(name, 2)):
        with pytest.raises(ScheduleError) as caught:
            ask()
        assert expected in str(caught.value)
        assert "package outside 1.0" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_two_packages_with_one_name(install: Install) -> None:
    for package in ("outside", "other"):
        install(f"[foretrain.schedules]\nearly-1f1b = {package}.early:EARLY\n", package=package, early=EARLY)
    with pytest.raises(ScheduleError, match=r"is there twice, other.early:EARLY .* and outside.early:EARLY .*: rename"):
        build("early-1f1b", pp=2, microbatches=4)


def test_entry_points_that_cannot_be_read(install: Install) -> None:
    install("[foretrain.schedules]\nno equals sign\n")
    with pytest.raises(ScheduleError, match=r"^foretrain.schedules: the installed packages cannot be read: "):
        list(SCHEDULES)


def crash(*_: object) -> Any:
    raise ZeroDivisionError("by zero")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"generate": crash}, "schedule 'mine', registered by a script, fails: ZeroDivisionError: by zero"),
        ({"stages": crash}, "schedule 'mine', registered by a script, fails: ZeroDivisionError: by zero"),
        ({"rules": (crash,)}, "schedule 'mine', registered by a script, fails: ZeroDivisionError: by zero"),
        ({"stages": lambda pp, vpp: 2 * pp}, "schedule mine: 4F0 is missing"),
        (
            {"generate": lambda pp, microbatches, vpp: SCHEDULES["gpipe"].generate(2, microbatches, vpp),
             "stages": lambda pp, vpp: 2},
            "mine generates 2 rows for pp 4: it needs one for each rank",
        ),
    ],
)  # fmt: skip
def test_a_schedule_from_outside_that_fails(changes: dict[str, Any], expected: str, install: Install) -> None:
    register(record(**changes))
    with pytest.raises(ScheduleError) as caught:
        build("mine", pp=4, microbatches=8)
    assert expected in str(caught.value)


def test_our_own_crash_stays_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCHEDULES.shipped, "gpipe", record(name="gpipe", generate=crash))  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        build("gpipe", pp=2, microbatches=2)


@pytest.mark.parametrize(
    "architecture",
    [
        Architecture(keys=ARCHITECTURES["llama"].keys, finish=crash),
        Architecture(keys=ARCHITECTURES["llama"].keys, finish=lambda table: None),  # type: ignore[arg-type,return-value]
        Architecture(keys=None),  # type: ignore[arg-type]
    ],
)
def test_an_architecture_from_outside_that_fails(architecture: Architecture, install: Install, tmp_path: Path) -> None:
    register_architecture("mine", architecture)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(LLAMA | {"model_type": "mine"}))
    with pytest.raises(InputError, match=r"^architecture 'mine', registered by a script, fails: \w+Error: "):
        load_model(str(file))


def test_only_values_of_the_class_are_registered(install: Install) -> None:
    with pytest.raises(ScheduleError, match=r"of class simulator.schedule.record.ScheduleRecord, and is of str"):
        SCHEDULES.register("mine", "rows")  # type: ignore[arg-type]
    assert "mine" not in SCHEDULES


def test_a_registry_is_a_mapping(install: Install) -> None:
    registry = Registry(kind="number", cls=int, group="foretrain.none", shipped={"one": 1}, error=InputError)
    registry.register("two", 2)
    assert dict(registry) == {"one": 1, "two": 2}
    assert (len(registry), registry.get("three"), "two" in registry, "three" in registry) == (2, None, True, False)
    with pytest.raises(KeyError):
        registry["three"]
