"""The long version: `python -m tests.fuzz --minutes 30 [--table FILE]`."""

import argparse
import subprocess
import tempfile
from pathlib import Path

from tests.fuzz.harness import MEMORY, ROOT, SECONDS, case_of, complaint, fuzz
from tests.fuzz.readers import READERS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="in all, shared by the readers (default: 30)")
    parser.add_argument("--jobs", type=int, default=2, help="children at a time (default: 2)")
    parser.add_argument("--reader", choices=READERS, action="append", help="this one only; may be repeated")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first case (default: 0)")
    parser.add_argument("--case", type=int, metavar="N", help="do one case of --reader in this process")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"), help="folder for what failed")
    parser.add_argument("--table", type=Path, help="write the inputs by reader to this Markdown file")
    arguments = parser.parse_args()
    names = arguments.reader or list(READERS)
    if arguments.case is not None:
        with tempfile.TemporaryDirectory() as folder:
            reader = READERS[names[0]]
            reader.prepare(Path(folder))
            data = case_of(reader, arguments.case)
            arguments.keep.mkdir(exist_ok=True)
            (arguments.keep / f"{names[0]}-{arguments.case}.bin").write_bytes(data)
            print(complaint(reader, Path(folder), data) or "fine")
        return 0
    results = fuzz(names, 10**9, 60 * arguments.minutes, arguments.jobs, arguments.first, arguments.keep, print)
    failures = [failure for _, _, found in results.values() for failure in found]
    for failure in failures[:50]:
        print(f"{failure['reader']} --case {failure['case']}: {failure['what'].strip().splitlines()[-1]}")
    text = table(results)
    print(text)
    if arguments.table:
        arguments.table.write_text(text)
    return 1 if failures else 0


def table(results) -> str:
    """The inputs by reader, Markdown."""
    asked = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    rows = [f"| {name} | {n:,} | {s:,.0f} | {len(failures)} |" for name, (n, s, failures) in sorted(results.items())]
    total = sum(n for n, _, _ in results.values())
    failed = sum(len(failures) for _, _, failures in results.values())
    return "\n".join(
        [
            "# Damaged files\n",
            f"`python -m tests.fuzz`, commit {commit}: {total:,} damaged files, {failed} failures.",
            "A failure is anything but a file that is read or a documented error of one line: another exception, more",
            f"than {SECONDS:.0f} s, more than {MEMORY / 2**30:.0f} GiB of memory, or the end of the process.\n",
            "| reader | inputs | seconds | failures |\n| --- | ---: | ---: | ---: |",
            *rows,
            f"| all | {total:,} | {sum(s for _, s, _ in results.values()):,.0f} | {failed} |\n",
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
