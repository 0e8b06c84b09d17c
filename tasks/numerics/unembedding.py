"""The unembedding, from hidden states to logits: a matrix of its own, outside of the decoder layers.

Where it is tied to the embedding of the tokens, its gradient is that of the output use alone: Σ_t δ_t h_tᵀ, δ_t by the
logits. What reaches the same numbers as embeddings of the input is not in it.
"""

from torch import nn

from trackstar.tasks.numerics.architecture import WeightMatrix

UNEMBEDDING = "unembedding"


def find_unembedding(model: nn.Module) -> WeightMatrix:
    """Return the unembedding, by the name that its parameter has first: of a tied one, that of the embedding.

    Raises:
        ValueError: The model has none, or none that is a plain linear map.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or type(head).forward is not nn.Linear.forward:
        raise ValueError(
            f"the unembedding of this {type(model).__name__} is a {type(head).__name__}, but only an nn.Linear is "
            "understood: leave unembedding out of --parameters"
        )
    path = next(path for path, module in model.named_modules() if module is head)
    name = next(name for name, parameter in model.named_parameters() if parameter is head.weight)
    m, n = head.weight.shape
    return WeightMatrix(name, path, UNEMBEDDING, -1, (m, n), transposed=False)
