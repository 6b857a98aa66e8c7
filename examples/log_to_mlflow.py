"""A run's log in MLflow: `pretrain` calls ``on_log`` with each row, a dict of numbers with a step.

    pip install mlflow
    python examples/log_to_mlflow.py
    mlflow ui

Trains for two epochs on 500 of the packaged photographs. MLFLOW_TRACKING_URI says where runs go.
"""

import dataclasses
import tempfile
import zipfile
from importlib import resources

import mlflow

from cgh_models import pretrain
from cgh_models.backbone import create
from cgh_models.config import TrainConfig
from cgh_models.methods.cgh import CGH

CONFIG = TrainConfig(image_size=32, epochs=2, batch_size=64)
method = CGH(create("resnet18_cifar_w16"), CGH.Config(queue_length=512, projection_width=64))


def log(row: dict[str, float]) -> None:
    """Sends one row of metrics.jsonl."""
    mlflow.log_metrics({k: v for k, v in row.items() if k != "step"}, step=int(row["step"]))


with tempfile.TemporaryDirectory() as folder:
    with resources.as_file(resources.files("cgh_models") / "sample" / "cifar10.zip") as sample:
        zipfile.ZipFile(sample).extractall(folder)
    with mlflow.start_run(run_name="cgh"):
        mlflow.log_params(dataclasses.asdict(CONFIG))
        pretrain(method, f"{folder}/val", CONFIG, f"{folder}/run", on_log=log)
