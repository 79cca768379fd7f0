"""What a run is told: one experiment per job, one configuration per site.  Strict: unknown, missing, mistyped
or out-of-range keys are refused by name before anything starts."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from omnifm.shipped import job_file

STRICT = ConfigDict(extra="forbid", strict=True)
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
T = TypeVar("T")


def parse(kind: type[T], text: str | bytes, where: str) -> T:
    """Read JSON into a strict dataclass.

    Raises:
        ValueError: one line naming every key that is wrong, its rule and its value.
    """
    with suppress(json.JSONDecodeError, UnicodeDecodeError):  # pydantic says better where
        reject_duplicate_keys(text, where)
    try:
        return TypeAdapter(kind).validate_json(text)
    except pydantic.ValidationError as error:
        raise ValueError(f"{where}: " + "; ".join(_line(e) for e in error.errors(include_url=False))) from None


def reject_duplicate_keys(text: str | bytes, where: str) -> Any:
    """What JSON says, if every key stands once in its object: of two values one would be dropped unsaid.

    Raises:
        ValueError: a key stands twice, or the text is nested too deeply; JSONDecodeError where it is no JSON.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if twice := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
            raise ValueError(f"{where}: key {twice[0]!r:.80} must stand once; it stands twice")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once)
    except RecursionError:
        raise ValueError(f"{where}: must be JSON of few levels; it is nested too deeply") from None


def _line(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"]) or "text"
    if error["type"] == "missing" or error["type"] == "missing_argument":
        return f"key {key!r} is missing"
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"unknown key {key!r}"
    if error["type"] == "json_invalid":  # its input is the whole text, of whatever file was named by mistake
        return f"{error['msg'][0].lower()}{error['msg'][1:]}"
    return f"{key}: {error['msg'][0].lower()}{error['msg'][1:]}; got {error['input']!r:.80}"


@dataclass(frozen=True, config=STRICT)
class Data:
    """The data section: how cases are held; where they lie is the site's business alone."""

    name: str
    """Name of the data set, shown in reports."""
    cache_gib: Positive = 4.0
    """Memory for preprocessed cases, GiB; more cases than fit are read again each epoch."""


@dataclass(frozen=True, config=STRICT)
class Train:
    """The train section: rounds, local optimisation, and who must take part."""

    num_rounds: Count
    """Communication rounds."""
    local_epochs: Count
    """Passes over a site's training cases per round."""
    batch_size: Count
    """Cases per optimisation step."""
    lr: Positive
    """Learning rate of a round's fresh optimiser."""
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    """Local optimiser; sgd has no momentum."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Decoupled (adamw) or L2 decay, [0, 1]; 0 is none."""
    participation: Fraction = 1.0
    """Share of the connected sites drawn each round, (0, 1]; 1 is all of them."""
    min_sites: Count = 2
    """Accepted replies without which a round changes nothing; three such rounds in a row, or no other, fail the run."""
    round_timeout_s: Positive = 86400.0
    """Seconds until a round closes without the missing sites."""
    grace_s: Positive = 86400.0
    """Seconds that the others still have once min_sites have replied; keep it long where sites take turns."""
    max_norm_ratio: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 10.0
    """Times the median change of a round's replies above which a reply is refused, > 1; more lets more through."""
    max_size_ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 3.0
    """Times the median site's cases up to which a site's own count in the average, >= 1; more caps nobody."""
    num_threads: Annotated[int, Field(ge=1, le=1024)] = 1
    """CPU threads of one trainer; part of the job because sums depend on it in the last bit."""
    warm_start: bool = False
    """Start from the personal state that the job's last run left instead of afresh."""


@dataclass(frozen=True, config=STRICT)
class Experiment:
    """One job: what differs between jobs, and nothing else (contract: experiment.json)."""

    job: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
    """Name of the job; it also names folders, so it holds letters, digits, _ and - only."""
    task: dict[str, Any]
    data: Data
    method: dict[str, Any]
    train: Train
    model: dict[str, Any] = Field(default_factory=dict)
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @classmethod
    def from_job(cls, job: str | Path, **changes: object) -> Experiment:
        """Read the experiment of a job.

        >>> Experiment.from_job("seg_fets").task["name"]
        'segmentation'
        >>> Experiment.from_job("seg_fets", preset="paper").train.num_rounds
        50

        Args:
            job: a job folder, an experiment.json, or the name of a shipped job.
            changes: keys of experiment.json to replace as a whole, e.g. `preset`, `seed`.

        Raises:
            ValueError: there is no such job, or its experiment.json is not as it must be.
        """
        try:
            text = job_file(job).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ValueError("experiment.json must be UTF-8 text; it is not") from None
        return cls.from_json(text, **changes)

    @classmethod
    def from_json(cls, text: str, **changes: object) -> Experiment:
        """Read experiment.json; the block of `presets` named by `preset`, if any, is laid over the rest.

        Raises:
            ValueError: not JSON, or a key is unknown, missing, mistyped or out of range.
        """
        try:
            raw = reject_duplicate_keys(text, "experiment.json")
        except json.JSONDecodeError as error:
            raise ValueError(f"experiment.json: must be JSON; got {error.msg} in line {error.lineno}") from None
        if not isinstance(raw, dict):
            raise ValueError(f"experiment.json: must be an object; got {type(raw).__name__}")
        raw |= changes
        preset, presets = raw.pop("preset", None), raw.pop("presets", {})
        if not isinstance(presets, dict) or not all(isinstance(block, dict) for block in presets.values()):
            raise ValueError("experiment.json: presets must be an object of objects")
        if preset is not None:
            if not isinstance(preset, str) or preset not in presets:
                raise ValueError(f"experiment.json: preset must be one of {sorted(presets)} or null; got {preset!r}")
            raw = _laid_over(raw, presets[preset])
        for section in ("task", "method"):
            if isinstance(raw.get(section), dict) and not isinstance(raw[section].get("name"), str):
                raise ValueError(f"experiment.json: key '{section}.name' is missing or not a string")
        return parse(cls, json.dumps(raw), "experiment.json")

    def hash(self) -> str:
        """SHA-256 of everything but the seed: with job and seed it tells whether a run may be resumed."""
        record = asdict(self)
        del record["seed"]
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, config=STRICT)
class SiteConfig:
    """One site's own configuration, `local/omnifm_site.json` in its kit; never sent anywhere."""

    data_root: str
    """Folder that holds dataset.json."""
    state_dir: str
    """Folder for personal state; made if absent, readable by its owner only."""
    device: str = "auto"
    """auto, cpu or cuda:N; auto takes the first GPU if there is one."""
    max_refused_fraction: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of cases that may be refused before the site declines to train."""
    allowed_roots: list[str] = Field(default_factory=list)
    """Folders outside data_root that dataset.json may point into."""
    source: Literal["demo", "site"] = "site"
    """Whether the data are the embedded synthetic ones."""


def site_config(
    name: str, file: Path, environ: Mapping[str, str] = os.environ, state: Path | None = None
) -> SiteConfig | None:
    """The site's file, else OMNIFM_DATA and OMNIFM_STATE (`<folder>/<site>`), else None.

    Args:
        state: the site's state folder if OMNIFM_STATE is not set; None if then there is none.

    Raises:
        ValueError: the file or a folder it names is not as it must be.
    """
    if file.exists():
        return _existing(read_site_file(file))
    root, states = env_folder("OMNIFM_DATA", environ), env_folder("OMNIFM_STATE", environ)
    if root is None:
        return None
    found = _existing(SiteConfig(data_root=str(root / name), state_dir=str(states / name if states else state)))
    if states is None and state is None:
        raise ValueError("OMNIFM_STATE must name a folder where OMNIFM_DATA is set; it is not set")
    return found


def read_site_file(file: Path) -> SiteConfig:
    """A site's own configuration.

    Raises:
        ValueError: it is not as it must be, or a folder in it hangs on where the command was typed.
    """
    config = parse(SiteConfig, file.read_bytes(), file.name)
    for key, folders in (
        ("data_root", [config.data_root]),
        ("state_dir", [config.state_dir]),
        ("allowed_roots", config.allowed_roots),
    ):
        require_absolute(file.name, key, folders)
    return config


def require_absolute(where: str, key: str, folders: Iterable[str]) -> None:
    """Refuse relative folders, and "~", with a ValueError: FLARE's processes start in a folder of their own."""
    if not all(Path(folder).is_absolute() for folder in folders):
        raise ValueError(f"{where}: {key} must be an absolute path, as FLARE runs elsewhere; it is not")


def env_folder(variable: str, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The folder an environment variable names, None if it is unset or empty.

    A relative one is meant from where the user's command was typed, and FLARE changes folder.
    """
    value = environ.get(variable)
    return Path(environ.get("PWD") or Path.cwd()) / value if value else None


def _existing(config: SiteConfig) -> SiteConfig:
    if not Path(config.data_root).is_dir():
        raise ValueError("data_root must be an existing folder; the site's configuration names one that is absent")
    return config


def _laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        nested = isinstance(value, dict) and isinstance(below.get(key), dict)
        merged[key] = _laid_over(below[key], value) if nested else value
    return merged
