"""The command `sbs-deploy report`, on one run or on several."""

from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from sbs_deploy.commands.base import Output
from sbs_deploy.opening import open_run
from sbs_train.contract import console, rundir
from sbs_train.contract.errors import SbsError


@dataclass(frozen=True, kw_only=True)
class Report(Output):
    """Write report.html and print the summary table; of several runs, their Pareto fronts."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = (Path("runs/latest"),)
    """Run directories, or files that `sbs-deploy bundle` made of them."""
    out: Path | None = None
    """The page, or - for standard output; deploy/report.html of the run unless given, which several runs need."""
    markdown: Path | None = None
    """Write the summary as Markdown as well, for a pull request; - prints it instead of the table."""

    def execute(self) -> int:
        """Read the runs, write the page and print the table."""
        if not self.runs:
            raise SbsError("name one run or more, such as runs/latest")
        if self.out is not None and self.markdown is not None and all(map(rundir.is_stdout, (self.out, self.markdown))):
            raise SbsError("--out and --markdown cannot both go to standard output; name a file for one of them")
        return self._report_one() if len(self.runs) == 1 else self._report_several(self.out)

    def _report_one(self) -> int:
        from sbs_deploy.report.markdown import markdown_from_ledger
        from sbs_deploy.report.page import write_page
        from sbs_deploy.report.table import STAGES, make_table, print_table, stage_cells

        run = open_run(self.runs[0], console.print_progress)
        path = self.out or run.report
        ledger = write_page(run, self.out, console.print_progress)
        if not self._write_markdown(markdown_from_ledger(ledger)) and not rundir.is_stdout(path):
            print_table(make_table(STAGES, [stage_cells(row) for row in ledger.stages]))
            for line in ledger.bench.verdicts:
                print(line)
            for one in ledger.timed[:1]:
                print(f"would help {one.title} most: {one.advice}")
            print(f"report: {path}")
        for item in ledger.missing:
            console.print_progress(f"not in the report: {item}")
        if self.json:
            stages, timed = ([asdict(one) for one in some] for some in (ledger.stages, ledger.timed))
            console.print_json({"report": str(path), "stages": stages, "layers": timed})
        return 0

    def _report_several(self, path: Path | None) -> int:
        from sbs_deploy.report.comparison import compare
        from sbs_deploy.report.ledger import make_ledger
        from sbs_deploy.report.markdown import markdown_from_runs
        from sbs_deploy.report.page import page_from_runs
        from sbs_deploy.report.table import RUNS, make_table, print_table, run_cells

        if path is None:
            raise SbsError("several runs share one page: name it with --out, such as --out runs.html")
        comparison = compare([make_ledger(open_run(run, console.print_progress)) for run in self.runs])
        rundir.write_text(path, page_from_runs(comparison))
        if not self._write_markdown(markdown_from_runs(comparison)) and not rundir.is_stdout(path):
            print_table(make_table(RUNS, [run_cells(point) for point in comparison.points]))
            for note in comparison.notes:
                print(note)
            print(f"report: {path}")
        if self.json:
            console.print_json({"report": str(path), **asdict(comparison)})
        return 0

    def _write_markdown(self, text: str) -> bool:
        """Write the Markdown; returns whether it went to stdout, where nothing else may follow."""
        if self.markdown is not None and rundir.is_stdout(self.markdown):
            print(text, end="")
            return True
        if self.markdown is not None:
            rundir.write_text(self.markdown, text)
        return False
