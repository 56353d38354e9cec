"""Measure GEMMs and attention of one release of cuBLASLt and cuDNN after another on one GPU.

    python measure_libraries.py gemm OUT.csv LIBCUBLASLT...
    python measure_libraries.py attention OUT.csv DIRECTORY

`LIBCUBLASLT`: shared libraries, as wheels have them in nvidia/cublas/lib; every GEMM runs with each of them in turn, as
Transformer Engine calls them: the heuristic's first choice in a workspace of 32 MiB. `DIRECTORY`: a folder with
nvidia/cudnn/lib, which nvidia-cudnn-frontend finds there instead of in the site's packages. Needs cupy, ml_dtypes,
pynvml and nvidia-cudnn-frontend, not PyTorch, which brings libraries of its own. Every case is repeated for `SECONDS`
under sustained load; the second half counts. Weight gradients are added into BF16.

| form | what |
|---|---|
| fprop, dgrad, wgrad | GEMMs of a linear layer of n x k over m tokens; in FP8 all with both operands along the depth |
| forward, backward | attention; queries, keys and values are (sequence, batch, head, width) in memory |
"""

from __future__ import annotations

import csv
import ctypes
import os
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

SECONDS = 0.2
WORKSPACE = 32 << 20
BF16, FP32, E4M3, E5M2 = 14, 0, 28, 29
"""cudaDataType."""
COMPUTE = 68
"""CUBLAS_COMPUTE_32F."""
TRANS, FAST, SCALES = (3, 4), 25, (17, 18)
"""Attributes of cublasLtMatmulDesc: transposed operands, fast accumulation, addresses of the scales."""
LINEAR = (
    (4096, 2304, 16384), (4096, 16384, 2048), (4096, 13312, 16384), (4096, 16384, 6656),
    (4096, 2560, 8192), (4096, 8192, 2048), (4096, 14336, 8192), (4096, 8192, 7168),
    (2048, 9216, 12288), (2048, 12288, 3072), (2048, 12288, 12288), (16384, 2048, 6144),
    (16384, 6144, 1536), (16384, 6144, 6144), (4096, 2688, 18432), (4096, 18432, 9216),
    (4096, 6144, 4096), (4096, 4096, 4096), (4096, 28672, 4096), (4096, 4096, 14336),
    (512, 13312, 16384), (1024, 14336, 8192), (4096, 32064, 8192), (8192, 8192, 8192),
)  # fmt: skip
"""Tokens, outputs and inputs of layers of Llama 3.1 405B and 70B, GPT-3, Nemotron-4 15B and 340B and Llama 3 8B under
tensor parallelism, of pieces, a head, and a square."""
ATTENTION = (
    (1, 8192, 8192, 32, 8, 1), (1, 4096, 4096, 32, 8, 1), (1, 4096, 4096, 16, 2, 1), (4, 4096, 4096, 12, 2, 1),
    (1, 2048, 2048, 32, 8, 1), (1, 16384, 16384, 8, 2, 1), (1, 8192, 8192, 8, 8, 1), (2, 2048, 2048, 24, 24, 1),
    (1, 4096, 2048, 32, 8, 0), (1, 2048, 4096, 32, 8, 0), (1, 4096, 2048, 16, 2, 0), (1, 2048, 4096, 16, 2, 0),
    (1, 4096, 2048, 8, 8, 0), (1, 2048, 4096, 8, 8, 0), (1, 8192, 4096, 8, 2, 0), (1, 4096, 8192, 8, 2, 0),
    (1, 2048, 1024, 32, 8, 0), (1, 1024, 2048, 32, 8, 0), (1, 4096, 4096, 8, 2, 1), (1, 4096, 4096, 64, 8, 1),
)  # fmt: skip
"""Sequences, queries, keys, heads, heads of keys, whether causal."""
WIDTH = 128
Row = dict[str, Any]


def lasting(call: Callable[[], object]) -> Row:
    """Mean time of the second half of `SECONDS` of a call [us], power and clock then."""
    import cupy  # type: ignore[import-not-found,import-untyped,unused-ignore]
    import pynvml  # type: ignore[import-not-found,import-untyped,unused-ignore]

    pynvml.nvmlInit()
    gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
    for _ in range(3):
        call()
    cupy.cuda.Device().synchronize()
    start = time.perf_counter()
    for _ in range(4):
        call()
    cupy.cuda.Device().synchronize()
    many = max(4, int(SECONDS / 2 * 4 / (time.perf_counter() - start)))
    for _ in range(many):
        call()
    first, last = cupy.cuda.Event(), cupy.cuda.Event()
    first.record()
    for _ in range(many):
        call()
    last.record()
    watts, clock = 0.0, 0
    while not last.done:
        watts = pynvml.nvmlDeviceGetPowerUsage(gpu) / 1e3
        clock = pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM)
        time.sleep(0.005)
    return {"us": cupy.cuda.get_elapsed_time(first, last) * 1e3 / many, "power_w": watts, "sm_mhz": clock}


def normal(count: int, kind: int, seed: int) -> Any:
    """So many random normal values in device memory, as bytes; a million different ones."""
    import cupy
    import ml_dtypes  # type: ignore[import-not-found,import-untyped,unused-ignore]
    import numpy as np

    types = {BF16: ml_dtypes.bfloat16, E4M3: ml_dtypes.float8_e4m3fn, E5M2: ml_dtypes.float8_e5m2}
    some = np.random.default_rng(seed).standard_normal(1 << 20).astype(np.float32).astype(types[kind])
    each = cupy.asarray(some.view(np.uint8))
    return cupy.tile(each, -(-count // (1 << 20)))[: count * some.itemsize]


class CublasLt:
    """One release of cuBLASLt."""

    def __init__(self, path: str) -> None:
        self.lib = ctypes.CDLL(path)
        self.lib.cublasLtGetVersion.restype = ctypes.c_size_t
        self.version = int(self.lib.cublasLtGetVersion())
        self.handle = ctypes.c_void_p()
        self._check(self.lib.cublasLtCreate(ctypes.byref(self.handle)))

    def _check(self, status: int) -> None:
        if status:
            raise RuntimeError(f"cuBLASLt {self.version}: status {status}")

    def _layout(self, kind: int, rows: int, columns: int) -> ctypes.c_void_p:
        made = ctypes.c_void_p()
        size = ctypes.c_uint64
        self._check(
            self.lib.cublasLtMatrixLayoutCreate(
                ctypes.byref(made), kind, size(rows), size(columns), ctypes.c_int64(rows)
            )
        )
        return made

    def _set(self, description: ctypes.c_void_p, which: int, value: Any) -> None:
        self._check(
            self.lib.cublasLtMatmulDescSetAttribute(
                description, which, ctypes.byref(value), ctypes.c_size_t(ctypes.sizeof(value))
            )
        )

    def gemm(
        self, sizes: tuple[int, int, int], trans: tuple[int, int], kinds: tuple[int, int], arrays: Sequence[Any],
        *, add: bool, fast: bool,
    ) -> Callable[[], None]:  # fmt: skip
        """A call of D (m x n, columns first) = op(A) op(B), depth k, into BF16; `arrays`: A, B, D, workspace, scale."""
        (m, n, k), (a, b, d, workspace, scale) = sizes, arrays
        description = ctypes.c_void_p()
        self._check(self.lib.cublasLtMatmulDescCreate(ctypes.byref(description), COMPUTE, FP32))
        for which, value in zip(TRANS, trans, strict=True):
            self._set(description, which, ctypes.c_int32(value))
        if kinds[0] != BF16:
            self._set(description, FAST, ctypes.c_int8(fast))
            for which in SCALES:
                self._set(description, which, ctypes.c_void_p(scale.data.ptr))
        layouts = (
            self._layout(kinds[0], *((k, m) if trans[0] else (m, k))),
            self._layout(kinds[1], *((n, k) if trans[1] else (k, n))),
            self._layout(BF16, m, n),
            self._layout(BF16, m, n),
        )
        preference, room = ctypes.c_void_p(), ctypes.c_uint64(WORKSPACE)
        self._check(self.lib.cublasLtMatmulPreferenceCreate(ctypes.byref(preference)))
        self._check(
            self.lib.cublasLtMatmulPreferenceSetAttribute(preference, 1, ctypes.byref(room), ctypes.c_size_t(8))
        )
        found, many = (ctypes.c_uint64 * 12)(), ctypes.c_int()
        self._check(
            self.lib.cublasLtMatmulAlgoGetHeuristic(
                self.handle, description, *layouts, preference, 1, found, ctypes.byref(many)
            )
        )
        if not many.value:
            raise RuntimeError(f"cuBLASLt {self.version}: no algorithm")
        one, beta = ctypes.c_float(1.0), ctypes.c_float(1.0 if add else 0.0)
        at = [ctypes.c_void_p(each.data.ptr) for each in (a, b, d, workspace)]

        def call() -> None:
            self._check(
                self.lib.cublasLtMatmul(
                    self.handle, description, ctypes.byref(one), at[0], layouts[0], at[1], layouts[1],
                    ctypes.byref(beta), at[2], layouts[2], at[2], layouts[3], found, at[3],
                    ctypes.c_size_t(WORKSPACE), None,
                )
            )  # fmt: skip

        return call


def gemms() -> Iterator[tuple[str, str, tuple[int, int, int], tuple[int, int, int], tuple[int, int], bool, bool]]:
    """Form, precision, the layer, sizes of D and depth, transposed operands, whether it adds, fast accumulation."""
    for layer in LINEAR:
        m, n, k = layer
        for form, sizes, trans in (
            ("fprop", (n, m, k), (1, 0)),
            ("dgrad", (k, m, n), (0, 0)),
            ("wgrad", (k, n, m), (0, 1)),
        ):
            yield form, "bf16", layer, sizes, trans, form == "wgrad", False
            yield form, "fp8", layer, sizes, (1, 0), form == "wgrad", form == "fprop"


def measure_gemms(out: str, paths: Sequence[str]) -> None:
    """Every GEMM with each library in turn."""
    import cupy

    libraries = [CublasLt(path) for path in paths]
    workspace, scale = cupy.zeros(WORKSPACE, cupy.uint8), cupy.ones(1, cupy.float32)
    columns = ("library", "form", "precision", "m", "n", "k", "us", "power_w", "sm_mhz")
    with open(out, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for form, precision, layer, sizes, trans, add, fast in gemms():
            m, n, k = sizes
            kinds = (BF16, BF16) if precision == "bf16" else (E4M3, E4M3 if form == "fprop" else E5M2)
            arrays = (normal(m * k, kinds[0], 1), normal(n * k, kinds[1], 2), normal(m * n, BF16, 3), workspace, scale)
            libraries.reverse()
            for library in libraries:
                try:
                    found = lasting(library.gemm(sizes, trans, kinds, arrays, add=add, fast=fast))
                except RuntimeError as error:
                    print(form, precision, layer, error, file=sys.stderr)
                    continue
                of = {"library": library.version, "form": form, "precision": precision}
                writer.writerow(of | dict(zip("mnk", layer, strict=True)) | found)
            file.flush()


class Core:
    """One attention core, as graphs of cuDNN's frontend; `case`: a row of `ATTENTION`."""

    def __init__(self, case: tuple[int, ...], cudnn: Any, handle: Any) -> None:
        import cupy

        self.batch, self.queries, self.keys, self.heads, self.groups, self.causal = case
        self.cudnn, self.handle = cudnn, handle
        wide = {"q": 1, "o": 4, "dO": 5, "dQ": 6}
        narrow = {"k": 2, "v": 3, "dK": 7, "dV": 8}
        self.data = {name: self._filled(self.queries, self.heads, seed) for name, seed in wide.items()}
        self.data |= {name: self._filled(self.keys, self.groups, seed) for name, seed in narrow.items()}
        self.data["stats"] = cupy.zeros(self.batch * self.heads * self.queries, cupy.float32)

    def _filled(self, length: int, many: int, seed: int) -> Any:
        return normal(self.batch * length * many * WIDTH, BF16, seed)

    def _graph(self) -> Any:
        single, half = self.cudnn.data_type.FLOAT, self.cudnn.data_type.BFLOAT16
        return self.cudnn.pygraph(
            io_data_type=half, intermediate_data_type=single, compute_data_type=single, handle=self.handle
        )

    def _placed(self, length: int, many: int) -> tuple[list[int], list[int]]:
        return [self.batch, many, length, WIDTH], [many * WIDTH, WIDTH, self.batch * many * WIDTH, 1]

    def _inputs(self, graph: Any, *names: str) -> list[Any]:
        made = []
        for name in names:
            inner = name in ("k", "v")
            dim, stride = self._placed(self.keys if inner else self.queries, self.groups if inner else self.heads)
            half = self.cudnn.data_type.BFLOAT16
            made.append(graph.tensor(name=name, dim=dim, stride=stride, data_type=half))
        return made

    def _output(self, which: Any, length: int, many: int) -> None:
        dim, stride = self._placed(length, many)
        which.set_output(True).set_dim(dim).set_stride(stride)

    def _ready(self, graph: Any, names: dict[Any, str]) -> Callable[[], None]:
        import cupy

        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([self.cudnn.heur_mode.A])
        graph.check_support()
        graph.build_plans()
        workspace = cupy.zeros(max(1, graph.get_workspace_size()), cupy.uint8)
        pointers = {key: self.data[name].data.ptr for key, name in names.items()}
        return lambda: graph.execute(pointers, workspace.data.ptr, self.handle)

    def forward(self) -> Callable[[], None]:
        """A call of the forward kernel."""
        graph = self._graph()
        q, k, v = self._inputs(graph, "q", "k", "v")
        mask = bool(self.causal)
        o, stats = graph.sdpa(
            name="sdpa", q=q, k=k, v=v, is_inference=False, attn_scale=WIDTH**-0.5, use_causal_mask=mask
        )
        self._output(o, self.queries, self.heads)
        stats.set_output(True).set_data_type(self.cudnn.data_type.FLOAT)
        return self._ready(graph, {q: "q", k: "k", v: "v", o: "o", stats: "stats"})

    def backward(self) -> Callable[[], None]:
        """A call of the backward kernels."""
        graph = self._graph()
        q, k, v, o, do = self._inputs(graph, "q", "k", "v", "o", "dO")
        dim, stride = [self.batch, self.heads, self.queries, 1], [self.heads * self.queries, self.queries, 1, 1]
        stats = graph.tensor(name="stats", dim=dim, stride=stride, data_type=self.cudnn.data_type.FLOAT)
        scale, mask = WIDTH**-0.5, bool(self.causal)
        dq, dk, dv = graph.sdpa_backward(
            name="back", q=q, k=k, v=v, o=o, dO=do, stats=stats, attn_scale=scale, use_causal_mask=mask
        )
        self._output(dq, self.queries, self.heads)
        self._output(dk, self.keys, self.groups)
        self._output(dv, self.keys, self.groups)
        names = {q: "q", k: "k", v: "v", o: "o", do: "dO", stats: "stats", dq: "dQ", dk: "dK", dv: "dV"}
        return self._ready(graph, names)


def measure_attention(out: str, directory: str) -> None:
    """Every shape, forward and backward, with the cuDNN in a directory."""
    usual = sysconfig.get_path

    def path(name: str, *more: Any, **further: Any) -> str:
        return directory if name == "purelib" else usual(name, *more, **further)

    sysconfig.get_path = path
    import cudnn  # type: ignore[import-not-found,import-untyped,unused-ignore]

    handle = cudnn.create_handle()
    columns = ("library", "form", "batch", "queries", "keys", "heads", "kv_heads", "causal", "us", "power_w", "sm_mhz")
    with open(out, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for case in ATTENTION:
            try:
                core = Core(case, cudnn, handle)
                for form, call in (("forward", core.forward()), ("backward", core.backward())):
                    of = {"library": cudnn.backend_version(), "form": form}
                    writer.writerow(of | dict(zip(columns[2:8], case, strict=True)) | lasting(call))
            except Exception as error:  # a shape that a release cannot do is left out
                print(case, error, file=sys.stderr)
            file.flush()


if __name__ == "__main__":
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    what, target, *where = sys.argv[1:]
    if what == "gemm":
        measure_gemms(target, where)
    else:
        measure_attention(target, where[0])
