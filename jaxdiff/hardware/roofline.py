"""What a plan says: memory of a chip by part, work and messages of a step, and the least time that a step can take.

    compute  FLOPs of the compiled program's products / peak FLOP/s of their type
    HBM      bytes read and written / HBM bandwidth
    links    bytes sent / bandwidth of all links of a chip, one way

The longest of the three bounds a step from below (the roofline of Williams et al. 2009, with a third roof), and so the
examples a second from above: peaks are never reached, the three do not wholly overlap, and the host is not in it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxdiff.hardware.chips import GIB, Chip
from jaxdiff.hardware.flops import scaled
from jaxdiff.hardware.programs import Message

ROOFS = ("compute", "HBM", "links")
TEMPORARIES = "activations, gradients, temporaries"


class Plan(NamedTuple):
    """A compiled program's figures, each of one chip and one step, or of one draw by a sampler.

    memory: bytes by part, their sum what it takes. refused: by the compiler, which said how much it wants and gave nothing
    else; then there are no products, messages and times. flops: as written (flops.py), with the padding of convolutions.
    products: of the compiled program, without it, by type. traffic: bytes between HBM and the cores. unknown_loops: counted
    once, for nobody knows their length. analysis: FLOPs and bytes accessed by XLA's cost analysis, of a whole call, a loop's
    body once. seconds: of compiling.
    """

    name: str
    what: str
    topology: str
    devices: int
    chip: Chip | None
    mesh: dict[str, int]
    examples: int
    parameters: int
    facts: str
    memory: dict[str, int]
    refused: bool
    flops: float
    products: dict[str, float]
    traffic: float
    messages: dict[str, Message]
    unknown_loops: int
    analysis: tuple[float, float]
    seconds: float
    suggestions: tuple[str, ...] = ()

    @property
    def total(self) -> float:
        """Bytes of a chip's memory that the program takes."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool | None:
        """Whether it fits into the chip's memory; None where this is not known."""
        if self.refused:
            return False
        return None if self.chip is None else self.total <= self.chip.memory

    @property
    def times(self) -> dict[str, float]:
        """The least seconds of a step by each roof; {} without a chip's peaks or a compiled program."""
        if self.chip is None or self.refused:
            return {}
        names = {"f32": "float32", "f64": "float32"}
        compute = sum(count / self.chip.peak(names.get(dtype, "bfloat16")) for dtype, count in self.products.items())
        sent = sum(message.sent for message in self.messages.values())
        return dict(zip(ROOFS, (compute, self.traffic / self.chip.bandwidth, sent / self.chip.links), strict=True))

    @property
    def examples_per_second(self) -> float | None:
        """At most; of all chips."""
        times = self.times
        return self.examples / max(times.values()) if times and max(times.values()) > 0 else None


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as JSON takes it, with what follows from it."""
    times = plan.times
    return {
        **plan._asdict(),
        "chip": plan.chip and plan.chip._asdict(),
        "messages": {kind: message._asdict() for kind, message in plan.messages.items()},
        "suggestions": list(plan.suggestions),
        "total": plan.total, "fits": plan.fits,
        "roofline_seconds": times, "bound_by": max(times, key=lambda name: times[name]) if times else None,
        "examples_per_second_at_most": plan.examples_per_second,
    }


def lines(plan: Plan) -> list[str]:
    """The plan as text."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    chips = f"{plan.devices} x {plan.chip.name if plan.chip else plan.topology.partition(':')[0]}"
    a_chip = "chip" if plan.chip else "device"
    unit, scale = ("GiB", GIB) if plan.total >= GIB else ("MiB", 2**20)
    found = [
        f"{plan.name} on {plan.topology} ({chips}, {mesh}): a {plan.what} of {plan.examples:,} examples, "
        f"{plan.examples / plan.devices:g} a {a_chip}",
        f"{plan.parameters:,} parameters; examples of {plan.facts}",
        "",
        f"{f'memory of a {a_chip}':36}{unit:>11}",
    ]
    found += [f"  {name:36}{size / scale:9.3f}" for name, size in plan.memory.items()]
    found.append(f"  {'total':36}{plan.total / scale:9.3f}{_verdict(plan)}")
    found += [f"  to mend: {text}" for text in plan.suggestions]
    found += ["", f"work of a {a_chip} and {plan.what}", f"  {'FLOPs as written':36}{scaled(plan.flops)}"]
    if not plan.refused:
        types = ", ".join(f"{scaled(count)} of {dtype}" for dtype, count in sorted(plan.products.items()))
        found.append(f"  {'FLOPs as compiled':36}{scaled(sum(plan.products.values()))} ({types or 'no products'})")
        found.append(f"  {'bytes from and to its memory':36}{scaled(plan.traffic)}")
        found.append(f"  {'by the analysis of XLA, of a call':36}{scaled(plan.analysis[0])} FLOPs, "
                     f"{scaled(plan.analysis[1])} bytes; a loop's body once, on-chip memory too")
        found += _messages(plan, a_chip)
        found += _bounds(plan)
    return found


def _verdict(plan: Plan) -> str:
    if plan.chip is None:
        return ""
    left = (plan.chip.memory - plan.total) / GIB
    if plan.refused:
        return f" of {plan.chip.memory / GIB:g} GiB: does not fit, as the compiler says"
    fits = f"fits, {left:.2f} GiB left" if plan.fits else f"does not fit, {-left:.2f} GiB too many"
    return f" of {plan.chip.memory / GIB:g} GiB: {fits}"


def _messages(plan: Plan, a_chip: str) -> list[str]:
    found = ["", f"{f'messages of a {a_chip} and {plan.what}':38}{'number':>9}{'bytes':>14}{'sent at least':>16}"]
    found += [f"  {kind:36}{message.number:9g}{scaled(message.bytes):>14}{scaled(message.sent):>16}"
              for kind, message in plan.messages.items()]
    if not plan.messages:
        found.append("  none")
    if plan.unknown_loops:
        found.append(f"  {plan.unknown_loops} loops of unknown length are counted as if they ran once")
    return found


def _bounds(plan: Plan) -> list[str]:
    times, chip = plan.times, plan.chip
    if chip is None:
        return ["", "no peaks are known of this device, so nothing is said of its time"]
    longest = max(times, key=lambda name: times[name])
    rates = f"{chip.flops / 1e12:g} TFLOP/s of bfloat16, HBM {chip.bandwidth / 1e9:g} GB/s, links {chip.links / 1e9:g} GB/s"
    found = ["", f"least time of a {plan.what}, ms (at {rates}; {chip.source})"]
    for name, seconds in times.items():
        found.append(f"  {name:36}{seconds * 1e3:9.3f}{'  <- bounds it' if name == longest else ''}")
    if plan.examples_per_second is not None:
        found.append(f"  at most {plan.examples_per_second:,.0f} examples/s on all {plan.devices}: an upper bound, from "
                     "peaks that are not reached")
    return found


def suggest(plan: Plan, config: dict[str, Any]) -> tuple[str, ...]:
    """Words that make a training step or a sampler that does not fit smaller, the likeliest first; () where it fits.

    config: keys with dots, `network.remat` among them, and their values.
    """
    if plan.fits is not False or plan.chip is None:
        return ()
    found = []
    state = sum(size for name, size in plan.memory.items() if name in ("parameters", "optimizer", "averages (EMA)"))
    ways = plan.mesh.get("fsdp", 1)
    if state > plan.chip.memory / 4 and ways < plan.devices:
        wanted = next((n for n in range(ways + 1, plan.devices + 1)
                       if plan.devices % n == 0 and state * ways / n <= plan.chip.memory / 4), plan.devices)
        found.append(f"--config.parallel.fsdp={wanted}, which splits parameters, optimizer and averages over {wanted} chips")
    if plan.what == "draw":
        fewer = max(plan.devices, plan.examples // 2 // plan.devices * plan.devices)
        return (*found, f"--batch_size={fewer}, fewer at once")
    if config.get("network.kind") == "unet" and not config.get("network.remat"):
        found.append("--config.network.remat=True, which computes activations twice and keeps few, or =products, which "
                     "keeps those of convolutions and dense layers")
    if config.get("network.kind") == "unet" and config.get("network.dtype") in (None, "float32"):
        found.append("--config.network.dtype=bfloat16, which halves activations")
    done = int(config.get("train.accumulate") or 1)
    each = plan.examples // plan.devices
    parts, held = plan.memory.get(TEMPORARIES, 0), plan.total - plan.memory.get(TEMPORARIES, 0)
    enough = lambda n: held + parts * done / n <= 0.9 * plan.chip.memory if plan.chip else True
    ways_on = [n for n in range(done + 1, each + 1) if each % n == 0]
    if ways_on:
        more = next(filter(enough, ways_on), ways_on[-1])
        found.append(f"--config.train.accumulate={more}, parts of a batch one after another")
    return (*found, "more chips, or a smaller --config.data.batch_size")
