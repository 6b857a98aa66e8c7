"""A method of your own, trained by the same loop: SimSiam (arXiv 2011.10566), nothing registered.

python examples/add_a_method.py
"""

import tempfile
import zipfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch.nn.functional as F
from torch import nn

from cgh_models import backbone, extract, pretrain
from cgh_models.config import TrainConfig
from cgh_models.evaluate import spread
from cgh_models.methods.heads import Branch, mlp


class SimSiam(nn.Module):
    """Two views, one network, a predictor on one side and a stopped gradient on the other."""

    name = "simsiam"
    paper = "arXiv:2011.10566"
    view_recipe = "weak_strong"

    @dataclass(frozen=True)
    class Config:
        width: int = 128

    def __init__(self, network: nn.Module, config: Config = Config()):
        super().__init__()
        self.config = config
        self.student = Branch(network, config.width, config.width)
        self.student.predictor = mlp(config.width, config.width // 4, config.width)

    def forward(self, views, progress):
        z1, z2 = self.student(views[0]), self.student(views[1])  # (N, P) each
        p1, p2 = self.student.predictor(z1), self.student.predictor(z2)
        similarity1 = F.cosine_similarity(p1, z2.detach()).mean()
        similarity2 = F.cosine_similarity(p2, z1.detach()).mean()
        return {"loss": -0.5 * (similarity1 + similarity2)}

    def after_step(self, progress, finite=None):
        pass


with tempfile.TemporaryDirectory() as folder:
    with resources.as_file(resources.files("cgh_models") / "sample" / "cifar10.zip") as sample:
        zipfile.ZipFile(sample).extractall(folder)
    method = SimSiam(backbone.create("resnet18_cifar_w16"))
    config = TrainConfig(image_size=32, epochs=1, batch_size=128)
    pretrain(method, f"{folder}/train", config, Path(folder, "run"))
    print("spread of the embeddings:", spread(extract(method.student.backbone, f"{folder}/val")))
