"""How evenly each group uses its codes."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from dpq_ref.metrics import METRICS
from figures.records import Record
from figures.rows import Row, text_of
from figures.style import OTHERS, PAGE, save_figure, styles


def draw(stem: Path, records: list[Record]) -> list[Path]:
    """Draw the perplexity of the codes of each group, groups sorted, mean over seeds."""
    from matplotlib import pyplot

    groups: dict[tuple[str, str, int], list[Record]] = defaultdict(list)
    for record in records:
        if "code_usage" in record:
            run = record["specification"]
            rest = {k: v for k, v in run["parameters"].items() if k not in ("n_groups", "n_codes", "shared")}
            groups[run["method"], text_of(rest), len(record["code_usage"]["perplexity"])].append(record)
    panels = sorted({key[2] for key in groups})
    figure, axes = pyplot.subplots(1, len(panels), squeeze=False, figsize=(PAGE, 2.5), layout="constrained")
    looks = styles(record["specification"]["method"] for record in records)
    # Of a method in a panel, by more than how it weighs words.
    variants: dict[tuple[str, int], list[str]] = defaultdict(list)
    table: list[Row] = []
    for (method, text, D), mine in groups.items():
        label, colour, marker = looks[method]
        if sum((m, d) == (method, D) for m, _, d in groups) > 1:
            how = text.replace("weighted=True", "by frequency").replace("weighted=False", "")
            label = ", ".join(filter(None, (label, how.strip())))
        variant = text.replace("weighted=True", "").replace("weighted=False", "").strip()
        there = variants[method, D]
        if variant not in there:
            there.append(variant)
        if i := there.index(variant):
            marker = OTHERS[1][i % len(OTHERS[1])]
        # Sorted within each run: a group has no meaning across seeds.
        perplexity = np.mean([np.sort(r["code_usage"]["perplexity"]) for r in mine], axis=0)
        used = np.mean([np.sort(r["code_usage"]["used"]) for r in mine], axis=0)
        panel = axes[0, panels.index(D)]
        share = (np.arange(D) + 0.5) / D
        weighted = "weighted=True" in text
        panel.plot(
            share,
            perplexity,
            color=colour,
            ls=looks[method].dash,
            marker=marker,
            markevery=max(1, D // 6),
            mfc="white" if weighted else colour,
            ms=4,
            label=label,
        )
        table += [
            {"method": method, "parameters": text, "n_groups": D, "rank": i, "perplexity": p, "used": u}
            for i, (p, u) in enumerate(zip(perplexity.round(4), used.round(4), strict=True))
        ]
    for D, panel in zip(panels, axes[0], strict=True):
        K = max(
            r["specification"]["parameters"].get("n_codes", 0)
            for (*_, groups_of), mine in groups.items()
            if groups_of == D
            for r in mine
        )
        panel.set_title(f"D = {D}, K = {K}" if K else f"D = {D}")
        if K:
            panel.axhline(K, color="black", lw=0.8, ls="--")
        panel.set_ylim(0, K * 1.08 or None)
        panel.set_xlabel("sorted groups (share of D)")
    axes[0, 0].set_ylabel(f"{METRICS['code_perplexity'].label}\n(K: all equally often)")
    handles: dict[str, Any] = {}
    for panel in axes[0]:
        for line, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, line)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=3)
    return save_figure(figure, stem, table)
