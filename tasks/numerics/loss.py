"""The summed token loss of a causal language model, with the logits of a large vocabulary never whole.

h  [T h]  hidden states after the final norm
z  [T v]  logits, head(h)                                p  [T v]  softmax(z)
Loss = Σ_t −log softmax(z_t)[token_{t+1}]   over the chosen tokens: a sum, never a mean
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd import forward_ad

from trackstar.tasks.numerics.labels import Labels

LOGITS_CHUNK_BYTES = 1 << 26
CPU_CHUNK_TOKENS = 256  # enough for the head's products; more only leave the cache before they are used again
PROBE_LENGTH = 4
PROBE_TOLERANCE = 1e-3


@runtime_checkable
class HeadTap(Protocol):
    """Takes what goes into the head and the gradient at what comes out, a chunk of tokens at a time."""

    def receive_tokens(
        self, states: Float[Tensor, "T h"], delta: Float[Tensor, "T v"], places: Int[Tensor, "T 2"]
    ) -> None:
        """Called in the backward pass; a place is a row and the position whose state it is."""


class TokenLoss:
    """``−log p`` of chosen tokens, back-propagated to the hidden states chunk by chunk.

    The head is applied to the base model's output by hand, which is right only where the model does nothing more
    between the two (scaling, say). A probe compares the two routes once; where they differ, the model's own forward
    pass gives the logits, at the price of holding all of them.
    """

    def __init__(self, model: nn.Module, *, head_tap: HeadTap | None = None) -> None:
        self._model, self._head_tap = model, head_tap
        self._head = model.get_output_embeddings()
        self._soft_cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        self.is_chunked = self._head is not None and self._head_alone_gives_logits()

    def backward(
        self, tokens: Int[Tensor, "b t"], chosen: Bool[Tensor, "b t"], *, labels: Labels | None = None
    ) -> Float[Tensor, " b"]:
        """Sum the loss over the chosen tokens of each row and back-propagate it; return the sums in float64.

        Args:
            tokens: Token ids, padded on the right: causal attention keeps padding from reaching real tokens, so no
                attention mask is needed.
            chosen: Which tokens' losses count. The first token of a row is predicted from nothing and cannot.
            labels: What the model should have said there instead of the tokens, from its logits and the places of the
                tokens (row, position).
        """
        states, targets, places = self._states(tokens, chosen)
        losses = torch.zeros(len(tokens), dtype=torch.float64, device=tokens.device)
        gradient = torch.empty_like(states)
        for part in self._chunks(states):
            wanted = _Wanted(targets[part], places[part], labels)
            token_losses, gradient[part] = self._loss_and_gradient(states[part].detach(), wanted)
            losses.index_add_(0, places[part, 0], token_losses.double())
        if len(states) and states.requires_grad:
            states.backward(gradient)
        return losses

    @torch.no_grad()
    def sums(self, tokens: Int[Tensor, "b t"], chosen: Bool[Tensor, "b t"]) -> Float[Tensor, " b"]:
        """The same sums without a backward pass."""
        states, targets, places = self._states(tokens, chosen)
        losses = torch.zeros(len(tokens), dtype=torch.float64, device=tokens.device)
        for part in self._chunks(states):
            logits = self._logits(states[part]) if self.is_chunked else states[part]
            losses.index_add_(0, places[part, 0], token_losses(logits, targets[part])[0].double())
        return losses

    def slopes(
        self, tokens: Int[Tensor, "b t"], chosen: Bool[Tensor, "b t"], run: Callable[..., object]
    ) -> Float[Tensor, "b t"]:
        """Return d loss / dε of every chosen token, in float64, where ``run`` gives activations their tangents by ε.

        Args:
            run: Calls the module it is given, within a level of forward-mode differentiation.
        """
        states, targets, places = self._states(tokens, chosen, run)
        h, h_dot = forward_ad.unpack_dual(states)
        slopes = torch.zeros(len(h), dtype=torch.float64, device=tokens.device)
        for part in self._chunks(h):
            with torch.enable_grad():
                _, gradient = self._loss_and_gradient(h[part].detach(), _Wanted(targets[part], places[part], None))
            if h_dot is not None:
                slopes[part] = (gradient.double() * h_dot[part].double()).sum(1)
        found = torch.zeros(tokens.shape, dtype=torch.float64, device=tokens.device)
        found[:, 1:][chosen[:, 1:]] = slopes
        return found

    def _states(
        self, tokens: Tensor, chosen: Tensor, run: Callable[..., object] = lambda module, **inputs: module(**inputs)
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What predicts each chosen token (hidden state, or logits), that token, and its row and position."""
        is_target = chosen[:, 1:]
        if self.is_chunked:
            states = run(self._model.base_model, input_ids=tokens, use_cache=False).last_hidden_state
        else:
            states = run(self._model, input_ids=tokens, use_cache=False).logits
        places = is_target.nonzero() + torch.tensor([0, 1], device=tokens.device)
        return states[:, :-1][is_target], tokens[:, 1:][is_target], places

    def _loss_and_gradient(self, states: Tensor, wanted: "_Wanted") -> tuple[Tensor, Tensor]:
        """The losses of some tokens, and the gradient of their sum by the states."""
        if not self.is_chunked:
            return token_losses(states, wanted(states))
        leaf = states.requires_grad_()
        logits = self._logits(leaf)
        losses, gradient = token_losses(logits.detach(), wanted(logits.detach()))
        if self._head_tap is not None:
            self._head_tap.receive_tokens(states.detach(), self._at_head(gradient, logits.detach()), wanted.origins)
        return losses, torch.autograd.grad(logits, leaf, gradient.to(logits.dtype))[0]

    def _at_head(self, gradient: Float[Tensor, "T v"], logits: Float[Tensor, "T v"]) -> Float[Tensor, "T v"]:
        """The gradient before the soft cap c: of c tanh(z / c) by z, 1 − (logit / c)²."""
        return gradient if self._soft_cap is None else gradient * (1 - (logits / self._soft_cap) ** 2)

    def _chunks(self, states: Tensor) -> Iterator[slice]:
        size = max(1, LOGITS_CHUNK_BYTES // (4 * self._model.config.get_text_config().vocab_size))
        if states.device.type == "cpu":
            size = min(size, CPU_CHUNK_TOKENS)
        return (slice(start, start + size) for start in range(0, len(states), size))

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = self._head(hidden)
        return logits if self._soft_cap is None else self._soft_cap * torch.tanh(logits / self._soft_cap)

    @torch.no_grad()
    def _head_alone_gives_logits(self) -> bool:
        device = next(self._model.parameters()).device
        vocabulary_size = self._model.config.get_text_config().vocab_size
        tokens = torch.arange(PROBE_LENGTH, device=device).remainder(vocabulary_size)[None]
        whole = self._model(input_ids=tokens, use_cache=False).logits.float()
        hidden = self._model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        if hidden.shape[-1] != self._head.weight.shape[-1]:
            return False
        ours = self._logits(hidden).float()
        return ours.shape == whole.shape and bool((ours - whole).norm() <= PROBE_TOLERANCE * whole.norm())


class _Wanted(NamedTuple):
    """What some logits should have said: the tokens that are there, or labels drawn from the logits."""

    targets: Tensor
    places: Tensor
    labels: Labels | None

    @property
    def origins(self) -> Tensor:
        """Row and position of the states: each predicts the next token."""
        return self.places - torch.tensor([0, 1], device=self.places.device)

    def __call__(self, logits: Tensor) -> Tensor:
        return self.targets if self.labels is None else self.labels(logits, self.places)


def token_losses(
    logits: Float[Tensor, "T v"], targets: Int[Tensor, " T"]
) -> tuple[Float[Tensor, " T"], Float[Tensor, "T v"]]:
    """Return ``−log p[target]`` and its gradient by the logits, ``p − 1[target]``, from one softmax.

    log Σ exp z is z_i − log p_i for any i; the largest p is at least 1/v, so nothing is lost there. In float32, or in
    float64 for logits that are.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    p = torch.softmax(logits, 1)
    largest, where = logits.max(1, keepdim=True)
    log_sum = largest - p.gather(1, where).log()
    losses = (log_sum - logits.gather(1, targets[:, None]))[:, 0]
    p[torch.arange(len(p), device=p.device), targets] -= 1
    return losses, p
