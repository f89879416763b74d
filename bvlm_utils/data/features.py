"""The columns of a sample, as `datasets` stores them."""

import datasets

FEATURES = datasets.Features(
    {
        "row_id": datasets.Value("string"),
        "image": datasets.Image(),
        "prompt": datasets.Value("string"),
        "answers": datasets.List(datasets.Value("string")),
        "task": datasets.Value("string"),
        "objects": datasets.List(datasets.Value("string")),
        "boxes": datasets.List(datasets.List(datasets.Value("int32"))),
        "style": datasets.Value("string"),
        "background": datasets.Value("string"),
        "kind": datasets.Value("string"),
        "restricted": datasets.Value("bool"),
        "content": datasets.Value("string"),
    }
)
