"""What a training step of each method costs, counted on tensors without memory.

    python benchmarks/cost.py

Per image, ResNet-50 at 224 pixels, every method's default Config: floating-point operations of a
step (a multiplication and an addition are two) in units of one forward of the bare backbone, and
the bytes a method holds beside its student. No clock, no GPU, a few seconds; docs/methods.md has
the table that this prints.
"""

import torch
from torch.utils.flop_counter import FlopCounterMode

from cgh_models.backbone import skeleton
from cgh_models.methods import METHODS
from cgh_models.view_recipes import RECIPES

BATCH = 8


def count(function) -> int:
    """Operations that the function does."""
    with FlopCounterMode(display=False) as flops:
        function()
    return flops.get_total_flops()


def build(name: str, arch: str = "resnet50", **settings):
    """A method with its default Config, on meta tensors."""
    with torch.device("meta"):
        return METHODS[name](skeleton(arch).to("meta"), METHODS[name].Config(**settings)).to("meta")


def step_cost(
    name: str, arch: str = "resnet50", size: int = 224, batch: int = BATCH, **settings
) -> int:
    """Operations of a step: forwards, losses, backwards, queues, teacher."""
    method = build(name, arch, **settings)
    with torch.device("meta"):
        views = [
            torch.empty(batch, 3, view.side(size), view.side(size))
            for view in RECIPES[method.view_recipe]
        ]

        def step():
            method(views, 0.5)["loss"].backward()
            method.after_step(0.5)

        return count(step)


def beside(method) -> int:
    """Bytes of teacher and queues."""
    return sum(t.nbytes for key, t in method.state_dict().items() if not key.startswith("student."))


def main() -> None:
    """Prints a row per method."""
    with torch.device("meta"):
        forward = count(lambda: skeleton("resnet50").to("meta")(torch.empty(BATCH, 3, 224, 224)))
    variants = [(name, {}) for name in METHODS]
    variants += [
        ("cgh", {"multi_crop": True}),
        ("ressl", {"multi_crop": True}),
        ("moco_v2", {"symmetric": True}),
    ]
    for name, settings in variants:
        shown = name + "".join(f", {key}" for key in settings)
        step = step_cost(name, **settings) / forward
        mebibytes = beside(build(name)) / 2**20
        print(f"| {shown} | {step:.1f} | {mebibytes:.0f} |")


if __name__ == "__main__":
    main()
