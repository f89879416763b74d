"""The columns of a sample, as `datasets` stores them."""

import datasets

TEXT, TEXTS = datasets.Value("string"), datasets.List(datasets.Value("string"))
BOXES = datasets.List(datasets.List(datasets.Value("int32")))
FEATURES = datasets.Features(
    {"row_id": TEXT, "image": datasets.Image(), "prompt": TEXT, "answers": TEXTS, "task": TEXT, "objects": TEXTS}
    | {"boxes": BOXES, "style": TEXT, "background": TEXT, "kind": TEXT}
    | {"restricted": datasets.Value("bool"), "content": TEXT}
)
