#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Tables and plots of what paper.sh measured.

    python3 tests/paper/report.py OUT

Reads OUT/results.json and OUT/curve.txt; writes OUT/results.md and, through gnuplot, OUT/speedup and
OUT/curve as .svg and .png.
"""
import json
import os
import subprocess
import sys

BASELINES = ["sequence", "unfused", "copies"]


def load(out):
    """{(model, workload): {mode: run}}, in the order of the file; the first of several is kept. Each run gets
    its time over that of the `auto` run before it, which is of the same process."""
    cells, auto = {}, {}
    with open(os.path.join(out, "results.json")) as f:
        for line in f:
            run = json.loads(line)
            key = run["model"], run["workload"]
            if "error" not in run:
                if run["mode"] == "auto":
                    auto[key] = run["step_ms"]
                run["ratio"] = run["step_ms"] / auto[key] if key in auto else float("nan")
            cells.setdefault(key, {}).setdefault(run["mode"], run)
    return cells


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(r) + " |" for r in rows] + [""]


def ok(cell, mode):
    return mode in cell and "error" not in cell[mode]


def fixed(x, digits=2):
    return f"{x:.{digits}f}"


def over_floor(run):
    """A step over the products alone, the lower of two measurements, and the limit of attention."""
    products = [p for p in (run["products_ms"], run["part_products_ms"]) if p > 0]
    return run["step_ms"] / (min(products) + run["limit_ms"])


def end_to_end(cells):
    """A row a workload: our step, its floor, and how many times as long the baselines take."""
    rows = []
    for (model, work), cell in cells.items():
        if not ok(cell, "auto") or work.startswith(("scaling", "twice", "splits")):
            continue
        a = cell["auto"]
        row = [work, model, str(a["steps"]), fixed(a["rows"], 1), fixed(a["step_ms"]), fixed(over_floor(a)),
               fixed(100 * a["gap"], 1) + "%", fixed(a["plan_us"], 0), fixed(a["total_s"], 1), fixed(a["prefill_s"])]
        for mode in BASELINES:
            row.append(fixed(cell[mode]["ratio"]) if ok(cell, mode) else
                       "does not fit" if mode in cell else "-")
        rows.append(row)
    return table(["search", "model", "steps", "rows a step", "step ms", "over floor", "gaps", "plan us", "all steps s",
                  "prompt s"] + [m + " / ours" for m in BASELINES], rows)


def attention(cells):
    """Attention of a step in the middle of the search, alone, milliseconds over all layers."""
    rows = []
    for (model, work), cell in cells.items():
        if ok(cell, "auto") and any(ok(cell, m) for m in BASELINES) and not work.startswith("scaling"):
            rows.append([work, model] + [fixed(cell[m]["part_attention_ms"]) if ok(cell, m) else "-"
                                         for m in ["auto"] + BASELINES])
    return table(["search", "model", "ours"] + BASELINES, rows)


def bytes_moved(cells):
    """KV of all layers over the search, and what unfused attention moves beside it."""
    rows = []
    for (model, work), cell in cells.items():
        if not ok(cell, "auto") or work.startswith(("scaling", "twice", "splits")):
            continue
        a = cell["auto"]
        rows.append([work, model, fixed(a["kv_logical"] * 1e-12), fixed(a["kv_unique"] * 1e-12),
                     fixed(a["kv_logical"] / a["kv_unique"]), fixed(a["unfused"] * 1e-12),
                     fixed(100 * a["unfused"] / a["kv_unique"], 0) + "%"])
    return table(["search", "model", "sequences read TB", "ours TB", "times less", "QK^T, mask, softmax unfused TB",
                  "of our KV"], rows)


def parts(cells):
    rows = []
    for (model, work), cell in cells.items():
        if ok(cell, "auto") and not work.startswith(("scaling", "twice", "splits")):
            a = cell["auto"]
            rows.append([work, model, fixed(a["part_products_ms"]), fixed(a["part_attention_ms"]),
                         fixed(a["part_rest_ms"]), fixed(a["median_ms"]), fixed(a["plan_us"] * 1e-3, 3)])
    return table(["search", "model", "products ms", "attention ms", "rest ms", "median step ms", "plan ms (overlaps)"], rows)


def splits(cells):
    modes = ["auto", "node", "node-chunk", "flatten", "sequence"]
    rows = [[model] + [fixed(cell[m]["step_ms"]) if ok(cell, m) else "-" for m in modes]
            for (model, work), cell in cells.items() if work == "splits"]
    return table(["model"] + modes, rows)


def scaling(cells):
    rows = []
    for (model, work), cell in cells.items():
        if work.startswith("scaling") and ok(cell, "auto"):
            _, leaves, prompt = work.split()
            a = cell["auto"]
            rows.append([leaves, prompt, fixed(a["step_ms"]), fixed(over_floor(a)), fixed(a["part_attention_ms"]),
                         fixed(cell["sequence"]["step_ms"]) if ok(cell, "sequence") else "-", fixed(a["prefill_s"])])
    return table(["leaves", "prompt", "step ms", "over floor", "attention ms", "sequence: step ms", "prompt s"], rows)


def memory(cells):
    rows = []
    for (model, work), cell in cells.items():
        if work in ("few-shot 20", "few-shot 50", "sorting"):
            rows.append([work, model] + [fixed(cell[m]["used_gib"], 1) if ok(cell, m) else "-" for m in
                                         ["auto"] + BASELINES] + [fixed(cell["auto"]["moved_mib"], 0)])
    return table(["search", "model", "ours GiB"] + [m + " GiB" for m in BASELINES] + ["ours: allocated after the start MiB"], rows)


def twice(cells):
    runs = [cell["auto"] for (_, work), cell in cells.items() if work.startswith("twice") and ok(cell, "auto")]
    if len(runs) != 2:
        return []
    a, b = runs
    same = "the same bits" if a["digest"] == b["digest"] else "OTHER BITS"
    return [f"Two processes: {a['step_ms']:.3f} and {b['step_ms']:.3f} ms a step "
            f"({100 * abs(a['step_ms'] / b['step_ms'] - 1):.1f}% apart), {same} in the candidates of all rows and steps.", ""]


def errors(cells):
    return [f"- {work}, {model}, {mode}: {run['error']}" for (model, work), cell in cells.items()
            for mode, run in cell.items() if "error" in run]


def gnuplot(out, name, script):
    for terminal, suffix in (("svg size 900,420 font 'sans,13' background '#ffffff'", "svg"),
                             ("pngcairo size 900,420 font 'sans,11'", "png")):
        text = f"set terminal {terminal}\nset output '{os.path.join(out, name)}.{suffix}'\n" + script
        subprocess.run(["gnuplot"], input=text, text=True, check=True)


def plot_speedup(out, cells):
    works = [("few-shot 10", []), ("few-shot 20", []), ("few-shot 50", []), ("sorting", ["sorting, 1 tree"]),
             ("docmerge", ["docmerge, 1 tree"])]
    lines = []
    for name, others in works:
        row = []
        for mode in BASELINES:
            found = [cells[("llama2-7b", w)][mode]["ratio"] for w in [name] + others
                     if ok(cells.get(("llama2-7b", w), {}), mode)]
            row.append(f"{found[0]:.3f}" if found else "NaN")
        lines.append(f'"{name}" ' + " ".join(row))
    data = "$d << EOD\n" + "\n".join(lines) + "\nEOD\n"
    gnuplot(out, "speedup", data + """set style data histograms
set style fill solid 0.85 border -1
set boxwidth 0.9
set yrange [0:*]
set grid ytics
set key top left
set ylabel 'time of a step over that with libdeft'
set title 'Llama-2-7B geometry, H200: whole steps, products included'
plot 1 notitle with lines lc '#888888', $d using 2:xtic(1) title 'sequence, KV shared in memory' lc '#4477aa', \\
  '' using 3 title 'unfused tree attention' lc '#ccbb44', '' using 4 title 'sequence, a copy of the KV each' lc '#ee6677'
""")


def plot_curve(out, cells):
    """Time of a step, and live leaves: medians of so many steps that 400 points are left."""
    path = os.path.join(out, "curve.txt")
    if not os.path.exists(path):
        return
    series = {}
    with open(path) as f:
        for line in f:
            mode, index, rows, ms = line.split()
            series.setdefault(mode, []).append((int(index), int(rows), float(ms)))
    n = len(series["auto"])
    data = ""
    for mode, points in series.items():
        smooth = []
        stride = max(1, n // 400)
        for i in range(0, n, stride):
            some = points[i:i + stride]
            smooth.append((some[0][0], some[0][1], sorted(p[2] for p in some)[len(some) // 2]))
        data += f"${mode} << EOD\n" + "\n".join("%d %d %.4f" % p for p in smooth) + "\nEOD\n"
    titles = {"auto": "libdeft", "sequence": "sequence, KV shared", "copies": "sequence, copies", "unfused": "unfused tree"}
    colors = {"auto": "#228833", "sequence": "#4477aa", "copies": "#ee6677", "unfused": "#ccbb44"}
    lines = [f"${m} using 1:3 with lines lw 1.5 lc '{colors[m]}' title '{titles[m]}'" for m in titles if m in series]
    gnuplot(out, "curve", data + """set ylabel 'milliseconds a step'
set y2label 'live leaves'
set y2tics
set ytics nomirror
set yrange [0:*]
set y2range [0:*]
set xlabel 'decode step (the trees one after the other)'
set key top left
set title 'Sorting by Tree of Thoughts, Llama-2-7B geometry, H200'
plot $auto using 1:2 axes x1y2 with filledcurves y1=0 lc '#dddddd' title 'live leaves', """ + ", ".join(lines) + "\n")


def main():
    out = sys.argv[1]
    cells = load(out)
    with open(os.path.join(out, "machine.txt")) as f:
        machine = f.read().split("\n")
    text = [f"{machine[0]}; {machine[1]}. Weights of these geometries are random: for time, not for text.",
            *machine[2:-1], "", "## End to end", ""] + end_to_end(cells)
    text += ["## Attention of all layers, in the middle of the search", ""] + attention(cells)
    text += ["## Bytes", ""] + bytes_moved(cells) + ["## Where a step goes", ""] + parts(cells)
    text += ["## Splits (20 leaves, prompt 4,000), milliseconds a step", ""] + splits(cells)
    text += ["## Scaling (llama3-8b)", ""] + scaling(cells) + ["## Device memory", ""] + memory(cells) + twice(cells)
    text += errors(cells)
    with open(os.path.join(out, "results.md"), "w") as f:
        f.write("\n".join(text) + "\n")
    plot_speedup(out, cells)
    plot_curve(out, cells)


main()
