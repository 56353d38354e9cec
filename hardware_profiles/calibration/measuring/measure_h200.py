"""Measure kernels on one Hopper GPU with PyTorch alone and write them as a calibration table.

    python -m hardware_profiles.calibration.measuring.measure_h200 OUT.csv [seconds]

Needs only PyTorch with CUDA (and Triton for the kernels concurrent with memory traffic). Every measurement stands
alone: one that fails is reported on stderr and left out. Times are medians of CUDA-event intervals around one kernel,
L2 flushed before each (`mode` = cold), or the mean of a back-to-back run (`mode` = hot); the row `empty` is the cost of
the events themselves. Columns: see `tables/README.md`.
"""

from __future__ import annotations

import csv
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

from hardware_profiles.calibration.measuring.torch_kernels import DEVICE, bf16, fp8, norm, ones, quant, swiglu

COLUMNS = [
    *("op", "precision", "form", "impl", "mode", "m", "n", "k", "groups", "batch", "seq", "heads", "kv_heads"),
    *("d_qk", "d_v", "causal", "backward", "bytes", "held_sms", "traffic", "us", "us_min"),
]
V3 = [
    (4096, 1536, 7168), (4096, 576, 7168), (4096, 24576, 1536), (4096, 32768, 512), (4096, 7168, 16384),
    (4096, 4096, 7168), (4096, 7168, 2048), (4096, 7168, 576), (4096, 1536, 24576), (4096, 512, 32768),
    (4096, 16384, 7168), (4096, 7168, 4096), (4096, 2048, 7168), (4096, 7168, 18432), (4096, 36864, 7168),
]  # fmt: skip
SWEEP = [
    (64, 7168, 2048), (128, 4096, 7168), (256, 7168, 4096), (512, 4096, 7168), (1024, 7168, 2048), (1024, 4096, 4096),
    (2048, 5120, 5120), (2048, 2048, 8192), (3072, 3072, 3072), (8192, 1024, 1024), (8192, 5120, 5120),
    (8192, 13824, 5120), (16384, 3584, 7168), (16384, 8192, 2048), (6144, 6144, 6144), (12288, 12288, 4096),
]  # fmt: skip
WGRAD = [
    (7168, 2048, 4096), (2048, 7168, 8192), (7168, 4096, 8192), (4096, 7168, 4096), (7168, 16384, 4096),
    (32768, 512, 4096), (24576, 1536, 4096), (576, 7168, 4096), (1536, 7168, 4096), (8192, 5120, 8192),
    (5120, 13824, 16384), (4096, 4096, 1024), (2048, 2048, 16384),
]  # fmt: skip
Row = dict[str, Any]


class Recorder:
    """Times callables and collects rows."""

    def __init__(self, path: str, budget: float) -> None:
        self.path, self.end = path, time.time() + budget
        self.rows: list[Row] = []
        self.flush = torch.empty(256 << 20, dtype=torch.int8, device=DEVICE)

    def cold(self, fn: Callable[[], object], repeats: int = 12) -> list[float]:
        for _ in range(3):
            fn()
        marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
        for a, b in marks:
            self.flush.zero_()
            a.record()
            fn()
            b.record()
        torch.cuda.synchronize()
        return sorted(a.elapsed_time(b) * 1e3 for a, b in marks)

    def hot(self, fn: Callable[[], object], seconds: float = 0.15) -> list[float]:
        one = statistics.median(self.cold(fn, 3)) * 1e-6
        count = max(5, int(seconds / one))
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        for _ in range(count):
            fn()
        b.record()
        torch.cuda.synchronize()
        return [a.elapsed_time(b) * 1e3 / count]

    def add(self, fn: Callable[[], object], mode: str = "cold", **labels: Any) -> None:
        if time.time() > self.end:
            return
        try:
            times = self.hot(fn) if mode == "hot" else self.cold(fn)
        except Exception as error:
            print(f"left out {labels}: {type(error).__name__} {str(error)[:160]}", file=sys.stderr)
            torch.cuda.empty_cache()
            return
        row = {"mode": mode, **labels, "us": round(statistics.median(times), 3), "us_min": round(times[0], 3)}
        self.rows.append(row)
        print(row, flush=True)

    def write(self) -> None:
        with open(self.path, "w", newline="") as file:
            file.write(
                f"# {torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}, "
                "measure_h200.py\n"
            )
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)


def guarded(section: Callable[[Recorder], None], recorder: Recorder) -> None:
    """Run one section; whatever it raises leaves the others alone."""
    start = time.time()
    try:
        section(recorder)
    except Exception as error:
        print(f"section {section.__name__} ended early: {type(error).__name__} {error}", file=sys.stderr)
    torch.cuda.empty_cache()
    recorder.write()
    print(f"== {section.__name__}: {time.time() - start:.1f} s", flush=True)


def events(rec: Recorder) -> None:
    x = torch.zeros(1, device=DEVICE)
    rec.add(x.zero_, op="empty")
    rec.add(x.zero_, "hot", op="empty")


def gemm_bf16(rec: Recorder) -> None:
    for m, n, k in V3 + SWEEP:
        a, b = bf16(m, k), bf16(n, k)
        rec.add(lambda: a @ b.t(), op="gemm", precision="bf16", form="dense", impl="cublas", m=m, n=n, k=k)
        if m >= 4096:
            rec.add(lambda: a @ b.t(), "hot", op="gemm", precision="bf16", form="dense", impl="cublas", m=m, n=n, k=k)
        del a, b
    for m, n, k in WGRAD:
        a, b, c = bf16(k, m), bf16(k, n), ones(m, n)
        label: Row = {"op": "gemm", "precision": "bf16", "m": m, "n": n, "k": k}
        rec.add(lambda: a.t() @ b, **label, form="dense", impl="cublas_tn")
        rec.add(lambda: torch.addmm(c, a.t(), b, out_dtype=torch.float32, out=c), **label, form="wgrad", impl="cublas")
        rec.add(lambda: torch.mm(a.t(), b, out_dtype=torch.float32), **label, form="wgrad_write", impl="cublas")
        del a, b, c


def padded_block_scale(n: int, k: int) -> torch.Tensor:
    """Scales per 128 x 128, whose K side cuBLAS wants padded to four."""
    return ones(n // 128, -(-(k // 128) // 4) * 4)[:, : k // 128]


def fp8_call(a: torch.Tensor, b: torch.Tensor, kind: str) -> Callable[[], torch.Tensor]:
    m, k = a.shape
    n = b.shape[0]
    scales = {
        "fp8_tensor": lambda: (ones(1).squeeze(), ones(1).squeeze()),
        "fp8_row": lambda: (ones(m, 1), ones(1, n)),
        "fp8_block": lambda: (ones(k // 128, m).t(), padded_block_scale(n, k).t()),
        "fp8_block_both": lambda: (ones(k // 128, m).t(), ones(k // 128, n)),
    }
    sa, sb = scales[kind]()
    out = torch.float32 if kind == "fp8_block_both" else torch.bfloat16
    fast = kind in ("fp8_tensor", "fp8_row")
    return lambda: torch._scaled_mm(a, b.t(), scale_a=sa, scale_b=sb, out_dtype=out, use_fast_accum=fast)


def gemm_fp8(rec: Recorder) -> None:
    for m, n, k in V3 + SWEEP:
        a, b = fp8(m, k), fp8(n, k)
        for kind in ("fp8_tensor", "fp8_row", "fp8_block"):
            if n % 128 and kind == "fp8_block":
                continue
            label: Row = {"op": "gemm", "precision": kind, "form": "dense", "impl": "torch", "m": m, "n": n, "k": k}
            try:
                call = fp8_call(a, b, kind)
            except Exception as error:
                print(label, error, file=sys.stderr)
                continue
            rec.add(call, **label)
            if m * n * k > 1e11:
                rec.add(call, "hot", **label)
        del a, b
    for m, n, k in WGRAD:
        a, b = fp8(m, k), fp8(n, k)
        for kind in ("fp8_tensor", "fp8_block_both"):
            rec.add(fp8_call(a, b, kind), op="gemm", precision=kind, form="wgrad_write", impl="torch", m=m, n=n, k=k)
        del a, b


def grouped(rec: Recorder) -> None:
    shapes = [(4, 32768, 4096, 7168), (4, 32768, 7168, 2048), (8, 32768, 4096, 7168), (32, 32768, 7168, 2048),
              (4, 8192, 4096, 7168), (8, 65536, 2816, 2048), (64, 32768, 2816, 2048)]  # fmt: skip
    for g, m, n, k in shapes:
        offs = torch.arange(1, g + 1, device=DEVICE, dtype=torch.int32) * (m // g)
        label: Row = {"op": "gemm", "m": m, "n": n, "k": k, "groups": g, "impl": "torch"}
        a, b = bf16(m, k), bf16(g, n, k)
        rec.add(lambda: torch._grouped_mm(a, b.transpose(-2, -1), offs=offs), **label, precision="bf16", form="grouped")
        label_w: Row = dict(label, m=n, n=k, k=m)
        gy = bf16(m, n)
        rec.add(lambda: torch._grouped_mm(gy.t(), a, offs=offs), **label_w, precision="bf16", form="grouped_wgrad")
        del a, b, gy
        x, w = fp8(m, k), fp8(g, n, k)
        sx, sw = ones(m), ones(g, n)
        rec.add(
            lambda: torch._scaled_grouped_mm(
                x, w.transpose(-2, -1), sx, sw, offs=offs, out_dtype=torch.bfloat16, use_fast_accum=True
            ),
            **label, precision="fp8_row", form="grouped",
        )  # fmt: skip
        del x, w


def attention_shapes() -> Iterator[tuple[int, int, int, int, int, int]]:
    """(batch, seq, heads, kv_heads, d_qk, d_v)."""
    for d_qk, d_v, heads in ((64, 64, 32), (128, 128, 32), (192, 128, 64), (256, 256, 8)):
        for seq in (512, 1024, 2048, 4096, 8192, 16384):
            yield max(1, 8192 // seq), seq, heads, heads, d_qk, d_v
    yield 1, 4096, 128, 128, 192, 128
    yield 1, 4096, 64, 8, 128, 128
    yield 2, 4096, 40, 40, 128, 128


def attention(rec: Recorder) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    for batch, seq, heads, kv, d_qk, d_v in attention_shapes():
        q = bf16(batch, heads, seq, d_qk).requires_grad_()
        k = bf16(batch, kv, seq, d_qk).requires_grad_()
        v = bf16(batch, kv, seq, d_v).requires_grad_()
        for causal in (True, False):
            for backend, name in ((SDPBackend.CUDNN_ATTENTION, "cudnn"), (SDPBackend.FLASH_ATTENTION, "flash2")):
                if name == "flash2" and (d_qk != d_v or d_qk == 256 or not causal):
                    continue
                label: Row = {"op": "attention", "precision": "bf16", "impl": name, "batch": batch, "seq": seq,
                              "heads": heads, "kv_heads": kv, "d_qk": d_qk, "d_v": d_v, "causal": int(causal),
                }  # fmt: skip

                def run() -> torch.Tensor:
                    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=kv != heads)

                with sdpa_kernel(backend):
                    rec.add(lambda: run().detach(), **label, backward=0)
                    try:
                        out = run()
                        grad = torch.randn_like(out)
                        rec.add(
                            lambda: torch.autograd.grad(out, (q, k, v), grad, retain_graph=True), **label, backward=1
                        )
                        del out, grad
                    except Exception as error:
                        print("backward", label, str(error)[:120], file=sys.stderr)
        del q, k, v


def streaming(rec: Recorder) -> None:
    for mb in (1, 4, 16, 32, 64, 128, 256, 512, 1024):
        n = mb * 1000000 // 2
        x, y, z = bf16(n), bf16(n), bf16(n)
        rec.add(lambda: z.copy_(x), op="copy", bytes=4 * n)
        rec.add(lambda: z.copy_(x), "hot", op="copy", bytes=4 * n)
        rec.add(lambda: torch.add(x, y, out=z), op="add", bytes=6 * n)
        rec.add(lambda: torch.add(x, y, out=z), "hot", op="add", bytes=6 * n)
        del x, y, z


def fused(rec: Recorder) -> None:
    """Kernels that torch.compile writes: norm, swiglu, casts, cross-entropy."""

    fns = {
        name: torch.compile(fn, dynamic=False)
        for name, fn in (("rmsnorm", norm), ("quant_token", quant), ("swiglu", swiglu))
    }
    for rows, cols in ((4096, 1536), (4096, 7168), (4096, 16384), (32768, 2048), (16384, 5120)):
        x, w, elems = bf16(rows, cols), bf16(cols), rows * cols
        rec.add(lambda: fns["rmsnorm"](x, w), op="rmsnorm", m=rows, n=cols, bytes=4 * elems)
        rec.add(lambda: fns["quant_token"](x), op="quant_token", m=rows, n=cols, bytes=3 * elems + elems // 32)
        rec.add(lambda: fns["swiglu"](x), op="swiglu", m=rows, n=cols, bytes=3 * elems)
        rec.add(lambda: torch.softmax(x, -1), op="softmax", m=rows, n=cols, bytes=4 * elems)
        rec.add(lambda: x.t().contiguous(), op="transpose", m=rows, n=cols, bytes=4 * elems)


def ends(rec: Recorder) -> None:
    """Loss, embedding, optimizer."""
    for rows, vocab in ((4096, 129280), (2048, 32000), (8192, 32000)):
        logits = bf16(rows, vocab).requires_grad_()
        target = torch.randint(0, vocab, (rows,), device=DEVICE)
        rec.add(
            lambda: F.cross_entropy(logits, target).detach(),
            op="loss_fwd_eager",
            m=rows,
            n=vocab,
            bytes=2 * rows * vocab,
        )
        out = F.cross_entropy(logits, target)
        rec.add(
            lambda: torch.autograd.grad(out, logits, retain_graph=True),
            op="loss_bwd_eager", m=rows, n=vocab, bytes=4 * rows * vocab,
        )  # fmt: skip
        del out, logits
    table, ids = bf16(129280, 7168), torch.randint(0, 129280, (4096,), device=DEVICE)
    rec.add(lambda: F.embedding(ids, table), op="embedding", m=4096, n=7168, bytes=4 * 4096 * 7168)
    for millions in (10, 100, 400):
        p = torch.randn(millions * 1000000, device=DEVICE, requires_grad=True)
        p.grad = torch.randn_like(p)
        adam = torch.optim.AdamW([p], lr=1e-4, fused=True)
        rec.add(adam.step, op="adam", m=millions * 1000000, bytes=28 * millions * 1000000)
        del p, adam


def concurrent_traffic(rec: Recorder) -> None:
    """Kernels while `held` SMs copy memory: how much they slow, and what the copy moves meanwhile."""
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def mover(src: Any, dst: Any, per_cta: Any, rounds: Any, BLOCK: tl.constexpr) -> None:
        base = tl.program_id(0).to(tl.int64) * per_cta
        for _ in range(rounds):
            for i in range(0, per_cta, BLOCK):
                at = base + i + tl.arange(0, BLOCK)
                tl.store(dst + at, tl.load(src + at))

    side = torch.cuda.Stream()
    per, block = 1 << 22, 8192
    src = torch.zeros(64 * per, dtype=torch.int32, device=DEVICE)
    dst = torch.zeros_like(src)
    cases: dict[str, Callable[[], object]] = {}
    a, b = bf16(4096, 1536), bf16(24576, 1536)
    cases["gemm_bf16_4096x24576x1536"] = lambda: a @ b.t()
    fa, fb = fp8(8192, 8192), fp8(8192, 8192)
    cases["gemm_fp8_tensor_8192x8192x8192"] = fp8_call(fa, fb, "fp8_tensor")
    cases["gemm_fp8_block_8192x8192x8192"] = fp8_call(fa, fb, "fp8_block")
    q = bf16(1, 32, 8192, 128)
    cases["attention_8192x32h"] = lambda: F.scaled_dot_product_attention(q, q, q, is_causal=True)
    x, y = bf16(4096 * 7168), bf16(4096 * 7168)
    cases["copy_4096x7168"] = lambda: y.copy_(x)
    for held in (0, 8, 20, 40):
        alone = 0.0
        if held:
            a0, b0 = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            mover[(held,)](src, dst, per, 4, BLOCK=block, num_warps=16)
            a0.record()
            mover[(held,)](src, dst, per, 4, BLOCK=block, num_warps=16)
            b0.record()
            torch.cuda.synchronize()
            one = a0.elapsed_time(b0) / 4 * 1e-3
            alone = held * per * 8 / one
            rounds = max(1, int(0.06 / one))
        for name, fn in cases.items():
            for _ in range(3):
                fn()
            torch.cuda.synchronize()
            if held:
                with torch.cuda.stream(side):
                    mover[(held,)](src, dst, per, rounds, BLOCK=block, num_warps=16)
                time.sleep(0.002)
            s, e = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            s.record()
            for _ in range(10):
                fn()
            e.record()
            torch.cuda.synchronize()
            row = {
                "op": f"concurrent:{name}",
                "mode": "hot",
                "held_sms": held,
                "traffic": round(alone),
                "us": round(s.elapsed_time(e) * 100, 3),
            }
            rec.rows.append(row)
            print(row, flush=True)


def main() -> None:
    path = sys.argv[1] if len(sys.argv) > 1 else "h200_measured.csv"
    recorder = Recorder(path, float(sys.argv[2]) if len(sys.argv) > 2 else 340.0)
    torch.manual_seed(0)
    for section in (events, gemm_fp8, gemm_bf16, grouped, concurrent_traffic, attention, streaming, ends, fused):
        guarded(section, recorder)


if __name__ == "__main__":
    main()
