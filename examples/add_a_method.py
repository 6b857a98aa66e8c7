"""A method of your own, trained by the same loop: SimSiam (arXiv 2011.10566) in forty lines, nothing registered.

python examples/add_a_method.py
"""

import tempfile
import zipfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from cgh_models import backbone, extract, pretrain
from cgh_models.config import TrainConfig
from cgh_models.evaluate import spread
from cgh_models.methods.heads import mlp


class SimSiam(nn.Module):
    """Two views, one network, a predictor on one side and a stopped gradient on the other."""

    name, paper, view_recipe = "simsiam", "arXiv:2011.10566", "weak_strong"

    @dataclass(frozen=True)
    class Config:
        width: int = 128

    def __init__(self, network: nn.Module, config: Config = Config()):
        super().__init__()
        self.config = config
        self.student = nn.Module()
        self.student.backbone = network
        self.student.projector = mlp(backbone.widths(network)[0], config.width, config.width)
        self.student.predictor = mlp(config.width, config.width // 4, config.width)

    def forward(self, views, progress):
        projections = [self.student.projector(self.student.backbone(view)).float() for view in views]
        predictions = [self.student.predictor(p) for p in projections]
        pairs = zip(predictions, reversed(projections), strict=True)
        return {"loss": -torch.stack([F.cosine_similarity(p, z.detach()).mean() for p, z in pairs]).mean()}

    def after_step(self, progress, finite=None):
        pass


with tempfile.TemporaryDirectory() as folder:
    with resources.as_file(resources.files("cgh_models") / "sample" / "cifar10.zip") as sample:
        zipfile.ZipFile(sample).extractall(folder)
    method = SimSiam(backbone.create("resnet18_cifar_w16"))
    pretrain(method, f"{folder}/train", TrainConfig(image_size=32, epochs=1, batch_size=128), Path(folder, "run"))
    print("spread of the embeddings:", spread(extract(method.student.backbone, f"{folder}/val")))
