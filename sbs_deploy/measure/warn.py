"""Warnings about measured times, with remedies, for rows of bench.json."""

from collections.abc import Sequence

from sbs_deploy.machine.clocks import THROTTLED
from sbs_deploy.measure.protocol import COV_LIMIT, LatencyStats, Measurement
from sbs_train.contract.results import Jetson, Machines

ENQUEUE_LIMIT = 0.8
"""Largest enqueue time as a part of the GPU's time; above, the host may limit the latency (as in trtexec)."""
SPREAD_LIMIT = 0.05
"""Largest relative difference of the medians of several builds of one artifact."""
BUSY_LIMIT = 0.9
"""Smallest part of the wall clock's time that an undisturbed inference computes."""


def speedup_warnings(apart: tuple[float, float] | None) -> list[str]:
    """A warning about a speed-up that rounds do not agree on; `apart` is the range it may lie in."""
    return [] if apart is None else [f"no speed-up: {undecided(apart)}"]


def undecided(apart: tuple[float, float]) -> str:
    """What a range too wide for a speed-up means, and the remedy."""
    return (
        f"rounds disagree, it lies between {apart[0]:.2f}x and {apart[1]:.2f}x the speed of FP32; measure again with "
        "less beside it, or with more --rounds"
    )


def busy_warnings(cpu_ms: float | None, p50_ms: float) -> list[str]:
    """A warning about an engine that waited for a core; `cpu_ms` is its median CPU time, if known."""
    if cpu_ms is None or cpu_ms >= BUSY_LIMIT * p50_ms:
        return []
    return [
        f"other processes held its core: an inference computes for {cpu_ms:.3g} of {p50_ms:.3g} ms; speed-ups go by "
        "CPU time, latencies do not"
    ]


def time_warnings(measurement: Measurement, latency: LatencyStats) -> list[str]:
    """Warnings about times that vary, or had not settled at the end of the warm-up."""
    warnings = []
    if not latency.steady:
        warnings.append(f"times vary by {latency.cov:.1%} (limit {COV_LIMIT:.1%}): trust no small difference")
    if not measurement.warm:
        warnings.append("times were still moving when the warm-up ended")
    return warnings


def enqueue_warnings(enqueue_ms: float | None, p50_ms: float, cuda_graph: str) -> list[str]:
    """Warnings about a host that is hardly faster than its GPU.

    Args:
        cuda_graph: captured, rtx, or "off: why".
    """
    if enqueue_ms is None or enqueue_ms <= ENQUEUE_LIMIT * p50_ms:
        return []
    remedy = f"; a CUDA graph takes that away, it is {cuda_graph}" if cuda_graph.startswith("off") else ""
    return [
        f"handing over an inference takes the host {enqueue_ms:.3f} ms, {enqueue_ms / p50_ms:.0%} of the GPU's time "
        f"(limit {ENQUEUE_LIMIT:.0%}): this may be the host's speed, not the GPU's{remedy}"
    ]


def build_warnings(builds_p50_ms: Sequence[float]) -> list[str]:
    """Warnings about builds of one artifact that differ in speed."""
    spread = max(builds_p50_ms) / min(builds_p50_ms) - 1
    if spread <= SPREAD_LIMIT:
        return []
    return [
        f"its {len(builds_p50_ms)} builds differ by {spread:.1%} in p50: compare medians of builds, not single ones"
    ]


def machine_warnings(machines: Machines, *, on_gpu: bool) -> list[str]:
    """Warnings about a throttled GPU (rows of the GPU), and a Jetson below full speed (all rows)."""
    warnings = _throttled(machines) if on_gpu else []
    state = machines.after.jetson or Jetson()
    mode, best = state.power_mode, state.power_mode_max
    if mode is not None and best is not None and mode != best:
        command = f"sudo nvpmodel -m {state.power_mode_max_id}"
        warnings.append(f"the Jetson is in power mode {mode}, its largest is {best}: `{command}`")
    if state.clocks is not None and not state.clocks.pinned:
        warnings.append("the Jetson's clocks are not pinned: `sudo jetson_clocks`")
    return warnings


def _throttled(machines: Machines) -> list[str]:
    gpus = {"before": machines.before.gpu, "after": machines.after.gpu}
    reasons = {when: (gpu and gpu.throttle_reasons) or () for when, gpu in gpus.items()}
    said = {reason: [when for when in reasons if reason in reasons[when]] for reason in THROTTLED}
    return [f"the GPU throttled ({reason}, {' and '.join(when)})" for reason, when in said.items() if when]
