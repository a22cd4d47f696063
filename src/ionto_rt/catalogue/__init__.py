"""Drugs and electrodes with their hard limits and the sources of every number.

The catalogue that comes with the package is a starting point: numbers listed under `unconfirmed` must be confirmed by
a pharmacist or physician before use on people. A laboratory keeps its own in a folder with the same two files.
"""

import hashlib
import os
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.functional_validators import BeforeValidator

from ionto_rt.toml_source import Location, TomlDocument, read_source, refuse_validation, suggest
from ionto_rt.units import Kind, UnitError, parse_quantity

FARADAY_C_PER_MOL = 96485.33212
"""Exact since 2019: elementary charge times Avogadro's number."""

FILES = ("drugs.toml", "electrodes.toml")

Model = TypeVar("Model", bound=BaseModel)
Polarity = Literal["cathode", "anode", "either"]


def _quantity(kind: Kind, positive: bool) -> BeforeValidator:
    def read(text: Any) -> float:
        value = parse_quantity(text, kind)
        if positive and value == 0.0:
            raise UnitError(f'is zero; write it like "{kind.example}"')
        return value

    return BeforeValidator(read)


Current = Annotated[float, _quantity(Kind.CURRENT, True)]
CurrentOrZero = Annotated[float, _quantity(Kind.CURRENT, False)]
Density = Annotated[float, _quantity(Kind.DENSITY, True)]
Charge = Annotated[float, _quantity(Kind.CHARGE, True)]
Voltage = Annotated[float, _quantity(Kind.VOLTAGE, True)]
Time = Annotated[float, _quantity(Kind.TIME, True)]
RampRate = Annotated[float, _quantity(Kind.RAMP_RATE, True)]
Area = Annotated[float, _quantity(Kind.AREA, True)]
MolarMass = Annotated[float, _quantity(Kind.MOLAR_MASS, True)]
Fraction = Annotated[float, Field(gt=0.0, le=1.0)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    title: str
    sources: list[str] = Field(min_length=1)
    """Where the numbers come from, by key."""
    unconfirmed: list[str] = []
    """Keys whose number no source confirms."""

    @model_validator(mode="after")
    def _unconfirmed_keys_exist(self) -> "_Entry":
        for key in self.unconfirmed:
            if key not in _keys(type(self)):
                raise ValueError(f'unconfirmed names "{key}", which is not a key of this entry')
        return self


class Drug(_Entry):
    """A drug and its limits, in SI units.

    `polarity` is that of the active electrode. `transport_low` to `transport_high` is the part of the charge that the
    drug's ion carries; entries without an ion of interest leave `valence`, `molar_mass` and these out.
    """

    polarity: Polarity
    valence: int | None = Field(default=None, ge=1, le=4)
    molar_mass_kg_per_mol: MolarMass | None = Field(default=None, alias="molar_mass")
    mass_of: str | None = None
    transport_low: Fraction | None = None
    transport_high: Fraction | None = None
    transport_source: str | None = None
    current_max_a: Current = Field(alias="current_max")
    density_max_a_per_m2: Density = Field(alias="density_max")
    density_advised_a_per_m2: Density | None = Field(default=None, alias="density_advised")
    """Passing it is noted in the plan, not refused."""
    dose_max_c: Charge = Field(alias="dose_max")
    day_dose_max_c: Charge | None = Field(default=None, alias="day_dose_max")
    """What a subject's site may receive in a day, of all sessions together; left out, it is `dose_max`."""
    site_rest_min_s: Time | None = Field(default=None, alias="site_rest_min")
    """Least time from the last current at a subject's site to the next session there."""
    voltage_max_v: Voltage = Field(alias="voltage_max")
    session_time_max_s: Time = Field(alias="session_time_max")
    ramp_rate_a_per_s: RampRate = Field(alias="ramp_rate")
    """Ramp of a step that states none."""
    ramp_rate_max_a_per_s: RampRate = Field(alias="ramp_rate_max")
    step_max_a: CurrentOrZero = Field(alias="step_max")
    """Largest change of level that may be made at once; 0: none."""

    @model_validator(mode="after")
    def _mass_is_whole(self) -> "Drug":
        parts = (self.valence, self.molar_mass_kg_per_mol, self.transport_low, self.transport_high)
        parts_text = (self.mass_of, self.transport_source)
        if any(part is not None for part in (*parts, *parts_text)) and None in (*parts, *parts_text):
            raise ValueError(
                "valence, molar_mass, mass_of, transport_low, transport_high and transport_source go together"
            )
        low, high = self.transport_low, self.transport_high
        if low is not None and high is not None and low > high:
            raise ValueError("transport_low is above transport_high")
        return self

    def mass_interval_kg(self, charge_c: float) -> tuple[float, float] | None:
        """Least and greatest mass of `mass_of` that `charge_c` drives in, by Faraday's law; None without an ion.

        m = t * M * Q / (z * F), over the interval of the transport number t.
        """
        if self.molar_mass_kg_per_mol is None or self.valence is None:
            return None
        if self.transport_low is None or self.transport_high is None:
            return None
        ceiling_kg = self.molar_mass_kg_per_mol * charge_c / (self.valence * FARADAY_C_PER_MOL)
        return self.transport_low * ceiling_kg, self.transport_high * ceiling_kg


class Electrode(_Entry):
    """A type of electrode: the areas it comes in, and the charge its buffer or coating is rated for (SI units)."""

    polarity: Polarity
    area_min_m2: Area = Field(alias="area_min")
    area_max_m2: Area = Field(alias="area_max")
    charge_rating_c: Charge = Field(alias="charge_rating")

    @model_validator(mode="after")
    def _area_is_an_interval(self) -> "Electrode":
        if self.area_min_m2 > self.area_max_m2:
            raise ValueError("area_min is above area_max")
        return self


class _DrugFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal[1]
    drugs: dict[str, Drug]


class _ElectrodeFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal[1]
    electrodes: dict[str, Electrode]


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _known_keys(location: Location, table: Any) -> list[str]:
    if not location:
        return ["format", "drugs" if "drugs" in table else "electrodes"]
    return _keys(Drug if location[0] == "drugs" else Electrode)


_EXAMPLES = {"format": "format = 1"}


class Catalogue:
    """Drugs and electrodes by key. `sha256` is over the files as read, so that a record can name the catalogue used."""

    def __init__(self, documents: tuple[TomlDocument, TomlDocument]) -> None:
        drugs, electrodes = documents
        self.path = str(Path(drugs.path).parent)
        self.drugs: dict[str, Drug] = _validated(_DrugFile, drugs).drugs
        self.electrodes: dict[str, Electrode] = _validated(_ElectrodeFile, electrodes).electrodes
        digest = hashlib.sha256()
        for name, document in zip(FILES, documents, strict=True):
            digest.update(f"{name} {len(document.source)}\n".encode())
            digest.update(document.source)
        self.sha256: str = digest.hexdigest()

    @classmethod
    def load(cls, folder: str | os.PathLike[str] | None = None) -> "Catalogue":
        """The catalogue in `folder` (drugs.toml and electrodes.toml), or the package's own. Raises RefusedError."""
        documents = []
        for name in FILES:
            if folder is not None:
                path = Path(folder, name)
                documents.append(TomlDocument.parse(read_source(path), str(path)))
            else:
                source = resources.files(__name__).joinpath(name).read_bytes()
                documents.append(TomlDocument.parse(source, f"catalogue/{name}"))
        drugs, electrodes = documents
        return cls((drugs, electrodes))

    def suggest_drug(self, key: str) -> str:
        """A remedy for a drug that is not in the catalogue."""
        return suggest(key, self.drugs)

    def suggest_electrode(self, key: str) -> str:
        """A remedy for an electrode that is not in the catalogue."""
        return suggest(key, self.electrodes)


def _validated(model: type[Model], document: TomlDocument) -> Model:
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        raise refuse_validation(error, document, _known_keys, _EXAMPLES) from None
