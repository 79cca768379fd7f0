"""The settings of a run: one experiment per job, one configuration per site.

Unknown or missing keys, wrong types and values out of range are refused by name before anything starts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import pydantic
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from omnifm.nearest import did_you_mean
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
    with suppress(json.JSONDecodeError, UnicodeDecodeError):  # pydantic's message names the place
        reject_duplicate_keys(text, where)
    try:
        return TypeAdapter(kind).validate_json(text)
    except pydantic.ValidationError as error:
        errors = error.errors(include_url=False)
        wrong = "; ".join(_line(kind, error) for error in errors)
        raise ValueError(f"{where}: {wrong}{''.join(_keys(kind, errors))}") from None


def reject_duplicate_keys(text: str | bytes, where: str) -> Any:
    """Parse JSON, and refuse a key that occurs twice in one object: one of its values would be lost without a word.

    Raises:
        ValueError: a key occurs twice, or the text is nested too deeply; JSONDecodeError if it is not JSON.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if twice := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
            raise ValueError(f"{where}: key {twice[0]!r:.80} must stand once; it stands twice")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once)
    except RecursionError:
        raise ValueError(f"{where}: must be JSON of few levels; it is nested too deeply") from None


def _line(kind: type, error: Any) -> str:
    """What is wrong with one key."""
    key = ".".join(str(part) for part in error["loc"]) or "text"
    if error["type"] == "missing" or error["type"] == "missing_argument":
        return f"key {key!r} is missing"
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        *sections, name = (str(part) for part in error["loc"])
        near = did_you_mean(name, known_keys(kind, sections), "".join(f"{section}." for section in sections))
        if not sections:
            near = "".join(did_you_mean(name, [name], f"{s}.") for s in _sections_with(kind, name)) or near
        return f"unknown key {key!r}{near}"
    if error["type"] == "json_invalid":  # its input is the whole text, perhaps of the wrong file
        return f"{error['msg'][0].lower()}{error['msg'][1:]}"
    named = ".".join(str(part) for part in error["loc"] if isinstance(part, int) or part.isidentifier())
    return f"{named or key}: {error['msg'][0].lower()}{error['msg'][1:]}; got {error['input']!r:.80}"


def _sections_with(kind: type, name: str) -> list[str]:
    """The sections that hold a key of this name."""
    return [section for section in known_keys(kind) if name in known_keys(kind, [section])]


def _keys(kind: type, errors: Iterable[Any]) -> Iterator[str]:
    """Which keys there are, once for each section in which a key is unknown."""
    unknown = [e["loc"][:-1] for e in errors if e["type"] in ("unexpected_keyword_argument", "extra_forbidden")]
    for sections in dict.fromkeys(unknown):
        names = known_keys(kind, sections)
        of = f" of {'.'.join(map(str, sections))}" if sections else ""
        yield f" (keys{of}: {', '.join(names) or 'none'})"


def known_keys(kind: type, sections: Iterable[object] = ()) -> list[str]:
    """The keys of a dataclass, or of the dataclass in one of its fields.

    >>> known_keys(Experiment, ["data"])
    ['name', 'cache_gib']
    """
    for section in sections:
        kind = get_type_hints(kind).get(str(section), dict)
    return [field.name for field in fields(kind)] if is_dataclass(kind) else []


@dataclass(frozen=True, config=STRICT)
class Data:
    """The data section: how cases are kept in memory.  Where they are stored is set by each site."""

    name: str
    """Name of the data set; reports show it."""
    cache_gib: Positive = 4.0
    """Memory for preprocessed cases, GiB, > 0.  Cases that do not fit are read again in each epoch."""


@dataclass(frozen=True, config=STRICT)
class Train:
    """The train section: rounds, local optimisation, and who must take part."""

    num_rounds: Count
    """Number of communication rounds, >= 1."""
    local_epochs: Count
    """Passes over a site's training cases per round, >= 1."""
    batch_size: Count
    """Cases per optimisation step, >= 1."""
    lr: Positive
    """Learning rate, > 0: the highest one, if there is a schedule.  Each round starts with a new optimiser."""
    schedule: Literal["constant", "cosine", "poly"] = "constant"
    """How the learning rate falls over the steps of the whole run: each round goes on where the last one stopped.
    "poly" is (1 - t)^0.9, nnU-Net's.  Long runs need a schedule: a constant rate ends with weights that still move."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the run, in [0, 1), during which the learning rate rises from near 0 to `lr`."""
    personal_lr: Annotated[float, Field(gt=0, le=1)] | None = None
    """Learning rate of the last local training, whose result only stays at the site, as a share of `lr` in (0, 1].
    null goes on with the rate at which the schedule ended."""
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    """Local optimiser."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Momentum in [0, 1) of the optimiser sgd; the others have moments of their own."""
    nesterov: bool = False
    """Whether sgd uses Nesterov's momentum; it needs `momentum` > 0."""
    grad_clip: Positive | None = None
    """Largest L2 norm of a step's gradients, > 0; longer ones are scaled down.  null does not limit them.  nnU-Net
    uses 12."""
    accumulate: Count = 1
    """Number of batches per optimisation step, >= 1: trains as with a batch of this multiple, in the memory of one."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of training steps.  bf16 and fp16 need less memory and time on recent GPUs; fp16 needs a GPU.  Weights,
    spectra, losses and scores are fp32 always."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Weight decay in [0, 1]: decoupled for adamw, an L2 penalty otherwise.  0 disables it."""
    participation: Fraction = 1.0
    """Fraction of the connected sites drawn in each round, in (0, 1].  1 draws all of them."""
    min_sites: Count = 2
    """Minimum number of accepted replies per round, >= 1.  A round with fewer leaves the model unchanged.

    The run fails after three such rounds in a row, or if no round reaches the minimum.
    """
    round_timeout_s: Positive = 86400.0
    """Seconds until a round ends without the missing sites, > 0."""
    grace_s: Positive = 86400.0
    """Seconds that the other sites still have after min_sites have replied, > 0.  Keep it long if sites take turns."""
    max_norm_ratio: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 10.0
    """A reply is refused if its change is larger than this multiple (> 1) of the round's median change.

    A very large value disables the check.
    """
    max_size_ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 3.0
    """Upper limit on a site's weight in the average, as a multiple (>= 1) of the median site's number of cases.

    A very large value disables the limit.
    """
    num_threads: Annotated[int, Field(ge=1, le=1024)] = 1
    """CPU threads of one trainer, 1 to 1024.  It belongs to the job because it changes the last bit of sums."""
    warm_start: bool = False
    """Start from the personal state that the last run of this job left, instead of a new one."""

    def __post_init__(self) -> None:
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"train.momentum is for the optimizer sgd; the optimizer is {self.optimizer}")
        if self.nesterov and not self.momentum:
            raise ValueError("train.nesterov needs train.momentum > 0; it is 0")


@dataclass(frozen=True, config=STRICT)
class Experiment:
    """One job: the content of its experiment.json."""

    job: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
    """Name of the job; it also names folders, so it holds letters, digits, _ and - only."""
    task: dict[str, Any]
    data: Data
    method: dict[str, Any]
    train: Train
    model: dict[str, Any] = Field(default_factory=dict)
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of every random draw: initial values, order of the cases, which sites take part."""
    reference: list[Literal["local"]] = Field(default_factory=list)
    """Methods that are run besides, with the same splits, seed and budget, so that the report can compare: `local` is
    training alone.  Only in one process (`omnifm simulate`); FLARE refuses it."""

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
        """Read experiment.json; the block of `presets` named by `preset`, if any, replaces values of the rest.

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
                near = did_you_mean(str(preset), presets)
                rule = f"preset must be one of {', '.join(sorted(presets))} or null; got {preset!r}"
                raise ValueError(f"experiment.json: {rule}{near}")
            raw = _laid_over(raw, presets[preset])
        for section in ("task", "method"):
            if isinstance(raw.get(section), dict) and not isinstance(raw[section].get("name"), str):
                raise ValueError(f"experiment.json: key '{section}.name' is missing or not a string")
        return parse(cls, json.dumps(raw), "experiment.json")

    def changed(self, changes: Mapping[str, Any]) -> Experiment:
        """The experiment with some values replaced.

        >>> Experiment.from_job("seg_fets").changed({"train": {"num_rounds": 1}}).train.num_rounds
        1

        Args:
            changes: values laid over those of the experiment; a section is an object.  Another `method.name` or
                `task.name` starts that section anew, because each method and task has keys of its own.

        Raises:
            ValueError: a key is unknown, or a value is mistyped or out of range.
        """
        below = asdict(self)
        for section in ("method", "task"):
            new = changes.get(section)
            if isinstance(new, Mapping) and new.get("name", below[section]["name"]) != below[section]["name"]:
                below[section] = {}
        return self.from_json(json.dumps(_laid_over(below, changes)))

    def hash(self) -> str:
        """SHA-256 of everything that decides the run, except the seed.

        Job name, seed and this hash decide whether a run may be resumed.
        """
        record = asdict(self)
        del record["seed"], record["reference"]
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, config=STRICT)
class SiteConfig:
    """One site's own configuration, `local/omnifm_site.json` in its kit; never sent anywhere."""

    data_root: str
    """Folder that holds dataset.json."""
    state_dir: str
    """Folder for personal state.  It is made if it does not exist, and only its owner can read it."""
    device: str = "auto"
    """auto, cpu or cuda:N.  auto uses the first GPU, or the CPU if there is none."""
    max_refused_fraction: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Fraction of cases in [0, 1] that may be refused.  If more are, the site does not train.  1 accepts any number."""
    allowed_roots: list[str] = Field(default_factory=list)
    """Folders outside data_root that dataset.json may point into."""
    source: Literal["demo", "site"] = "site"
    """`demo` for the synthetic data in the package, `site` for all others."""


def site_config(
    name: str, file: Path, environ: Mapping[str, str] = os.environ, state: Path | None = None
) -> SiteConfig | None:
    """The site's file, else OMNIFM_DATA and OMNIFM_STATE (`<folder>/<site>`), else None.

    Args:
        state: the site's state folder if OMNIFM_STATE is not set; None makes OMNIFM_STATE required.

    Raises:
        ValueError: the file breaks a rule, or a folder that it names does not exist.
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
        ValueError: the file breaks a rule, or a folder in it is not an absolute path.
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

    A relative path starts at the folder in which the user typed the command (PWD), because FLARE changes folder.
    """
    value = environ.get(variable)
    return Path(environ.get("PWD") or Path.cwd()) / value if value else None


def _existing(config: SiteConfig) -> SiteConfig:
    if not Path(config.data_root).is_dir():
        raise ValueError("data_root must be an existing folder; the site's configuration names one that is absent")
    return config


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        nested = isinstance(value, Mapping) and isinstance(below.get(key), Mapping)
        merged[key] = _laid_over(below[key], value) if nested else value
    return merged
