r"""Times the whole training step of a RetinaNet against torchvision's own, and checks that both do the same.

python benchmarks/train.py [--python-with-torch PATH] [--work r50|mlperf] [--sizes 256,512] [--batch 2]
    [--dtype float32|bfloat16] [--peers eager,channels_last,compile,compile_channels_last] ...

A step: the batch, uint8 images and boxes, goes from the host to the device; normalisation, matching, both losses,
backward pass, SGD with momentum and weight decay. The transfer is in the time of all, decoding and resizing are in
nobody's. The first two of the backbone's five parts and all of its normalisation are frozen, as torchvision trains on a
pretrained backbone. bfloat16: of the activations; autocast in PyTorch. Peers: torchvision's model as it is, in
channels_last, and both under torch.compile in its default mode, which compiles for minutes and is run only on demand.
Before anything is timed, with equal weights, both losses must agree in each of the first three steps.

FLOPs are XLA's count for the step of focaljax before the compiler changes it, and are taken for all; PyTorch's own
count is beside it, and is higher, as it counts the products with the zeros of padding too. The peak is, on the CPU,
what a large float32 matrix product reaches in the same rounds, in JAX or PyTorch, whichever is faster; on a GPU the
published one (PEAKS). Memory is that at the peak of a step, weights and momentum included: from the compiler's plan
for JAX, measured for PyTorch.

On a GPU: python benchmarks/train.py --device gpu --sizes 800 --batch 16 --dtype bfloat16 \
    --peers channels_last,compile_channels_last

torchvision may live in another environment (--python-with-torch); if it is not installed, it is listed as such.
Prints a table and writes JSON with every time, the machine, the versions, the seed, the commit and the date.
"""

import argparse
import contextlib
import dataclasses
import sys
from typing import Any

import command
import report
from interleaved import Timing, Turn, Worker, WorkerError, time_in_rounds

MIB = 2**20

OURS = "focaljax"
TITLES = {
    OURS: "focaljax",
    "eager": "torchvision, eager",
    "channels_last": "torchvision, channels_last",
    "compile": "torch.compile",
    "compile_channels_last": "torch.compile, channels_last",
}
PEERS = tuple(TITLES)[1:]
PRODUCTS = {"product by jax": "JAX", "product by torch": "PyTorch"}
PRODUCT_SIDE = 2048

# Largest relative difference of a loss from ours. L1 has a gradient of -1 or 1: one box that crosses its target a
# rounding earlier is seen in the next step.
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}

# GFLOP/s without sparsity, float32 as TF32, in which both libraries compute float32 convolutions if not told otherwise.
# NVIDIA: "H100 Tensor Core GPU Architecture" (tables 1 and 2), "A100 Tensor Core GPU Architecture" (table 1), data
# sheet of the H200.
_A100 = {"bfloat16": 312_000, "float32": 156_000}
_H100 = {"bfloat16": 989_400, "float32": 494_700}
PEAKS = {
    "NVIDIA A100-SXM4-40GB": _A100,
    "NVIDIA A100-SXM4-80GB": _A100,
    "NVIDIA H100 80GB HBM3": _H100,
    "NVIDIA H100 PCIe": {"bfloat16": 756_000, "float32": 378_000},
    "NVIDIA H200": _H100,
}


@dataclasses.dataclass(frozen=True)
class Network:
    """A published RetinaNet.

    Attributes:
        variant: its name in focaljax.
        backbone: its name in torchvision.
        num_classes: K.
        norm_epsilon: of the frozen normalisation.
    """

    variant: str
    backbone: str
    num_classes: int
    norm_epsilon: float


NETWORKS = {
    "r50": Network("torchvision_v1", "resnet50", 91, 0.0),
    "mlperf": Network("mlperf", "resnext50_32x4d", 264, 1e-5),
}
SIZES = {"r50": (256, 512), "mlperf": (800,)}


def main(arguments: list[str] | None = None) -> None:
    """Runs the benchmark."""
    options = _parse(arguments)
    sizes = options.sizes or SIZES[options.work]
    names = {"train_with_jax": [f"{OURS}/{size}" for size in sizes]}
    if options.peers:
        names["train_with_torch"] = [f"{peer}/{size}" for size in sizes for peer in options.peers]
    if options.device == "cpu":
        for product, module in zip(PRODUCTS, names):
            names[module].append(f"{product}/{PRODUCT_SIDE}")
    network = NETWORKS[options.work]
    batch = {"batch_size": options.batch, "num_boxes": options.boxes, "num_classes": network.num_classes}
    settings = {name: getattr(options, name) for name in ("dtype", "device", "threads")}
    settings |= {"network": dataclasses.asdict(network), "batch": batch | {"seed": options.seed}}

    with contextlib.ExitStack() as stack:
        turns: list[Turn] = []
        first_answers = []
        reports: dict[str, dict[str, Any]] = {}
        for module, contestants in names.items():
            python = sys.executable if module == "train_with_jax" else options.python_with_torch
            worker = stack.enter_context(Worker(python, {"module": module, "contestants": contestants, **settings}))
            # One after the other: how long they compile is measured.
            first_answers.append(worker.answer())
            for key, one in first_answers[-1]["contestants"].items():
                reports[key] = one
                if one["status"] == "ok":
                    turns += [Turn(worker, key, part, calls) for part, calls in one["calls"].items()]
        for size in sizes:
            if (status := reports[f"{OURS}/{size}"]["status"]) != "ok":
                raise WorkerError(f"focaljax itself does not run: {status}")
            check_agreement(size, reports, options.dtype)
        timings = time_in_rounds(turns, options.rounds, options.seed)
    provenance = report.provenance(first_answers, options.device)
    peak = (
        measured_peak(timings)
        if options.device == "cpu"
        else published_peak(provenance["machine"]["processor"], options.dtype)
    )
    result = {
        "work": {
            "name": options.work,
            **settings["network"],
            "batch_size": options.batch,
            "boxes": options.boxes,
            "dtype": options.dtype,
            "device": options.device,
            "threads": options.threads if options.device == "cpu" else None,
            "seed": options.seed,
            "rounds": options.rounds,
        },
        **provenance,
        "peak": peak,
        "sizes": [_entry(size, options, reports, timings, peak) for size in sizes],
    }
    report.publish(result, table(result), options.out, reports)


def check_agreement(size: int, reports: dict[str, dict[str, Any]], dtype: str) -> None:
    """Raises DisagreementError if a peer that ran has other losses than ours in one of the first steps.

    Args:
        size: of the images.
        reports: of the workers, by contestant.
        dtype: of the activations, which sets the tolerance.
    """
    tolerance = TOLERANCE[dtype]
    ours = reports[f"{OURS}/{size}"]["answer"]["losses"]
    faults = []
    for peer in PEERS:
        one = reports.get(f"{peer}/{size}", {"status": "not run"})
        if one["status"] != "ok":
            continue
        for step, pair in enumerate(zip(ours, one["answer"]["losses"], strict=True)):
            for name, wanted, got in zip(("classification", "box"), *pair, strict=True):
                # Written so that NaN is not right.
                if not abs(got - wanted) <= tolerance * abs(wanted):
                    faults.append(f"{peer}: {name} loss of step {step} is {got}, that of focaljax {wanted}")
    if faults:
        raise report.DisagreementError(f"{size} px: losses differ by more than {tolerance:g}:\n" + "\n".join(faults))


def measured_peak(timings: dict[tuple[str, str], Timing]) -> dict[str, Any]:
    """Returns the GFLOP/s of the fastest of the matrix products that were timed, and which that is."""
    medians = {
        title: timings[key, "product"].median
        for name, title in PRODUCTS.items()
        if (key := f"{name}/{PRODUCT_SIDE}", "product") in timings
    }
    fastest = min(medians, key=lambda title: medians[title])
    return {
        "gflop_per_second": round(2e-9 * PRODUCT_SIDE**3 / medians[fastest], 1),
        "source": f"float32 product of matrices of {PRODUCT_SIDE} x {PRODUCT_SIDE} by {fastest}, measured",
    }


def published_peak(device_name: str, dtype: str) -> dict[str, Any] | None:
    """Returns the published dense GFLOP/s of a GPU; None if it is not in PEAKS."""
    if device_name not in PEAKS:
        return None
    return {"gflop_per_second": PEAKS[device_name][dtype], "source": f"NVIDIA's for {device_name}, dense"}


def table(result: dict[str, Any]) -> str:
    """Returns the result for a person to read."""
    work, peak = result["work"], result["peak"]
    threads = f", {work['threads']} threads" if work["threads"] else ""
    lines = [
        f"{work['backbone']}, {work['num_classes']} classes, batch {work['batch_size']}, {work['boxes']} boxes each",
        f"{work['dtype']}, {work['device']}{threads}: {result['machine']['processor']}",
        f"peak: {peak['gflop_per_second']:.0f} GFLOP/s, {peak['source']}" if peak else "peak: not known of this device",
    ]
    for entry in result["sizes"]:
        by_torch = entry["gflop_by_torch"]
        beside = "" if by_torch is None else f" (PyTorch counts {by_torch:.0f})"
        lines += ["", f"{entry['size']} x {entry['size']}: {entry['gflop']:.0f} GFLOP a step{beside}"]
        lines.append(
            f"{'':30}{'median ms':>10}{'min ms':>9}{'ratio':>7}{'images/s':>10}{'GFLOP/s':>9}{'of peak':>9}"
            f"{'MiB':>8}{'compile s':>11}{'rounds':>8}"
        )
        lines += [_line(row) for row in entry["contestants"]]
    notes = (
        "ratio: time by that of focaljax; MiB: at the peak of a step, weights and momentum included; rounds: those\n"
        f"not disturbed, of which the medians are (of all {work['rounds']} if fewer than 3); -: not measured"
    )
    return "\n".join([*lines, "", notes])


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = command.parser("train", __doc__, rounds=11)
    command.add_device(parser)
    command.add_python(parser, "torch")
    parser.add_argument("--work", choices=NETWORKS, default="r50", help="default: r50")
    parser.add_argument("--sizes", type=_sizes, metavar="PX,..", help="default: 256,512; of mlperf 800")
    parser.add_argument("--batch", type=command.count, default=2, metavar="B", help="default: 2")
    parser.add_argument("--boxes", type=command.count, default=8, metavar="N", help="on each image, default: 8")
    parser.add_argument("--dtype", choices=TOLERANCE, default="float32", help="default: float32")
    peers = command.some_of(PEERS)
    parser.add_argument(
        "--peers", type=peers, default=("eager", "channels_last"), metavar=",".join(PEERS), help="'' for none"
    )
    return parser.parse_args(arguments)


def _sizes(text: str) -> tuple[int, ...]:
    sizes = command.counts(text)
    if odd := [size for size in sizes if size % 32]:
        raise argparse.ArgumentTypeError(f"{odd[0]} is no multiple of 32, to which torchvision would pad the images")
    return sizes


def _entry(
    size: int,
    options: argparse.Namespace,
    reports: dict[str, dict[str, Any]],
    timings: dict[tuple[str, str], Timing],
    peak: dict[str, Any] | None,
) -> dict[str, Any]:
    answers = {name: reports.get(f"{name}/{size}", {}).get("answer", {}) for name in TITLES}
    gflop = 1e-9 * answers[OURS]["flops"]
    by_torch = next((one["flops"] for one in answers.values() if one is not answers[OURS] and one.get("flops")), None)
    rows = []
    for name in (OURS, *options.peers):
        key = f"{name}/{size}"
        row: dict[str, Any] = {"name": TITLES[name], "status": reports[key]["status"]}
        rows.append(row)
        if row["status"] != "ok":
            continue
        timing, temporaries = timings[key, "value"], reports[key]["temporaries"]["value"]
        per_second = gflop / timing.median
        compile_seconds = answers[name]["compile_seconds"]
        row |= report.times(
            timing, ours=timings[f"{OURS}/{size}", "value"], calls=reports[key]["calls"]["value"], digits=2
        )
        row |= {
            "images_per_second": round(options.batch / timing.median, 3),
            "gflop_per_second": round(per_second, 2),
            "share_of_peak": round(per_second / peak["gflop_per_second"], 4) if peak else None,
            "peak_mib": None if temporaries is None else round((answers[name]["bytes_held"] + temporaries) / MIB, 1),
            "compile_seconds": None if compile_seconds is None else round(compile_seconds, 1),
        }
    return {
        "size": size,
        "gflop": round(gflop, 2),
        "gflop_by_torch": None if by_torch is None else round(1e-9 * by_torch, 2),
        "losses": answers[OURS]["losses"],
        "contestants": rows,
    }


def _line(row: dict[str, Any]) -> str:
    if row["status"] != "ok":
        return f"{row['name']:30}  {row['status'].splitlines()[0][:100]}"
    share, mib, compile_seconds = (
        "-" if row[key] is None else form.format(row[key])
        for key, form in (("share_of_peak", "{:.1%}"), ("peak_mib", "{:.0f}"), ("compile_seconds", "{:.1f}"))
    )
    return (
        f"{row['name']:30}{row['median_ms']:10.1f}{row['min_ms']:9.1f}{row['times_focaljax']:7.2f}"
        f"{row['images_per_second']:10.2f}{row['gflop_per_second']:9.1f}{share:>9}{mib:>8}{compile_seconds:>11}"
        f"{row['undisturbed_rounds']:8}"
    )


if __name__ == "__main__":
    command.run(main)
