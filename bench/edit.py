"""Geometry of a rank-16 adapter from its factors, beside dense decompositions, and Safe LoRA beside its published form.

Weights of the shapes of DeepSeek-R1-Distill-Qwen-14B, one of each, synthetic: a tenth of their energy in 64 directions
of falling size, the rest normal. Both sides see the same matrices, in one run; nothing is extrapolated.

    python bench/edit.py                    # several minutes: the dense sides take a minute a matrix and more
    python bench/edit.py --quick            # small shapes, prints and writes nothing

Ratios of seconds, summed over the matrices, the dense side above:
stable_rank_vs_dense        all singular values of b @ a; of the factors
overlap_vs_dense            the same; the overlap by factors with 16 directions of W, which are found once a base
overlap_with_search_vs_dense  the 16 strongest directions of W by its whole SVD, and dense products; by `top_singular`,
                            and factors
safe_lora_vs_published      a 18,944 x 3,584 matrix with an m x m one; without
And: peak_mb_over_matrix, the most memory of stable rank and overlap of the largest shape, in a process of its own, less
W; analysis_seconds, of `analyze` on a rank-16 adapter on every linear layer of the embedded model.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor

from lowtax.analysis.geometry import analyze, of_adapter
from lowtax.common.files import write_json
from lowtax.common.linalg import Factors, overlap, stable_rank, top_singular
from lowtax.common.provenance import provenance
from lowtax.methods.safe_lora import SafeLoRA
from lowtax.methods.sites import Site
from lowtax.models.adapters import Adapter, write_adapter
from lowtax.models.weights import open_weights

RESULT = Path(__file__).parent / "results" / "edit_cpu.json"
SHAPES = ((1024, 5120), (5120, 5120), (13824, 5120))  # k and v; q and o; gate and up, and turned round down
QUICK = ((256, 512), (512, 512), (1024, 512))
RANK = K = 16
MODEL = "builtin:smollm2-135m-reasoner"


def weight(out: int, inp: int) -> Tensor:
    """A weight with some structure in it."""
    g = torch.Generator().manual_seed(0)
    W = torch.randn(out, inp, generator=g)
    U, V = (torch.linalg.qr(torch.randn(n, 64, generator=g)).Q for n in (out, inp))
    S = torch.arange(1, 65).float() ** -0.5
    return W.addmm_(U * (S / S.norm() * (out * inp / 9) ** 0.5), V.T)


def update(out: int, inp: int) -> Factors:
    """A random update."""
    g = torch.Generator().manual_seed(1)
    return Factors(torch.randn(out, RANK, generator=g) / out, torch.randn(RANK, inp, generator=g))


def timed(work: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    """The least seconds of several tries, and what the last gave."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        found = work()
        seconds.append(time.perf_counter() - began)
    return min(seconds), found


def dense_overlap(W: Tensor, dW: Tensor) -> float:
    """Left overlap, by a whole decomposition."""
    U = torch.linalg.svd(W, full_matrices=False).U[:, :K]
    return float((U.T @ dW).square().sum() / dW.square().sum())


def geometry(shape: tuple[int, int]) -> dict[str, float]:
    """Seconds of each part, for one shape; both sides must agree."""
    W, D = weight(*shape), update(*shape)
    dW = D.dense()
    ours, mine = timed(lambda: stable_rank(D.svd()[1]), 5)
    values, theirs = timed(lambda: stable_rank(torch.linalg.svdvals(dW)))
    top, (U, _, V) = timed(lambda: top_singular(W, K), 2)
    alone, share = timed(lambda: overlap(D, U, V)["left"], 5)
    dense, expected = timed(lambda: dense_overlap(W, dW))
    assert abs(mine - theirs) < 1e-3 * theirs
    assert abs(share - expected) < 1e-3 * expected + 1e-6
    names = ("stable_rank", "stable_rank_dense", "top_singular", "overlap", "overlap_dense")
    return dict(zip(names, (ours, values, top, alone, dense), strict=True))


def safe_lora(shape: tuple[int, int]) -> dict[str, float]:
    """Seconds of both forms, on one matrix; they must agree."""
    W, D = weight(*shape), update(*shape)
    aligned = W + 0.01 * weight(shape[1], shape[0]).T
    site, method = Site("site", W, D.a, D.b, 1.0), SafeLoRA(aligned="aligned")
    probe = type("Known", (), {"weights": lambda self, model: {"site": aligned}})()

    def published() -> tuple[float, Tensor]:
        V = aligned - W
        C = V @ V.T / V.norm()
        b = C @ D.b
        return float(torch.cosine_similarity((b @ D.a).reshape(1, -1), D.dense().reshape(1, -1))), b

    ours, state = timed(lambda: method.prepare({"site": site}, probe), 3)
    theirs, (score, b) = timed(published)
    # Float32 sums of 68 million products leave 0.003 of the published cosine uncertain; ours is summed in float64.
    projected, whole = (b @ D.a).double(), D.dense().double()
    exact = float((projected * whole).sum() / (projected.norm() * whole.norm()))
    assert abs(state["site"]["score"] - exact) < 1e-6
    assert abs(score - exact) < 1e-2
    assert torch.allclose(state["site"]["b"], b, rtol=1e-2, atol=1e-6)
    return {"ours": ours, "published": theirs}


def memory(shape: tuple[int, int]) -> None:
    """In a process of its own: the most memory of the work, less what was there before and W."""
    D = update(*shape)
    overlap(update(64, 64), *(top_singular(weight(64, 64), K)[i] for i in (0, 2)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    W = weight(*shape)
    stable_rank(D.svd()[1])
    U, _, V = top_singular(W, K)
    overlap(D, U, V)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps((after - before) / 1024 - W.numel() * 4 / 2**20))


def analysis() -> float:
    """Seconds of analysing a made-up adapter of the embedded model."""
    base = open_weights(MODEL)
    factors = {n: update(*base.shape(n)) for n in base.names() if "layers" in n}
    with tempfile.TemporaryDirectory() as folder:
        config = LoraConfig(r=RANK, base_model_name_or_path=MODEL, task_type="CAUSAL_LM")
        write_adapter(Path(folder), Adapter(config, {}, factors))
        return timed(lambda: analyze(base, [of_adapter(Path(folder))]), 2)[0]


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--memory", type=int, nargs=2)
    asked = parser.parse_args()
    if asked.memory:
        return memory(tuple(asked.memory))
    shapes = QUICK if asked.quick else SHAPES
    command = [sys.executable, __file__, "--memory", *map(str, max(shapes))]
    peak = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    sites: dict[str, dict[str, float]] = {}
    for shape in shapes:
        sites[f"{shape[0]}x{shape[1]}"] = geometry(shape)
        print(shape, {name: round(s, 4) for name, s in sites[f"{shape[0]}x{shape[1]}"].items()}, flush=True)
    t = {name: sum(site[name] for site in sites.values()) for name in next(iter(sites.values()))}
    safe = safe_lora((1536, 512) if asked.quick else (18944, 3584))
    found = {
        "stable_rank_vs_dense": t["stable_rank_dense"] / t["stable_rank"],
        "overlap_vs_dense": t["stable_rank_dense"] / t["overlap"],
        "overlap_with_search_vs_dense": t["overlap_dense"] / (t["top_singular"] + t["overlap"]),
        "safe_lora_vs_published": safe["published"] / safe["ours"],
        "peak_mb_over_matrix": peak,
        "analysis_seconds": None if asked.quick else analysis(),
    }
    print(json.dumps(found, indent=2))
    if not asked.quick:
        seconds = {"sites": sites, "safe_lora": safe}
        write_json(RESULT, found | {"seconds": seconds, "threads": torch.get_num_threads(), "machine": provenance()})


if __name__ == "__main__":
    main()
