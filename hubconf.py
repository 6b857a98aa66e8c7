"""Entry points for torch.hub.

torch.hub.load(repo_dir, "cgh", source="local", weights="FOLDER")
"""

dependencies = [
    "torch",
    "torchvision",
    "timm",
    "huggingface_hub",
    "safetensors",
    "PIL",
    "requests",
    "numpy",
    "tyro",
    "tqdm",
    "fastjsonschema",
    "filelock",
    "urllib3",
]


def cgh(weights, **kwargs):
    """A plain timm module from a weights folder, a run folder, or a timm name.

    Args:
        weights: written by `cgh export`, by `cgh pretrain`, or a name that timm has weights for.
        kwargs: timm's own: num_classes, in_chans, features_only, ...

    Returns:
        a headless torch.nn.Module, images (N, 3, H, W) -> embeddings (N, D), unless num_classes is given.
    """
    from cgh_models.registry import create_model as _create_model

    return _create_model(weights, **kwargs)
