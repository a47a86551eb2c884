"""Can training start here, and what is missing.

    python3 -m common.tools.doctor [--device npu] [--devices 8]

Prints the machine, the packages, CANN and the drivers, the devices, the environment variables that matter, and one
training step of a small network whose numbers are compared with those of the CPU in float64; with --devices N also a
step and a sum in each of N processes. One process uses one device: ASCEND_RT_VISIBLE_DEVICES or CUDA_VISIBLE_DEVICES
choose which. Exit code: 0 when training can start on the device, 1 when not; the last line then says why, and what
to do.
"""

import sys
from pathlib import Path

if not __package__:  # started as a script: make the repository root importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import json
import os
from argparse import Namespace

from common.args import Parser
from common.errors import InputError
from common.record.files import writable_file
from common.terminal import lasting_output, marked
from common.tools.doctor_devices import devices, training_step
from common.tools.doctor_machine import machine, variables
from common.tools.doctor_packages import ascend, imported, packages
from common.tools.doctor_processes import processes
from common.tools.doctor_report import Report, in_ascii, reason
from common.values import path

ROOT = Path(__file__).resolve().parents[2]


def parse(argv: list[str] | None = None) -> Namespace:
    """The flags, with names and meanings of a train.py."""
    parser = Parser(prog="doctor", description=__doc__.partition("\n\n")[0])
    parser.add_argument(
        "--device", choices=("auto", "npu", "cuda", "gpu", "cpu"), default="auto",
        help="where training is to run; auto takes an NPU, then CUDA, then the CPU; default: auto",
    )  # fmt: skip
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="in how many processes; default: 1")
    parser.add_argument(
        "--output_dir", type=path, default=str(ROOT), metavar="DIR", help="where runs go; default: here"
    )
    parser.add_argument("--json", type=path, metavar="FILE", help="a file for the result")
    args = parser.parse_args(argv)
    if args.devices < 1:
        parser.error(f"--devices {args.devices}: give at least 1")
    if args.json and not Path(args.json).absolute().parent.is_dir():
        parser.error(f"--json {args.json}: there is no such folder; give a file in one that exists")
    if args.json:
        try:
            writable_file(args.json, "--json")
        except InputError as error:
            parser.error(str(error))
    args.device = {"gpu": "cuda"}.get(args.device, args.device)
    return args


def examine(report: Report, args: Namespace) -> str | None:
    """Fill the report; the device type that training would use, None when there is none."""
    machine(report, args.output_dir)
    variables(report)
    os.environ.pop("TORCH_NPU_WARNING_DISABLE", None)  # by its warnings the plugin says what it computes on the host
    torch = packages(report)
    ascend(report, torch)
    if torch is None or not all(imported(name)[0] for name in ("numpy", "PIL")):  # common.device.world needs them
        return None
    try:
        kind = devices(report, args.device)
    except Exception as error:  # of a driver, of CANN, or of the plugin
        report.problems.append(f"the devices do not answer ({reason(error)}); check npu-smi info or nvidia-smi")
        return None
    if kind is not None:
        training_step(report, kind)
        if args.devices > 1 and not report.problems:
            processes(report, kind, args.devices)
    return kind


def main(argv: list[str] | None = None) -> int:
    """Examine, print, and return the exit code."""
    args = parse(argv)
    report = Report()
    kind = examine(report, args)
    for title, texts in (("missing, and what that means", report.missing), ("more problems", report.problems[1:])):
        if texts:
            print(title)
            print("\n".join(f"  {in_ascii(text)}" for text in texts))
    ready = kind is not None and not report.problems
    verdict = f"ready: training can start on {kind}" if ready else f"NOT READY: {in_ascii(report.problems[0])}"
    if ready and kind != "npu" and any(text.startswith("NPU: ") for text in report.missing):
        verdict += ", and not on npu (see above)"
    if args.json:
        result = {"ready": ready, "device": kind, "verdict": verdict, **vars(report)}
        Path(args.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(marked(verdict, sys.stdout), flush=True)
    return 0 if ready else 1


if __name__ == "__main__":
    with lasting_output():
        sys.exit(main())
