"""The command `sbs-deploy`: run directory → ONNX, engine, numbers, report."""

import sys
from collections.abc import Callable, Sequence

import tyro

from sbs_deploy.commands.base import PROG, Output
from sbs_deploy.commands.build import Build, Export
from sbs_deploy.commands.bundle import Bundle
from sbs_deploy.commands.doctor import Doctor
from sbs_deploy.commands.evaluate import Evaluate
from sbs_deploy.commands.lint import Lint
from sbs_deploy.commands.measure import Bench
from sbs_deploy.commands.predict import Predict
from sbs_deploy.commands.profile_device import ProfileDevice
from sbs_deploy.commands.report import Report
from sbs_deploy.commands.validate import Validate
from sbs_train.contract import console

COMMANDS: dict[str, Callable[..., Output]] = {
    "build": Build,
    "export": Export,
    "validate": Validate,
    "bench": Bench,
    "evaluate": Evaluate,
    "predict": Predict,
    "report": Report,
    "bundle": Bundle,
    "doctor": Doctor,
    "lint": Lint,
    "profile-device": ProfileDevice,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run one command; returns the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)

    def parse() -> Output:
        command: Output = console.parse_arguments(
            PROG,
            lambda: tyro.extras.subcommand_cli_from_dict(
                COMMANDS,
                prog=PROG,
                description="From a training run to a measured engine.",
                args=given,
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
            ),
        )
        return command

    return console.run_parsed(PROG, parse)


if __name__ == "__main__":
    raise SystemExit(main())
