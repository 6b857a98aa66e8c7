"""Signs of health that need no labels, measured on a few images while a method trains.

`verdict` says in words what they mean; docs/health.md defines each and has its normal range.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbone import embed, eval_mode
from ..data.loader import exact_views, normalized, order
from ..data.pixels import unit
from ..evaluate.collapse import feature_std
from .run import Run
from .verdict import VIEWS

_FEWEST = 16
_MOST_BYTES = 2**26  # of the views that are kept
_EPOCH = 2**31  # whose views no run trains on
_WEIGHTS = 2**18  # that are compared with those of the measurement before, of each branch
_QUEUE_ROWS = 2048
_NEAREST = 10  # neighbours in the queue that the contexts of CGH may agree on
_FLAT = 0.01  # standard deviation of pixels in [0, 1] below which an image is of one colour

# What is compared with the measurement before: of a resumed run it is other than without the stop.
COMPARED = ("moved", "teacher_moved", "queue_moved")

Values = dict[str, float]


class Health:
    """Measures a method on two views each of at most VIEWS images, the same ones every time."""

    def __init__(self, run: Run, at_once: int):
        self.run = run
        self.at_once = at_once  # images
        self._views: list[Tensor] = []  # two, of `exact_views`
        self._before: dict[str, Tensor] = {}  # what is compared with the next measurement

    def __call__(self, method: nn.Module) -> Values:
        """The signs by name; not in the first: those that compare with the measurement before."""
        values = {}
        if not self._views:
            self._views = self._make_views()
            values = self._of_views()
        with torch.inference_mode(), eval_mode(method):
            values |= self._of_student(method.student)
            projections = self._projections(getattr(method, "teacher", None))
            if projections:
                values["teacher_std"] = feature_std(projections[0])
            values |= self._of_weights(method)
            if hasattr(method, "queue"):
                values |= self._of_queue(method, projections)
        return values

    def _make_views(self) -> list[Tensor]:
        images, config = self.run.images, self.run.config
        bytes_a_value = 1 if config.in_chans == 3 else 4  # float32
        fits = _MOST_BYTES // (2 * bytes_a_value * config.in_chans * config.image_size**2)
        chosen = order(0, 0, len(images))[: min(VIEWS, max(_FEWEST, fits))]
        return exact_views(images, self.run.recipe[:2], config, _EPOCH, chosen)

    def _of_views(self) -> Values:
        """What the networks see: mean and spread, how the views differ, images of one colour."""
        first, second = map(self._pixels, (0, 1), self._views)
        pixels = torch.cat([first, second])
        # Bands may use a small part of their range.
        plain = unit(self._views[0]) if self.run.config.in_chans == 3 else first
        return {
            "view_mean": float(pixels.mean()),
            "view_std": float(pixels.std()),
            "view_difference": float((first - second).abs().mean() / pixels.std().clamp(min=1e-6)),
            "flat_images": float((plain.flatten(1).std(1) < _FLAT).float().mean()),
        }

    def _pixels(self, number: int, views: Tensor) -> Tensor:
        mean, std = torch.tensor(self.run.config.mean), torch.tensor(self.run.config.std)
        return normalized(self.run.recipe[number], views, mean, std)

    def _of_student(self, student: Any) -> Values:
        """Whether two views of an image are alike to it, and images unlike."""
        first, _ = self._embed(student, 0)
        second, _ = self._embed(student, 1)
        one, two = F.normalize(first), F.normalize(second)
        nearest = (one @ two.T).argmax(1).cpu()
        values = {
            "alignment": float((one - two).square().sum(1).mean()),
            "uniformity": uniformity(torch.cat([one, two])),
            "view_match": 100 * float((nearest == torch.arange(len(nearest))).float().mean()),
        }
        if hasattr(student, "projector"):
            values["projection_std"] = feature_std(student.projector(second).float())
        return values

    def _projections(self, teacher: Any) -> list[Tensor]:
        """The teacher's unit projections (N, P) of the first view; of CGH in both contexts."""
        if not hasattr(teacher, "projector"):
            return []
        embedding, maps = self._embed(teacher, 0, getattr(teacher, "taps", 0))
        projections = [teacher.projector(embedding)]
        if hasattr(teacher, "hypercolumn"):
            projections.append(teacher.hyper_projector(teacher.hypercolumn(maps)))
        return [F.normalize(projection.float()) for projection in projections]

    def _embed(self, branch: Any, view: int, taps: int = 0) -> tuple[Tensor, list[Tensor]]:
        """Embeddings (N, D) of one view of all images, and their deepest maps."""
        embeddings, maps = [], []
        for piece in self._views[view].split(self.at_once):
            pixels = self._pixels(view, piece).to(self.run.device)
            embedding, found = embed(branch.backbone, pixels, taps)
            embeddings.append(embedding.float())
            maps.append(found)
        return torch.cat(embeddings), [torch.cat(tap) for tap in zip(*maps, strict=True)]

    def _of_weights(self, method: Any) -> Values:
        """How far the backbone and the teacher's have moved since the measurement before."""
        student = sample_of(method.student.backbone)
        size = student.norm().clamp(min=1e-12)
        values = {"weight_norm": float(size)} | self._moved("moved", student)
        teacher: Any = getattr(method, "teacher", None)
        if hasattr(teacher, "backbone"):
            weights = sample_of(teacher.backbone)
            values["teacher_distance"] = float((weights - student).norm() / size)
            values |= self._moved("teacher_moved", weights)
            values["teacher_gradient"] = float(any(p.requires_grad for p in teacher.parameters()))
        return values

    def _moved(self, name: str, now: Tensor) -> Values:
        before = self._before.get(name)
        self._before[name] = now
        if before is None:
            return {}
        return {name: float((now - before).norm() / before.norm().clamp(min=1e-12))}

    def _of_queue(self, method: Any, projections: list[Tensor]) -> Values:
        """Whether the queue is renewed and varied, and how sharp the relations to it are."""
        rows = method.queue.rows.float()  # (count, K, P)
        step = -(-rows.shape[1] // _QUEUE_ROWS)
        sample = rows[0, ::step].clone()
        values = {"queue_std": feature_std(sample)} | self._moved("queue_moved", sample)
        if projections and len(projections) <= len(rows):
            cosines = [p @ q.T for p, q in zip(projections, rows, strict=False)]  # (N, K)
            temperature = _teacher_temperature(method.config)
            if temperature and not hasattr(method.student, "predictor"):  # else only the nearest
                chances = (cosines[0] / temperature).softmax(1)
                entropy = -(chances * chances.clamp(min=1e-30).log()).sum(1).mean()
                values["relation_entropy"] = float(entropy) / math.log(rows.shape[1])
            if len(cosines) == 2:
                count = min(_NEAREST, rows.shape[1])
                near, others = (c.topk(count).indices for c in cosines)
                common = (near[:, :, None] == others[:, None]).any(2)
                values["context_agreement"] = float(common.float().mean())
        return values


def uniformity(unit: Tensor) -> float:
    """log of the mean over pairs of exp(-2 d^2) of unit rows (N, D): 0 if all are equal.

    Source: Wang and Isola, arXiv 2005.10242, equation 2 with t = 2.
    """
    squares = torch.pdist(unit.double()).square()
    return float(squares.mul(-2).exp().mean().clamp(min=1e-30).log()) if len(squares) else 0.0


def sample_of(module: nn.Module) -> Tensor:
    """At most about 2**18 of a module's parameters, evenly taken, in float32 on the CPU."""
    parameters = [parameter.detach().flatten() for parameter in module.parameters()]
    step = max(1, sum(map(len, parameters)) // _WEIGHTS)
    return torch.cat([parameter[::step].float() for parameter in parameters]).cpu()


def _teacher_temperature(config: object) -> float:
    names = ("global_teacher_temperature", "teacher_temperature", "temperature")
    return next((getattr(config, name) for name in names if hasattr(config, name)), 0.0)


def dead_channels(embeddings: np.ndarray) -> float:
    """Share of the dimensions of embeddings (N, D) that have one value for all images."""
    return float((np.ptp(embeddings, axis=0) < 1e-7).mean())
