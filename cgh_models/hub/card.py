"""The README of a weights folder: it says only what the row holds."""

import json
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from ..small_resnets import default_cfgs
from ..tensors import read_shapes
from .row import STUDENT_HEADS, TEACHER_HEADS, ConvertedFrom, Row

CURVE = "curve.png"  # the picture of its training
PAPERS = {
    "arXiv:2308.13392": "CGH, cross-context learning between global and hypercolumn features",
    "arXiv:2203.14898": "LEWEL, learning where to learn in cross-view self-supervised learning",
    "arXiv:2306.15930": "MNCLGLF, multi-network contrastive learning based on global and local "
    "representations",
    "arXiv:2107.09282": "ReSSL, relational self-supervised learning with weak augmentation",
    "arXiv:2003.04297": "MoCo v2, improved baselines with momentum contrastive learning",
    "arXiv:2006.07733": "BYOL, bootstrap your own latent",
    "arXiv:2104.14548": "NNCLR, nearest-neighbour contrastive learning of visual representations",
    "arXiv:2111.14585": "SCE, similarity contrastive estimation",
}


def card_of(folder: Path, row: Row) -> str:
    """Markdown with the Hub's front matter; shows the folder's ``curve.png`` if there is one."""
    own = row.architecture in default_cfgs  # timm does not have it without this package
    imports = "import cgh_models  # its architecture\nimport timm\n" if own else "import timm\n"
    papers = ", ".join(f"{PAPERS.get(paper, '')} ({paper})" for paper in row.paper_ids)
    link = "{0} (https://arxiv.org/abs/{1})"
    cited = ", ".join(link.format(paper, paper.removeprefix("arXiv:")) for paper in row.paper_ids)
    notes = "".join(f"\n{note}\n" for note in row.notes)
    filtered = "" if row.converted_from else ", and nothing was filtered from its data"
    origin = _conversion(row, row.converted_from) if row.converted_from else _training(folder, row)
    is_drawn = (folder / CURVE).is_file()
    picture = f"\n![loss and kNN while it was trained]({CURVE})\n" if is_drawn else ""
    _, height, width = row.preprocessing.input_size
    bands = "" if row.in_chans == 3 else _bands(row)
    return f"""---
{_front_matter(row)}
---
# {row.name}

A feature extractor: `{row.architecture}`, {row.parameters:,} parameters, embeddings of width
{row.num_features}, pretrained without labels. For embeddings of images like those it was \
trained on, at {height} x
{width} px (nearest neighbours, linear layers), and to start fine-tuning from; there is no
classifier in it{filtered}.{bands}

**Method:** {papers}.

**Data:** {row.trained_on}. {row.data.license_note}
{notes}
```python
{imports}
model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  \
# or "hf-hub:ORG/NAME", where you found it
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
```

## Measured

{_metrics(row)}{picture}
## How it was made

{origin}
## Licence and citation

Licence of the weights: {row.license or "not stated by whoever trained them"}. \
Whoever uses them, cite {cited}, and
cgh-models as its CITATION.cff says.
"""


def _bands(row: Row) -> str:
    """What its images are, that are not RGB."""
    settings = row.train_config or {}
    read = f" by `{settings['reader']}`" if settings.get("reader") else ""
    return f"""

**Images:** of {row.in_chans} bands, a float tensor ({row.in_chans}, H, W). In the training they \
were read{read} with the
pixel range `{settings.get("pixel_range", "not stated")}`, whose ends are 0 and 1, and then \
normalized by the mean and deviation
of each band that `config.json` holds; `transform` below does the latter."""


def in_words(keys: Iterable[str], article: str = "") -> str:
    """What a state dict of a method holds beside the backbone: heads, teacher and queues."""
    parts = {key.partition(".")[0] for key in keys}
    words = {"student": "heads", "teacher": "teacher", "queue": "queues"}
    *first, last = [article + word for part, word in words.items() if part in parts]
    return f"{', '.join(first)} and {last}" if first else last


def _training(folder: Path, row: Row) -> str:
    commit = f", commit {row.code.commit}" if row.code.commit else ""
    took = row.training
    cost = f"It took {took.hours:g} hours of {took.hardware}. " if took else ""
    heads = ""
    if row.heads_file:
        path = folder / row.heads_file
        keys = read_shapes(path) if path.is_file() else ("student", "teacher", "queue")
        held = in_words(keys, "the ")
        if row.heads_file == TEACHER_HEADS:
            held += "; queues begin anew"
        if row.heads_file == STUDENT_HEADS:
            held = "the student's heads; what its method has beside them begins anew"
        heads = f"`{row.heads_file}` holds {held}: `cgh_models.load_method` restores them, "
        heads += "`cgh pretrain --init FOLDER` goes on from here.\n"
    return f"""```sh
{row.command}
```

{row.epochs:.4g} epochs, {row.steps} steps, seed {row.seed}, cgh-models {row.code.version}{commit}.
{cost}`model.safetensors` is the {row.branch}'s backbone. {heads}
Method: `{json.dumps(row.method_config)}`

Trainer: `{json.dumps(row.train_config)}`
"""


def _conversion(row: Row, source: ConvertedFrom) -> str:
    epochs = "not stated" if row.epochs is None else f"{row.epochs:.4g}"
    return f"""Not by cgh-models: `model.safetensors` is the {row.branch}'s backbone of a \
checkpoint in the
layout of the method's authors, converted to float32 by cgh-models {row.code.version}.

| the file | |
|---|---|
| name | `{source.file}` |
| bytes | {source.bytes} |
| sha256 | `{source.sha256}` |
| its tensors | `{source.prefix}*` |

Epochs: {epochs}. Settings, steps and seed of its training are not known here. \
No number of its authors is repeated:
what stands under Measured was measured on this folder.

```sh
{row.command}
```
"""


def _front_matter(row: Row) -> str:
    results = []
    for name, metric in row.metrics.items():
        if metric is None or name.endswith("_random"):  # of an untrained network, for comparison
            continue
        words = "".join(c if c.isalnum() else "-" for c in metric.data.lower())
        result = EvalResult(
            task_type="image-feature-extraction",
            dataset_type=words.strip("-"),
            dataset_name=metric.data,
            metric_type="accuracy",
            metric_name=f"{name}: {metric.protocol}",
            metric_value=metric.value,
        )
        results.append(result)
    data = ModelCardData(
        library_name="timm",
        pipeline_tag="image-feature-extraction",
        license=row.license and row.license.lower(),  # as the Hub spells it
        tags=["timm", "self-supervised", row.method, *(paper.lower() for paper in row.paper_ids)],
        model_name=row.name,
        eval_results=results or None,
    )
    return data.to_yaml().strip()


def _metrics(row: Row) -> str:
    """The table of measured numbers, and the commands that measured them."""
    lines = ["| | data | value | images | protocol | parameters |", "|---|---|---|---|---|---|"]
    commands = []
    for name, metric in row.metrics.items():
        if metric is not None:
            cells = [name, metric.data, f"{metric.value} %", f"{metric.n:,}", metric.protocol]
            lines.append(f"| {' | '.join(cells)} | `{json.dumps(metric.parameters)}` |")
            commands.append(metric.command)
    if not commands:
        command = "`cgh evaluate knn FOLDER --data ROOT --record`"
        return f"Nothing yet: {command} measures and writes it here.\n"
    return "\n".join([*lines, "", "```sh", *commands, "```", ""])
