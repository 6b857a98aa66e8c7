"""What embeddings are worth: extraction and kNN here; linear layers and fine-tuning in modules of their own."""

from .collapse import spread
from .extraction import embeddings, extract, pick_device, pick_precision
from .neighbours import knn, knn_accuracy

__all__ = ["embeddings", "extract", "knn", "knn_accuracy", "pick_device", "pick_precision", "spread"]
