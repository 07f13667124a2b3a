"""Optimizers over a model's flat arrays: clip, update and zero the gradients in one pass."""

import math

from npgpt.engine import kernels


class AdamW:
    """Adam with decoupled weight decay (arXiv:1711.05101). Only 2-D weights decay, as in GPT-2's recipes."""

    def __init__(self, model, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"AdamW: {name} must be finite and at least 0, got {value}")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"AdamW: betas must be in [0, 1), got {betas}")
        self.model, self.lr, self.betas, self.eps, self.weight_decay = model, lr, betas, eps, weight_decay
        self.steps = 0  # updates done
        self._moments = None

    @property
    def moments(self):
        """(m, v): running means of the gradient and of its square, 1-D like model.flat_params."""
        if self._moments is None:
            n, dtype = self.model.num_params, self.model.dtype
            self._moments = kernels.zeros(n, dtype), kernels.zeros(n, dtype)
        return self._moments

    def step(self, max_grad_norm=None):
        """Updates the weights, zeroes the gradients -> the gradients' norm before clipping.

        Where the norm exceeds max_grad_norm, the gradients are scaled down to it. A norm that is not finite
        changes nothing but the gradients: they are zeroed, the weights and moments stay as they were.
        """
        ops, model = kernels.ops_for(self.model.dtype), self.model
        norm = ops.global_norm(model.flat_grads)
        if not math.isfinite(norm):
            model.zero_grads()
            return norm
        grad_scale = 1.0
        if max_grad_norm is not None:
            grad_scale = min(1.0, max_grad_norm / (norm + 1e-6))  # torch's clip_grad_norm_
        self.steps += 1
        m, v = self.moments
        beta1, beta2 = self.betas
        ops.adamw_step(
            model.flat_params, model.flat_grads, m, v, model.n_decay,
            self.lr, beta1, beta2, self.eps, self.weight_decay, self.steps, grad_scale,
        )  # fmt: skip
        model.touch()
        return norm

    def state(self):
        """What a checkpoint keeps beside `steps`: {"m": (num_params,), "v": (num_params,)}."""
        m, v = self.moments
        return {"m": m, "v": v}

    def load_state(self, state, steps):
        for moment, name in zip(self.moments, ("m", "v"), strict=True):
            if state[name].shape != moment.shape:
                raise ValueError(
                    f"AdamW.load_state: {name} must have shape {moment.shape}, got {state[name].shape}"
                )
            moment[...] = state[name]
        self.steps = steps
