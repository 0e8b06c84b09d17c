"""The definition, word for word, in dense float64: slow, obvious, and what every fast path is compared with.

G(z) = R^(-1/2) · P · ( ∇θ Loss(z, θ) / √V )        Ḡ = G / ‖G‖₂        I(z_m, z_q) = Ḡ(z_m) · Ḡ(z_q)
"""

import numpy as np
import torch


def example_gradients(model, matrices, tokens, chosen):
    """{matrix name: dense gradient [m n]} of the summed loss of one token sequence, by autograd in float64."""
    model = model.double().eval().requires_grad_(True)
    model.set_experts_implementation("eager")  # the other kernels do not take float64
    model.zero_grad()
    logits = model(input_ids=tokens[None], use_cache=False).logits[0].double()
    log_probabilities = torch.log_softmax(logits, dim=-1)
    loss = torch.zeros((), dtype=torch.float64)
    for position in range(1, len(tokens)):
        if chosen[position]:
            loss = loss - log_probabilities[position - 1, tokens[position]]
    loss.backward()
    parameters = dict(model.named_parameters())
    return {matrix.name: matrix.part_of(parameters[matrix.parameter].grad).clone() for matrix in matrices}


def root_of_inverse(R):
    """R^(-1/2), the symmetric one, from the eigendecomposition."""
    values, vectors = np.linalg.eigh((R + R.T) / 2)
    assert values.min() > 0
    return vectors @ np.diag(values**-0.5) @ vectors.T


def whitened(train, queries, *, mixing_weight, damping=0.0, whitening="mixed", is_flat=False):
    """Apply R^(-1/2) of one block to the rows of both [n d] and [q d]; flat: R_train as its mean eigenvalue times I."""
    dims = train.shape[1]
    if whitening == "none":
        return train, queries
    R_train = train.T @ train / len(train)
    if is_flat:
        R_train = np.trace(R_train) / dims * np.eye(dims)
    R_train = R_train + damping * np.trace(R_train) / dims * np.eye(dims)
    R_eval = queries.T @ queries / len(queries)
    R = R_train if whitening == "train" else mixing_weight * R_eval + (1 - mixing_weight) * R_train
    root = root_of_inverse(R)
    return train @ root, queries @ root


def influence(
    train_blocks, query_blocks, *, mixing_weight, damping=0.0, whitening="mixed", unit_norm=True, is_flat=False
):
    """Scores [n q] from per-block projected, V-corrected gradients [n d_b] and [q d_b]."""
    pairs = [
        whitened(np.asarray(t, np.float64), np.asarray(q, np.float64), mixing_weight=mixing_weight, damping=damping,
                 whitening=whitening, is_flat=is_flat)
        for t, q in zip(train_blocks, query_blocks, strict=True)
    ]  # fmt: skip
    train, queries = np.concatenate([t for t, _ in pairs], axis=1), np.concatenate([q for _, q in pairs], axis=1)
    if unit_norm:
        train = train / np.linalg.norm(train, axis=1, keepdims=True)
        queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    return train @ queries.T
