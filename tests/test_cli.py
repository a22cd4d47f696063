"""The command line's contract: what each command prints, what it returns, and what it does not load."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import ionto_rt
from cli_support import COMMAND, EXAMPLE, ROOT, Truth, environment, ionto, sessions, started, treatment
from ionto_rt.cli import COMMANDS, group
from ionto_rt.cli.devices import SKINS, VIRTUAL_HELP
from ionto_rt.core.constant_current import nominal_probe_ticks
from ionto_rt.device import VIRTUAL_OPTIONS
from ionto_rt.record import Record
from ionto_rt.virtual_device import PACINGS, SimPort
from record_support import finished_channels, make_channels, ticked

HEAVY = {"matplotlib", "nanoarrow", "numpy", "pydantic", "rich", "serial", "sqlite3"}


def loaded_by(code: str) -> set[str]:
    """Modules that `code` has loaded, in a fresh interpreter."""
    listing = f"import sys; before = set(sys.modules)\n{code}\nprint(*(set(sys.modules) - before), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", listing], env=environment(), capture_output=True, text=True, check=True
    )
    return set(done.stderr.split())


def test_importing_the_package_loads_nothing_but_itself() -> None:
    assert loaded_by("import ionto_rt") <= {"ionto_rt", "typing", "re"} | {name for name in loaded_by("import typing")}


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["sessions", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    found = loaded_by(f"from ionto_rt.cli import call; assert call({words!r}) == 0")
    assert not HEAVY & found


def test_a_virtual_device_starts_without_the_heavy_libraries() -> None:
    found = loaded_by("import ionto_rt.cli.devices, ionto_rt.virtual_device")
    assert not (HEAVY - {"numpy"}) & found


def test_the_names_at_the_top_are_what_they_say() -> None:
    for name in ionto_rt.__all__:
        assert name in dir(ionto_rt)
        assert getattr(ionto_rt, name) is not None
    assert ionto_rt.Treatment.__module__ == "ionto_rt.treatment"
    assert ionto_rt.Controller.__module__ == "ionto_rt.core.controller"
    assert re.fullmatch(r"\d+(\.\d+)*\S*", ionto_rt.__version__)
    with pytest.raises(AttributeError, match="has no attribute 'Treatmint'"):
        _ = ionto_rt.Treatmint  # type: ignore[attr-defined]


def test_every_command_has_help(tmp_path: Path) -> None:
    listing = ionto("--help", cwd=tmp_path)
    assert listing.code == 0
    assert re.findall(r"^  ([a-z-]+)  +\S", listing.out.partition("Commands:")[2], re.M) == list(COMMANDS)
    assert ionto(cwd=tmp_path).out == listing.out
    with group.make_context("ionto-rt", ["run"]) as context:
        for name in COMMANDS:
            command = group.get_command(context, name)
            assert command is not None and command.name == name and command.help
            text = command.get_help(context)
            assert all(option.help for option in command.params if option.param_type_name == "option"), text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dance"], "No such command 'dance'"),
        (["run"], "Missing argument 'TREATMENT'"),
        (["run", "x.toml", "--speed", "warp"], "'warp' is not one of 'real', 'max'"),
        (["run", "x.toml", "--faster"], "--faster"),
        (["run", "x.toml"], "x.toml: no such file"),
        (["run", "x.toml", "--current-limit", "3"], '--current-limit = "3": has no unit'),
        (["run", "x.toml", "--current-limit", "4,0 mA"], "has a comma in its number"),
        (["run", "x.toml", "--current-limit", "1e308 mA"], "has an exponent of more than two digits"),
        (["run", "x.toml", "--dose-limit", "0 mA*min"], "is zero"),
        (["check", EXAMPLE, "--device", "sim:?load=-5"], "load '-5': is negative"),
        (["virtual-device", "--load", "-5"], "load '-5': is negative"),
        (["check", EXAMPLE, "--device", "serial:/tmp"], "serial:/tmp: cannot be opened (Is a directory)"),
        (["check", EXAMPLE, "--device", "sim:?truth=/tmp"], '"sim:?truth=/tmp": /tmp: Is a directory; correct'),
        (["check", "x.toml"], "x.toml: no such file"),
        (["replay", "nowhere"], "nowhere: not a session's folder"),
        (["replay", "latest"], "there is no session in sessions; `latest` is the newest one in ./sessions"),
        (["report", "."], "not a session's folder"),
        (["recover", "."], "not a session's folder"),
        (["verify", "."], "not a session's folder"),
        (["sessions", "nowhere"], "nowhere: no such folder"),
        (["virtual-device", "--rate", "3"], "sample rate 3.0 Hz"),
        (["virtual-device", "--skin", "leather"], "leather"),
        (["virtual-device", "--seed", "-3"], "'--seed': -3 is not in the range"),
        (["virtual-device", "--seed", "99999999999999999999"], "'--seed'"),
        (["virtual-device", "--channels", "-1"], "'--channels'"),
        (["virtual-device", "--channels", "99999999999999"], "'--channels'"),
        (["virtual-device", "--substeps", "-1"], "'--substeps'"),
        (["virtual-device", "--substeps", "99999999999"], "'--substeps'"),
        (["virtual-device", "--fault", "99999999999:open@3"], "is not understood"),
        (["check", EXAMPLE, "--device", "sim:?channels=999999999999"], "must be a whole number from 1 to 32"),
        (["check", EXAMPLE, "--device", "sim:?substeps=99999999999"], "must be a whole number from 0 to 1000"),
        (["run", EXAMPLE, "--device", "sim:?substeps=99999999999"], "must be a whole number from 0 to 1000"),
        (["check", EXAMPLE, "--device", "sim:?fault=99999999999:open@3"], "is not understood"),
        (["sounds", "--out", "/proc"], '--out = "/proc": cannot be written'),
        (["virtual-device", "--truth", "/ionto-none/t.csv"], "/ionto-none/t.csv: No such file or directory"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_one_line_and_exit_code_2(tmp_path: Path, words: list[str | Path], said: str) -> None:
    assert said in ionto(*words, cwd=tmp_path).refusal


def test_check_prints_the_plan_and_starts_nothing(tmp_path: Path) -> None:
    done = ionto("check", EXAMPLE, cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    for part in ("40 mA*min", "4 mA", "10:31", "cathode", "mg", "catalogue"):
        assert part in done.out, part
    assert not list(tmp_path.iterdir())


def test_check_gives_the_plan_as_json(tmp_path: Path) -> None:
    plan = ionto("check", EXAMPLE, "--json", cwd=tmp_path).receipt
    assert plan["dose_mamin"] == pytest.approx(40.0)
    assert plan["max_current_ma"] == pytest.approx(4.0)
    assert plan["duration_s"] == pytest.approx(630.5 + 1e-3 * nominal_probe_ticks(1e-3))
    assert [step["kind"] for step in plan["steps"]] == ["deliver"]
    assert plan["drug_mass_mg_interval"][0] < plan["drug_mass_mg_interval"][1]
    assert {row["source"] for row in plan["limits"]} >= {"catalogue"}


def test_check_with_a_device_shows_its_limits_too(tmp_path: Path) -> None:
    plan = ionto("check", EXAMPLE, "--device", "sim:?compliance=12", "--json", cwd=tmp_path).receipt
    (voltage,) = (row for row in plan["limits"] if row["quantity"] == "voltage")
    assert (voltage["value"], voltage["source"]) == (12.0, "device")
    assert not list(tmp_path.iterdir())


ELBOWS = ROOT / "examples" / "two-elbows.toml"


def test_check_prints_the_plan_of_every_channel_under_one_title(tmp_path: Path) -> None:
    done = ionto("check", ELBOWS, cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert done.out.count("Dexamethasone, both elbows") == 1
    head, left, right = re.split(r"^(?=\w+ elbow \(key)", done.out, flags=re.M)
    assert "2 channels; if one trips or ends short, the others pause" in head
    assert left.startswith("left elbow (key 1, device channel 0)\n") and "40 mA\u00b7min in 10:31, up to 4 mA" in left
    assert (
        right.startswith("right elbow (key 2, device channel 1)\n") and "18 mA\u00b7min in 10:57, up to 2 mA" in right
    )
    assert "treatment: line" in right and "treatment: line" not in left


def test_check_gives_the_plans_of_several_channels_as_one_object(tmp_path: Path) -> None:
    found = ionto("check", ELBOWS, "--json", cwd=tmp_path).receipt
    assert (found["title"], found["on_channel_trip"]) == ("Dexamethasone, both elbows", "pause")
    assert [(one["name"], one["dose_mamin"]) for one in found["channels"]] == [
        ("left elbow", pytest.approx(40.0)),
        ("right elbow", pytest.approx(18.0)),
    ]
    single = ionto("check", EXAMPLE, "--json", cwd=tmp_path).receipt
    assert "channels" not in single
    for one in found["channels"]:
        assert one.keys() == single.keys() | {"name"}


def test_check_refuses_more_channels_than_the_device_has(tmp_path: Path) -> None:
    said = ionto("check", ELBOWS, "--device", "sim:?channels=1", cwd=tmp_path).refusal
    assert "channels[1]: the device ionto-virtual VIRTUAL-0001 has 1 channel, the treatment 2" in said


CONTRACT = {
    "outcome", "dose_prescribed_mamin", "dose_delivered_mamin", "peak_current_ma", "peak_voltage_v", "ticks", "gaps",
    "late", "latency_us", "trips", "record",
}  # fmt: skip


def test_run_with_json_prints_the_receipt_and_nothing_else(tmp_path: Path) -> None:
    uri = "virtual:?truth=truth.csv"
    done = ionto("run", treatment(tmp_path), "--device", uri, "--speed", "max", "--json", cwd=tmp_path)
    assert done.code == 0
    receipt = done.receipt
    assert receipt.keys() >= CONTRACT
    assert receipt["latency_us"] is None, "nothing is timed on a virtual clock"
    assert (receipt["outcome"], receipt["trips"], receipt["gaps"]) == ("complete", [], 0)
    assert receipt["dose_prescribed_mamin"] == pytest.approx(2 * 4 / 60)
    assert receipt["dose_delivered_mamin"] == pytest.approx(receipt["dose_prescribed_mamin"], rel=0.005)
    truth = Truth(tmp_path / "truth.csv")
    assert abs(truth["charge_c"][-1]) / 0.06 == pytest.approx(receipt["dose_delivered_mamin"], rel=0.005)
    assert sessions(tmp_path / "sessions") == [tmp_path / receipt["record"]]


def test_run_away_from_a_terminal_is_quiet_but_for_phases_and_the_receipt(tmp_path: Path) -> None:
    done = ionto("run", treatment(tmp_path), "--device", "sim:", "--speed", "max", "--out", "kept", cwd=tmp_path)
    assert done.code == 0
    assert done.out.startswith("complete: the prescribed dose was delivered\n")
    labels = re.findall(r"^([a-z]+) ", done.out, re.M)
    (folder,) = sessions(tmp_path / "kept")
    host = ["host"] if "fitness" in Record.open(folder).session["host"] else []
    shown = ["dose", "drug", "peak", "held", "area", "load", "time", *host, "trips", "record", "next"]
    assert labels == shown
    assert "\x1b" not in done.out + done.err
    assert len(done.err.splitlines()) == 7
    assert f"ionto-rt report kept/{folder.name}" in done.out


def test_the_virtual_patient_has_the_pads_of_the_treatment(tmp_path: Path) -> None:
    """Impedance falls with area: the same current on half the pad takes more voltage."""
    path = treatment(tmp_path, current="1 mA", ramp="1.25 s")
    small, large = tmp_path / "small.toml", tmp_path / "large.toml"
    small.write_text(path.read_text().replace('"8 cm^2"', '"6 cm^2"'))
    large.write_text(path.read_text().replace('"8 cm^2"', '"12 cm^2"'))
    volts = [
        ionto("run", each, "--device", "sim:", "--speed", "max", "--json", cwd=tmp_path).receipt["peak_voltage_v"]
        for each in (large, small)
    ]
    assert volts[1] > 1.05 * volts[0]


def test_nobody_reading_is_no_error_of_the_session(tmp_path: Path) -> None:
    command = [*COMMAND, "run", str(treatment(tmp_path)), "--device", "sim:", "--speed", "max"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), stdout=write, stderr=write, stdin=subprocess.DEVNULL, timeout=60
    )
    os.close(write)
    (folder,) = sessions(tmp_path / "sessions")
    receipt = Record.open(folder).receipt
    assert receipt is not None and receipt["outcome"] == "complete"
    assert done.returncode == 0


@pytest.mark.parametrize("more", [["--json"], []])
def test_a_receipt_that_cannot_be_printed_is_told_with_where_the_record_is(tmp_path: Path, more: list[str]) -> None:
    command = [*COMMAND, "run", str(treatment(tmp_path)), "--device", "sim:", "--speed", "max", *more]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment(), stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    (folder,) = sessions(tmp_path / "sessions")
    assert done.returncode == 1
    *_, said = done.stderr.splitlines()
    assert said == (
        "ionto-rt: standard output could not be written (No space left on device); the record is whole: "
        f"{folder.relative_to(tmp_path)}"
    )


def test_a_closed_pipe_makes_no_traceback(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [*COMMAND, "--help"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), stdout=write, stderr=subprocess.PIPE, text=True, timeout=60
    )
    os.close(write)
    assert done.stderr == ""


def test_a_file_where_the_folder_of_sessions_should_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "sessions").write_text("a file, no folder")
    done = ionto("run", treatment(tmp_path), "--device", "sim:", "--speed", "max", cwd=tmp_path)
    assert "sessions" in done.refusal


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_that_may_not_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "sessions").mkdir()
    (tmp_path / "sessions").chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert "sessions" in ionto("run", treatment(tmp_path), "--device", "sim:", "--speed", "max", cwd=tmp_path).refusal


def test_sessions_lists_them_and_latest_is_the_newest(tmp_path: Path) -> None:
    assert ionto("sessions", ".", cwd=tmp_path).out == "no sessions in .\n"
    path = treatment(tmp_path)
    receipts = [
        ionto("run", path, "--device", uri, "--speed", "max", "--json", cwd=tmp_path).receipt
        for uri in ("sim:", "sim:?fault=open@3")
    ]
    listed = ionto("sessions", cwd=tmp_path)
    assert listed.code == 0
    rows = [line.split() for line in listed.out.splitlines()]
    assert rows[0][:3] == ["session", "outcome", "mA·min"]
    found = {row[0]: row[1] for row in rows[1:]}
    assert found == {receipt["session_id"]: receipt["outcome"] for receipt in receipts}
    objects = json.loads(ionto("sessions", "--json", cwd=tmp_path).out)
    assert {row["session_id"] for row in objects} == set(found)
    assert [row["trips"] for row in objects] == [len(receipt["trips"]) for receipt in receipts]

    newest = receipts[-1]["session_id"]
    assert "rows, every bit" in ionto("replay", "latest", cwd=tmp_path).out
    assert ionto("verify", "latest", cwd=tmp_path).code == 0
    recovered = ionto("recover", "latest", cwd=tmp_path)
    assert recovered.code == 0 and "nothing to recover" in recovered.out and newest in recovered.out

    rebuilt = ionto("sessions", "--rebuild", cwd=tmp_path)
    assert rebuilt.code == 0
    assert rebuilt.out == listed.out
    assert rebuilt.err.startswith("journal made anew from 2 sessions; the old journal is kept as sessions/")

    (tmp_path / "sessions" / newest / "events.jsonl").write_text("{}\n")
    broken = ionto("verify", "latest", cwd=tmp_path)
    assert broken.code == 1 and "wrong: events.jsonl" in broken.out


def test_the_commands_take_a_record_of_several_channels(tmp_path: Path) -> None:
    known = ticked(2)
    ended = finished_channels(tmp_path / "sessions", known)
    dead = make_channels(tmp_path / "sessions", known)
    dead.close()
    listed = ionto("sessions", cwd=tmp_path).out.splitlines()
    assert listed[0].split()[:6] == ["session", "outcome", "mA·min", "of", "trips", "channels"]
    assert listed[1].split()[1:6] == ["complete", "0.0394", "0.0467", "2", "S-07"]
    assert listed[1].endswith("place 0, place 1")
    assert {row["channels"] for row in json.loads(ionto("sessions", "--json", cwd=tmp_path).out)} == {2}

    recovered = ionto("recover", dead.path, cwd=tmp_path)
    assert recovered.code == 0
    assert re.search(r"^ {10}0 site 0: \S+ of 0.0267 mA·min \(device count at its end\)$", recovered.out, re.M)
    for folder in (ended, dead.path):
        assert ionto("verify", folder, cwd=tmp_path).code == 0
        assert f"identical: {len(known.rows)} rows of 2 channels" in ionto("replay", folder, cwd=tmp_path).out


def test_report_goes_where_it_is_told(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    ionto("run", treatment(tmp_path), "--device", "sim:", "--speed", "max", "--json", cwd=tmp_path)
    done = ionto("report", "latest", "--out", "papers", cwd=tmp_path)
    assert done.code == 0
    assert sorted(done.out.split()) == ["papers/report.html", "papers/report.png"]
    assert all((tmp_path / name).stat().st_size > 1000 for name in done.out.split())
    (folder,) = sessions(tmp_path / "sessions")
    assert not list(folder.glob("report.*")) and not done.err
    (folder / "treatment.toml").write_text("changed")
    done = ionto("report", "latest", "--out", "papers", cwd=tmp_path)
    assert done.code == 0 and done.err.count("\n") == 1
    assert "does not verify (treatment.toml: " in done.err


def test_verify_says_of_a_session_without_a_receipt_that_it_has_not_ended(tmp_path: Path) -> None:
    folder = make_channels(tmp_path / "sessions", ticked(1))
    folder.close()
    done = ionto("verify", folder.path, cwd=tmp_path)
    assert done.code == 1
    checked, *said = done.out.splitlines()
    assert "receipt" not in checked
    assert said == ["no receipt: run `ionto-rt recover` on it", "what there is, is as it was written"]
    (folder.path / "treatment.toml").write_text("changed")
    done = ionto("verify", folder.path, cwd=tmp_path)
    assert done.code == 1 and done.out.endswith("\nwhat there is, is not as it was written\n")


def test_devices_names_what_needs_no_port(tmp_path: Path) -> None:
    done = ionto("devices", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert "virtual:" in done.out and "sim:" in done.out
    assert "serial:" in done.out or "no serial port found" in done.out


def test_a_virtual_device_serves_a_host_and_ends_with_it(tmp_path: Path) -> None:
    with started("virtual-device", "--skin", "sweating", "--seed", "3", "--truth", "t.csv", cwd=tmp_path) as server:
        assert server.stdout is not None
        ready = json.loads(server.stdout.readline())
        assert ready["pid"] == server.pid
        uri = f"serial:{ready['port']}"
        done = ionto("run", treatment(tmp_path), "--device", uri, "--speed", "max", "--json", cwd=tmp_path)
        assert done.receipt["outcome"] == "complete"
        assert server.wait(10) == 0
        assert server.stdout.read() == ""
    assert len(Truth(tmp_path / "t.csv")) > 7500


def test_a_virtual_device_ends_when_it_is_told(tmp_path: Path) -> None:
    with started("virtual-device", cwd=tmp_path) as server:
        assert server.stdout is not None
        server.stdout.readline()
        server.send_signal(signal.SIGINT)
        assert server.wait(10) == 0
        assert server.stderr is not None and server.stderr.read() == ""


def test_the_virtual_device_s_options_are_described_and_their_choices_are_the_device_s() -> None:
    assert VIRTUAL_HELP.keys() == VIRTUAL_OPTIONS.keys()
    with pytest.raises(ValueError, match="use one of ") as caught:
        SimPort(skin="leather")
    assert re.search(r"use one of (.*)", str(caught.value))[1].split(", ") == list(SKINS)  # type: ignore[index]
    with group.make_context("ionto-rt", ["virtual-device"]) as context:
        command = group.get_command(context, "virtual-device")
        assert command is not None
        (pacing,) = (option for option in command.params if option.name == "pacing")
        assert tuple(pacing.type.choices) == tuple(PACINGS)  # type: ignore[attr-defined]


def test_python_m_is_the_command(tmp_path: Path) -> None:
    assert ionto("--version", cwd=tmp_path).out == f"ionto-rt {ionto_rt.__version__}\n"
    assert (ROOT / "src" / "ionto_rt" / "py.typed").exists()
