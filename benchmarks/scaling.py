"""Plans of RetinaNet-50's train step for TPUs, by the TPU compiler: memory, arithmetic, communication, a roofline.

python benchmarks/scaling.py [--only NAME,NAME] [--write]

Runs the list of `focaljax plan` commands below, one after the other, each some minutes, and keeps their JSON files in
benchmarks/results/scaling/; what is there is not run again. Then, with --write, the tables between the marks in
docs/scaling.md and the picture docs/images/scaling.png are made anew from all that is there.
"""

import argparse
import json
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import command
import report

from focaljax.training.topologies import CHIPS as CHIP_FACTS

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "scaling.md"
PLOT = ROOT / "docs" / "images" / "scaling.png"
FOLDER = command.RESULTS / "scaling"
CONFIG = "configs/coco_r50_1x.py"
PER_CHIP = 8
COLORS = {"v5e": "#1b5e8c", "v5p": "#b35900", "v6e": "#3a7d44", "gpu": "#76448a"}

_BF16 = ("--config.model.dtype=bfloat16",)


def _plan(topology: str, batch: int, *overrides: str) -> list[str]:
    return ["plan", "--config", CONFIG, "--topology", topology, "--batch", str(batch), *overrides]


# Name -> arguments of focaljax. Half the batch is compiled too, for the batch that would fit, in LARGEST only.
CHIPS = {
    f"{topology.replace(':', '_')}": _plan(topology, PER_CHIP * chips, *_BF16, "--nofit")
    for topology, chips in (
        ("v5e:2x2", 4),
        ("v6e:2x2", 4),
        ("v5p:2x2x1", 4),
        ("v5e:4x4", 16),
        ("v5e:8x8", 64),
        ("v6e:8x8", 64),
        ("v5p:4x4x4", 64),
        ("v6e:4x4", 16),
        ("v5p:2x2x4", 16),
        ("gpu:8", 8),
    )
}
_REMAT, _ACCUMULATE = "--config.model.remat=true", "--config.optim.accumulate=2"


def _settings(topology: str, devices: int) -> dict[str, list[str]]:
    name, batch = topology.replace(":", "_"), PER_CHIP * devices
    return {
        name: CHIPS[name],
        f"{name}_remat": _plan(topology, batch, *_BF16, _REMAT, "--nofit"),
        f"{name}_accumulate": _plan(topology, batch, *_BF16, _ACCUMULATE, "--nofit"),
        f"{name}_float32": _plan(topology, batch, "--nofit"),
        f"{name}_float32_remat": _plan(topology, batch, _REMAT, "--nofit"),
        f"{name}_float32_accumulate": _plan(topology, batch, _ACCUMULATE, "--nofit"),
    }


SETTINGS, SETTINGS_GPU = _settings("v5e:2x2", 4), _settings("gpu:8", 8)
LARGEST = {"v5e_4x4_256": _plan("v5e:4x4", 256, *_BF16), "gpu_8_128": _plan("gpu:8", 128, *_BF16)}
PLANS = {**CHIPS, **LARGEST, **SETTINGS, **SETTINGS_GPU}


def main(arguments: list[str] | None = None) -> None:
    """Runs the plans that are missing, and writes the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = tuple(PLANS)
    parser.add_argument("--only", type=command.some_of(names), default=names, metavar="NAME,NAME", help="of the plans")
    parser.add_argument("--write", action="store_true", help="docs/scaling.md and its picture")
    parser.add_argument("--out", type=pathlib.Path, default=FOLDER, metavar="DIR", help="of the JSON files")
    options = parser.parse_args(arguments)
    for name in options.only:
        run(name, options.out)
    if options.write:
        results = load(options.out)
        DOCUMENT.write_text(replaced(DOCUMENT.read_text(), tables(results)))
        draw(results, PLOT)


def run(name: str, folder: pathlib.Path) -> None:
    """Runs one plan, unless its JSON file is there."""
    out = folder / f"{name}.json"
    if out.exists():
        return
    print(f"\n{name}: {shown(PLANS[name])}", flush=True)
    temporary = out.with_suffix(".tmp")
    subprocess.run([sys.executable, "-m", "focaljax", *PLANS[name], "--json", str(temporary)], check=True, cwd=ROOT)
    result = json.loads(temporary.read_text()) | {"command": shown(PLANS[name]), "commit": report.commit()}
    report.write(out, result)
    temporary.unlink()


def load(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Returns the results by the name of their plan."""
    files = {name: folder / f"{name}.json" for name in PLANS}
    return {name: json.loads(path.read_text()) for name, path in files.items() if path.exists()}


def shown(arguments: Iterable[str]) -> str:
    """Returns the command as a person types it."""
    return shlex.join(["focaljax", *arguments])


def tables(results: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Returns the Markdown tables by the name of their mark."""
    return {
        "facts": _facts(results),
        "chips": _table(results, CHIPS, by_settings=False),
        "largest": _largest(results),
        "settings": _table(results, SETTINGS, by_settings=True),
        "settings of GPUs": _table(results, SETTINGS_GPU, by_settings=True),
        "traffic": _traffic(results),
        "commands": "\n".join(["```sh", *dict.fromkeys(shown(PLANS[name]) for name in PLANS), "```"]),
        "versions": _versions(results),
    }


def replaced(text: str, parts: dict[str, str]) -> str:
    """Returns the document with what is between `<!-- NAME -->` and `<!-- end -->` replaced."""
    for name, part in parts.items():
        before, mark, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not (mark and end):
            raise ValueError(f"{DOCUMENT} lacks the marks <!-- {name} --> and <!-- end -->")
        text = f"{before}{mark}{part}\n{end}{after}"
    return text


def draw(results: dict[str, dict[str, Any]], path: pathlib.Path) -> None:
    """Draws the roofline's images/s, and memory by what it is for, over the number of chips."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    some = [results[name] for name in CHIPS if name in results and results[name]["program"]]
    figure, (speed, memory) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for kind, color in COLORS.items():
        of_kind = sorted((r for r in some if r["topology"].startswith(kind)), key=lambda r: r["devices"])
        if not of_kind:
            continue
        chips = [r["devices"] for r in of_kind]
        speed.plot(chips, [r["roofline"]["images_per_second"] for r in of_kind], "o-", color=color, label=kind)
        needed = [sum(r["program"]["memory"].values()) / 2**30 for r in of_kind]
        memory.plot(
            chips, needed, "o-", color=color, label=f"{kind}: {of_kind[0]['hbm_for_programs'] / 2**30:.2f} there"
        )
    speed.set(xscale="log", yscale="log", title="images/s at most (roofline, an estimate)", xlabel="chips")
    memory.set(xscale="log", title=f"GiB on each chip, {PER_CHIP} images each", xlabel="chips", ylim=(0, None))
    for axis in (speed, memory):
        axis.set_xlim(3, 85)
        axis.set_xticks([4, 8, 16, 64], ["4", "8", "16", "64"])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _facts(results: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| chip | HBM | of it for programs | peak, bfloat16 | memory bandwidth | links, one direction | source |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, chip in CHIP_FACTS.items():
        said = next((r["hbm_for_programs"] for r in results.values() if r["topology"].startswith(kind)), None)
        usable = f"{said / 2**30:.2f} GiB" if said else "not asked yet"
        peak = f"{chip.flops / 1e12:.0f} TFLOP/s"
        bandwidths = f"{chip.hbm_bandwidth / 1e9:.0f} GB/s | {chip.link_bandwidth / 1e9:.0f} GB/s"
        lines.append(
            f"| {kind} | {chip.hbm_bytes / 2**30:.0f} GiB | {usable} | {peak} | {bandwidths} | "
            f"[{chip.name}]({chip.source}) |"
        )
    return "\n".join(lines)


def _table(results: dict[str, dict[str, Any]], plans: dict[str, list[str]], *, by_settings: bool) -> str:
    first = "setting" if by_settings else "chips"
    lines = [
        f"| {first} | images a step | temporaries GiB | all GiB | of | TFLOP a step, traced (compiler) | sent by a "
        "chip, MiB | ms: arithmetic, memory, links | images/s at most | a chip |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in plans:
        result = results.get(name)
        what = _setting(name) if by_settings else _topology(name)
        if result is None:
            lines.append(f"| {what} | | not compiled yet | | | | | | | |")
            continue
        lines.append(f"| {what} | {result['batch_size']} | {_numbers(result)} |")
    return "\n".join(lines)


def _numbers(result: dict[str, Any]) -> str:
    program, hbm = result["program"], f"{result['hbm_for_programs'] / 2**30:.2f}"
    if program is None:
        return f"does not fit | | {hbm} | {result['traced_flops'] / 1e12:.1f} | | | | "
    memory, best = program["memory"], result["roofline"]
    sent = sum(one["sent_bytes"] for one in program["collectives"]) / 2**20
    counted = "?" if program["flops"] is None else f"{program['flops'] * result['devices'] / 1e12:.1f}"
    flops = f"{result['traced_flops'] / 1e12:.1f} ({counted})"
    needs = f"{memory['temporaries'] / 2**30:.2f} | {sum(memory.values()) / 2**30:.2f} | {hbm} | {flops} | {sent:.0f}"
    if best is None:
        return f"{needs} | | | "
    times = ", ".join(f"{1e3 * best[part]:.1f}" for part in ("compute", "memory", "communication"))
    speed = best["images_per_second"]
    return f"{needs} | {times} | {speed:,.0f} | {speed / result['devices']:.0f}"


def _largest(results: dict[str, dict[str, Any]]) -> str:
    lines = [_table(results, LARGEST, by_settings=False), ""]
    for name in LARGEST:
        largest = results.get(name, {}).get("largest")
        if largest is None:
            continue
        images, chips = largest["images_per_device"], results[name]["devices"]
        how = f"an estimate by {largest['by']}" if largest["method"] == "estimate" else f"compiled; {largest['by']}"
        lines.append(f"- {_topology(name)}: {images} images a chip, {images * chips} a step ({how}).")
    return "\n".join(lines)


def _traffic(results: dict[str, dict[str, Any]]) -> str:
    lines = ["| | GB a step and chip, of the text | `bytes accessed` |", "|---|---|---|"]
    for name in CHIPS:
        program = results.get(name, {}).get("program")
        if program and program["bytes_accessed"] and program["traffic"]:
            lines.append(
                f"| {_topology(name)} | {program['traffic'] / 1e9:.1f} | {program['bytes_accessed'] / 1e9:.1f} |"
            )
    return "\n".join(lines)


def _topology(name: str) -> str:
    kind, shape, *_ = name.split("_")
    return f"{kind}:{shape}"


def _setting(name: str) -> str:
    words = name.split("_")[2:]
    dtype = "float32" if "float32" in words else "bfloat16"
    others = {"remat": "`model.remat`", "accumulate": "`optim.accumulate=2`"}
    return ", ".join([dtype, *(others[word] for word in words if word in others)])


def _versions(results: dict[str, dict[str, Any]]) -> str:
    found = set()
    for result in results.values():
        versions = sorted((name, version) for name, version in result["versions"].items() if version)
        shown_versions = [f"{name} {version}" for name, version in versions]
        found.add(", ".join([*shown_versions, f"commit {result['commit'][:7]}"]))
    return "\n".join(f"- {line}" for line in sorted(found))


if __name__ == "__main__":
    main()
