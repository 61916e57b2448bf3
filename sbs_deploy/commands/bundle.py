"""The command `sbs-deploy bundle`."""

from dataclasses import dataclass
from pathlib import Path

from sbs_deploy.commands.base import OnRun
from sbs_train.contract import console


@dataclass(frozen=True, kw_only=True)
class Bundle(OnRun):
    """Write one file for a device, where build, validate, bench and report use it without torch."""

    out: Path | None = None
    """The file, NAME.sbs.zip; in the current directory and named after the run unless given."""
    images: int = 1000
    """Golden images to take along, the first ones."""

    def execute(self) -> int:
        """Write the bundle and print how to use it."""
        from sbs_deploy import api
        from sbs_train.contract import rundir

        bundle = api.bundle(self.run, self.out, images=self.images, trust=self.trust, progress=console.print_progress)
        out = bundle.path
        size = out.stat().st_size
        console.print_progress(f"bundle: {len(bundle.index.members)} files, {size / 1e6:.1f} MB; on the device:")
        console.print_progress(f"bundle: pip install 'sbs-vision[cpu]' && sbs-deploy build {out.name} --engine int8")
        print(out)
        if self.json:
            members = {name: member.model_dump() for name, member in bundle.index.members.items()}
            console.print_json(
                {
                    "bundle": str(out),
                    "sha256": rundir.sha256_of(out),
                    "bytes": size,
                    "images": bundle.images,
                    "members": members,
                }
            )
        return 0
