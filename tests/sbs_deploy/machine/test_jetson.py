"""What NVIDIA's tools print on Jetsons, line by line as JetPack 4 to 7 do; the values are made up."""

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbs_deploy.machine import jetson
from sbs_train.contract.results import JetsonClocks

ORIN_NANO_LINE = (
    "03-02-2026 09:15:01 RAM 2611/7486MB (lfb 21x4MB) CPU [12%@1344,3%@1344,0%@729,0%@729,off,off] EMC_FREQ 5%@2133 "
    "GR3D_FREQ 76%@[624] NVDEC off NVJPG off APE 200 cpu@48.5C/49C soc2@46.25C/46.25C gpu@47.125C/48C tj@48.5C/49C "
    "VDD_IN 5240mW/5010mW/5240mW VDD_CPU_GPU_CV 1204mW/1180mW/1204mW VDD_SOC 1488mW/1451mW/1488mW\n"
)
THOR_LINE = (
    "03-02-2026 09:15:02 RAM 3520/125771MB (lfb 100x4MB) CPU [0%@2601,off] EMC_FREQ @4266 GR3D_FREQ @[1574,1574,1560] "
    "tj@51.25C/51.5C gpu@50.5C/50.5C VDD_GPU 6120mW/6120mW/6120mW VIN_SYS_5V0 4871mW/4871mW/4871mW "
    "VIN 27512mW/27512mW/27512mW\n"
)
NANO_LINE = (
    "RAM 1450/3964MB (lfb 300x4MB) CPU [5%@1428,2%@1428,0%@1428,0%@1428] EMC_FREQ 3%@1600 GR3D_FREQ 99%@921 "
    "APE 25 CPU@35C GPU@33.5C PMIC@100C POM_5V_IN 4012/3987 POM_5V_GPU 1204/1101\n"
)
CLOCKS = """SOC family:tegra234  Machine:NVIDIA Jetson Orin Nano Developer Kit
Online CPUs: 0-1
cpu0: Online=1 Governor=schedutil MinFreq={cpu} MaxFreq=1510400 CurrentFreq=1510400 IdleStates: WFI=0 c7=0
cpu1: Online=1 Governor=schedutil MinFreq=1510400 MaxFreq=1510400 CurrentFreq=1510400 IdleStates: WFI=0 c7=0
cpu2: Online=0 Governor=schedutil MinFreq=729600 MaxFreq=1510400 CurrentFreq=729600 IdleStates: WFI=0 c7=0
GPU MinFreq=624750000 MaxFreq=624750000 CurrentFreq=624750000
Active GPU TPCs: 4
EMC MinFreq=204000000 MaxFreq=2133000000 CurrentFreq=2133000000 FreqOverride=1
DLA0_CORE:   Online=1 MinFreq=0 MaxFreq=1600000000 CurrentFreq=1600000000
FAN Dynamic Speed Control=nvfancontrol hwmon0_pwm1=60
NV Power Mode: 15W
"""
MODES = """# comment
< PARAM TYPE=FILE NAME=CPU_ONLINE >
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=25W >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
< PM_CONFIG DEFAULT=1 >
"""


@pytest.mark.parametrize(
    ("text", "name", "number"),
    [
        ("NV Power Mode: 25W\n1\n", "25W", 1),
        ("NVPM WARN: fan mode is not set!\nNV Power Mode: MAXN\n0\n", "MAXN", 0),
        ("NV Power Mode: MODE_30W\n2\n", "30W", 2),
    ],
)
def test_power_mode(text: str, name: str, number: int) -> None:
    assert jetson.parse_power_mode(text) == jetson.PowerMode(name=name, id=number)


def test_the_largest_power_mode_is_not_always_number_0() -> None:
    modes = jetson.parse_power_modes(MODES)
    assert [mode.id for mode in modes] == [0, 1, 2]
    assert max(modes, key=lambda mode: mode.rank).name == "MAXN_SUPER"
    watts = [jetson.PowerMode(name=name, id=i) for i, name in enumerate(("15W", "7W"))]
    assert max(watts, key=lambda mode: mode.rank).name == "15W"
    both = [jetson.PowerMode(name=name, id=i) for i, name in enumerate(("MAXN", "MAXN_SUPER", "40W"))]
    assert max(both, key=lambda mode: mode.rank).name == "MAXN_SUPER"


def test_pinned_clocks() -> None:
    found = jetson.parse_clocks(CLOCKS.format(cpu=1510400))
    assert found == JetsonClocks(
        pinned=True,  # cpu2 is switched off
        gpu_mhz={"min": 624, "max": 624, "current": 624},
        memory_mhz={"min": 204, "max": 2133, "current": 2133},
    )
    free = jetson.parse_clocks(CLOCKS.format(cpu=729600))
    assert free is not None and free.pinned is False


def test_tegrastats_of_three_generations() -> None:
    orin = jetson.parse_tegrastats(ORIN_NANO_LINE)
    assert orin is not None
    assert (orin["gpu_load_percent"], orin["gpu_mhz"]) == (76, [624])
    assert orin["temperatures_c"] == {"cpu": 48.5, "soc2": 46.25, "gpu": 47.125, "tj": 48.5}
    assert orin["power_mw"] == {"VDD_IN": 5240, "VDD_CPU_GPU_CV": 1204, "VDD_SOC": 1488}
    thor = jetson.parse_tegrastats(THOR_LINE)
    assert thor is not None
    assert (thor["gpu_load_percent"], thor["gpu_mhz"]) == (None, [1574, 1574, 1560])
    assert thor["power_mw"] == {"VDD_GPU": 6120, "VIN_SYS_5V0": 4871, "VIN": 27512}
    nano = jetson.parse_tegrastats(NANO_LINE)
    assert nano is not None
    assert (nano["gpu_load_percent"], nano["gpu_mhz"], nano["power_mw"]["POM_5V_GPU"]) == (99, [921], 1204)
    assert nano["temperatures_c"]["GPU"] == 33.5


@given(st.text(max_size=300))
def test_no_text_is_too_odd(text: str) -> None:
    jetson.parse_power_mode(text)
    jetson.parse_power_modes(text)
    jetson.parse_clocks(text)
    jetson.parse_tegrastats("GR3D_FREQ " + text)


def board(root: Path) -> Path:
    for name, text in (
        ("proc/device-tree/model", "NVIDIA Jetson Orin Nano Developer Kit\0"),
        ("etc/nvpmodel.conf", MODES),
        ("sys/class/devfreq/17000000.gpu/min_freq", "306000000\n"),
        ("sys/class/devfreq/17000000.gpu/max_freq", "624750000\n"),
        ("sys/class/devfreq/17000000.gpu/cur_freq", "306000000\n"),
        ("sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq", "729600\n"),
        ("sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq", "1510400\n"),
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_the_state_of_a_jetson(tmp_path: Path) -> None:
    answers = {
        "nvpmodel": "NV Power Mode: 15W\n0\n",
        "jetson_clocks": CLOCKS.format(cpu=729600),
        "tegrastats": THOR_LINE,
    }

    def run(command: Sequence[str], timeout_s: float) -> str | None:
        assert timeout_s <= 5
        return answers.get(command[0])

    state = jetson.jetson_state(board(tmp_path), run)
    assert state is not None
    assert (state.power_mode, state.power_mode_max, state.power_mode_max_id) == ("15W", "MAXN_SUPER", 2)
    assert state.clocks is not None and state.clocks.gpu_mhz is not None and state.tegrastats is not None
    assert state.clocks.gpu_mhz["max"] == 624 and state.tegrastats["gpu_mhz"] == [1574, 1574, 1560]


def test_tools_that_are_missing_or_want_root(tmp_path: Path) -> None:
    state = jetson.jetson_state(board(tmp_path), lambda command, timeout_s: None)
    assert state is not None
    assert (state.power_mode, state.tegrastats) == (None, None)
    gpu = {"min": 306, "max": 624, "current": 306}
    assert state.clocks == JetsonClocks(pinned=False, gpu_mhz=gpu, memory_mhz=None), "the kernel tells without root"
    (tmp_path / "sys/class/devfreq/17000000.gpu/cur_freq").unlink()
    state = jetson.jetson_state(tmp_path, lambda command, timeout_s: None)
    assert state is not None and state.clocks is None


def test_what_is_not_a_jetson(tmp_path: Path) -> None:
    assert jetson.jetson_state(tmp_path) is None


def test_commands() -> None:
    python = sys.executable
    assert jetson.run_command([python, "-c", "print('x')"], 10) == "x\n"
    assert jetson.run_command([python, "-c", "raise SystemExit(1)"], 10) is None
    assert jetson.run_command(["no-such-tool-of-nvidia"], 10) is None
    endless = "import time; print('line', flush=True); time.sleep(60)"
    assert jetson.run_command([python, "-c", endless], 1) == "line\n", "what never ends is cut off, with its output"
