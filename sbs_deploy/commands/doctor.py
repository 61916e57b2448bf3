"""The command `sbs-deploy doctor`."""

from dataclasses import dataclass
from typing import Any

from sbs_deploy.commands.base import Output
from sbs_train.contract import console

SIGNS = {True: "fits", False: "NOT ", None: "?   "}
"""Sign in front of each comparison of versions."""


@dataclass(frozen=True, kw_only=True)
class Doctor(Output):
    """What this machine can build and run, and what is missing."""

    def execute(self) -> int:
        """Examine the machine; exit 1 if nothing can be built."""
        from sbs_deploy.doctor import examine

        found = examine()
        _print_findings(found)
        if self.json:
            console.print_json(found)
        return 0 if found["ready"] else 1


def _print_findings(found: dict[str, Any]) -> None:
    machine = found["machine"]
    print(
        f"machine  {machine['cpu']}, {machine['cores']} cores, {' '.join(machine['vector_flags']) or 'no vector flags'}"
    )
    print(f"GPU      {found['gpu'] or 'none found'}")
    for package in found["packages"]:
        state = package["version"] or f"missing ({package['purpose']}): {package['install']}"
        print(f"{package['module']:<14} {state}")
    for finding in found["versions"]:
        print(f"{SIGNS[finding['fits']]} {finding['what']} {finding['found']}: {finding['why']}")
        if finding["remedy"]:
            print(f"{'':<5}{finding['remedy']}")
    for backend in found["backends"]:
        can = [word for word, able in (("build", backend["can_build"]), ("run", backend["can_run"])) if able]
        print(f"--backend {backend['backend']:<13} {'can ' + ' and '.join(can) if can else 'not usable'}")
        for item in backend["missing"]:
            print(f"{'':<23}{item}")
    print(f"--backend auto would take {found['auto']['backend']}: {found['auto']['why']}")
