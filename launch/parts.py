"""Time the parts of a U-Net's training step on a CPU beside torch's, in turn, as ratios: where the step's time goes.

    python launch/parts.py --channels 64 128 128 --sides 32 16 8 --batch 16
    taskset -c 0 python launch/parts.py --only convolution --seconds 5

A level is a number of channels and a side. Each part is what our networks run (jaxdiff.networks) on [B, H, W, C] and what
torch runs, as diffusers does, on [B, C, H, W], in float32 on as many threads; both are computed once and compared before
they are timed. "both ways" is the forward pass and the gradients with respect to input and parameters.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F

from jaxdiff.benchmark import stopwatch
from jaxdiff.benchmark.peers import threads
from jaxdiff.networks.attention import attend, head_count, merge_heads, split_heads
from jaxdiff.networks.layers import GroupNorm, conv3x3, double, group_count, halve

MAP, KERNEL, TOKENS = (0, 2, 3, 1), (2, 3, 1, 0), (0, 1, 2)  # torch's dimensions in our order


class Part(NamedTuple):
    """One operation on both sides, without arguments; `order` turns torch's result, the first of several, into ours."""

    name: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    order: tuple[int, ...]


def parts(batch: int, channels: int, side: int, head_channels: int, attends: bool) -> Iterator[Part]:
    """The parts of a level of the U-Net."""
    rng = np.random.default_rng(0)
    noise = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    x, g = noise(batch, side, side, channels), noise(batch, side, side, channels)
    first = lambda v: torch.tensor(v.transpose(0, 3, 1, 2).copy())
    tx, tg = first(x), first(g)

    kernel, bias = noise(3, 3, channels, channels) / 30, noise(channels)
    tk, tb = torch.tensor(kernel.transpose(3, 2, 0, 1).copy()), torch.tensor(bias)
    conv = lambda k, x: conv3x3(channels).apply({"params": {"kernel": k, "bias": bias}}, x)
    backward = lambda *wanted: torch.ops.aten.convolution_backward(
        tg, tx, tk, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [*wanted, False])
    yield Part("convolution", program(conv, kernel, x), lambda: F.conv2d(tx, tk, tb, padding=1), MAP)
    pull = lambda fn, at, g: jax.vjp(fn, at)[1](g)[0]
    yield Part("convolution, input gradient", program(lambda k, x, g: pull(lambda x: conv(k, x), x, g), kernel, x, g),
               lambda: backward(True, False)[0], MAP)
    yield Part("convolution, weight gradient", program(lambda k, x, g: pull(lambda k: conv(k, x), k, g), kernel, x, g),
               lambda: backward(False, True)[1], KERNEL)

    scale, shift = noise(channels), noise(channels)
    norm = lambda x, a, b: GroupNorm().apply({"params": {"scale": a, "bias": b}}, x)
    t_norm = lambda x, a, b: F.group_norm(x, group_count(channels), a, b, 1e-5)
    affine = torch.tensor(scale), torch.tensor(shift)
    yield Part("group norm", program(norm, x, scale, shift), lambda: t_norm(tx, *affine), MAP)
    yield Part("group norm, both ways", program(both_ways(norm), g, x, scale, shift),
               t_both_ways(t_norm, tg, tx, *affine), MAP)
    yield Part("SiLU, both ways", program(both_ways(jax.nn.silu), g, x), t_both_ways(F.silu, tg, tx), MAP)

    yield Part("concatenation", program(lambda x, g: jnp.concatenate([x, g], axis=-1), x, g),
               lambda: torch.cat([tx, tg], 1), MAP)
    yield Part("doubling", program(double, x), lambda: F.interpolate(tx, scale_factor=2.0, mode="nearest"), MAP)
    yield Part("halving", program(halve, x), lambda: F.avg_pool2d(tx, 2), MAP)

    if attends:
        heads, tokens = head_count(channels, head_channels), side * side
        qkv, go = noise(batch, tokens, 3 * channels), noise(batch, tokens, channels)

        def attention(qkv: Any) -> Any:
            return merge_heads(attend(*(split_heads(part, heads) for part in jnp.split(qkv, 3, axis=-1))))

        def t_attention(qkv: torch.Tensor) -> torch.Tensor:
            split = [part.view(batch, tokens, heads, -1).transpose(1, 2) for part in qkv.chunk(3, dim=-1)]
            return F.scaled_dot_product_attention(*split).transpose(1, 2).reshape(batch, tokens, channels)

        tqkv, tgo = torch.tensor(qkv), torch.tensor(go)
        yield Part(f"attention, {heads} heads", program(attention, qkv), lambda: t_attention(tqkv), TOKENS)
        yield Part(f"attention, {heads} heads, both ways", program(both_ways(attention), go, qkv),
                   t_both_ways(t_attention, tgo, tqkv), TOKENS)


def program(fn: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    """fn, compiled, on arguments that lie on the device."""
    placed, run = jax.device_put(args), jax.jit(fn)
    return lambda: run(*placed)


def both_ways(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`(g, *args) -> (value, gradients of <value, g>)`."""

    def run(g: Any, *args: Any) -> Any:
        value, pull = jax.vjp(fn, *args)
        return value, pull(g)

    return run


def t_both_ways(fn: Callable[..., torch.Tensor], g: torch.Tensor, *args: torch.Tensor) -> Callable[[], Any]:
    """The same of torch."""
    leaves = [arg.clone().requires_grad_() for arg in args]

    def run() -> Any:
        value = fn(*leaves)
        return value.detach(), torch.autograd.grad(value, leaves, g)

    return run


def compare(part: Part, seconds: float) -> stopwatch.Ratio:
    """Their times in turn; RuntimeError where they compute different things."""
    first = lambda found: found[0] if isinstance(found, tuple) else found
    ours, theirs = np.asarray(first(part.ours())), first(part.theirs()).numpy().transpose(part.order)
    difference = np.abs(ours - theirs).max()
    if ours.shape != theirs.shape or not difference <= 1e-4 * np.abs(theirs).max():
        raise RuntimeError(f"{part.name}: the results differ by {difference:.3g}")
    each = max(stopwatch.enough(side, 0.02) for side in (part.ours, part.theirs))
    many = lambda side: lambda: [jax.block_until_ready(side()) for _ in range(each)]  # one at a time, as in a step
    return stopwatch.ratio(many(part.ours), many(part.theirs), seconds).over(each)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, nargs="+", default=[64, 128, 128], help="of each level (default 64 128 128)")
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 16, 8], help="of each level, even (default 32 16 8)")
    parser.add_argument("--batch", type=int, default=16, help="examples (default 16)")
    parser.add_argument("--head_channels", type=int, default=64, help="channels of an attention head (default 64)")
    parser.add_argument("--attention", type=int, default=16, help="largest side with attention (default 16)")
    parser.add_argument("--only", default="", help="parts whose name begins so (default: all)")
    parser.add_argument("--seconds", type=float, default=2.0, help="on each part, at least five pairs (default 2)")
    args = parser.parse_args(argv)
    if len(args.channels) != len(args.sides) or min(*args.channels, *args.sides, args.batch, args.head_channels) < 1:
        parser.error("--channels and --sides come in equal numbers, all of them from 1")
    if any(side % 2 for side in args.sides) or any(c > args.head_channels and c % args.head_channels for c in args.channels):
        parser.error("--sides are even, and --head_channels divides --channels")
    torch.set_num_threads(threads())
    print(f"jax {jax.__version__} ({jax.default_backend()}), torch {torch.__version__}, {threads()} threads, batch "
          f"{args.batch}")
    print("| part | level | jaxdiff, ms | torch, ms | ratio |\n|---|---|---|---|---|")
    for channels, side in zip(args.channels, args.sides, strict=True):
        for part in parts(args.batch, channels, side, args.head_channels, side <= args.attention):
            if part.name.startswith(args.only):
                found = compare(part, args.seconds)
                print(f"| {part.name} | {channels} at {side} | {1e3 * found.a.median:.3f} | {1e3 * found.b.median:.3f} | "
                      f"{found.value:.2f} |", flush=True)


if __name__ == "__main__":
    main()
