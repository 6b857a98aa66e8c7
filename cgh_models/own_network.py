"""A network of your own, read as timm's are: any module that returns feature maps or a vector."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from .backbone import OWN
from .errors import InputError, printable


class OwnNetwork(nn.Module):
    """Stands for ``module`` where a timm backbone is expected; ``.module`` is the module itself.

    The module takes images (N, C, H, W) and returns an embedding (N, D); or a map (N, C, h, w), or
    maps in a list, tuple or dict, shallow to deep, and the mean over the deepest is the embedding.
    With two maps or more every method trains it; with a vector all but cgh, lewel and lewel_m do.
    torchvision's `create_feature_extractor(resnet18(), ["layer3", "layer4"])` is such a module.

    Args:
        preprocessing: of its images, as `methods.preprocessing(TrainConfig(...))` gives it.
    """

    num_classes = 0

    def __init__(self, module: nn.Module, preprocessing: Mapping[str, Any]):
        super().__init__()
        lacking = [name for name in ("input_size", "mean", "std") if name not in preprocessing]
        if lacking:
            what = f"preprocessing: lacks {', '.join(lacking)}"
            raise InputError(f"{what}; give preprocessing(config) of cgh_models.methods")
        self.module = module
        self.pretrained_cfg = {"interpolation": "bilinear", **preprocessing}
        self.pretrained_cfg["architecture"] = OWN + type(module).__name__

    def forward(self, images: Tensor) -> Tensor:
        """The embedding (N, D)."""
        return self.forward_head(self._outputs(images)[-1])

    def forward_head(self, final: Tensor, pre_logits: bool = True) -> Tensor:
        """The embedding (N, D) of the deepest map (N, D, h, w), or the vector that there is."""
        return final.mean((2, 3)) if final.ndim == 4 else final

    def forward_intermediates(
        self, images: Tensor, indices: int | Sequence[int] = 1, intermediates_only: bool = False
    ) -> Any:
        """The last output, and the maps at ``indices``: as many of the deepest, or by number."""
        outputs = self._outputs(images)
        maps = outputs if outputs[-1].ndim == 4 else []
        wanted = range(-indices, 0) if isinstance(indices, int) else indices
        try:
            chosen = [maps[index] for index in wanted]
        except IndexError as error:
            raise IndexError(f"it returns {len(maps)} maps") from error
        return chosen if intermediates_only else (outputs[-1], chosen)

    def _outputs(self, images: Tensor) -> list[Tensor]:
        found = self.module(images)
        if isinstance(found, Mapping):
            found = list(found.values())
        outputs = [found] if isinstance(found, Tensor) else list(found)
        shapes = [tuple(getattr(output, "shape", ())) for output in outputs]
        if [len(shape) for shape in shapes] not in ([2], [4] * max(1, len(outputs))):
            shown = f"a {type(self.module).__name__} returns {printable(shapes)[:100]}"
            raise InputError(f"{shown}; expected a vector (N, D), or maps (N, C, h, w)")
        return outputs
