"""What travels: `Update` is the complete list of what leaves a hospital, `Payload` of what one receives.

Both are split into named tensors and a JSON record, so that any transport (a FLARE message, a file, a pipe)
carries them without pickling.  Neither has a field for an image, a file name or a patient.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Stage = Literal["describe", "seed", "train", "evaluate"]
VERSION = 1


@dataclass(frozen=True)
class Score:
    """One metric over a site's cases: `mean` over `support` cases where it is defined, `undefined` others."""

    mean: float | None
    support: int
    undefined: int = 0


@dataclass(frozen=True)
class Payload:
    """What the server sends to one site for one stage of one round.

    Attributes:
        stage: what the site is asked to do.
        round: 0 for describe and seed, 1..num_rounds for train, num_rounds for evaluate.
        run_id: one run of one job; a site's personal state belongs to exactly one.
        spec: what the federation agreed on before round 0 (dimensions, channels, labels, spacing); empty before.
        shared: the shared part of the model, by parameter name.
        extra: the method's own tensors for this site (retrieved prototypes, control variates).
        warm_start: the personal state of an earlier run may be kept.
    """

    stage: Stage
    round: int
    run_id: str
    spec: dict[str, Any] = field(default_factory=dict)
    shared: dict[str, Tensor] = field(default_factory=dict)
    extra: dict[str, Tensor] = field(default_factory=dict)
    warm_start: bool = False

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return (tensors by prefixed name, JSON record)."""
        record = {name: getattr(self, name) for name in ("stage", "round", "run_id", "spec", "warm_start")}
        return prefixed(shared=self.shared, extra=self.extra), record | {"version": VERSION}

    @classmethod
    def unpack(cls, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> Payload:
        """Invert `pack`; raises ValueError on another version."""
        fields = _checked(record)
        return cls(shared=under(tensors, "shared"), extra=under(tensors, "extra"), **fields)

    def digest(self) -> str:
        """SHA-256 of everything in it: the site echoes it, so that a reply belongs to exactly one request."""
        return digest(*self.pack())

    def num_bytes(self) -> int:
        """Serialized size in bytes."""
        return num_bytes(*self.pack())


@dataclass(frozen=True)
class Update:
    """Everything that one site sends for one stage of one round.  Nothing else may leave.

    Attributes:
        site, stage, round: who answers what.
        answers: digest of the payload that this answers.
        partition: hash of the partition manifest at the site.
        shared: trained values of the shared part, by parameter name (train only).
        extra: the method's own tensors (spectral centroids, control variates), named by the method.
        facts: counts per split and modality, and the data facts the task asks for (describe only).
        num_samples: training cases, the weight n_k of the average.
        train_loss: mean over the round's steps.
        before, after: scores of the received model and of the locally trained one;
            on the validation split (train) or the test split (evaluate).
        seconds: time the site took.
        pictures: PNG files of predictions; only a site on synthetic demo data may fill it.
    """

    site: str
    stage: Stage
    round: int
    answers: str
    partition: str = ""
    shared: dict[str, Tensor] = field(default_factory=dict)
    extra: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    num_samples: int = 0
    train_loss: float | None = None
    before: dict[str, Score] = field(default_factory=dict)
    after: dict[str, Score] = field(default_factory=dict)
    seconds: float = 0.0
    pictures: dict[str, Tensor] = field(default_factory=dict)

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return (tensors by prefixed name, JSON record)."""
        plain = ("site", "stage", "round", "answers", "partition", "facts", "num_samples", "train_loss", "seconds")
        record = {name: getattr(self, name) for name in plain}
        for when in ("before", "after"):
            record[when] = {name: asdict(score) for name, score in getattr(self, when).items()}
        return prefixed(shared=self.shared, extra=self.extra, pictures=self.pictures), record | {"version": VERSION}

    @classmethod
    def unpack(cls, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> Update:
        """Invert `pack`; raises ValueError on another version."""
        fields = _checked(record)
        for when in ("before", "after"):
            fields[when] = {name: Score(**score) for name, score in fields.get(when, {}).items()}
        shared, extra, pictures = (under(tensors, part) for part in ("shared", "extra", "pictures"))
        return cls(shared=shared, extra=extra, pictures=pictures, **fields)

    def num_bytes(self) -> int:
        """Serialized size in bytes."""
        return num_bytes(*self.pack())


def digest(tensors: Mapping[str, Tensor], record: Mapping[str, Any] | None = None) -> str:
    """SHA-256 over names, types, shapes and values in sorted order of names, and the record."""
    sha = hashlib.sha256(json.dumps(record, sort_keys=True).encode() if record is not None else b"")
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        sha.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def num_bytes(tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> int:
    """Bytes of the values, plus those of the names, shapes and record as JSON."""
    header = {name: [str(value.dtype), list(value.shape)] for name, value in tensors.items()}
    values = sum(value.numel() * value.element_size() for value in tensors.values())
    return values + len(json.dumps(header)) + len(json.dumps(record))


def clean(tensor: Tensor) -> Tensor:
    """A copy that any transport accepts: no gradient, on the CPU, contiguous, sharing memory with nothing."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def prefixed(**parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of several parts under one roof, as `<part>/<name>`."""
    return {f"{part}/{name}": value for part, tensors in parts.items() for name, value in tensors.items()}


def under(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """One part of what `prefixed` joined, by its own names."""
    return {name.removeprefix(f"{part}/"): v for name, v in tensors.items() if name.startswith(f"{part}/")}


def _checked(record: Mapping[str, Any]) -> dict[str, Any]:
    fields = dict(record)
    version = fields.pop("version", None)
    if version != VERSION:
        raise ValueError(f"message version must be {VERSION}; got {version!r}")
    return fields
