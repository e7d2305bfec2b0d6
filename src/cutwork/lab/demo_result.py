"""What the demonstration tells: both networks beside each other, as text and as JSON."""

import json
from dataclasses import asdict, dataclass
from typing import final

# Images in a batch, in training and for the packed network.
BATCH_SIZE = 64
# The title of each row, how its numbers are written, and the field of `Side` they are.
ROWS = [
    ("test accuracy", "{:.1%}", "accuracy"),
    ("parameters kept", "{:,}", "parameters"),
    ("MFLOPs, one image forward", "{:.3f}", "megaflops_forward"),
    ("MFLOPs, one image in training", "{:.3f}", "megaflops_training"),
    ("bytes on disk", "{:,}", "bytes_on_disk"),
    ("median step, ms", "{:.2f}", "step_ms"),
]
# What the storage, in which the sparse network trained, means for the time of a step.
STORED = {
    "compressed": ["The sparse layers stored, trained and multiplied only what their masks kept: compressed storage."],
    "dense": [
        "Masks of this kind need dense storage, whose whole weights run on PyTorch's dense kernels: its steps are no",
        "faster. Fixed masks on block, vector and shuffled patterns train in compressed storage.",
    ],
}
FOLDED = ["Before saving, the masks were folded into the weights: the file holds only what is kept."]
# Less than this is no gain that anybody would notice.
GAIN = 1.03


@final
@dataclass(frozen=True)
class Side:
    """What one of the two networks came to."""

    accuracy: float
    parameters: int
    megaflops_forward: float
    megaflops_training: float
    bytes_on_disk: int
    step_ms: float


@final
@dataclass(frozen=True)
class Packed:
    """The sparse network in the forms that are fastest here, beside a dense one; no times where the outputs differ."""

    plan: str
    dense_ms: float | None
    packed_ms: float | None
    ratio: float | None

    def __str__(self) -> str:
        compared = "Its outputs DIFFER from those of the same network stored dense."
        if self.dense_ms is not None and self.packed_ms is not None and self.ratio is not None:
            why = "" if self.ratio > GAIN else "; the table says why it is no faster"
            compared = (
                f"Forward with equal outputs: {self.dense_ms:.3f} ms stored dense, {self.packed_ms:.3f} ms packed, "
                f"{self.ratio:.2f} times as fast{why}."
            )
        return "\n".join(
            [
                f"Packed for {BATCH_SIZE} images: each layer dense or as tiles, whichever was measured faster here.",
                "",
                self.plan,
                "",
                compared,
            ]
        )


@final
@dataclass(frozen=True)
class DemoResult:
    """Both networks, and whether the saved sparse one came back bit for bit."""

    dense: Side
    sparse: Side
    pattern: str
    density: float
    method: str
    storage: str
    num_moves: int
    itop_rate: float
    weights_were_folded: bool
    reload_is_equal: bool
    packed: Packed
    mask_picture: str
    files: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{'':32}{'dense':>12}{'sparse':>12}{'sparse/dense':>15}"]
        for title, form, field in ROWS:
            dense, sparse = getattr(self.dense, field), getattr(self.sparse, field)
            lines.append(f"{title:32}{form.format(dense):>12}{form.format(sparse):>12}{sparse / dense:>15.3f}")
        reload = "is equal bit for bit" if self.reload_is_equal else "DIFFERS"
        return "\n".join(
            [
                f"{self.method} on {self.pattern}, density {self.density:g}",
                "",
                *lines,
                "",
                *STORED[self.storage],
                f"The masks moved {self.num_moves} times and visited {self.itop_rate:.1%} of their layers' weights.",
                *(FOLDED if self.weights_were_folded else []),
                f"Saved, loaded into a fresh network: the output for every test image {reload}.",
                "",
                str(self.packed),
                "",
                self.mask_picture,
                "",
                "Written: " + ", ".join(self.files),
            ]
        )

    def to_json(self) -> str:
        """Return the numbers as a JSON object."""
        numbers = {key: value for key, value in asdict(self).items() if key != "mask_picture"}
        return json.dumps(numbers, indent=2)
