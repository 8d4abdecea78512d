"""The names of a RetinaNet's weights in focaljax, torchvision and detectron2, and what is wrong with a set of names."""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

# Leaf of a layer elsewhere -> leaf in focaljax.
LEAVES = {
    "conv": {"weight": "kernel"},
    "conv_bias": {"weight": "kernel", "bias": "bias"},
    "batch_norm": {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"},
    "group_norm": {"weight": "scale", "bias": "bias"},
}
COUNTER = "num_batches_tracked"

_SHOWN = 20


class WeightsError(ValueError):
    """Weights that cannot be read, or that do not fit; the message says which, why and what to do."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer with weights.

    Attributes:
        kind: a key of `LEAVES`.
        focaljax: its path in the variables, below the collection.
        torchvision: its prefix in a detector's state_dict; a classification network's lacks `TORCHVISION_BODY`.
        detectron2: likewise.
    """

    kind: str
    focaljax: str
    torchvision: str
    detectron2: str


@dataclasses.dataclass(frozen=True)
class Parts:
    """What decides which layers a network has.

    Attributes:
        blocks: of each of the four stages.
        convs: of a block; 2 or 3.
        is_detector: whether there are a pyramid and heads.
        laterals: pyramid levels with a lateral convolution.
        tops: coarser pyramid levels, some of 6 and 7.
        depth: hidden layers of each head.
        has_head_norm: whether each is followed by a group normalisation.
    """

    blocks: tuple[int, ...]
    convs: int
    is_detector: bool
    laterals: tuple[int, ...] = ()
    tops: tuple[int, ...] = ()
    depth: int = 0
    has_head_norm: bool = False


TORCHVISION_BODY = "backbone.body."
DETECTRON2_BODY = "backbone.bottom_up."


def layers(parts: Parts) -> Iterator[Layer]:
    """Yields the layers in torchvision's order; each normalisation follows its convolution. This is the table of names.

    Args:
        parts: of the network.
    """
    yield Layer("conv", "backbone/conv1", f"{TORCHVISION_BODY}conv1", f"{DETECTRON2_BODY}stem.conv1")
    yield Layer("batch_norm", "backbone/bn1", f"{TORCHVISION_BODY}bn1", f"{DETECTRON2_BODY}stem.conv1.norm")
    for stage, blocks in enumerate(parts.blocks, start=1):
        for block in range(blocks):
            ours = f"backbone/layer{stage}_{block}"
            theirs, d2 = f"{TORCHVISION_BODY}layer{stage}.{block}", f"{DETECTRON2_BODY}res{stage + 1}.{block}"
            for i in range(1, parts.convs + 1):
                yield Layer("conv", f"{ours}/conv{i}", f"{theirs}.conv{i}", f"{d2}.conv{i}")
                yield Layer("batch_norm", f"{ours}/bn{i}", f"{theirs}.bn{i}", f"{d2}.conv{i}.norm")
            # A basic block of the first stage changes neither the resolution nor the number of channels.
            if block == 0 and (stage > 1 or parts.convs == 3):
                yield Layer("conv", f"{ours}/downsample_conv", f"{theirs}.downsample.0", f"{d2}.shortcut")
                yield Layer("batch_norm", f"{ours}/downsample_bn", f"{theirs}.downsample.1", f"{d2}.shortcut.norm")
    if not parts.is_detector:
        return
    for part, block_name in (("lateral", "inner_blocks"), ("output", "layer_blocks")):
        for k, level in enumerate(parts.laterals):
            theirs = f"backbone.fpn.{block_name}.{k}.0"
            yield Layer("conv_bias", f"fpn/{part}{level}", theirs, f"backbone.fpn_{part}{level}")
    for level in parts.tops:
        theirs = f"backbone.fpn.extra_blocks.p{level}"
        yield Layer("conv_bias", f"fpn/p{level}", theirs, f"backbone.top_block.p{level}")
    for ours, theirs, output, d2, d2_output in (
        ("class_head", "head.classification_head", "cls_logits", "head.cls_subnet", "head.cls_score"),
        ("box_head", "head.regression_head", "bbox_reg", "head.bbox_subnet", "head.bbox_pred"),
    ):
        for i in range(parts.depth):
            # detectron2 numbers the ReLUs between the convolutions too.
            kind = "conv" if parts.has_head_norm else "conv_bias"
            yield Layer(kind, f"{ours}/conv{i}", f"{theirs}.conv.{i}.0", f"{d2}.{2 * i}")
            if parts.has_head_norm:
                yield Layer("group_norm", f"{ours}/norm{i}/group_norm", f"{theirs}.conv.{i}.1", f"{d2}.norm{i}")
        yield Layer("conv_bias", f"{ours}/output", f"{theirs}.{output}", d2_output)


@dataclasses.dataclass(frozen=True)
class _Patterns:
    """Regular expressions that find the parts of a network in its names; the numbers are their groups."""

    block: str  # stage, block, convolution
    first_stage: int
    lateral: str
    top: str
    hidden: str
    hidden_step: int
    head_norm: str
    detector: str


# Two digits at most: a number in a broken file must not make a table of millions of names.
_PATTERNS = {
    "focaljax": _Patterns(
        block=r"^backbone/layer([1-4])_(\d{1,2})/conv([1-3])/",
        first_stage=1,
        lateral=r"^fpn/lateral([2-5])/",
        top=r"^fpn/p([67])/",
        hidden=r"_head/conv(\d{1,2})/",
        hidden_step=1,
        head_norm=r"_head/norm\d+/",
        detector=r"^(fpn|class_head|box_head)/",
    ),
    "torchvision": _Patterns(
        block=r"(?:^|\.)layer([1-4])\.(\d{1,2})\.conv([1-3])\.",
        first_stage=1,
        lateral=r"\.inner_blocks\.([0-3])\.",
        top=r"\.extra_blocks\.p([67])\.",
        hidden=r"_head\.conv\.(\d{1,2})\.",
        hidden_step=1,
        head_norm=r"_head\.conv\.\d+\.1\.",
        detector=r"^(backbone\.|head\.)",
    ),
    "detectron2": _Patterns(
        block=r"(?:^|\.)res([2-5])\.(\d{1,2})\.conv([1-3])\.",
        first_stage=2,
        lateral=r"\.fpn_lateral([2-5])\.",
        top=r"\.top_block\.p([67])\.",
        hidden=r"_subnet\.(\d{1,2})\.",
        hidden_step=2,
        head_norm=r"(?!)",  # such a head has biases before its normalisations, which ours has not
        detector=r"^(backbone\.fpn|backbone\.top|head\.)",
    ),
}


def find_parts(names: Iterable[str], source: str) -> Parts:
    """Returns the parts of the network whose weights have these names.

    Args:
        names: of all weights; unknown ones are passed over.
        source: 'focaljax' (paths below the collection), 'torchvision' (newest names) or 'detectron2'.
    """
    patterns, names = _PATTERNS[source], list(names)
    found = _numbers(patterns.block, names)
    stages = range(patterns.first_stage, patterns.first_stage + 4)
    blocks = tuple(max((block + 1 for stage, block, _ in found if stage == s), default=1) for s in stages)
    laterals = sorted({level for (level,) in _numbers(patterns.lateral, names)})
    if source == "torchvision":
        # It numbers them from 0, finest level first; the coarsest is always of C5.
        laterals = list(range(5 - max(laterals, default=2), 6))
    hidden = [index for (index,) in _numbers(patterns.hidden, names)]
    return Parts(
        blocks=blocks,
        convs=max((conv for _, _, conv in found), default=2),
        is_detector=any(re.search(patterns.detector, name) for name in names),
        laterals=tuple(laterals),
        tops=tuple(sorted({level for (level,) in _numbers(patterns.top, names)})),
        depth=max((index // patterns.hidden_step + 1 for index in hidden), default=0),
        has_head_norm=any(re.search(patterns.head_norm, name) for name in names),
    )


def newest_torchvision_names(names: Iterable[str]) -> dict[str, str]:
    """Returns for each name what torchvision calls that weight now.

    Up to 0.12 the convolutions of the heads and of the pyramid were not wrapped with their normalisation:
    `conv.2.weight` of a head is `conv.1.0.weight` now, `inner_blocks.0.weight` is `inner_blocks.0.0.weight`.
    """
    return {name: _newest(name) for name in names}


def _newest(name: str) -> str:
    name = re.sub(r"(\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2", name)
    return re.sub(r"(_head\.conv)\.(\d*[02468])\.(weight|bias)$", lambda m: f"{m[1]}.{int(m[2]) // 2}.0.{m[3]}", name)


def _numbers(pattern: str, names: Iterable[str]) -> list[tuple[int, ...]]:
    return [tuple(map(int, match.groups())) for name in names if (match := re.search(pattern, name))]


def raise_for_names(
    what: str,
    *,
    known: Iterable[str],
    unmapped: Iterable[str] = (),
    missing: Iterable[str] = (),
    misshapen: Mapping[str, str] | None = None,
    remedy: str = "",
) -> None:
    """Raises one error that names everything that does not fit; does nothing if all fits.

    Args:
        what: the subject of the message.
        known: names among which the nearest to an unmapped one is looked for, if none is missing.
        unmapped: names that have no place.
        missing: places that got nothing.
        misshapen: name -> what is wrong with it.
        remedy: last sentence.

    Raises:
        WeightsError: something does not fit.
    """
    unmapped, missing, known, misshapen = list(unmapped), list(missing), list(known), misshapen or {}
    count = len(unmapped) + len(missing) + len(misshapen)
    if not count:
        return
    # Each kind gets its share of the lines, so that a flood of one does not hide the others.
    lines: list[str] = []
    likely = missing or known  # a misspelt name leaves the right one missing
    lines += _some([f"{name} has no place{nearest(name, likely)}" for name in _first(unmapped)], len(unmapped))
    lines += _some([f"{name} is missing" for name in _first(missing)], len(missing))
    lines += _some([f"{name} {wrong}" for name, wrong in list(misshapen.items())[:_SHOWN]], len(misshapen))
    counts = [(len(unmapped), "without a place"), (len(missing), "missing"), (len(misshapen), "of a wrong shape")]
    totals = ", ".join(f"{number} {kind}" for number, kind in counts if number)
    names = "\n  ".join(lines)
    raise WeightsError(f"{what}: {totals}:\n  {names}" + (f"\n{remedy}" if remedy else ""))


def _first(names: Sequence[str]) -> Sequence[str]:
    return names[:_SHOWN]


def _some(lines: list[str], total: int) -> list[str]:
    shown = [f"{line};" for line in lines]
    return shown + [f"and {total - len(lines)} more;"] if total > len(lines) else shown


def nearest(name: str, known: Sequence[str]) -> str:
    """Returns ' (did you mean X?)' for the known name most like `name`, or '' if none is like it."""
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" (did you mean {matches[0]!r}?)" if matches else ""
