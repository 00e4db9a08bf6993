"""A config's U-Net beside the same network of diffusers in PyTorch: same sizes, parameters and batch, in float32, in turn.

The peer is diffusers' UNet2DModel as it comes (its own layout and attention), with what its constructor cannot say set
after it: the groups of each norm and the heads of each attention, which are ours. Its fresh parameters are carried over
(`interop.unet_params`). Both go through

    forward    the network's answer to one batch, as sampling asks for it
    step       the gradient of the mean square of answer - target, and Adam

without dropout, each on as many threads as XLA takes; ours with its batch split over the process's devices, as training
splits it (a CPU is as many devices as `JAX_NUM_CPU_DEVICES` says, which share the threads). That the two are the same
network is seen in the report: the largest difference of their answers, and the losses of two steps, of which the second has
Adam's first update in it.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxdiff import build, interop, training
from jaxdiff.benchmark import stopwatch
from jaxdiff.benchmark.stopwatch import Line
from jaxdiff.facts import Facts
from jaxdiff.hardware import flops
from jaxdiff.networks.attention import head_count
from jaxdiff.networks.encoder import blocks_per_level
from jaxdiff.networks.layers import count_params, group_count
from jaxdiff.types import Aux

LEARNING_RATE = 1e-4
# fields of UNet that UNet2DModel does not have, and the value at which the two are one network
PLAIN = {"patch_size": 1, "level_order": "adm", "time_embedding": "sinusoidal", "text_dim": 0, "text_encoder": None,
         "low_res": "", "low_res_t": False, "image": False, "mask": False, "latent_dim": 0, "tanh": False, "remat": False,
         "dtype": jnp.float32, "param_dtype": jnp.float32}


class Side(NamedTuple):
    """One of the two networks with its batch: `forward() -> answer`, and `step() -> loss`, which trains it."""

    forward: Callable[[], Any]
    step: Callable[[], Any]


def check(config: ConfigDict, net: Any) -> None:
    """Raise ValueError where diffusers has no twin of this network, or this is no CPU; ImportError without it or torch."""
    if config.network.kind != "unet":
        raise ValueError(f"--compare=torch with network.kind {config.network.kind!r}; allowed: unet")
    if config.parallel.kind != "mesh":
        raise ValueError(f"--compare=torch with parallel.kind {config.parallel.kind!r}; allowed: mesh")
    if build.joint(config):
        raise ValueError(f"--compare=torch with estimator.kind {config.estimator.kind!r}; allowed: none, or cde, where x "
                         "alone is diffused")
    for field, value in PLAIN.items():
        found = getattr(net, field)
        if found != value:
            shown = [getattr(v, "__name__", repr(v)) for v in (found, value)]
            raise ValueError(f"--compare=torch: diffusers' UNet2DModel has no {field}={shown[0]}; allowed: {shown[1]}")
    if len(set(blocks_per_level(net.num_blocks, len(net.channel_mult)))) > 1:
        raise ValueError(f"--compare=torch: diffusers' UNet2DModel has no num_blocks={tuple(net.num_blocks)}; allowed: one "
                         "number for all levels")
    if jax.default_backend() != "cpu":
        raise ValueError(f"--compare=torch on {jax.default_backend()}; allowed: CPUs; mend: JAX_PLATFORMS=cpu")
    for name in ("torch", "diffusers"):
        try:
            importlib.import_module(name)
        except ImportError:
            raise ImportError(f"--compare=torch needs {name}, which is not installed; mend: pip install torch diffusers"
                              ) from None


def twin(net: Any, shape: tuple[int, ...]) -> Any:
    """diffusers' UNet2DModel of the same sizes, for examples of `shape` (H, W, C), its fresh parameters drawn by seed 0."""
    import diffusers
    import torch

    levels = len(net.channel_mult)
    attends = [max(shape[:2]) // 2**i in tuple(net.attention_resolutions) for i in range(levels)]
    kinds = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if net.resample_in_block else ("DownBlock2D", "UpBlock2D")
    resample = "resnet" if net.resample_in_block else "conv"
    torch.manual_seed(0)
    made: Any = diffusers.UNet2DModel(
        sample_size=shape[:2],
        in_channels=shape[2],
        out_channels=net.out_channels,
        block_out_channels=tuple(net.channels * mult for mult in net.channel_mult),
        layers_per_block=blocks_per_level(net.num_blocks, levels)[0],
        down_block_types=tuple("AttnDownBlock2D" if a else kinds[0] for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else kinds[1] for a in reversed(attends)),
        downsample_type=resample,
        upsample_type=resample,
        resnet_time_scale_shift="scale_shift" if net.scale_shift else "default",
        attention_head_dim=None,  # one head; see below
        norm_num_groups=1,
        attn_norm_num_groups=1,
        num_class_embeds=net.num_classes + 1 if net.num_classes else None,
    )
    for module in made.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.num_groups = group_count(module.num_channels)
        elif hasattr(module, "to_q"):
            module.heads = head_count(module.to_q.out_features, net.head_channels)
    return made


def threads() -> int:
    """How many threads XLA computes with on a CPU: the cores that the process may use, or what PJRT_NPROC or NPROC say."""
    told = os.environ.get("PJRT_NPROC") or os.environ.get("NPROC")
    if told:
        return int(told)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def compare(config: ConfigDict, known: Facts, layout: training.Layout | None, budget: float) -> Iterator[Line]:
    """Three lines: that the networks are one, their forward passes, and their training steps; `budget` seconds on each.

    Raises as `check` does, ValueError for a batch that the devices of `layout` do not divide, and RuntimeError where the
    answers differ by more than rounding.
    """
    net = build.network(config, known)
    check(config, net)
    import diffusers
    import torch

    before, cores = torch.get_num_threads(), threads()
    torch.set_num_threads(cores)
    try:
        net = net.clone(dropout=0.0)
        size, shape = config.data.batch_size, known.shape
        rng = np.random.default_rng(0)
        noise = lambda channels: rng.standard_normal((size, *shape[:2], channels)).astype(np.float32)
        batch = {"x": noise(shape[2]), "t": rng.uniform(0, 999, size).astype(np.float32), "target": noise(net.out_channels),
                 "label": np.arange(size) % net.num_classes if net.num_classes else None}
        other = twin(net, shape)
        params = interop.unet_params(other)
        ours, *work = _ours(net, params, batch, layout)
        theirs = _theirs(other, batch)
        answers = np.asarray(ours.forward()), theirs.forward().numpy().transpose(0, 2, 3, 1)
        difference, largest = float(np.abs(answers[0] - answers[1]).max()), float(np.abs(answers[1]).max())
        if not difference <= 1e-3 * largest:
            raise RuntimeError(f"--compare=torch: the answers differ by {difference:.3g} of {largest:.3g}; this version "
                               "of diffusers is not the same network")
        devices = 1 if layout is None else layout.mesh.size
        forward = stopwatch.ratio(ours.forward, theirs.forward, budget)
        losses = [[float(step()) for _ in range(2)] for step in (ours.step, theirs.step)]
        step = stopwatch.ratio(ours.step, theirs.step, budget)
    finally:
        torch.set_num_threads(before)
    versions = {name: module.__version__ for name, module in (("jax", jax), ("torch", torch), ("diffusers", diffusers))}
    shown = [" ".join(f"{value:.5f}" for value in row) for row in losses]
    yield Line("peer", f"diffusers {versions['diffusers']} on torch {versions['torch']}, jax {versions['jax']}; "
               f"{count_params(params):,} parameters, batch {size} of {' x '.join(map(str, shape))}, float32, no dropout, "
               f"{cores} thread{'s' * (cores > 1)}, ours {devices} device{'s' * (devices > 1)}; answers differ by at most "
               f"{difference:.2g} of {largest:.3g}; losses of two steps {shown[0]} and {shown[1]}",
               {"versions": versions, "threads": cores, "devices": devices, "parameters": count_params(params),
                "batch_size": size, "shape": list(shape), "largest_difference": difference, "largest_answer": largest,
                "losses": losses})
    for name, found, done in (("forward", forward, work[0]), ("step", step, work[1])):
        rates = [done / part.median / 1e9 for part in (found.a, found.b)]
        yield Line(name, f"{found.said('jaxdiff', 'diffusers')}; {rates[0]:.1f} and {rates[1]:.1f} GFLOP/s",
                   {**found.figures(), "of": ["jaxdiff", "diffusers"], "flops": done})


def _ours(net: Any, params: Any, batch: dict[str, Any], layout: training.Layout | None) -> tuple[Side, int, int]:
    """Our side, and the FLOPs of its forward pass and of its step. The step is the house's, without averages."""

    def call(params: Any, given: Any) -> Any:
        return net.apply({"params": params}, given["x"], given["t"], {"label": given["label"]} if "label" in given else None)

    def loss(params: Any, state: Any, key: Any, batch: Any, step: Any) -> tuple[Any, Aux]:
        return jnp.mean((call(params["net"], batch) - batch["target"]) ** 2), Aux({})

    updates = [training.Update("net", loss, training.optimizer("adam", LEARNING_RATE).transform)]
    state = training.init_state({"net": params}, updates, {}, jax.random.key(0))
    given: Any = {name: jnp.asarray(value) for name, value in batch.items() if value is not None}
    plain = training.make_train_step(updates, {})
    work = flops.count(call, params, given), flops.count(plain, state, given)
    if layout is not None:
        params, given = training.replicate(params, layout.mesh), training.place_batch(given, layout)
        state = training.place_state(state, layout)
    now, answer = {"state": state}, jax.jit(call)
    program = training.compiled_step(plain, state, layout)

    def step() -> Any:
        now["state"], metrics = program(now["state"], given)
        return metrics["net/loss"]

    return Side(lambda: answer(params, given), step), *work


def _theirs(module: Any, batch: dict[str, Any]) -> Side:
    """The side of torch, its pictures [B, C, H, W] as torch lays them out."""
    import torch

    x, target = (torch.tensor(batch[name].transpose(0, 3, 1, 2).copy()) for name in ("x", "target"))
    t, label = torch.tensor(batch["t"]), None if batch["label"] is None else torch.tensor(batch["label"])
    adam = torch.optim.Adam(module.parameters(), lr=LEARNING_RATE)

    def forward() -> Any:
        with torch.inference_mode():
            return module(x, t, class_labels=label).sample

    def step() -> Any:
        adam.zero_grad()
        loss = torch.nn.functional.mse_loss(module(x, t, class_labels=label).sample, target)
        loss.backward()
        adam.step()
        return loss.detach()

    return Side(forward, step)
