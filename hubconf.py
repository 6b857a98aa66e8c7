"""Entry points for torch.hub: one for each row of weights_manifest.json, and `cgh` for all else.

torch.hub.load(repo_dir, "cgh", source="local", weights="FOLDER")
"""

import json as _json
import re as _re
from pathlib import Path as _Path

dependencies = ["torch", "torchvision", "timm", "huggingface_hub", "safetensors", "PIL", "numpy"]
dependencies += ["requests", "tqdm"]


def _create_model(weights, **kwargs):
    import warnings

    import cgh_models

    here = _Path(__file__).resolve().parent
    used = _Path(cgh_models.__file__).resolve().parents[1]
    source = (here / "cgh_models" / "version.py").read_text("utf-8")
    version = _re.findall(r'^__version__ = "(.+)"', source, _re.M)[0]
    if used != here and cgh_models.__version__ != version:
        warnings.warn(
            f"cgh_models {cgh_models.__version__} of {used} is already imported and is used, not "
            f"the {version} of this hub folder; uninstall it, or import nothing of it before "
            "torch.hub.load",
            stacklevel=3,
        )
    from cgh_models.hub.registry import create_model

    return create_model(weights, **kwargs)


def cgh(weights, pretrained=True, **kwargs):
    """A plain timm module from a published name, a weights folder, a run folder, or a timm name.

    Args:
        weights: a name of `cgh list`, a folder written by `cgh export` or `cgh pretrain`, or a
            name that timm has weights for.
        pretrained: False takes the architecture of a name with random weights.
        kwargs: timm's own: num_classes, in_chans, features_only, ...

    Returns:
        a headless torch.nn.Module, images (N, 3, H, W) -> embeddings (N, D), unless num_classes is
        given.
    """
    return _create_model(weights, pretrained=pretrained, **kwargs)


def _entry(row):
    name = row["name"]
    data = row["data"]
    size = ", ".join(map(str, row["preprocessing"]["input_size"]))
    papers = ", ".join(row["paper_ids"])
    images = data["name"] or "images whose name was not stated"
    if data["images"] is not None:
        images += f", {data['images']:,} images"
    measured = [
        f"    {key}: {metric['value']} % on {metric['data']} ({metric['protocol']})"
        for key, metric in row["metrics"].items()
        if metric
    ]

    def load(pretrained=True, **kwargs):
        return _create_model(name, pretrained=pretrained, **kwargs)

    load.__name__ = load.__qualname__ = name.replace(".", "_")
    load.__doc__ = "\n".join(
        [
            f"{name}: {row['architecture']} pretrained without labels: {papers}.",
            "",
            f"Trained on {images}. {data['license_note']}",
            *row["notes"],
            "",
            "Measured:" if measured else "Nothing was measured.",
            *measured,
            "",
            "Args:",
            "    pretrained: False takes the architecture with random weights.",
            "    kwargs: timm's own: num_classes, in_chans, features_only, ...",
            "",
            f"Returns: a headless torch.nn.Module, (N, {size}) -> (N, {row['num_features']}).",
        ]
    )
    return load


_manifest = _json.loads(
    (_Path(__file__).resolve().parent / "weights_manifest.json").read_text("utf-8")
)
globals().update({_row["name"].replace(".", "_"): _entry(_row) for _row in _manifest["weights"]})
