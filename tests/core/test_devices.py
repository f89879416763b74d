"""Every tensor that the core makes names its device, and none that may lie on a GPU is taken for an array.

A tensor without a device lies on the host. It works everywhere until the other half of an operation is on a card, which
no test on a CPU sees. So the source is read: a tensor is made with `device=`, or moved in the same expression, or is
in `HOST`, with the reason why it belongs on the host.
"""

import ast
from pathlib import Path

import pytest

from bvlm_utils import paths

MAKERS = {
    "zeros", "ones", "empty", "full", "arange", "linspace", "eye", "tensor", "as_tensor", "from_numpy", "frombuffer",
    "rand", "randn", "randint", "randperm", "normal", "scalar_tensor",
}  # fmt: skip
# "file:function" -> why tensors made there, or taken for arrays there, are on the host.
HOST = {
    "attacks/attack.py:paint": "moved to the device in the next line",
    "attacks/image.py:corners": "moved to the images' device when they are returned",
    "attacks/image.py:tensor_of": "whoever calls it moves it to the images' device",
    "attacks/image.py:noise_patch": "`paste` moves the patch",
    "attacks/image.py:sinusoid": "moved to the images' device in the next line",
    "attacks/optimised.py:_optimise_patch": "numbers of rows in a table that lies on the host",
    "attacks/optimised.py:_perturbed": "a copy on the host is hashed",
    "attacks/optimised.py:_patch": "too many for a card; each batch is moved",
    "defences/activations.py:batch": "filled on the host, and moved with the batch",
    "defences/activations.py:observe": "an empty stand-in until the first batch",
    "defences/inversion.py:_start": "filled on the host, and moved with the batch",
    "defences/pictures.py:_bytes": "defences change pictures on the host, before they are encoded",
    "defences/pictures.py:_tensor": "defences change pictures on the host, before they are encoded",
    "defences/pictures.py:blur": "defences change pictures on the host, before they are encoded",
    "defences/pictures.py:colour": "defences change pictures on the host, before they are encoded",
    "defences/reading.py:_batch": "filled on the host, and moved with the batch",
    "defences/reading.py:_log_probabilities": "each part is moved to the states' device",
    "defences/restore.py:at_random": "stored adapters lie on the host",
    "defences/weights.py:full_rank": "stored adapters lie on the host",
    "defences/weights.py:noise": "stored adapters lie on the host",
    "defences/weights.py:random": "stored adapters lie on the host",
    "defences/weights.py:whole": "stored adapters lie on the host",
    "defences/zoo.py:name": "adapters as they were read from files lie on the host",
    "models/embeddings.py:positions": "counted on the host once a length, and moved with the batch",
    "models/pixels.py:_weights": "kept for all devices; whoever calls it moves it",
    "models/victim.py:pad": "filled on the host, and moved when it is returned",
    "run/feature_cache.py:_map": "a file in memory",
    "score/utility.py:cider": "aac-metrics counts words on the host",
    "train/decode.py:_prompts": "filled on the host, and moved with the batch",
    "train/loop.py:_state": "AdamW counts its steps on the host, and losses are kept there",
    "train/unfinished.py:load": "it picks rows of what was read from a file, which lies on the host",
    "train/grouped.py:tokens": "a plan lies on the host until it is moved as a whole",
    "train/loop.py:_summed_loss": "what is learnt is known on the host, so that nothing waits for the card",
    "train/microbatches.py:__init__": "what decides the sizes of micro-batches lies on the host",
}
FILES = [
    file for file in sorted((paths.ROOT / "bvlm_utils").rglob("*.py")) if file.parent.name not in ("pretraining",)
]  # whoever makes the tiny models anew is asked for a device


def homeless(source: str) -> set[tuple[str, str]]:
    """(function, expression) of tensors that name no device, and of arrays that are made of tensors not on the host."""
    found = set()

    def look(node: ast.AST, function: str, moved: bool) -> None:
        if isinstance(node, ast.FunctionDef):
            function = node.name
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name, owner = node.func.attr, node.func.value
            makes = isinstance(owner, ast.Name) and owner.id == "torch" and name in MAKERS
            if makes and not moved and not any(word.arg == "device" for word in node.keywords):
                found.add((function, ast.unparse(node)))
            if name == "numpy" and not node.args and ".cpu()" not in ast.unparse(owner):
                found.add((function, ast.unparse(node)))
            moved = moved or (name == "to" and any("torch." not in ast.unparse(given) for given in node.args))
            look(owner, function, moved)  # what is moved is what stands before the dot
            for part in [*node.args, *node.keywords]:
                look(part, function, False)
            return
        for child in ast.iter_child_nodes(node):
            # ( ... / 255).to(device) moves what is inside the brackets
            look(child, function, moved and isinstance(node, ast.BinOp | ast.Subscript | ast.Attribute))

    look(ast.parse(source), "", False)
    return found


def named(file: Path) -> str:
    return file.relative_to(paths.ROOT / "bvlm_utils").as_posix()


@pytest.mark.parametrize("file", FILES, ids=named)
def test_a_tensor_names_its_device(file):
    found = homeless(file.read_text(encoding="utf-8"))
    wrong = sorted(f"{function}: {what}" for function, what in found if f"{named(file)}:{function}" not in HOST)
    assert not wrong, "give device=, move it in the same expression, or say in HOST why it lies on the host"


def test_no_exception_is_left_that_nobody_needs():
    needed = {f"{named(file)}:{function}" for file in FILES for function, _ in homeless(file.read_text("utf-8"))}
    assert not HOST.keys() - needed


@pytest.mark.parametrize(("source", "caught"), [
    ("def f(): return torch.zeros(3)", True),
    ("def f(x): return torch.zeros(3, device=x.device)", False),
    ("def f(x): return torch.from_numpy(x).to(y.device)", False),
    ("def f(x): return (torch.from_numpy(x) / 255).to(y.device)", False),
    ("def f(x): return y.to(x.device)[torch.arange(3)]", True),
    ("def f(x): return x.to(torch.tensor(3))", True),
    ("def f(x): return x.sum().numpy()", True),
    ("def f(x): return x.sum().cpu().numpy()", False),
])  # fmt: skip
def test_what_is_caught(source, caught):
    assert bool(homeless(source)) == caught
