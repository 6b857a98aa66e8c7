"""Views of your own: a function for each, here torchvision's transforms, and a run that goes on.

    python examples/own_views.py

Trains one epoch on 500 of the packaged photographs. While a function runs, the default generators
of torch, NumPy and Python are seeded for the image, so what it draws from them needs no state.
"""

import tempfile
import zipfile
from importlib import resources

import torch
from torchvision import transforms

from cgh_models import pretrain
from cgh_models.backbone import create
from cgh_models.config import TrainConfig
from cgh_models.methods.cgh import CGH

CONFIG = TrainConfig(image_size=32, epochs=1, batch_size=64)
WEAK = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.ToTensor()])
STRONG = transforms.Compose(
    [
        transforms.RandomResizedCrop(32, scale=(0.2, 1.0)),
        transforms.RandAugment(),
        transforms.PILToTensor(),  # uint8, which is normalized with the run's mean and deviation
    ]
)


def weak(image):
    """A float tensor is taken as it is, so that it is normalized here."""
    mean, std = torch.tensor(CONFIG.mean), torch.tensor(CONFIG.std)
    return (WEAK(image) - mean[:, None, None]) / std[:, None, None]


method = CGH(create("resnet18_cifar_w16"), CGH.Config(queue_length=512, projection_width=64))
with tempfile.TemporaryDirectory() as folder:
    with resources.as_file(resources.files("cgh_models") / "sample" / "cifar10.zip") as sample:
        zipfile.ZipFile(sample).extractall(folder)
    pretrain(method, f"{folder}/val", CONFIG, f"{folder}/run", views=[weak, STRONG])
    # After a stop, the same call with resume=True goes on; `cgh resume` cannot, and says so.
    pretrain(method, f"{folder}/val", CONFIG, f"{folder}/run", views=[weak, STRONG], resume=True)
