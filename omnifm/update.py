"""The messages: `Update` is the complete list of what leaves a hospital, `Payload` of what a hospital receives.

Both are packed as named tensors and a JSON record, so that any transport (a FLARE message, a file, a pipe) carries
them without pickle.  Neither has a field for an image, a file name or a patient.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

import torch
from torch import Tensor

from omnifm.records import Json

Stage = Literal["describe", "seed", "train", "evaluate"]
VERSION = 1


@dataclass(frozen=True)
class Score:
    """One metric over a site's cases: the mean over the `support` cases that define it; `undefined` cases do not."""

    mean: float | None
    support: int
    undefined: int = 0


@dataclass(frozen=True)
class Payload:
    """What the server sends to one site for one stage of one round.

    Attributes:
        stage: what the site is asked to do.
        round: 0 for describe and seed, 1..num_rounds for train, num_rounds for evaluate.
        run_id: identifies one run of one job; a site's personal state belongs to exactly one run.
        spec: what the federation agreed on (dimensions, channels, labels, spacing); empty in the stage describe.
        shared: the shared part of the model, by parameter name.
        extra: the method's own tensors for this site (retrieved prototypes, control variates).
        warm_start: whether the personal state of an earlier run may be kept.
    """

    stage: Stage
    round: int
    run_id: str
    spec: Json = field(default_factory=dict)
    shared: dict[str, Tensor] = field(default_factory=dict)
    extra: dict[str, Tensor] = field(default_factory=dict)
    warm_start: bool = False

    def pack(self) -> tuple[dict[str, Tensor], Json]:
        """Return (tensors by prefixed name, JSON record)."""
        record = {name: getattr(self, name) for name in ("stage", "round", "run_id", "spec", "warm_start")}
        return prefixed(shared=self.shared, extra=self.extra), record | {"version": VERSION}

    @classmethod
    def unpack(cls, tensors: Mapping[str, Tensor], record: Mapping[str, object]) -> Payload:
        """Make the message again from what `pack` returned; raises ValueError if its version is another one."""
        fields = _checked(record)
        return cls(shared=under(tensors, "shared"), extra=under(tensors, "extra"), **fields)

    def digest(self) -> str:
        """SHA-256 of the whole payload.  The site returns it, so that a reply belongs to exactly one request."""
        return digest(*self.pack())

    def num_bytes(self) -> int:
        """Serialized size in bytes."""
        return num_bytes(*self.pack())


@dataclass(frozen=True)
class Update:
    """Everything that one site sends for one stage of one round.  Nothing else may leave the hospital.

    Attributes:
        site, stage, round: name of the site, and the stage and round that it answers.
        answers: digest of the payload that it answers.
        partition: hash of the partition manifest at the site.
        shared: trained values of the shared part, by parameter name (train only).
        extra: the method's own tensors (spectral centroids, control variates), named by the method.
        facts: in the stage describe `records.Facts`; in others what the method declares in `says`.
        num_samples: number of training cases, the weight n_k of the average.
        train_loss: mean over the round's steps; None outside training.
        before, after: scores of the received model and of the locally trained one;
            on the validation split (train) or the test split (evaluate).
        seconds: time that the site took.
        pictures: PNG files of predictions, as bytes; only a site with synthetic demo data may fill it.
        statistics: aggregate facts about the test split, `statistics.Statistics` (evaluate only).
    """

    site: str
    stage: Stage
    round: int
    answers: str
    partition: str = ""
    shared: dict[str, Tensor] = field(default_factory=dict)
    extra: dict[str, Tensor] = field(default_factory=dict)
    facts: Json = field(default_factory=dict)
    num_samples: int = 0
    train_loss: float | None = None
    before: dict[str, Score] = field(default_factory=dict)
    after: dict[str, Score] = field(default_factory=dict)
    seconds: float = 0.0
    pictures: dict[str, Tensor] = field(default_factory=dict)
    statistics: Json = field(default_factory=dict)

    def pack(self) -> tuple[dict[str, Tensor], Json]:
        """Return (tensors by prefixed name, JSON record)."""
        plain = ("site", "stage", "round", "answers", "partition", "facts", "num_samples", "train_loss", "seconds")
        record = {name: getattr(self, name) for name in (*plain, "statistics")}
        for when in ("before", "after"):
            record[when] = {name: asdict(score) for name, score in getattr(self, when).items()}
        return prefixed(shared=self.shared, extra=self.extra, pictures=self.pictures), record | {"version": VERSION}

    @classmethod
    def unpack(cls, tensors: Mapping[str, Tensor], record: Mapping[str, object]) -> Update:
        """Make the message again from what `pack` returned; raises ValueError if its version is another one."""
        fields = _checked(record)
        for when in ("before", "after"):
            fields[when] = {name: Score(**score) for name, score in fields.get(when, {}).items()}
        shared, extra, pictures = (under(tensors, part) for part in ("shared", "extra", "pictures"))
        return cls(shared=shared, extra=extra, pictures=pictures, **fields)

    def num_bytes(self) -> int:
        """Serialized size in bytes."""
        return num_bytes(*self.pack())


def digest(tensors: Mapping[str, Tensor], record: Mapping[str, object] | None = None) -> str:
    """SHA-256 over the names, dtypes, shapes and values in sorted order of names, and over the record if given."""
    sha = hashlib.sha256(json.dumps(record, sort_keys=True).encode() if record is not None else b"")
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        sha.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def num_bytes(tensors: Mapping[str, Tensor], record: Mapping[str, object]) -> int:
    """Number of bytes of the values, plus those of the names, shapes and record as JSON."""
    header = {name: [str(value.dtype), list(value.shape)] for name, value in tensors.items()}
    values = sum(value.numel() * value.element_size() for value in tensors.values())
    return values + len(json.dumps(header)) + len(json.dumps(record))


def clean(tensor: Tensor) -> Tensor:
    """Copy a tensor so that any transport accepts it: without gradient, on the CPU, contiguous, memory not shared."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def prefixed(**parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join the tensors of several parts, named `<part>/<name>`.

    >>> import torch
    >>> list(prefixed(shared={"w": torch.ones(1)}, extra={"c": torch.ones(1)}))
    ['shared/w', 'extra/c']
    """
    return {f"{part}/{name}": value for part, tensors in parts.items() for name, value in tensors.items()}


def under(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """Take one part out of what `prefixed` joined, with its own names again."""
    return {name.removeprefix(f"{part}/"): v for name, v in tensors.items() if name.startswith(f"{part}/")}


def _checked(record: Mapping[str, object]) -> Json:
    fields = dict(record)
    version = fields.pop("version", None)
    if version != VERSION:
        raise ValueError(f"message version must be {VERSION}; got {version!r}")
    return fields
