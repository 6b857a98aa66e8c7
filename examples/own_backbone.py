"""A network of your own, which timm does not have: pretrained, stopped, resumed and taken out.

Any module will do that returns feature maps or a vector: torchvision's, an encoder of
segmentation_models_pytorch, this one. On the packaged photographs: python examples/own_backbone.py
"""

import contextlib
import signal
import tempfile
import zipfile
from importlib import resources
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from cgh_models import extract, pretrain
from cgh_models.config import TrainConfig
from cgh_models.errors import Interrupted
from cgh_models.hub.plain_tensors import export_tensors
from cgh_models.methods import preprocessing
from cgh_models.methods.cgh import CGH
from cgh_models.own_network import OwnNetwork

CONFIG = TrainConfig(image_size=32, epochs=2, batch_size=100)
SETTINGS = CGH.Config(queue_length=500, projection_width=64, hidden_width=128)


class ThreeStages(nn.ModuleList):
    def __init__(self):
        widths = ((3, 16), (16, 32), (32, 64))
        parts = [(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in widths]
        super().__init__(nn.Sequential(*part) for part in parts)

    def forward(self, images):
        shallow = self[0](images)
        middle = self[1](shallow)
        return [shallow, middle, self[2](middle)]  # maps, shallow to deep


def stop_early(row: dict[str, float]) -> None:
    if row["step"] == 3:  # of ten
        signal.raise_signal(signal.SIGINT)


with tempfile.TemporaryDirectory() as folder:
    with resources.as_file(resources.files("cgh_models") / "sample" / "cifar10.zip") as sample:
        zipfile.ZipFile(sample).extractall(folder)
    images, run, tensors = f"{folder}/val", Path(folder, "run"), Path(folder, "tensors")
    for options in ({"on_log": stop_early}, {"resume": True}):
        method = CGH(OwnNetwork(ThreeStages(), preprocessing(CONFIG)), SETTINGS)
        with contextlib.suppress(Interrupted):
            pretrain(method, images, CONFIG, run, **options)
    export_tensors(run, tensors)  # or cgh export RUN --format state-dict
    network = ThreeStages()
    network.load_state_dict(load_file(tensors / "model.safetensors"))
    embeddings = extract(OwnNetwork(network, preprocessing(CONFIG)), images)
    print(embeddings.shape, (embeddings == extract(method.student.backbone, images)).all())
