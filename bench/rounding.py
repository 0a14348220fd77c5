"""How far bfloat16 alone moves the weights of a study's base, beside what full fine-tuning moves them by.

python bench/rounding.py runs/quickstart     # a line for the base, and one for each fully fine-tuned checkpoint
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file

from lowtax.models import loading
from lowtax.study.study import Study


def main() -> None:
    """Print relative Frobenius norms, and the share of weights that are unchanged in bfloat16."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path)
    work = Study.open(parser.parse_args().study)
    base = loading.load_model(work.recipe.model, "float32").state_dict()
    norm = sum(float(w.square().sum()) for w in base.values())
    rounding = sum(float((w - w.bfloat16().float()).square().sum()) for w in base.values())
    print(f"rounding the base to bfloat16: {(rounding / norm) ** 0.5:.2%}")
    for subject in work.subjects():
        if subject.adapter is not None or subject.arm == "base":
            continue
        tuned = load_file(Path(subject.model) / "model.safetensors")
        pairs = [(tuned[name].bfloat16(), base[name].bfloat16()) for name in tuned if name in base]
        moved = sum(float((a.float() - b.float()).square().sum()) for a, b in pairs)
        same = sum(int((a == b).sum()) for a, b in pairs) / sum(a.numel() for a, _ in pairs)
        print(
            f"{subject.arm} seed {subject.seed} {subject.checkpoint}: {(moved / norm) ** 0.5:.2%}, {same:.0%} unchanged"
        )


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
