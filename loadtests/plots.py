"""The plots of a report, as SVG to put into a page."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from loadtests.latencies import LatencyHistogram
from loadtests.records import STAGES
from loadtests.results import Repeat, Result

_SIZE = (7.2, 3.4)
_MILLISECONDS = 1e3
_NINES = np.concatenate([np.linspace(0, 90, 46), 100 - np.logspace(1, -2, 60)])


def latency_by_percentile(result: Result) -> str:
    """Latency against the percentile, on an axis that stretches towards 100."""
    figure = Figure(figsize=_SIZE)
    axes = figure.subplots()
    for number, repeat in enumerate(result.repeats, start=1):
        histogram = LatencyHistogram.decoded(repeat.histogram)
        if not len(histogram):
            continue
        shown = _NINES[100.0 * (1.0 - 1.0 / (len(histogram) + 1)) >= _NINES]
        values = [histogram.percentile(float(q)) * _MILLISECONDS for q in shown]
        axes.plot(1.0 / (1.0 - shown / 100.0), values, label=f"repeat {number}")
    axes.set_xscale("log")
    ticks = [0, 50, 90, 99, 99.9]
    axes.set_xticks([1.0 / (1.0 - q / 100.0) for q in ticks], [f"{q:g} %" for q in ticks])
    axes.minorticks_off()
    axes.set_xlabel("requests that were answered within")
    axes.set_ylabel("ms from the intended time")
    axes.set_ylim(bottom=0)
    return _svg(figure, legend=len(result.repeats) > 1)


def time_series(repeat: Repeat) -> str:
    """Outcomes and latency by second, and what the server used."""
    figure = Figure(figsize=(_SIZE[0], 5.2))
    rates, latencies = figure.subplots(2, sharex=True)
    seconds = np.arange(len(repeat.series)) + 0.5
    for name in ("offered", "good", "refused"):
        values = [getattr(second, name) for second in repeat.series]
        if any(values):
            rates.plot(seconds, values, label=name)
    if repeat.use.cores:
        cores = rates.twinx()
        cores.plot(repeat.use.seconds, repeat.use.cores, color="grey", linewidth=0.8)
        cores.set_ylabel("cores of the server")
        cores.set_ylim(bottom=0)
    rates.set_ylabel("requests / s")
    rates.set_ylim(bottom=0)
    rates.legend(loc="lower left", fontsize=8)
    for name in ("p50", "p99"):
        values = [getattr(second, name) * _MILLISECONDS for second in repeat.series]
        latencies.plot(seconds, values, label=name)
    latencies.set_ylabel("ms")
    latencies.set_xlabel("s")
    latencies.set_ylim(bottom=0)
    return _svg(figure, legend=True)


def stage_breakdown(result: Result) -> str:
    """Where the median request spends its time, a bar per repeat."""
    figure = Figure(figsize=(_SIZE[0], 1.2 + 0.4 * len(result.repeats)))
    axes = figure.subplots()
    shown = [
        name
        for name in (*STAGES, "outside")
        if any(repeat.stages.get(name, 0.0) > 0 for repeat in result.repeats)
    ]
    labels = [f"repeat {number + 1}" for number in range(len(result.repeats))]
    left = np.zeros(len(labels))
    for name in shown:
        widths = np.array([repeat.stages.get(name, 0.0) for repeat in result.repeats])
        axes.barh(labels, widths * _MILLISECONDS, left=left * _MILLISECONDS, label=name)
        left = left + widths
    axes.invert_yaxis()
    axes.set_xlabel("ms, medians (outside: client, transport, lag)")
    axes.legend(
        ncols=min(6, max(1, len(shown))),
        fontsize=7,
        loc="upper left",
        bbox_to_anchor=(0, -0.3 if len(labels) > 1 else -0.5),
    )
    return _svg(figure, legend=False)


def latency_by_rate(results: Sequence[Result], knee: float) -> str:
    """Latency, and what was answered well, against the offered rate."""
    figure = Figure(figsize=(_SIZE[0], 5.2))
    latencies, goods = figure.subplots(2, sharex=True)
    ordered = sorted(results, key=lambda result: result.repeats[0].offered_rate)
    rates = [np.median([repeat.offered_rate for repeat in r.repeats]) for r in ordered]
    for name in ("p50", "p90", "p99"):
        values = np.array([[repeat.latency[name] for repeat in r.repeats] for r in ordered])
        middle = np.median(values, axis=1)
        latencies.errorbar(
            rates,
            middle * _MILLISECONDS,
            yerr=[
                (middle - values.min(axis=1)) * _MILLISECONDS,
                (values.max(axis=1) - middle) * _MILLISECONDS,
            ],
            marker="o",
            capsize=2,
            label=name,
        )
    latencies.set_yscale("log")
    latencies.set_ylabel("ms from the intended time")
    goods.plot(rates, rates, color="grey", linestyle=":", label="offered")
    goods.plot(
        rates, [np.median([p.good_rate for p in r.repeats]) for r in ordered], "o-", label="good"
    )
    goods.set_xlabel("offered, requests / s")
    goods.set_ylabel("requests / s")
    for axes in (latencies, goods):
        if knee > 0:
            axes.axvline(knee, color="grey", linewidth=0.8)
        axes.legend(fontsize=8)
    return _svg(figure, legend=False)


def _svg(figure: Figure, *, legend: bool) -> str:
    for axes in figure.axes:
        axes.grid(True, linewidth=0.3)
        if legend and axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    file = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fewseg"}):
        figure.savefig(file, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]
