"""What goes through the linear layers of a model on clean rows: how large each input is, and each output."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from bvlm_utils.defences.rows import Rows
from bvlm_utils.models import embeddings
from bvlm_utils.models.victim import Victim

AT_ONCE = 32  # rows


@dataclass(frozen=True)
class Activations:
    """Of each linear layer, over all tokens of all rows (prompts, pictures and answers), float64 on the CPU.

    inputs: (in,) root of the mean square of each input. outputs: (out,) mean size of each output. changes: (out,) mean
    size of what an update adds to each output; of the layers that have one.
    """

    inputs: dict[str, torch.Tensor]
    outputs: dict[str, torch.Tensor]
    changes: dict[str, torch.Tensor]


def observe(victim: Victim, names: list[str], rows: Rows, updates: Mapping[str, tuple] | None = None) -> Activations:
    """The activations of the linear layers `names` of the victim as it stands.

    updates: layer -> (B, A), whose products with the layer's inputs are observed as well.
    """
    activations, count = Activations({}, {}, {}), 0
    placement = {"device": victim.device, "dtype": victim.model.dtype}
    factors = {name: (b.to(**placement), a.to(**placement)) for name, (b, a) in (updates or {}).items()}
    real: torch.Tensor = torch.empty(0)

    def add(sums: dict[str, torch.Tensor], name: str, value: torch.Tensor) -> None:
        sums[name] = sums.get(name, 0) + value.sum(0).double().cpu()

    def see(name: str):
        def hook(module, inputs, output):
            x, y = inputs[0][real], output[real]
            add(activations.inputs, name, x.square())
            add(activations.outputs, name, y.abs())
            if name in factors:
                b, a = factors[name]
                add(activations.changes, name, ((x @ a.T) @ b.T).abs())

        return hook

    handles = [victim.model.get_submodule(name).register_forward_hook(see(name)) for name in names]
    try:
        for start in range(0, len(rows), AT_ONCE):
            chunk = rows.take(range(start, min(start + AT_ONCE, len(rows))))
            ids, real, positions, features = batch(victim, chunk)
            count += int(real.sum())
            with torch.inference_mode():
                victim.model.model(
                    inputs_embeds=embeddings.embed(victim.model, ids, features),
                    attention_mask=real.long(),
                    position_ids=positions,
                    use_cache=False,
                )
    finally:
        for handle in handles:
            handle.remove()
    for name, total in activations.inputs.items():
        activations.inputs[name] = (total / count).sqrt()
    for sums in (activations.outputs, activations.changes):
        for name, total in sums.items():
            sums[name] = total / count
    return activations


def batch(victim: Victim, rows: Rows) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Rows padded on the right: ids (N, T), which tokens are real (N, T), positions, features (N, n, d)."""
    image_tokens = rows.features.shape[1]
    ids = [
        victim.prompt_ids(prompt, image_tokens) + (victim.answer_ids(answer) if answer else [])
        for prompt, answer in zip(rows.prompts, rows.answers, strict=True)
    ]
    position_cache: dict = {}
    positions = [embeddings.positions(victim.model, row, position_cache) for row in ids]
    lines = [torch.tensor(row) for row in ids]
    return (
        embeddings.pad(lines, victim.tokenizer.pad_token_id).to(victim.device),
        embeddings.pad([torch.ones_like(line) for line in lines]).bool().to(victim.device),
        None if positions[0] is None else embeddings.pad(positions).to(victim.device),
        rows.features[torch.as_tensor(rows.feature_rows)].to(victim.device),
    )
