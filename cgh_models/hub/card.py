"""The README of a weights folder, from its row alone: no number stands in it that the row does not hold."""

import json

from huggingface_hub import EvalResult, ModelCardData

from .manifest import Row, trained_on

PAPERS = {
    "arXiv:2308.13392": "CGH, cross-context learning between global and hypercolumn features",
    "arXiv:2203.14898": "LEWEL, learning where to learn in cross-view self-supervised learning",
    "arXiv:2306.15930": "MNCLGLF, multi-network contrastive learning based on global and local representations",
    "arXiv:2107.09282": "ReSSL, relational self-supervised learning with weak augmentation",
    "arXiv:2003.04297": "MoCo v2, improved baselines with momentum contrastive learning",
    "arXiv:2006.07733": "BYOL, bootstrap your own latent",
    "arXiv:2104.14548": "NNCLR, nearest-neighbour contrastive learning of visual representations",
}
_HEADS = (
    "`pretrain.safetensors` holds the heads, the teacher and the queues: `cgh_models.load_method` restores them, "
    "`cgh pretrain --init FOLDER` goes on from here.\n"
)


CURVE = "curve.png"


def card(row: Row, stock: bool, curve: bool) -> str:
    """Markdown with the front matter that the Hub reads.

    Args:
        stock: timm has the architecture without this package.
        curve: a picture of its training is beside it.
    """
    size = row["preprocessing"]["input_size"]
    own = "import timm\n" if stock else "import cgh_models  # its architecture\nimport timm\n"
    papers = ", ".join(f"{PAPERS.get(paper, '')} ({paper})" for paper in row["paper_ids"])
    notes = "".join(f"\n{note}\n" for note in row["notes"])
    converted = "converted_from" in row
    picture = f"\n![loss and kNN while it was trained]({CURVE})\n" if curve else ""
    limits = "no\nclassifier in it" + ("" if converted else ", and nothing was filtered from its data")
    cited = ", ".join(f"{paper} (https://arxiv.org/abs/{paper.removeprefix('arXiv:')})" for paper in row["paper_ids"])
    return f"""---
{_front_matter(row)}
---
# {row["name"]}

A feature extractor: `{row["architecture"]}`, {row["parameters"]:,} parameters, embeddings of width
{row["num_features"]}, pretrained without labels. For embeddings of images like those it was trained on, at {size[1]} x
{size[2]} px (nearest neighbours, linear layers), and to start fine-tuning from; there is {limits}.

**Method:** {papers}.

**Data:** {trained_on(row)}. {row["data"]["license_note"]}
{notes}
```python
{own}
model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # or "hf-hub:ORG/NAME", where you found it
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
```

## Measured

{_metrics(row)}{picture}
## How it was made

{_conversion(row) if converted else _origin(row)}
## Licence and citation

Licence of the weights: {row["license"] or "not stated by whoever trained them"}. Whoever uses them, cite {cited}, and
cgh-models as its CITATION.cff says.
"""


def _origin(row: Row) -> str:
    commit = f", commit {row['code']['commit']}" if row["code"]["commit"] else ""
    took = ""
    if training := row.get("training"):
        took = f"It took {training['hours']:g} hours of {training['hardware']}. "
    return f"""```sh
{row["command"]}
```

{row["epochs"]:.4g} epochs, {row["steps"]} steps, seed {row["seed"]}, cgh-models {row["code"]["version"]}{commit}.
{took}`model.safetensors` is the {row["branch"]}'s backbone. {_HEADS if len(row["files"]) > 1 else ""}
Method: `{json.dumps(row["method_config"])}`

Trainer: `{json.dumps(row["train_config"])}`
"""


def _conversion(row: Row) -> str:
    """Where weights come from that this package did not train."""
    source = row["converted_from"]
    epochs = "not stated" if row["epochs"] is None else f"{row['epochs']:.4g}"
    return f"""Not by cgh-models: `model.safetensors` is the {row["branch"]}'s backbone of a checkpoint in the
layout of the method's authors, converted to float32 by cgh-models {row["code"]["version"]}.

| the file | |
|---|---|
| name | `{source["file"]}` |
| bytes | {source["bytes"]} |
| sha256 | `{source["sha256"]}` |
| its tensors | `{source["prefix"]}*` |

Epochs: {epochs}. Settings, steps and seed of its training are not known here. No number of its authors is repeated:
what stands under Measured was measured on this folder.

```sh
{row["command"]}
```
"""


def _front_matter(row: Row) -> str:
    results = [
        EvalResult(
            task_type="image-feature-extraction", dataset_type=_slug(metric["data"]), dataset_name=metric["data"],
            metric_type="accuracy", metric_name=f"{name}: {metric['protocol']}", metric_value=metric["value"],
        )
        for name, metric in row["metrics"].items()
        if metric and not name.endswith("_random")  # of an untrained network, for comparison
    ]  # fmt: skip
    return ModelCardData(
        library_name="timm", pipeline_tag="image-feature-extraction",
        license=row["license"] and row["license"].lower(),  # as the Hub spells it
        tags=["timm", "self-supervised", row["method"], *(p.lower() for p in row["paper_ids"])],
        model_name=row["name"], eval_results=results or None,
    ).to_yaml().strip()  # fmt: skip


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower()).strip("-")


def _metrics(row: Row) -> str:
    measured = {name: metric for name, metric in row["metrics"].items() if metric}
    if not measured:
        return "Nothing yet: `cgh evaluate knn FOLDER --data ROOT --record` measures and writes it here.\n"
    lines = [
        f"| {name} | {metric['data']} | {metric['value']} % | {metric['n']:,} | {metric['protocol']} | "
        f"`{json.dumps(metric['parameters'])}` |\n"
        for name, metric in measured.items()
    ]
    commands = "".join(f"{metric['command']}\n" for metric in measured.values())
    head = "| | data | value | images | protocol | parameters |\n|---|---|---|---|---|---|\n"
    return f"{head}{''.join(lines)}\n```sh\n{commands}```\n"
