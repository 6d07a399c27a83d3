"""An inverter's design in plain sentences, and how it differs from the known ones."""

from collections.abc import Sequence
from typing import Any

from xinv.nets.design import PRESETS, REFERENCE_SIZE, InverterDesign, ReleaseShape
from xinv.report.amounts import listed

ACTIVATIONS = {"relu": "ReLU", "leaky_relu": "leaky ReLU", "gelu": "GELU", "silu": "SiLU", "tanh": "tanh"}
NORMALISATIONS = {
    "none": "no normalisation",
    "group": "group normalisation",
    "layer": "normalisation of each place over its channels",
}
UPSAMPLINGS = {
    "nearest": "repeating pixels",
    "transposed": "transposed convolutions",
    "pixel_shuffle": "pixel shuffle (a 1 × 1 convolution, rearranged)",
}


def words(design: InverterDesign, release: ReleaseShape, channels: int, size: int) -> list[str]:
    """What the design is, a few sentences on each of its parts, for images of `size` px with `channels` channels."""
    sizes = design.sizes(size)
    return [
        " ".join(part)
        for part in (
            _inputs(design, release),
            _encoder(design, sizes),
            _joined(design),
            _decoder(design, sizes, channels),
            _attention(design, sizes),
            _blocks(design, sizes),
        )
        if part
    ]


def _inputs(design: InverterDesign, release: ReleaseShape) -> list[str]:
    found = {
        "logits": f"It reads the prediction as released, as {release.classes:,} logits.",
        "log_confidences": f"It reads the prediction as {release.classes:,} log-confidences plus {design.shift:g}, "
        "clamped at 0.",
        "none": "It does not read the prediction.",
    }
    said = [found[design.prediction]]
    if not design.reads_maps:
        said.append("It reads no explanation.")
    if design.flatten:
        values = sum(m * h * w for m, h, w in release.maps)
        said.append(f"Of the explanation it reads the raw values, {values:,} in all.")
    cells = f"cells, at most {design.grid} × {design.grid} a map"
    if design.summary == "pooled":
        said.append(f"Of the explanation it reads the mean of each of its {cells}.")
    if design.summary == "patches":
        said.append(
            f"Of the explanation it reads 16 learned mixtures of tokens, {design.token_width} values each, "
            f"of its {cells}."
        )
    return said


def _encoder(design: InverterDesign, sizes: list[int]) -> list[str]:
    if design.encoder == "none":
        return ["No convolutional encoder reads the explanation."] if design.reads_maps else []
    own = sizes[: design.encoder_depth]
    widths = design.channels(design.encoder_width or design.width, own)
    first = (
        f"A convolutional encoder of {_number(len(own), 'level')} reads the explanation, resized to {sizes[0]} px: "
        f"{_levels(own, widths)}. It ends in a vector of {design.hidden} values."
    )
    skips = [size for size, on in zip(own, design.skips_from(own), strict=True) if on]
    if not skips:
        return [first, "No skip connections lead from it to the decoder."]
    which = "every level" if skips == own else f"its levels at {_px(skips)}"
    return [first, f"Skip connections carry the activations of {which} to the decoder."]


def _joined(design: InverterDesign) -> list[str]:
    said = (
        f"All of this is mixed to a bottleneck of {design.bottleneck:,} values."
        if design.bottleneck
        else "All of this goes on unmixed, as one vector."
    )
    if design.fusion == "film":
        return [
            said,
            f"The prediction, embedded in {design.condition} values, also scales and shifts the channels of every "
            "decoder block (FiLM).",
        ]
    return [said]


def _decoder(design: InverterDesign, sizes: list[int], channels: int) -> list[str]:
    coarsest, widths = sizes[-1], decoder_widths(design, sizes, channels)
    start = {
        "nearest": f"The decoder repeats that vector at every place of {coarsest} × {coarsest} px",
        "transposed": f"The decoder makes of it {coarsest} × {coarsest} px by a transposed convolution",
        "pixel_shuffle": f"The decoder makes of it {coarsest} × {coarsest} px by a linear layer",
    }[design.upsampling]
    up = f" and goes up to {sizes[0]} px by {UPSAMPLINGS[design.upsampling]}" if len(sizes) > 1 else ""
    said = [f"{start}{up}: {_levels(sizes[::-1], widths[::-1])}."]
    said.append(f"{widths_said(design)}.")
    said.append(
        "A sigmoid keeps its values within [0, 1]."
        if design.head == "sigmoid"
        else "Its last step is linear: values may leave [0, 1]."
    )
    return said


def widths_said(design: InverterDesign) -> str:
    """How the channels of a level follow from its size, as the beginning of a sentence."""
    limit = f"to {design.width_limit:,} at most"
    if design.schedule == "doubling":
        return f"Channels double with every halving, {limit}"
    if design.schedule == "resolution":
        return (
            f"A level of {REFERENCE_SIZE} px has {design.width:,} channels, and they double with every halving, "
            f"{limit} and {design.width_floor:,} at least"
        )
    return f"A level of s px has {design.width:,} / s channels"


def decoder_widths(design: InverterDesign, sizes: list[int], channels: int) -> list[int]:
    """Channels of the decoder's levels, the largest first, as they leave them: a level without blocks leaves what comes
    up to it, which up-sampling by repetition does not change; without any block the last layer makes the image."""
    widths = design.channels(design.width, sizes)
    if len(sizes) > 1 and not design.blocks_at(0, len(sizes)):
        if design.upsampling == "nearest":
            widths[0] = widths[1]
        elif not design.blocks:
            widths[0] = channels
    return widths


def _attention(design: InverterDesign, sizes: list[int]) -> list[str]:
    said = []
    own = [size for size, on in zip(sizes, design.attends_at(sizes), strict=True) if on]
    looks = [size for size, on in zip(sizes, design.looks_at_tokens_at(sizes), strict=True) if on]
    if own:
        said.append(f"Decoder levels at {_px(own)} have self-attention.")
    if looks:
        what = {
            "patches": f"tokens of the explanation's cells, at most {design.grid} × {design.grid} a map",
            "encoder": f"tokens of the encoder's first level of at most {design.grid} × {design.grid} places",
        }[design.tokens]
        also = "" if design.prediction == "none" else " and a token of the prediction"
        said.append(
            f"Decoder levels at {_px(looks)} look at {what}, {design.token_width} values each{also} (cross-attention)."
        )
    return said or ["There is no attention."]


def _blocks(design: InverterDesign, sizes: list[int]) -> list[str]:
    kind = "residual blocks of two 3 × 3 convolutions" if design.residual else "single 3 × 3 convolutions"
    dress = f"{NORMALISATIONS[design.normalisation]} and {ACTIVATIONS[design.activation]}"
    if not design.blocks:
        said = [f"The decoder has no blocks: its up-sampling layers are all there is, with {dress}."]
        if design.residual:
            said.append("These two stand before its last step once more.")
        if design.encoder != "none":
            said.append(f"The encoder's blocks are {kind}.")
        return said
    each = f"A decoder level has {_number(design.blocks, 'block')}"
    if len(sizes) > 1:
        full = design.blocks_at(0, len(sizes))
        each += ", that at full size too" if full else ", that at full size none"
    return [f"{each}. Blocks are {kind} with {dress}."]


def blocks_named(design: InverterDesign) -> str:
    """The kind of block in a few words, for a legend."""
    kind = "residual blocks" if design.residual else "convolutions"
    return f"{kind}, {NORMALISATIONS[design.normalisation]}, {ACTIVATIONS[design.activation]}"


def _levels(sizes: Sequence[int], widths: Sequence[int]) -> str:
    return listed([f"{size} px with {width:,} channels" for size, width in zip(sizes, widths, strict=True)])


def _px(sizes: Sequence[int]) -> str:
    return f"{listed([str(size) for size in sizes])} px"


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


# ---- how it is trained ---------------------------------------------------------------------------------------------


def training_words(training: dict[str, Any], loss: dict[str, float]) -> list[str]:
    """Training settings and the loss, dumped as JSON, in sentences."""
    name = {"adamw": "AdamW", "adam": "Adam"}[training["optimizer"]]
    after = {"cosine": "then falls to 0 along half a cosine", "constant": "then stays"}[training["schedule"]]
    warm = f"rises over the first {100 * training['warmup']:g}% of the steps, " if training["warmup"] else ""
    clip = f"gradients longer than {training['clip']:g} are shortened to it" if training["clip"] else "no clipping"
    rate = f"{training['learning_rate']:.3g}"
    weights = {term: weight for term, weight in loss.items() if weight}
    terms = {
        "mse": "the squared error",
        "l1": "the absolute error",
        "ssim": "1 − SSIM",
        "gradient": "the error of pixel differences",
        "frequency": "the error of the spectrum",
    }
    summed = listed([f"{weight:.3g} × {terms[term]}" for term, weight in weights.items()])
    learns = f"the mean of {terms[next(iter(weights))]} alone" if len(weights) == 1 else f"a sum: {summed}"
    return [
        f"It is trained for {training['epochs']} epochs by {name} (decay rates {training['betas'][0]:g} and "
        f"{training['betas'][1]:g}, weight decay {training['weight_decay']:.3g}) in batches of "
        f"{training['batch_size']} images; {clip}. The learning rate {warm}peaks at {rate}, {after}.",
        f"It learns by {learns}. The weights of the lowest validation MSE are kept.",
    ]


# ---- the nearest known design --------------------------------------------------------------------------------------


def effective(design: InverterDesign) -> dict[str, Any]:
    """The fields that decide something in this design: others are left out, defaults that stand for a field are it."""
    found = design.model_dump(mode="json")
    encoder, crosses = design.encoder != "none", design.fusion == "cross_attention"
    unused = {
        "shift": design.prediction != "log_confidences",
        "grid": not (design.summary != "none" or crosses),
        "encoder_depth": not encoder,
        "encoder_width": not encoder,
        "hidden": not encoder,
        "skip_size": design.encoder != "unet",
        "fusion_size": not crosses,
        "tokens": not crosses,
        "token_width": not (design.summary == "patches" or crosses),
        "condition": design.fusion != "film",
        "full_size_blocks": not design.blocks,
        "width_limit": design.schedule == "inverse_size",
        "width_floor": design.schedule != "resolution",
    }
    found["encoder_width"] = design.encoder_width or design.width
    return {name: value for name, value in found.items() if not unused.get(name, False)}


def nearest(design: InverterDesign) -> tuple[str, list[tuple[str, str, str]]]:
    """The preset that differs in the fewest fields, of those that read an explanation if the design does, and (field,
    the preset's value, the design's) where they differ."""
    own = effective(design)
    best: tuple[str, list[tuple[str, str, str]]] | None = None
    for name, known in PRESETS.items():
        if known.reads_maps != design.reads_maps:
            continue
        theirs = effective(known)
        different = [
            (field, _value(theirs, field), _value(own, field))
            for field in InverterDesign.model_fields
            if (field in own or field in theirs) and _value(theirs, field) != _value(own, field)
        ]
        if best is None or len(different) < len(best[1]):
            best = (name, different)
    assert best is not None
    return best


def _value(fields: dict[str, Any], name: str) -> str:
    if name not in fields:
        return "–"
    value = fields[name]
    if value is None:
        return "none" if name == "attention_size" else "all"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
