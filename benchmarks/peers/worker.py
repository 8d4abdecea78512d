"""One process of a benchmark: builds contestants, then runs one at a time when told to; started by interleaved.py.

It reads one JSON object a line from its input and answers each with one; between them it sleeps.
"""

import importlib
import importlib.metadata
import json
import os
import platform
import sys
import time

# A shorter turn could not be judged: /proc/stat counts in steps of 0.01 s.
SECONDS_A_TURN = 0.25
# Calls that a GPU may have queued: each holds its results, of the size of the logits.
MOST_QUEUED = 10


def main() -> None:
    """Runs the worker: settings in the first argument, orders in the standard input."""
    settings = json.loads(sys.argv[1])
    # Libraries print what they like; only answers go to the parent.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    on_cpu = settings["device"] == "cpu"
    if on_cpu and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: settings["threads"]])
    built, report = {}, {}
    try:
        module = importlib.import_module(settings["module"])
        work = {key: value for key, value in settings.items() if key not in ("module", "contestants")}
        library = module.Library(**work)
    except ModuleNotFoundError as error:
        report = {name: {"status": f"not installed ({error.name})"} for name in settings["contestants"]}
        module = library = None
    for name in settings["contestants"] if library is not None else ():
        report[name] = {}
        try:
            parts = library.build(name)
            report[name]["temporaries"] = {part: library.temporaries(run) for part, run in parts.items()}
            if "value" in parts:
                report[name]["answer"] = library.answer(parts)
            report[name]["calls"] = {part: _calls_a_turn(library, run) for part, run in parts.items()}
            report[name]["status"] = "ok"
            built[name] = parts
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in module.PACKAGES:
                raise
            report[name]["status"] = f"not installed ({error.name})"
        except Exception as error:  # one peer's failure is a line in the table, not the end of the others
            report[name]["status"] = f"failed: {type(error).__name__}: {error}"
            report[name]["error"] = True
    versions = _versions(module.PACKAGES if module else ())
    name = library.device_name if library is not None else None
    print(json.dumps({"contestants": report, "versions": versions, "device": name}), file=answers)

    for line in sys.stdin:
        order = json.loads(line)
        run = built[order["contestant"]][order["part"]]
        print(json.dumps(_turn(library, run, order["calls"], on_cpu)), file=answers)


def _turn(library, run, calls: int, on_cpu: bool) -> dict:
    """Returns seconds a call, and how many processor cores others used meanwhile (None: not known)."""
    library.synchronize(run())  # the turn before was another's: wakes threads, brings back clocks and code
    before, own = _busy_seconds(), time.process_time()
    start = time.perf_counter()
    for call in range(1, calls + 1):
        result = run()
        # A CPU may begin a second call beside the first; a GPU queues, and waiting would add the launch to each.
        if on_cpu or call % MOST_QUEUED == 0 or call == calls:
            library.synchronize(result)
    elapsed = time.perf_counter() - start
    own, after = time.process_time() - own, _busy_seconds()
    others = None if before is None or after is None else max(0.0, (after - before - own) / elapsed)
    return {"seconds": elapsed / calls, "others": others if on_cpu else None}


def _calls_a_turn(library, run) -> int:
    library.synchronize(run())
    start = time.perf_counter()
    library.synchronize(run())
    return max(1, min(100, round(SECONDS_A_TURN / (time.perf_counter() - start))))


def _busy_seconds() -> float | None:
    """Returns the seconds that all processors of the machine have worked or were withheld; None where not told."""
    try:
        with open("/proc/stat") as file:
            fields = [int(field) for field in file.readline().split()[1:]]
    except OSError:
        return None
    user, nice, system, _idle, _wait, interrupt, soft_interrupt, stolen = fields[:8]
    return (user + nice + system + interrupt + soft_interrupt + stolen) / os.sysconf("SC_CLK_TCK")


def _versions(packages) -> dict:
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
