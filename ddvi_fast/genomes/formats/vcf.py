"""Reader of VCF and BCF files (plain, gzip or bgzip) by htslib. Genotypes count the alternate allele.

- A call without alleles is missing; so is half a call (one allele of two), and these are counted. A record without genotypes is missing.
- A haploid call counts twice, as in PLINK: the chromosome of a male, or of an inbred line, is homozygous.
- A site with several alternate alleles is dropped, or split: each of its alleles becomes a variant, and all others count as "other".
  Where all but one are ``*`` or ``<NON_REF>``, that one is a variant, and calls of the others are missing.
- Records without an alternate allele, and symbolic alleles (``<DEL>``, ``*``, breakends), are left out.
- A call of an allele that the record does not have, and a second header inside the file, are refused.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NoReturn, cast

import numpy as np

from ddvi_fast import _checks
from ddvi_fast.genomes.formats import htslib, sources
from ddvi_fast.genomes.formats.htslib import DROPPED, FILTERED, HALF, OTHERS, SPLIT, SYMBOLIC, UNVARIED, WITHOUT_CALLS
from ddvi_fast.genomes.formats.sources import Block, Source
from ddvi_fast.genomes.tables import SampleTable, VariantTable, require_file

__all__ = ["DROPPED", "FILTERED", "HALF", "OTHERS", "SPLIT", "SYMBOLIC", "UNVARIED", "WITHOUT_CALLS", "open_file"]

_BGZF_HEAD, _BGZF_END = b"\x1f\x8b\x08\x04", bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
_BOOT = "import json, runpy, sys; sys.path[:] = json.loads(sys.argv.pop(1)); runpy.run_path(sys.argv.pop(1), run_name='__main__')"
_COMPLAINT = re.compile(r"\[E::\w+\] *(.*)")  # of htslib
_DUPLICATE = re.compile(r"Duplicated sample name '(.*)'")


def open_file(path: Path, *, multiallelic: str = "drop", passing_only: bool = False) -> Source:
    """Open a VCF or BCF file.

    Raises:
        InputError: The file is missing, truncated, not a VCF, or without genotypes.
    """
    require_file(path)
    _check_end(path)
    _checks.library("cyvcf2", "genomes")
    reader = _Reader(path, multiallelic, passing_only)
    names = json.loads(reader.message(b"S"))
    _checks.require(len(names) > 0, str(path), "a VCF with genotypes", "one without samples")
    notes: Counter[str] = Counter()
    return Source(path, SampleTable.from_names(names, path), reader.blocks(len(names), notes), notes)


def _check_end(path: Path) -> None:
    """Refuse a bgzip file without its empty last block: it is truncated, of which htslib only warns."""
    with path.open("rb") as file:
        head = file.read(16)
        if not (head.startswith(_BGZF_HEAD) and head[12:14] == b"BC"):
            return
        file.seek(-min(path.stat().st_size, len(_BGZF_END)), 2)
        _checks.require(file.read() == _BGZF_END, str(path), "a whole bgzip file", "one that is truncated")


class _Reader:
    """A process that reads a file, which ends with this object (see `formats.htslib`)."""

    def __init__(self, path: Path, multiallelic: str, passing_only: bool) -> None:
        self._path, self._complaints = path, tempfile.TemporaryFile()  # noqa: SIM115 - closed with this object
        command = [sys.executable, "-c", _BOOT, json.dumps(sys.path), htslib.__file__, str(path), multiallelic, str(passing_only)]
        command.append(str(sources.BLOCK_CODES // 4))  # a call has two alleles of two bytes each
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._complaints)

    def __del__(self) -> None:
        if (process := getattr(self, "_process", None)) is not None:
            process.kill()
            process.communicate()
            self._complaints.close()

    def message(self, *kinds: bytes) -> bytes:
        """Content of the next message, which must be one of `kinds`."""
        return self._next(*kinds)[1]

    def blocks(self, num_samples: int, notes: Counter[str]) -> Iterator[Block]:
        while True:
            kind, content = self._next(b"V", b"N")
            if kind == b"N":
                break
            codes = np.frombuffer(self.message(b"C"), np.uint8).reshape(-1, num_samples)
            yield Block(VariantTable.from_rows([tuple(row) for row in json.loads(content)]), codes)
        notes.update({reason: count for reason, count in json.loads(content).items() if count})
        self._process.wait()
        if complaint := self._complaint():
            _checks.fail(str(self._path), "records that can be read", complaint)

    def _next(self, *kinds: bytes) -> tuple[bytes, bytes]:
        stream = cast(IO[bytes], self._process.stdout)
        head = stream.read(9)
        content = stream.read(int.from_bytes(head[1:], "little"))
        kind = head[:1]
        if kind == b"E":
            self._refuse(*json.loads(content))
        if kind not in kinds or len(head) < 9:
            self._crashed()
        return kind, content

    def _refuse(self, where: str, expected: str, got: str, hint: str) -> NoReturn:
        self._process.wait()
        complaint = self._complaint()
        if found := _DUPLICATE.search(complaint):
            _checks.fail(str(self._path), "sample names that differ", f"{found[1]} more than once")
        if "GT data" in complaint:
            hint = "VCF 4.4 may write the phase of the first allele, |0|1, which htslib does not read: write 0|1"
        _checks.fail(f"{self._path}{where}", expected, f"{got}: {complaint}" if complaint else got, hint)

    def _crashed(self) -> NoReturn:
        code = self._process.wait()
        how = signal.Signals(-code).name if code < 0 else f"status {code}"
        complaint = self._complaint(any_line=True) or "no reason given"
        _checks.fail(str(self._path), "records that htslib can read", f"one on which it ended ({how}): {complaint}", "bcftools view shows where")

    def _complaint(self, any_line: bool = False) -> str:
        """The last error that htslib wrote, or where there is none the last line of all."""
        self._complaints.seek(0)
        text = self._complaints.read().decode(errors="replace")
        found = _COMPLAINT.findall(text) or (text.strip().splitlines() if any_line else [])
        return found[-1].strip() if found else ""
