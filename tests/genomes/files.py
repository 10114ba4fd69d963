"""Writers of the same genotypes in every file format."""

from __future__ import annotations

import gzip
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

HEADER = '##fileformat=VCFv4.2\n##FILTER=<ID=low,Description="low">\n##contig=<ID=1>\n##contig=<ID=2>\n##contig=<ID=22>\n##contig=<ID=X>\n'
GT = '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">\n'
COLUMNS = ["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO"]
CALLS = ("0/0", "0/1", "1/1", "./.")


@dataclass
class Genotypes:
    """Codes [N, M] with what files say of samples and variants: rows (chromosome, position, name, counted, other)."""

    codes: np.ndarray
    samples: list[str] = field(default_factory=list)
    variants: list[tuple] = field(default_factory=list)

    def __post_init__(self):
        self.samples = self.samples or [f"P{number:03d}" for number in range(len(self.codes))]
        chromosomes = ("1", "2", "22", "X")
        count = self.codes.shape[1]
        self.variants = self.variants or [(chromosomes[4 * j // count], 100 + 7 * j, f"rs{j}", "ACGT"[j % 4], "CGTA"[j % 4]) for j in range(count)]


def simulated(samples=37, variants=101, missing=0.05, seed=0) -> Genotypes:
    """Two populations whose frequencies differ, with missing calls."""
    generator = np.random.default_rng(seed)
    base = generator.uniform(0.1, 0.9, variants)
    shift = np.where(np.arange(samples)[:, None] % 2, 0.25, -0.25) * generator.choice([-1, 1], variants)
    codes = generator.binomial(2, np.clip(base + shift, 0.05, 0.95)).astype(np.uint8)
    codes[generator.random(codes.shape) < missing] = 3
    return Genotypes(codes)


def _write_lines(path: Path, lines: list[str], end: str) -> None:
    path.write_bytes("".join(line + end for line in lines).encode())


def write_plink(data: Genotypes, base: Path, end: str = "\n") -> Path:
    """By bed-reader, then the tables anew, so that their line ends can be chosen."""
    from bed_reader import to_bed

    values = np.where(data.codes == 3, -127, data.codes.astype(np.int8)).astype(np.int8)
    to_bed(base.with_suffix(".bed"), values, properties={"iid": data.samples, "sid": [row[2] for row in data.variants]}, num_threads=1)
    _write_lines(base.with_suffix(".bim"), [f"{c}\t{n}\t0\t{p}\t{a}\t{o}" for c, p, n, a, o in data.variants], end)
    _write_lines(base.with_suffix(".fam"), [f"family {name} 0 0 0 -9" for name in data.samples], end)
    return base.with_suffix(".bed")


def write_eigenstrat(data: Genotypes, base: Path, end: str = "\n", packed: bool = False) -> Path:
    geno = base.with_suffix(".geno")
    if packed:
        width = max(48, -(-len(data.samples) // 4))
        codes = np.zeros((len(data.variants), 4 * width), np.uint8)
        codes[:, : len(data.samples)] = data.codes.T
        records = codes.reshape(-1, width, 4) @ np.array([64, 16, 4, 1], np.uint8)  # four codes a byte, the first in the highest bits
        geno.write_bytes(f"GENO {len(data.samples):7d} {len(data.variants):7d} 0 0".encode().ljust(width, b"\0") + records.tobytes())
    else:
        _write_lines(geno, ["".join("0129"[code] for code in column) for column in data.codes.T], end)
    _write_lines(base.with_suffix(".snp"), [f"{n:>20} {'23' if c == 'X' else c} 0.0 {p} {a} {o}" for c, p, n, a, o in data.variants], end)
    _write_lines(base.with_suffix(".ind"), [f"{name:>20} U Somewhere" for name in data.samples], end)
    return geno


def write_transposed(data: Genotypes, base: Path) -> Path:
    """The transposed packed file of EIGENSOFT, with the hashes of the names (see `test_eigenstrat`), and its tables."""
    geno = write_eigenstrat(data, base)
    codes = np.zeros((len(data.samples), -(-len(data.variants) // 4) * 4), np.uint8)
    codes[:, : len(data.variants)] = data.codes
    records = codes.reshape(len(data.samples), -1, 4) @ np.array([64, 16, 4, 1], np.uint8)
    hashes = f"{java_like(data.samples):x} {java_like([row[2] for row in data.variants]):x}"
    geno.write_bytes(f"TGENO {len(data.samples):6d} {len(data.variants):7d} {hashes}".encode().ljust(48, b"\0") + records.tobytes())
    return geno


def java_like(names: list[str]) -> int:
    """EIGENSOFT's hash of ASCII names, by powers."""
    total = 0
    for name in names:
        total = (17 * total % 2**32) ^ (sum(ord(each) * 23**power for power, each in enumerate(reversed(name))) % 2**32)
    return total


def vcf_text(samples: list[str], records: list[list[str]], header: str = HEADER + GT, end: str = "\n") -> bytes:
    """Records are columns without FORMAT: the eight fixed ones, then the calls."""
    columns = COLUMNS + (["FORMAT", *samples] if samples else [])
    lines = ["\t".join(columns)] + ["\t".join([*row[:8], *(["GT", *row[8:]] if samples else [])]) for row in records]
    return (header + "\n".join(lines) + "\n").replace("\n", end).encode()


def vcf_records(data: Genotypes) -> list[list[str]]:
    rows = zip(data.variants, data.codes.T, strict=True)
    return [[c, str(p), n, o, a, ".", "PASS", ".", *(CALLS[code] for code in column)] for (c, p, n, a, o), column in rows]


def write_vcf(data: Genotypes, path: Path, end: str = "\n") -> Path:
    """Plain, gzip (.vcf.gz) or bgzip (.vcf.bgz), by the name's ending."""
    text = vcf_text(data.samples, vcf_records(data), end=end)
    path.write_bytes({".gz": gzip.compress, ".bgz": bgzip}.get(path.suffix, bytes)(text))
    return path


def bgzip(content: bytes, block: int = 5000) -> bytes:
    """Blocked gzip as htslib has it: members with the extra field BC, an empty one at the end."""
    import struct
    import zlib

    out = b""
    for start in [*range(0, len(content), block), len(content)]:
        piece = content[start : start + block]
        packer = zlib.compressobj(6, zlib.DEFLATED, -15)
        data = packer.compress(piece) + packer.flush()
        out += b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x06\0BC\x02\0" + struct.pack("<H", len(data) + 25) + data
        out += struct.pack("<II", zlib.crc32(piece), len(piece))
    return out


def write_bcf(data: Genotypes, path: Path) -> Path:
    """By htslib, from the text."""
    from cyvcf2 import VCF, Writer

    text = write_vcf(data, path.with_suffix(".vcf"))
    reader = VCF(str(text))
    writer = Writer(str(path), reader, mode="wb")
    for record in reader:
        writer.write_record(record)
    writer.close()
    text.unlink()
    return path


WRITERS = {
    "plink": lambda data, folder: write_plink(data, folder / "p"),
    "plink windows": lambda data, folder: write_plink(data, folder / "pw", "\r\n"),
    "vcf": lambda data, folder: write_vcf(data, folder / "v.vcf"),
    "vcf windows": lambda data, folder: write_vcf(data, folder / "vw.vcf", "\r\n"),
    "vcf gzip": lambda data, folder: write_vcf(data, folder / "v.vcf.gz"),
    "vcf bgzip": lambda data, folder: write_vcf(data, folder / "v.vcf.bgz"),
    "bcf": lambda data, folder: write_bcf(data, folder / "v.bcf"),
    "eigenstrat": lambda data, folder: write_eigenstrat(data, folder / "e"),
    "eigenstrat windows": lambda data, folder: write_eigenstrat(data, folder / "ew", "\r\n"),
    "eigenstrat packed": lambda data, folder: write_eigenstrat(data, folder / "ep", packed=True),
    "eigenstrat transposed": lambda data, folder: write_transposed(data, folder / "et"),
}
