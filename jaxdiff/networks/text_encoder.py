"""Text encoders: token numbers to one vector a token, and one for the whole text.

One transformer, of two kinds that public weights come in. "clip" (Radford et al. 2021, section 2.4): causal, norms before
each half of a block and one at the end, pooled at the end token. "bert" (Devlin et al. 2019; MiniLM is one): every token
reads every other, a token-type row in the embedding, norms after each half, pooled by the mean.

A masked token is as good as absent: it is read by nobody, whatever its number is, and its own vector is zero. Tokens
count their positions from the left, so padding belongs on the right.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdiff.networks.attention import attend, merge_heads, split_heads
from jaxdiff.networks.layers import at_least_float32, dense
from jaxdiff.types import Array

KINDS = ("clip", "bert")
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),  # CLIP's own
    "gelu": partial(nn.gelu, approximate=False),  # x Phi(x); jax approximates by tanh unless told
    "gelu_tanh": partial(nn.gelu, approximate=True),
    "relu": nn.relu,
}


class EncodedText(NamedTuple):
    """`hidden` [B, L, D], zero where masked, and `pooled` [B, D], zero where nothing may be read; both float32."""

    hidden: Array
    pooled: Array


def attend_back(q: Array, k: Array, v: Array, mask: Array) -> Array:
    """Causal attention: token i reads the tokens 0..i that `mask` allows. q, k, v [B, h, L, d], mask bool [B, L]."""
    readable = jnp.tril(jnp.ones((q.shape[2],) * 2, bool)) & mask[:, None, :]  # [B, asking, read]
    one = lambda query, allowed: attend(query[:, :, None], k, v, allowed)[:, :, 0]  # `attend` has one mask for all queries
    return jax.vmap(one, in_axes=(2, 1), out_axes=2)(q, readable)


def norm(name: str, eps: float, dtype: Any, param_dtype: Any) -> nn.LayerNorm:
    """Layer norm, in at least float32 and by two passes: E[x^2] - E[x]^2 loses digits to a few large channels."""
    wide = at_least_float32(dtype)
    return nn.LayerNorm(epsilon=eps, dtype=wide, param_dtype=param_dtype, use_fast_variance=False, name=name)


class TextBlock(nn.Module):
    """Attention and a two-layer perceptron, each added to its input; norms before (`post_norm` False) or after the sum.

    Sums are held in at least float32: a few channels of trained encoders are hundreds of times larger than the rest.
    """

    heads: int
    mlp_width: int
    activation: str
    eps: float
    causal: bool
    post_norm: bool
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        """x [B, L, D], mask bool [B, L] -> [B, L, D] in x's dtype."""
        kinds = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        width = x.shape[-1]

        def attention(h: Array) -> Array:
            qkv = jnp.split(dense(3 * width, name="qkv", **kinds)(h), 3, axis=-1)
            q, k, v = (split_heads(y, self.heads) for y in qkv)
            read = (attend_back if self.causal else attend)(q, k, v, mask)
            return dense(width, name="out", **kinds)(merge_heads(read)).astype(x.dtype)

        def mlp(h: Array) -> Array:
            h = ACTIVATIONS[self.activation](dense(self.mlp_width, name="mlp_in", **kinds)(h))
            return dense(width, name="mlp_out", **kinds)(h).astype(x.dtype)

        norms = (norm(name, self.eps, self.dtype, self.param_dtype) for name in ("norm_attention", "norm_mlp"))
        for half, normed in zip((attention, mlp), norms, strict=True):
            x = normed(x + half(x)) if self.post_norm else x + half(normed(x))
        return x


class TextEncoder(nn.Module):
    """`net.apply({"params": params}, tokens, mask) -> EncodedText(hidden [B, L, D], pooled [B, D])`, D = `width`.

    `kind` "clip" or "bert" (see the module's docstring). At most `max_length` tokens, numbered below `vocab_size`. `heads`
    divides `width`. `mlp_width` 0 means 4 * width. `activation` "" is the kind's own ("quick_gelu", "gelu"); others are
    "gelu_tanh" and "relu". `eps` 0 is the kind's own layer norm constant (1e-5, 1e-12). `token_types` is the height of
    BERT's token-type table, of which row 0 is used. `end_token` is where "clip" pools: the first token of that number, or
    (None, or no such token) the last that may be read. The defaults are a small encoder, trained jointly with its reader.
    """

    vocab_size: int
    kind: str = "clip"
    max_length: int = 77
    width: int = 128
    layers: int = 4
    heads: int = 4
    mlp_width: int = 0
    activation: str = ""
    eps: float = 0.0
    token_types: int = 2
    end_token: int | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array, mask: Array | None = None) -> EncodedText:
        """tokens int [B, L], mask bool [B, L] (True = may be read; None = all). ValueError for other shapes or dtypes."""
        mask = self._checked(tokens, mask)
        clip, wide = self.kind == "clip", at_least_float32(self.dtype)
        kinds = {"eps": self.eps or (1e-5 if clip else 1e-12), "dtype": self.dtype, "param_dtype": self.param_dtype}
        tokens = jnp.where(mask, tokens, 0)  # so that a masked number may be anything, outside the vocabulary too

        def table(rows: int, name: str) -> nn.Embed:
            init = nn.initializers.normal(0.02)
            return nn.Embed(rows, self.width, embedding_init=init, dtype=wide, param_dtype=self.param_dtype, name=name)

        x = table(self.vocab_size, "token")(tokens)
        x = x + table(self.max_length, "position")(jnp.arange(tokens.shape[1])[None])
        if not clip:
            x = norm("norm_in", **kinds)(x + table(self.token_types, "type")(jnp.zeros((1, 1), int)))
        for i in range(self.layers):
            x = TextBlock(
                heads=self.heads,
                mlp_width=self.mlp_width or 4 * self.width,
                activation=self.activation or ("quick_gelu" if clip else "gelu"),
                causal=clip,
                post_norm=not clip,
                name=f"block_{i}",
                **kinds,
            )(x, mask)
        if clip:
            x = norm("norm_out", **kinds)(x)
        hidden = jnp.where(mask[..., None], x, 0)
        return EncodedText(hidden, self._at_end(hidden, tokens, mask) if clip else _mean(hidden, mask))

    def _at_end(self, hidden: Array, tokens: Array, mask: Array) -> Array:
        at = jnp.max(jnp.where(mask, jnp.arange(tokens.shape[1]), 0), axis=1)
        if self.end_token is not None:
            ends = (tokens == self.end_token) & mask
            at = jnp.where(ends.any(axis=1), jnp.argmax(ends, axis=1), at)
        return jnp.take_along_axis(hidden, at[:, None, None], axis=1)[:, 0]

    def _checked(self, tokens: Array, mask: Array | None) -> Array:
        if self.kind not in KINDS:
            raise ValueError(f"text encoder got kind={self.kind!r}; allowed: 'clip', 'bert'")
        if self.activation not in ("", *ACTIVATIONS):
            raise ValueError(f"text encoder got activation={self.activation!r}; allowed: {', '.join(ACTIVATIONS)}")
        if self.width % self.heads:
            raise ValueError(f"text encoder got width={self.width}, not a multiple of heads={self.heads}; change either")
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer) or tokens.shape[1] > self.max_length:
            raise ValueError(
                f"tokens are {tokens.dtype} {tokens.shape}; they must be integers (B, L) with L at most {self.max_length}, "
                "the encoder's max_length: encode the texts to that length"
            )
        mask = jnp.ones(tokens.shape, bool) if mask is None else jnp.asarray(mask)
        if mask.shape != tokens.shape or mask.dtype != bool:
            raise ValueError(f"the text mask is {mask.dtype} {mask.shape}; it must be bool {tokens.shape}, True = readable")
        return mask


def _mean(hidden: Array, mask: Array) -> Array:
    return hidden.sum(axis=1) / jnp.maximum(mask.sum(axis=1, keepdims=True), 1).astype(hidden.dtype)
