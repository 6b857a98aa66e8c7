"""Embeddings on the CPU: a timm network as it is, and the copy that `extract(..., fast=True)` runs.

    python benchmarks/extract.py

The forward alone; weights are random, batch norms have seen noise.
"""

import timm
import torch
from side_by_side import milliseconds, table

from cgh_models.evaluate import pick_precision
from cgh_models.evaluate.inference import inference_copy

if __name__ == "__main__":
    torch.set_num_threads(2)
    torch.manual_seed(0)
    for arch, batch in (("resnet50", 16), ("resnet18", 32), ("vit_small_patch16_224", 16)):
        model = timm.create_model(arch, num_classes=0)
        images = torch.randn(batch, 3, 224, 224)
        with torch.inference_mode():
            model.train()(images)
            model.eval()
            fast = inference_copy(model, pick_precision("auto", images.device))
            kind = next(fast.parameters()).dtype

            def ours(images=images, fast=fast, kind=kind):
                return fast(images.to(kind, memory_format=torch.channels_last)).float()

            cosine = torch.cosine_similarity(ours(), model(images)).min()
            table(
                f"{arch}, {batch} images",
                milliseconds({"timm": lambda m=model, x=images: m(x), "fast": ours}, 5),
            )
        print(f"\nSmallest cosine: {cosine:.6f}")
