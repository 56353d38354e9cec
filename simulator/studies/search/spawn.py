"""Worker processes that do not run the caller's main module again, and that can be ended at once.

A spawned process imports the main module of its parent: a script that starts workers and has no `if __name__ ==
"__main__"` starts them again in each worker, and one read from stdin cannot be found. What workers do here lives in
modules of their own, so they need no main module.
"""

from __future__ import annotations

import sys
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any


class _Process(SpawnProcess):
    """Starts while the main module is an empty one."""

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Any:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            return SpawnProcess._Popen(process_obj)  # type: ignore[attr-defined,unused-ignore]
        finally:
            sys.modules["__main__"] = main


class Spawning(SpawnContext):
    """Context for executors; what they run, and its arguments, must not come from the main module."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[_Process] = []

    def Process(self, *arguments: Any, **named: Any) -> _Process:  # type: ignore[override]
        """A process that is remembered."""
        made = _Process(*arguments, **named)
        self.started.append(made)
        return made

    def end(self) -> None:
        """End every process that was started."""
        for process in self.started:
            if process.is_alive():
                process.terminate()
        for process in self.started:
            process.join()
