"""The catalogue: polarity, limits and sources of drugs and electrodes."""

from pathlib import Path

import pytest

import ionto_rt.catalogue
from ionto_rt.catalogue import FILES, Catalogue
from ionto_rt.errors import RefusedError

OWN = Path(ionto_rt.catalogue.__file__).parent


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return Catalogue.load()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).write_bytes((OWN / name).read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    ("drug", "polarity"),
    [
        ("dexamethasone-phosphate", "cathode"),
        ("lidocaine", "anode"),
        ("acetylcholine", "anode"),
        ("sodium-nitroprusside", "cathode"),
        ("saline", "either"),
        ("perfusion-vehicle", "either"),
    ],
)
def test_an_ion_goes_in_under_the_electrode_of_its_own_sign(catalogue: Catalogue, drug: str, polarity: str) -> None:
    assert catalogue.drugs[drug].polarity == polarity


def test_every_limit_has_a_source_or_is_marked_unconfirmed(catalogue: Catalogue) -> None:
    numbers = (
        "current_max",
        "density_max",
        "dose_max",
        "day_dose_max",
        "voltage_max",
        "session_time_max",
        "ramp_rate",
        "ramp_rate_max",
    )
    for name, drug in catalogue.drugs.items():
        told = " ".join(source.partition(": ")[0] for source in drug.sources).replace(",", "").split()
        for key in numbers:
            assert key in told or key in drug.unconfirmed, f"{name}: {key}"


def test_clinical_drugs_allow_no_step_at_once(catalogue: Catalogue) -> None:
    assert catalogue.drugs["dexamethasone-phosphate"].step_max_a == 0.0
    assert catalogue.drugs["acetylcholine"].step_max_a == 1e-4


def test_the_drug_mass_is_an_interval_by_faradays_law(catalogue: Catalogue) -> None:
    lidocaine = catalogue.drugs["lidocaine"]
    interval = lidocaine.mass_interval_kg(1.062)
    assert interval is not None
    ceiling_kg = 234.34e-3 * 1.062 / 96485.33212
    assert interval == pytest.approx((0.05 * ceiling_kg, 0.15 * ceiling_kg), rel=1e-12)
    assert ceiling_kg == pytest.approx(2.58e-6, rel=1e-3)


def test_a_vehicle_has_no_drug_mass(catalogue: Catalogue) -> None:
    assert catalogue.drugs["saline"].mass_interval_kg(2.4) is None


def test_the_hash_is_of_the_files_and_changes_with_them(catalogue: Catalogue, copy: Path) -> None:
    assert Catalogue.load(copy).sha256 == catalogue.sha256
    drugs = copy / "drugs.toml"
    drugs.write_bytes(drugs.read_bytes() + b"\n")
    assert Catalogue.load(copy).sha256 != catalogue.sha256


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('polarity = "cathode"', 'polarity = "minus"', "polarity"),
        ('current_max = "4 mA"', 'current_max = "4 V"', "current_max"),
        ('current_max = "4 mA"', 'curent_max = "4 mA"', 'did you mean "current_max"?'),
        ("transport_low = 0.01", "transport_low = 0.5", "transport_low is above transport_high"),
        ("valence = 1\n", "", "go together"),
        ('unconfirmed = ["valence"', 'unconfirmed = ["valense"', "valense"),
    ],
)
def test_a_catalogue_with_a_mistake_is_refused_in_one_line(copy: Path, old: str, new: str, expected: str) -> None:
    drugs = copy / "drugs.toml"
    text = drugs.read_text(encoding="utf-8")
    assert old in text
    drugs.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(RefusedError) as refusal:
        Catalogue.load(copy)
    line = str(refusal.value)
    assert line.startswith(f"{drugs}:") and expected in line and "\n" not in line


def test_a_folder_without_a_catalogue_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="no such file"):
        Catalogue.load(tmp_path)
