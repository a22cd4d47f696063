"""Treatments: TOML files of `format = 1` with steps, electrodes and limits, of one channel or of several.

Inside, all quantities are SI floats with the unit in the name; in the file they are text with a unit. `Treatment.load`
checks form only: whether the treatment is within limits is the business of `ionto_rt.safety` and `ionto_rt.plan`.

A file of one channel has the keys of the prescription at its top. A file of several has them in `[[channels]]`, a table
for each channel of one device, in the order of the device's channels.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, WithJsonSchema
from pydantic.functional_validators import AfterValidator, BeforeValidator, model_validator

from ionto_rt.codes import MAX_CHANNELS, OnTrip
from ionto_rt.errors import RefusedError
from ionto_rt.toml_source import Location, TomlDocument, read_source, refuse_validation, suggest
from ionto_rt.units import Kind, UnitError, parse_quantity

FORMAT = 1
MAX_STEPS = 4094
"""Most steps of a channel after the blocks have been repeated: one segment each at least, and two service segments."""

_BLOCK_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def _quantity(kind: Kind, zero_remedy: str | None) -> tuple[BeforeValidator, WithJsonSchema]:
    def read(text: Any) -> float:
        value = parse_quantity(text, kind)
        if value == 0.0 and zero_remedy is not None:
            raise UnitError(f"is zero; {zero_remedy}")
        return value

    description = f"A {kind.label}: a number and one of the units {', '.join(kind.units)}."
    schema = {"type": "string", "description": description, "examples": [kind.example]}
    return BeforeValidator(read), WithJsonSchema(schema)


def _line_of_text(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty; write a few words")
    if not text.isprintable():
        raise ValueError("has line breaks or control characters; write one line of text")
    return text


_POSITIVE = "it must be greater than zero"
Current = Annotated[float, *_quantity(Kind.CURRENT, 'to rest without current write a step with pause = "60 s"')]
CurrentLimit = Annotated[float, *_quantity(Kind.CURRENT, _POSITIVE)]
DensityLimit = Annotated[float, *_quantity(Kind.DENSITY, _POSITIVE)]
Charge = Annotated[float, *_quantity(Kind.CHARGE, _POSITIVE)]
VoltageLimit = Annotated[float, *_quantity(Kind.VOLTAGE, _POSITIVE)]
Time = Annotated[float, *_quantity(Kind.TIME, _POSITIVE)]
RampTime = Annotated[float, *_quantity(Kind.TIME, None)]
Area = Annotated[float, *_quantity(Kind.AREA, _POSITIVE)]
Text = Annotated[str, Field(max_length=200), AfterValidator(_line_of_text)]
ChannelName = Annotated[str, Field(max_length=60), AfterValidator(_line_of_text)]
"""It stands before reasons and in the columns of a screen."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ActiveElectrode(_Table):
    """The electrode that holds the drug."""

    type: Text
    """Key of the electrode in the catalogue."""
    area_m2: Area = Field(alias="area")
    polarity: Literal["cathode", "anode"]


class ReturnElectrode(_Table):
    """The electrode that closes the circuit, of the other polarity."""

    type: Text
    area_m2: Area = Field(alias="area")


class Electrodes(_Table):
    active: ActiveElectrode
    return_: ReturnElectrode = Field(alias="return")


class TreatmentLimits(_Table):
    """Limits of this treatment alone. They may tighten the catalogue's, never loosen them."""

    current_a: CurrentLimit | None = Field(default=None, alias="current")
    density_a_per_m2: DensityLimit | None = Field(default=None, alias="density")
    dose_c: Charge | None = Field(default=None, alias="dose")
    day_dose_c: Charge | None = Field(default=None, alias="day_dose")
    voltage_v: VoltageLimit | None = Field(default=None, alias="voltage")
    time_s: Time | None = Field(default=None, alias="time")


class Deliver(_Table):
    """Current at one level, until a dose is reached or a time is over.

    `ramp_s` is the time of the ramp from the level before to this one, and of the ramp down to zero where a pause or
    the end follows; None takes the catalogue's ramp rate. `dose_c` counts from the start of the ramp in to the end,
    with the ramp out. `time_s` runs from the start of the ramp in to the start of the ramp out, so that the width at
    half level is exact.
    """

    kind: ClassVar[Literal["deliver"]] = "deliver"

    current_a: Current = Field(alias="current")
    dose_c: Charge | None = Field(default=None, alias="dose")
    time_s: Time | None = Field(default=None, alias="time")
    ramp_s: RampTime | None = Field(default=None, alias="ramp")

    @model_validator(mode="after")
    def _one_end(self) -> "Deliver":
        if self.dose_c is None and self.time_s is None:
            raise ValueError('has neither dose nor time; add dose = "40 mA*min" or time = "10 min"')
        if self.dose_c is not None and self.time_s is not None:
            raise ValueError("has both dose and time; keep the one that must end the step")
        return self

    @property
    def goal(self) -> tuple[Literal["dose", "time"], float]:
        """What ends the step, and how much of it: C or s."""
        if self.dose_c is not None:
            return "dose", self.dose_c
        return "time", self.time_s or 0.0


class Pause(_Table):
    """No current from the start of the ramp down before it to the start of the ramp up after it."""

    kind: ClassVar[Literal["pause"]] = "pause"

    pause_s: Time = Field(alias="pause")


class Repeat(_Table):
    """The steps of a named block, several times."""

    kind: ClassVar[Literal["repeat"]] = "repeat"

    repeat: Text
    times: int = Field(ge=1, le=MAX_STEPS)


def _step_kind(step: Any) -> str:
    """Tag of the kind of step that the keys of a table mean; the tags are no valid keys."""
    keys = step if isinstance(step, dict) else {}
    if "repeat" in keys or "times" in keys:
        return "<repeat>"
    return "<pause>" if "pause" in keys else "<deliver>"


Leaf = Deliver | Pause
Step = Annotated[
    Annotated[Deliver, Tag("<deliver>")] | Annotated[Pause, Tag("<pause>")] | Annotated[Repeat, Tag("<repeat>")],
    Discriminator(_step_kind),
]
BlockStep = Annotated[
    Annotated[Deliver, Tag("<deliver>")] | Annotated[Pause, Tag("<pause>")],
    Discriminator(_step_kind),
]


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


class _Prescription(_Table):
    """The keys of one channel: at the top of a file, or in a table of [[channels]]."""

    drug: Text
    """Key of the drug in the catalogue."""
    site: Text | None = None
    electrodes: Electrodes
    limits: TreatmentLimits = TreatmentLimits()
    steps: list[Step] = Field(min_length=1)
    blocks: dict[str, Annotated[list[BlockStep], Field(min_length=1)]] = {}


class Channel(_Prescription):
    """One channel of several."""

    name: ChannelName


class _Head(_Table):
    format: Literal[1]
    title: Text
    subject: Text | None = None


class _OneChannel(_Prescription, _Head):
    """A file of one channel."""


class _SeveralChannels(_Head):
    """A file of several channels."""

    on_channel_trip: Literal["stop", "pause", "continue"] = "stop"
    channels: list[Channel] = Field(min_length=2, max_length=MAX_CHANNELS)


@dataclass(frozen=True, eq=False)
class ChannelTreatment:
    """What one channel delivers, and where in its file it stands.

    `index` is the number of the channel, on the device too; `name` is empty in a file of one channel. Locations in what
    it takes and gives begin at the channel, as in a file of one: `("steps", 0)`. Errors name the key in the file.
    """

    index: int
    name: str
    title: str
    subject: str | None
    drug: str
    site: str | None
    electrodes: Electrodes
    limits: TreatmentLimits
    steps: list[Step]
    blocks: dict[str, list[BlockStep]]
    _document: TomlDocument = field(repr=False)
    _at: Location = field(default=(), repr=False)

    @property
    def source(self) -> bytes:
        """The file's bytes as read."""
        return self._document.source

    @property
    def sha256(self) -> str:
        """SHA-256 of the file's bytes, in hex."""
        return hashlib.sha256(self._document.source).hexdigest()

    @property
    def path(self) -> str:
        """The file's name as it was given."""
        return self._document.path

    @property
    def polarity(self) -> int:
        """Sign of the active electrode's current: +1 anode, -1 cathode."""
        return 1 if self.electrodes.active.polarity == "anode" else -1

    def line_of(self, location: Location) -> int | None:
        """Line of a key in the file, or of the table around it."""
        return self._document.line_of((*self._at, *location))

    def refuse(self, location: Location, problem: str, remedy: str | None = None) -> RefusedError:
        """The error that names the file, line, key and value at `location`."""
        return self._document.refuse((*self._at, *location), problem, remedy)

    def expanded(self) -> Iterator[tuple[Location, Leaf, str]]:
        """The steps in the order of delivery, blocks repeated: location in the file, step, name.

        The name of a step of a block tells the turn: `pulse 2/3`. At most MAX_STEPS come, which `parse` has checked.
        """
        for index, step in enumerate(self.steps):
            if isinstance(step, Repeat):
                for turn in range(step.times):
                    for position, leaf in enumerate(self.blocks[step.repeat]):
                        yield ("blocks", step.repeat, position), leaf, f"{step.repeat} {turn + 1}/{step.times}"
            else:
                yield ("steps", index), step, ""

    def deliveries(self) -> Iterator[tuple[Location, Deliver]]:
        """Every step that delivers current, once each, in the order of the file; blocks that are not used left out."""
        used = {step.repeat for step in self.steps if isinstance(step, Repeat)}
        for index, step in enumerate(self.steps):
            if isinstance(step, Deliver):
                yield ("steps", index), step
        for name, leaves in self.blocks.items():
            for position, leaf in enumerate(leaves):
                if name in used and isinstance(leaf, Deliver):
                    yield ("blocks", name, position), leaf

    def unused_blocks(self) -> list[str]:
        """Names of the blocks that no step repeats."""
        used = {step.repeat for step in self.steps if isinstance(step, Repeat)}
        return [name for name in self.blocks if name not in used]

    def _check_blocks(self) -> None:
        for name in self.blocks:
            if not _BLOCK_NAME.fullmatch(name):
                raise self.refuse(("blocks", name), "is not a name for a block", "use up to 64 of A-Z a-z 0-9 _ -")
        total = 0
        for index, step in enumerate(self.steps):
            length = 1
            if isinstance(step, Repeat):
                if step.repeat not in self.blocks:
                    location: Location = ("steps", index, "repeat")
                    table = "[[channels.blocks.NAME]]" if self._at else "[[blocks.NAME]]"
                    remedy = suggest(step.repeat, self.blocks) if self.blocks else f"add {table} with its steps"
                    raise self.refuse(location, "no block has this name", remedy)
                length = step.times * len(self.blocks[step.repeat])
            total += length
            if total > MAX_STEPS:
                key: Location = ("steps", index, "times") if isinstance(step, Repeat) else ("steps", index)
                raise self.refuse(key, f"makes more than {MAX_STEPS} steps in all", "repeat less often")
        if not any(True for _ in self.deliveries()):
            raise self.refuse(("steps",), "no step delivers current", 'add a step with current = "2 mA" and a dose')


class Treatment(ChannelTreatment):
    """A treatment as a person wrote it. Make one with `load` or `parse`.

    Attributes: `title`, `subject`; `channels`, one or several; `on_channel_trip`, what a channel that trips, or ends
    short, means for the others. A treatment of one channel is itself that channel. One of several has no drug, steps
    or electrodes of its own: asking for them raises RefusedError, so that code that knows of one channel refuses it.
    """

    channels: tuple[ChannelTreatment, ...]
    on_channel_trip: OnTrip

    def __init__(
        self,
        document: TomlDocument,
        title: str,
        subject: str | None,
        channels: tuple[ChannelTreatment, ...],
        on_channel_trip: OnTrip = OnTrip.STOP,
    ) -> None:
        mine = vars(channels[0]) if len(channels) == 1 else {"title": title, "subject": subject, "_document": document}
        vars(self).update(mine, channels=channels, on_channel_trip=on_channel_trip, _at=())

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name in {each.name for each in fields(ChannelTreatment)} and "channels" in vars(self):
                raise RefusedError(
                    f"has {len(self.channels)} channels, where a treatment of one is needed",
                    file=self.path,
                    remedy="use a treatment of one channel",
                )
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"Treatment({self.path!r}, title={self.title!r}, channels={self.channels!r})"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Treatment":
        """Read the treatment in the file `path`. Raises RefusedError, one line naming file, line, key and remedy."""
        return cls.parse(read_source(path), os.fspath(path))

    @classmethod
    def parse(cls, source: bytes, path: str = "treatment.toml") -> "Treatment":
        """Read a treatment from the bytes of a file; `path` is its name in errors. Raises RefusedError."""
        document = TomlDocument.parse(source, path)
        version = document.data.get("format")
        if version is None:
            raise document.refuse(("format",), "is missing", f"add format = {FORMAT} at the top")
        if version is True or version != FORMAT:
            raise document.refuse(("format",), "is not a format that this version reads", f"write format = {FORMAT}")
        several = _has_several(document)
        try:
            if several:
                treatment = cls._of_several(document, _SeveralChannels.model_validate(document.data))
            else:
                treatment = cls._of_one(document, _OneChannel.model_validate(document.data))
        except ValidationError as error:
            examples = _CHANNEL_EXAMPLES if several else _EXAMPLES
            raise refuse_validation(error, document, _known_keys, examples) from None
        for channel in treatment.channels:
            channel._check_blocks()
        return treatment

    @classmethod
    def _of_one(cls, document: TomlDocument, found: _OneChannel) -> "Treatment":
        return cls(document, found.title, found.subject, (_view(0, "", found, found, document, ()),))

    @classmethod
    def _of_several(cls, document: TomlDocument, found: _SeveralChannels) -> "Treatment":
        names: dict[str, int] = {}
        for index, channel in enumerate(found.channels):
            name = " ".join(channel.name.split()).casefold()
            if name in names:
                problem = f"is the name of channels[{names[name]}] already"
                raise document.refuse(("channels", index, "name"), problem, "give every channel a name of its own")
            names[name] = index
        return cls(
            document,
            found.title,
            found.subject,
            tuple(
                _view(index, channel.name, found, channel, document, ("channels", index))
                for index, channel in enumerate(found.channels)
            ),
            OnTrip[found.on_channel_trip.upper()],
        )

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """JSON schema of the file, for editors that complete and check TOML."""
        one, several = (model.model_json_schema(by_alias=True) for model in (_OneChannel, _SeveralChannels))
        head = [key for key in one["properties"] if key in several["properties"]]

        def form(schema: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
            without = {key: False for key in other["properties"] if key not in head}
            return {"required": [key for key in schema["required"] if key not in head], "properties": without}

        return {
            "title": "Treatment",
            "description": "A treatment of one channel, or of several channels of one device.",
            "type": "object",
            "properties": one["properties"] | several["properties"],
            "required": [key for key in one["required"] if key in head],
            "additionalProperties": False,
            "oneOf": [form(one, several), form(several, one)],
            "$defs": one["$defs"] | several["$defs"],
        }


def _view(
    index: int, name: str, head: _Head, keys: _Prescription, document: TomlDocument, at: Location
) -> ChannelTreatment:
    return ChannelTreatment(
        index=index,
        name=name,
        title=head.title,
        subject=head.subject,
        drug=keys.drug,
        site=keys.site,
        electrodes=keys.electrodes,
        limits=keys.limits,
        steps=keys.steps,
        blocks=keys.blocks,
        _document=document,
        _at=at,
    )


def _has_several(document: TomlDocument) -> bool:
    """True if the file is of several channels. RefusedError if it is neither that nor of one."""
    data = document.data
    if "channels" not in data:
        if "on_channel_trip" in data:
            known = _known_keys((), data)
            for key in data:
                if key not in known:
                    raise document.refuse((key,), "unknown key", suggest(key, known))
            raise document.refuse(("on_channel_trip",), "there are no other channels", "remove it, or add [[channels]]")
        return False
    beside = [key for key in data if key in _Prescription.model_fields]
    if beside:
        raise document.refuse(
            (beside[0],),
            "stands at the top of a file that has [[channels]]",
            f"move to each channel, or remove: {', '.join(beside)}",
        )
    tables = data["channels"]
    if isinstance(tables, list) and len(tables) == 1:
        remedy = "write its keys at the top of the file, without name and [[channels]]"
        raise document.refuse(("channels", 0), "is the only channel", remedy)
    if isinstance(tables, list) and len(tables) > MAX_CHANNELS:
        location: Location = ("channels", MAX_CHANNELS)
        raise document.refuse(location, f"is one channel too many: a device has {MAX_CHANNELS} at most", "remove some")
    return True


_TABLES: dict[Location, type[BaseModel]] = {
    ("electrodes",): Electrodes,
    ("electrodes", "active"): ActiveElectrode,
    ("electrodes", "return"): ReturnElectrode,
    ("limits",): TreatmentLimits,
}
_STEPS: dict[str, type[BaseModel]] = {"<deliver>": Deliver, "<pause>": Pause, "<repeat>": Repeat}


def _known_keys(location: Location, table: Any) -> list[str]:
    if not location:
        forms = (_SeveralChannels,) if "channels" in table else (_OneChannel, _SeveralChannels)
        return list(dict.fromkeys(key for form in forms for key in _keys(form)))
    if location[0] == "channels":
        location = location[2:]
        if not location:
            return _keys(Channel)
    if location[:1] in (("steps",), ("blocks",)):
        return _keys(_STEPS[_step_kind(table)])
    return _keys(_TABLES[location])


_EXAMPLES = {
    "title": 'title = "Dexamethasone, left elbow"',
    "drug": 'drug = "dexamethasone-phosphate"',
    "electrodes": "[electrodes.active] and [electrodes.return]",
    "active": '[electrodes.active] with type, area = "8 cm^2" and polarity',
    "return": '[electrodes.return] with type and area = "25 cm^2"',
    "type": 'type = "buffered-pad"',
    "area": 'area = "8 cm^2"',
    "polarity": 'polarity = "cathode"',
    "steps": '[[steps]] with current = "2 mA" and dose = "20 mA*min"',
    "current": 'current = "2 mA"',
    "pause": 'pause = "60 s"',
    "repeat": 'repeat = "pulse"',
    "times": "times = 3",
}
_CHANNEL_EXAMPLES = {
    "name": 'name = "left elbow"',
    **{key: re.sub(r"\[(?=electrodes|steps)", "[channels.", text) for key, text in _EXAMPLES.items()},
}
